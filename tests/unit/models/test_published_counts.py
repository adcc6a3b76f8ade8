"""The configs of system 4 train exactly as many parameters as were published, on the published shapes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from radloop.config import RunConfig
from radloop.models import get_family
from radloop.models.loading import BaseReference, Loaded
from radloop.models.prompts import Prompts
from radloop.training.adapter import with_lora

SYSTEMS = Path(__file__).parents[3] / "configs" / "systems"
EIGHT_B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def llama_vision() -> Any:
    text = MllamaTextConfig(
        **EIGHT_B,
        vocab_size=128256,
        num_hidden_layers=40,
        cross_attention_layers=[3, 8, 13, 18, 23, 28, 33, 38],
        max_position_embeddings=131072,
        pad_token_id=128004,
    )
    vision = MllamaVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        attention_heads=16,
        num_hidden_layers=32,
        num_global_layers=8,
        intermediate_layers_indices=[3, 7, 15, 23, 30],
        vision_output_dim=7680,
        image_size=560,
        patch_size=14,
    )
    return MllamaForConditionalGeneration(MllamaConfig(vision_config=vision, text_config=text))


def llava_next() -> Any:
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = MistralConfig(**EIGHT_B, vocab_size=32064, num_hidden_layers=32)
    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(vision_config=vision, text_config=text, tie_word_embeddings=False)
    )


def qwen2_vl() -> Any:
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4}
    text = {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    }
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=True)
    )


@pytest.mark.parametrize(
    ("name", "make", "total", "trained"),
    [
        ("rocov2_llama_vision", llama_vision, 10.67e9, 52_428_800),  # published: 52.4 M of 11 B
        ("rocov2_baseline_llava_next", llava_next, 7.57e9, 41_943_040),  # 41.9 M
        ("rocov2_baseline_qwen2_vl", qwen2_vl, 2.21e9, 18_464_768),  # 18.4 M
    ],
)
def test_the_published_number_of_parameters_is_trained(
    name: str, make: Any, total: float, trained: int
) -> None:
    config = RunConfig.read(SYSTEMS / f"{name}.yaml")
    family = get_family(config.model.family)
    with torch.device("meta"):
        model = make()
        assert model.num_parameters() == pytest.approx(total, rel=2e-3)
        reference = BaseReference(config.model.base, None, "")
        prompts = Prompts(family, None, model, (), 0)
        model = with_lora(Loaded(model, None, family, prompts, reference), config.finetune).model
    assert model.get_nb_trainable_parameters()[0] == trained
    layers = [key for key, value in model.named_parameters() if value.requires_grad]
    assert all("language_model.layers" in key for key in layers)
