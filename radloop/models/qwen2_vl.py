"""Qwen2-VL."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from radloop.models._qwen_vl import QwenVL


class Qwen2VL(QwenVL):
    """Stock `Qwen2VLForConditionalGeneration`, such as Qwen/Qwen2-VL-7B-Instruct."""

    model_type = "qwen2_vl"
    processor_class = Qwen2VLProcessor

    def tiny_model(
        self, vision: dict[str, Any], text: dict[str, Any], options: dict[str, Any]
    ) -> tuple[Any, Any]:
        # This one calls the width of the vision layers embed_dim, that of the language model hidden_size.
        vision = vision | {"embed_dim": 16, "hidden_size": text["hidden_size"], "mlp_ratio": 2}
        config = Qwen2VLConfig(vision_config=vision, text_config=text, **options)
        return Qwen2VLForConditionalGeneration, config
