"""LLaVA 1.5 and whatever has its shape: a ViT, a two-layer projector, and a Llama-like language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from radloop.errors import ModelError
from radloop.models.family import Family, Features, Inputs, caught_inputs
from radloop.models.packing import Batch
from radloop.models.tiny_checkpoint import save_random, tiny_tokenizer, token_ids

# As llava-hf/llava-1.5-7b-hf ships it.
_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}"
    "{% endif %}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_LAYER = r"model\.language_model\.layers\.\d+\."


class Llava(Family):
    """Stock `LlavaForConditionalGeneration`: every image becomes the same number of tokens.

    Features are kept as the projector takes them: a quarter of what it makes of them, and it can be trained.
    """

    model_type = "llava"
    targets: ClassVar[Mapping[str, str]] = {
        "attention": _LAYER + r"self_attn\.(q|k|v|o)_proj",
        "mlp": _LAYER + r"mlp\.(gate|up|down)_proj",
        "projector": r"model\.multi_modal_projector\.linear_[12]",
        "vision": r"model\.vision_tower\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
    }
    upstream = frozenset({"vision"})
    kept_exact = ("lm_head", "vision_tower", "multi_modal_projector")

    def require_config(self, config: Mapping[str, Any]) -> None:
        vision = config.get("vision_config")
        if isinstance(vision, dict) and vision.get("model_type") == "pixtral":
            raise ModelError(
                "base model: its vision tower is a Pixtral, which makes images of any size and is not "
                "supported; take a base with a CLIP or SigLIP tower, or another model.family"
            )

    def encode(self, model: Any, inputs: Sequence[Inputs]) -> list[Features]:
        pixels = torch.cat([item["pixel_values"] for item in inputs])
        with caught_inputs(model.model.multi_modal_projector) as caught:
            model.model.get_image_features(pixel_values=pixels, return_dict=True)
        return [{"image": image} for image in caught[0]]

    def image_arguments(
        self, model: Any, features: Sequence[Features], new: Batch, seen: Batch
    ) -> dict[str, Any]:
        projected = model.model.multi_modal_projector(torch.stack([item["image"] for item in features]))
        pooled: Any = {"pooler_output": list(projected)}
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(**pooled)}}

    def tiny(self, folder: Path, seed: int = 0) -> None:
        tokenizer = tiny_tokenizer(named={"image_token": "<image>"})
        vision = CLIPVisionConfig(
            image_size=48,
            patch_size=12,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
        )
        text = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=8192,
            initializer_range=0.3,  # so that answers depend on image and question
            **token_ids(tokenizer),
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.vocab["<image>"],
            tie_word_embeddings=False,
        )
        image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}
        )
        processor = LlavaProcessor(
            image_processor,
            tokenizer,
            patch_size=12,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,  # the class token, which "default" then drops
            chat_template=_TEMPLATE,
        )
        save_random(LlavaForConditionalGeneration, config, processor, folder, seed)
