"""Qwen3-VL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from radloop.models._qwen_vl import QwenVL
from radloop.models.family import Features
from radloop.models.packing import Batch

# As Qwen/Qwen3-VL-4B-Instruct ships it, less tools and videos.
_TEMPLATE = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- for content in message.content %}
            {%- if content.type == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- else %}
                {{- content.text }}
            {%- endif %}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- generation %}
        {%- for content in message.content %}
            {{- content.text }}
        {%- endfor %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


class Qwen3VL(QwenVL):
    """Stock `Qwen3VLForConditionalGeneration`, such as Qwen/Qwen3-VL-8B-Instruct.

    Its first language layers get, at the image tokens, features of earlier vision layers added (DeepStack):
    each by a merger of its own, and kept like what the last merger gives.
    """

    model_type = "qwen3_vl"
    processor_class = Qwen3VLProcessor
    template = _TEMPLATE

    def features(self, encoded: Any) -> list[Features]:
        """See `QwenVL.features`; those for the first layers have shape (layers, tokens, channels)."""
        layers = zip(*encoded.deepstack_features, strict=True)
        return [
            {"image": image, "deepstack": torch.stack(of_image)}
            for image, of_image in zip(encoded.pooler_output, layers, strict=True)
        ]

    def image_arguments(
        self, model: Any, features: Sequence[Features], new: Batch, seen: Batch
    ) -> dict[str, Any]:
        encoded: Any = {
            "pooler_output": [item["image"] for item in features],
            "deepstack_features": list(zip(*(item["deepstack"] for item in features), strict=True)),
        }
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithDeepstackFeatures(**encoded)}}

    def tiny_model(
        self, vision: dict[str, Any], text: dict[str, Any], options: dict[str, Any]
    ) -> tuple[Any, Any]:
        vision = vision | {
            "hidden_size": 16,
            "intermediate_size": 32,
            "out_hidden_size": text["hidden_size"],
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 1],
        }
        text = text | {"head_dim": 8}
        text["rope_parameters"] = text["rope_parameters"] | {"mrope_interleaved": True}
        config = Qwen3VLConfig(vision_config=vision, text_config=text, **options)
        return Qwen3VLForConditionalGeneration, config
