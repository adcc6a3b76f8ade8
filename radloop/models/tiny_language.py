"""Stage B of the tiny base: projector and language model learn to describe what the tower sees."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionModel,
)

from radloop.data.phantoms import Stream, make_phantom
from radloop.models import get_family
from radloop.models.family import Features
from radloop.models.loading import BaseReference, Loaded
from radloop.models.packing import groups
from radloop.models.prompts import Prompts
from radloop.models.tiny_text import pretraining_texts
from radloop.models.tiny_vision import (
    FEATURE_LAYER,
    PIXELS,
    SEED,
    ahead,
    normalise,
    tower_features,
    vision_config,
)
from radloop.training.losses import token_losses

LEARNING_RATE = 2e-3
FIRST_INDEX = 2**30  # its phantoms are none that the tower was trained on


@dataclass(frozen=True)
class Batch:
    """Pictures (B, PIXELS, PIXELS) and the texts about each."""

    pixels: NDArray[np.uint8]
    texts: list[list[tuple[str, str]]]


def make_batch(start: int, count: int) -> Batch:
    """Phantoms `start` ... `start + count - 1` of the pre-training stream with their texts."""
    phantoms = [make_phantom(Stream.PRETRAINING, SEED, start + i, PIXELS) for i in range(count)]
    return Batch(np.stack([p.pixels for p in phantoms]), [pretraining_texts(p) for p in phantoms])


def make_model(processor: LlavaProcessor, tower: SiglipVisionModel) -> LlavaForConditionalGeneration:
    """A stock LLaVA around the trained tower; the rest is random."""
    torch.manual_seed(2)
    tokenizer = processor.tokenizer
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        **ids,
    )
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=processor.num_additional_image_tokens + (PIXELS // processor.patch_size) ** 2,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        **ids,
    )
    config._attn_implementation = "sdpa"
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.vision_tower.requires_grad_(False)
    for name, value in ids.items():
        setattr(model.generation_config, name, value)
    return model


def train_language(
    processor: LlavaProcessor, tower: SiglipVisionModel, steps: int, batch: int, report: Callable[[str], None]
) -> LlavaForConditionalGeneration:
    """Train projector and language model on `steps * batch` new phantoms, the texts of each packed."""
    model = make_model(processor, tower)
    reference = BaseReference("tiny", None, "")
    family = get_family("llava")
    loaded = Loaded(model, processor, family, Prompts.of(family, processor, model), reference)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.06
    )
    started, recent = time.monotonic(), 0.0
    for step, data in enumerate(ahead(make_batch, FIRST_INDEX, steps, batch)):
        loss = _loss(loaded, data)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        recent = 0.9 * recent + 0.1 * loss.item() if step else loss.item()
        if step % 50 == 0 or step == steps - 1:
            report(f"language {step}/{steps} {time.monotonic() - started:.0f} s loss {recent:.4f}")
    return model.eval()


def _loss(loaded: Loaded, data: Batch) -> Tensor:
    """The mean loss over the answer tokens of all texts, the texts of a picture in one row."""
    with torch.no_grad():
        seen = tower_features(loaded.model.model.vision_tower, normalise(data.pixels))

    def features(names: Sequence[str]) -> list[Features]:
        return [{"image": seen[int(name)]} for name in names]

    packed = []
    for number, texts in enumerate(data.texts):
        asked, said = zip(*texts, strict=True)
        pairs = loaded.prompts.pairs(asked, said, [[(PIXELS, PIXELS)]] * len(texts))
        packed += [(group,) for group in groups((str(number),), pairs)]
    return token_losses(loaded, features, packed).mean()
