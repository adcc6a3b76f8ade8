"""Idefics3 and the first SmolVLM: a SigLIP tower over crops of the image, pixel shuffle, and a Llama."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

from radloop.errors import ConfigError
from radloop.models.family import Family, Features, Inputs
from radloop.models.tiny_checkpoint import save_random, tiny_tokenizer, token_ids

_CONTROLS: dict[str, Any] = {
    "pad_token": "<|reserved_special_token_0|>",
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|end_of_text|>",
}
_TURN_END = "<end_of_utterance>"
_LAYER = r"model\.text_model\.layers\.\d+\."


class Idefics3(Family):
    """Stock `Idefics3ForConditionalGeneration`: HuggingFaceM4/Idefics3-8B-Llama3, SmolVLM-256M to 2.2B.

    An image is cut in rows and columns of crops and comes once more as a whole, so the number of its
    tokens depends on its size. Features are kept as the language model takes them: before the connector's
    projection they are an eighth wider in Idefics3, and 5 to 21 times as wide in SmolVLM.
    """

    model_type = "idefics3"
    targets: ClassVar[Mapping[str, str]] = {
        "attention": _LAYER + r"self_attn\.(q|k|v|o)_proj",
        "mlp": _LAYER + r"mlp\.(gate|up|down)_proj",
        "projector": r"model\.connector\.modality_projection\.proj",
        "vision": r"model\.vision_model\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
    }
    kept_exact = ("lm_head", "vision_model", "connector")
    inputs = ("pixel_values", "pixel_attention_mask")

    def limit_pixels(self, processor: Any, max_pixels: int) -> None:
        """See `Family.limit_pixels`; the whole image, which is one more crop, does not count.

        Raises:
            ConfigError: `max_pixels` is less than one crop.
        """
        images = processor.image_processor
        crop = images.max_image_size["longest_edge"]
        if max_pixels < crop**2:
            raise ConfigError(f"max_pixels: got {max_pixels}; this model needs at least {crop**2}")
        longest = math.isqrt(max_pixels) // crop * crop
        images.size = type(images.size)(longest_edge=min(longest, images.size["longest_edge"]))

    def end_ids(self, processor: Any, model: Any) -> tuple[int, ...]:
        """Return the token that ends a turn in the template before what the checkpoint names.

        That of Idefics3-8B-Llama3 names Llama 3's only, and stock `generate` runs on after an answer.
        """
        turn_end = processor.tokenizer.convert_tokens_to_ids(processor.end_of_utterance_token)
        named = super().end_ids(processor, model)
        return (turn_end, *(end for end in named if end != turn_end))

    def encode(self, model: Any, inputs: Sequence[Inputs]) -> list[Features]:
        """See `Family.encode`; one image is a batch of crops already."""
        return [{"image": model.model.get_image_features(**item).pooler_output[0]} for item in inputs]

    def tiny(self, folder: Path, seed: int = 0) -> None:
        tokenizer = tiny_tokenizer(
            special=(*_CONTROLS.values(), "<fake_token_around_image>", "<image>", _TURN_END),
            **_CONTROLS,
        )
        config = Idefics3Config(
            text_config=tiny_llama(tokenizer),
            vision_config=Idefics3VisionConfig(**TINY_TOWER),
            image_token_id=tokenizer.vocab["<image>"],
            scale_factor=2,
            tie_word_embeddings=False,
        )
        processor = Idefics3Processor(
            Idefics3ImageProcessorPil(**TINY_CROPS),
            tokenizer,
            image_seq_len=9,
            chat_template=template("<|begin_of_text|>"),
        )
        ends = (_TURN_END, _CONTROLS["eos_token"])
        save_random(Idefics3ForConditionalGeneration, config, processor, folder, seed, ends)


TINY_TOWER: dict[str, Any] = {
    "image_size": 48,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TINY_CROPS: dict[str, Any] = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 48}}


def tiny_llama(tokenizer: Any) -> LlamaConfig:
    """Return the config of a language model with that tokenizer."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        initializer_range=0.3,  # so that answers depend on image and question
        **token_ids(tokenizer),
    )


def template(begin: str) -> str:
    """Return the chat template as the published checkpoints ship it, with their first token."""
    return (
        begin + "{% for message in messages %}{{message['role'] | capitalize}}"
        "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
        "{% if message['role'] == 'assistant' %}{% generation %}"
        "{% for line in message['content'] %}{{line['text']}}{% endfor %}<end_of_utterance>"
        "{% endgeneration %}\n"
        "{% else %}{% for line in message['content'] %}"
        "{% if line['type'] == 'text' %}{{line['text']}}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}"
        "{% endfor %}<end_of_utterance>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    )
