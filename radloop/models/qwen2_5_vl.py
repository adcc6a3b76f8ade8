"""Qwen2.5-VL."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from radloop.models._qwen_vl import QwenVL


class Qwen25VL(QwenVL):
    """Stock `Qwen2_5_VLForConditionalGeneration`, such as Qwen/Qwen2.5-VL-7B-Instruct, and Lingshu.

    Most of its vision layers attend within windows, each image within its own: what is kept of an image does
    not depend on which others are encoded with it.
    """

    model_type = "qwen2_5_vl"
    processor_class = Qwen2_5_VLProcessor

    def tiny_model(
        self, vision: dict[str, Any], text: dict[str, Any], options: dict[str, Any]
    ) -> tuple[Any, Any]:
        vision = vision | {
            "hidden_size": 16,
            "intermediate_size": 32,
            "out_hidden_size": text["hidden_size"],
            "window_size": 24,  # 2 x 2 image tokens
            "fullatt_block_indexes": [1],
        }
        config = Qwen2_5_VLConfig(vision_config=vision, text_config=text, **options)
        return Qwen2_5_VLForConditionalGeneration, config
