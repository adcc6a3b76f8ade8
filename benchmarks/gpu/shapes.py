"""The shapes of three published models, and how questions lie in their sequences.

Nothing is downloaded: configs are written out, prompts are random tokens in the lengths of the chat
templates, images are noise.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from benchmarks.gpu.vqa_rad import Pair
from radloop.models.family import Family, Inputs, Placement
from radloop.models.llava import Llava
from radloop.models.mllama import Mllama
from radloop.models.packing import Group, Head, Row, Tokens, fill_rows, groups
from radloop.models.qwen2_5_vl import Qwen25VL

_PLAIN_WORDS = range(3, 250)  # ids that mean nothing to any of the models
_IMAGE = 300  # the image token of tiny models


@dataclass(frozen=True)
class Vision:
    """What one image costs.

    Attributes:
        positions: In the vision tower's layers.
        pairs: Position looks at position, over all its layers.
        merged: Positions that the projector or the merger's linear layers see.
        states: That cross attention looks at; 0 without cross attention.
    """

    positions: int
    pairs: int
    merged: int
    states: int = 0


@dataclass(frozen=True)
class Shape:
    """A model, and how samples lie in its sequences.

    Attributes:
        name: Of what it has the shape.
        family: How it is run.
        model_class: In Transformers.
        config: Of the model.
        before: Tokens that the chat template writes before the image.
        image_tokens: That stand for the image in the text.
        asking: Tokens that it writes after the image, besides question and answer.
        row_tokens: A packed row takes more groups up to this length.
        plain_rows: In one pass, to begin with.
        packed_rows: Likewise; about as many tokens.
        vision: What one image costs.
        pixels: Shape of the `pixel_values` of an image.
        others: Further image tensors.
    """

    name: str
    family: Family
    model_class: Any
    config: Any
    before: int
    image_tokens: int
    asking: int
    row_tokens: int
    plain_rows: int
    packed_rows: int
    vision: Vision
    pixels: tuple[int, ...]
    others: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def inputs(self, seed: int, dtype: torch.dtype) -> Inputs:
        """Return what the processor would make of an image; of noise here."""
        generator = torch.Generator().manual_seed(seed)
        return {"pixel_values": torch.randn(self.pixels, generator=generator).to(dtype), **self.others}

    def rows(self, model: Any, images: list[list[Pair]], share_prefix: bool, seed: int = 0) -> list[Row]:
        """Lay out questions about images: all of an image behind one prefix, or each in a row of its own.

        Image ids are the numbers of the images from 0. The rows come in an order drawn by `seed`.
        """
        head = self._head(model)
        generator = random.Random(seed)  # noqa: S311
        found: list[Group] = []
        for number, pairs in enumerate(images):
            tokens = [self._tokens(head, pair, generator) for pair in pairs]
            found += groups((str(number),), tokens, share_prefix)
        rows: list[Row] = [(group,) for group in found]
        if share_prefix:
            rows = fill_rows(found, self.row_tokens)
        generator.shuffle(rows)
        return rows

    def _head(self, model: Any) -> Head:
        ids = [*range(3, 3 + self.before), *[self.config.image_token_id] * self.image_tokens]
        geometry = {name: self.others[name] for name in self.family.geometry}
        return self.family.head(model, ids, [Placement("", (self.image_tokens,), geometry)])

    def _tokens(self, head: Head, pair: Pair, generator: random.Random) -> Tokens:
        answer = pair.answer + 1  # with the token that ends it
        length = self.asking + pair.question + answer
        return Tokens(head, (*generator.choices(_PLAIN_WORDS, k=length),), answer)


def llava(tiny: bool = False) -> Shape:
    """LLaVA-1.5-7B: CLIP ViT-L/14 at 336 pixels and Vicuna-7B; llava-hf/llava-1.5-7b-hf."""
    vision: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    }
    text: dict[str, Any] = {
        "vocab_size": 32064,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }
    if tiny:
        vision |= _tiny(16, 3) | {"image_size": 48, "patch_size": 12}
        text |= _tiny(64, 3) | {"vocab_size": 320}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(**text),
        image_token_index=_IMAGE if tiny else 32000,
    )
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    return Shape(
        name="LLaVA-1.5-7B",
        family=Llava(),
        model_class=LlavaForConditionalGeneration,
        config=config,
        before=4,  # <s>USER:
        image_tokens=patches,
        asking=7,  # a line break, ASSISTANT:
        row_tokens=80 if tiny else 2048,
        plain_rows=6 if tiny else 24,
        packed_rows=2 if tiny else 8,
        # All layers are run, though the projector takes the last but one.
        vision=Vision(patches + 1, vision["num_hidden_layers"] * (patches + 1) ** 2, patches),
        pixels=(1, 3, vision["image_size"], vision["image_size"]),
    )


def qwen(tiny: bool = False) -> Shape:
    """Qwen2.5-VL-7B with images of 672 x 672 pixels, so 576 tokens; Qwen/Qwen2.5-VL-7B-Instruct."""
    side, patch, merge, window = (96, 12, 2, 4) if tiny else (672, 14, 2, 8)  # the window in patches
    vision: dict[str, Any] = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": patch,
        "spatial_merge_size": merge,
        "window_size": window * patch,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    text: dict[str, Any] = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    ids: dict[str, Any] = {
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
    }
    if tiny:
        vision |= {"depth": 3, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2}
        vision |= {"out_hidden_size": 64, "fullatt_block_indexes": [1]}
        text |= _tiny(64, 3) | {"vocab_size": 320, "num_key_value_heads": 2, "bos_token_id": 1}
        text["rope_parameters"] |= {"mrope_section": [2, 3, 3]}
        text["eos_token_id"] = 2
        ids = {name: number for number, name in enumerate(ids, start=_IMAGE)}
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=text, **ids)
    grid = side // patch
    full = len(vision["fullatt_block_indexes"])
    windowed = (grid // window) ** 2 * window**4  # pairs; the grid is whole windows
    return Shape(
        name="Qwen2.5-VL-7B",
        family=Qwen25VL(),
        model_class=Qwen2_5_VLForConditionalGeneration,
        config=config,
        before=15,  # the system's turn, <|im_start|>user, a line break, <|vision_start|>
        image_tokens=(grid // merge) ** 2,
        asking=6,  # <|vision_end|> ... <|im_end|>, line breaks, <|im_start|>assistant
        row_tokens=100 if tiny else 2048,
        plain_rows=6 if tiny else 24,
        packed_rows=2 if tiny else 8,
        vision=Vision(grid**2, full * grid**4 + (vision["depth"] - full) * windowed, (grid // merge) ** 2),
        pixels=(grid**2, 3 * 2 * patch**2),  # a picture is two equal frames
        others={"image_grid_thw": torch.tensor([[1, grid, grid]])},
    )


def mllama(tiny: bool = False) -> Shape:
    """Llama-3.2-11B-Vision with images of 4 tiles of 560 pixels; meta-llama/Llama-3.2-11B-Vision-Instruct.

    A packed row holds one image: cross attention is computed for every token at every image of its row.
    """
    vision: dict[str, Any] = {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_global_layers": 8,
        "attention_heads": 16,
        "intermediate_size": 5120,
        "vision_output_dim": 7680,
        "intermediate_layers_indices": [3, 7, 15, 23, 30],
        "image_size": 560,
        "patch_size": 14,
        "max_num_tiles": 4,
    }
    text: dict[str, Any] = {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
        "max_position_embeddings": 131072,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }
    if tiny:
        vision |= {"hidden_size": 16, "num_hidden_layers": 3, "num_global_layers": 1, "attention_heads": 2}
        vision |= {"intermediate_size": 32, "vision_output_dim": 48, "intermediate_layers_indices": [0, 1]}
        vision |= {"image_size": 24, "patch_size": 4}
        text |= _tiny(64, 4) | {"vocab_size": _IMAGE, "num_key_value_heads": 2, "cross_attention_layers": [1]}
        text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    side, tiles = vision["image_size"], vision["max_num_tiles"]
    config = MllamaConfig(
        vision_config=MllamaVisionConfig(**vision),
        text_config=MllamaTextConfig(**text),
        image_token_index=text["vocab_size"],
    )
    positions = tiles * ((side // vision["patch_size"]) ** 2 + 1)
    layers = vision["num_hidden_layers"] + vision["num_global_layers"]
    return Shape(
        name="Llama-3.2-11B-Vision",
        family=Mllama(),
        model_class=MllamaForConditionalGeneration,
        config=config,
        before=5,  # <|begin_of_text|>, the user's header, two line breaks
        image_tokens=1,
        asking=5,  # <|eot_id|>, the assistant's header, two line breaks
        row_tokens=1,
        plain_rows=4 if tiny else 16,
        packed_rows=2 if tiny else 16,
        vision=Vision(positions, layers * positions**2, positions, states=positions),
        pixels=(1, 1, tiles, 3, side, side),
        others={
            "aspect_ratio_ids": torch.tensor([[6]]),  # two tiles by two
            "aspect_ratio_mask": torch.ones(1, 1, tiles, dtype=torch.long),
        },
    )


def _tiny(width: int, layers: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }


SHAPES = {"llava": llava, "qwen": qwen, "mllama": mllama}
