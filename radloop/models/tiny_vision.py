"""Stage A of the tiny base: a vision tower that sees the findings of a phantom.

The tower learns from what the generator knows exactly: where each finding covers the picture, how
many centres lie in a patch, and which findings and values the whole picture has. No text is used.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel

from radloop.data.phantoms import FINDINGS, Phantom, Stream, make_phantom
from radloop.data.phantoms.anatomy import FIELD_CM

PIXELS = 96
PATCH = 12
GRID = PIXELS // PATCH
WIDTH = 128
FEATURE_LAYER = -1
LEARNING_RATE = 1.2e-3
SEED = 20_000  # of the pre-training stream; the stream alone keeps it apart from every data set
Made = TypeVar("Made")


def vision_config() -> SiglipVisionConfig:
    """A SigLIP tower of 1.1 M parameters: 8 x 8 patches, without the pooling head."""
    return SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=PIXELS,
        patch_size=PATCH,
        vision_use_head=False,
    )


@dataclass(frozen=True)
class Batch:
    """Pictures and what is to be seen in them: `masks` and `centres` (B, findings, GRID, GRID)."""

    pixels: NDArray[np.uint8]
    masks: NDArray[np.float32]
    centres: NDArray[np.float32]
    labels: NDArray[np.float32]


def label_names() -> list[str]:
    """Names of the picture-level labels: each finding, and each value of its attributes."""
    names = list(FINDINGS)
    for finding in FINDINGS.values():
        names += [
            f"{finding.name}.{key}={value}" for key, values in finding.values.items() for value in values
        ]
    return names


def make_batch(start: int, count: int) -> Batch:
    """Phantoms `start` ... `start + count - 1` of the pre-training stream with their targets."""
    phantoms = [make_phantom(Stream.PRETRAINING, SEED, start + i, PIXELS) for i in range(count)]
    return Batch(
        np.stack([phantom.pixels for phantom in phantoms]),
        np.stack([_masks(phantom) for phantom in phantoms]),
        np.stack([_centres(phantom) for phantom in phantoms]),
        np.stack([_labels(phantom) for phantom in phantoms]),
    )


def ahead(make: Callable[[int, int], Made], first: int, steps: int, size: int) -> Iterator[Made]:
    """`make(start, size)` for each step's phantoms, in order, one process ahead of the training."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the worker inherits it: its matrices are tiny
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        waiting: list[Future[Made]] = []
        for step in range(steps + 4):
            if step < steps:
                waiting.append(pool.submit(make, first + step * size, size))
            if step >= 4:
                yield waiting.pop(0).result()


def normalise(pixels: NDArray[np.uint8]) -> Tensor:
    """Grey bytes (B, H, W) to what the image processor makes of them: (B, 3, H, W) in -1 ... 1."""
    grey = torch.from_numpy(pixels).float() / 127.5 - 1.0
    return grey[:, None].expand(-1, 3, -1, -1)


class Sight(nn.Module):
    """The tower with the heads that only pre-training needs."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = SiglipVisionModel(vision_config())
        self.norm = nn.LayerNorm(WIDTH)
        self.dense = nn.Linear(WIDTH, 2 * len(FINDINGS))
        self.labels = nn.Linear(WIDTH, 2 * len(label_names()))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of masks and centres (B, patches, 2 * findings), and of labels (B, labels).

        Each label looks for its patch by attention, as the language model will.
        """
        features = self.norm(tower_features(self.tower, pixels))
        where, what = self.labels(features).chunk(2, dim=2)
        return self.dense(features), (where.softmax(1) * what).sum(1)


def tower_features(tower: SiglipVisionModel, pixels: Tensor) -> Tensor:
    """What LLaVA takes from the tower: the hidden states of the feature layer, (B, patches, WIDTH)."""
    return tower(pixels, output_hidden_states=True).hidden_states[FEATURE_LAYER]


def train_tower(steps: int, batch: int, report: Callable[[str], None]) -> SiglipVisionModel:
    """Train the tower on `steps * batch` new phantoms."""
    torch.manual_seed(1)
    sight = Sight()
    optimizer = torch.optim.AdamW(sight.parameters(), lr=LEARNING_RATE, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.06
    )
    started = time.monotonic()
    for step, data in enumerate(ahead(make_batch, 0, steps, batch)):
        dense, labels = sight(normalise(data.pixels))
        loss, parts = _loss(dense, labels, data)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(sight.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            report(f"tower {step}/{steps} {time.monotonic() - started:.0f} s loss {parts}")
    report(_scores(sight.eval(), make_batch(2**31, 1024)))
    return sight.tower


def _loss(dense: Tensor, labels: Tensor, data: Batch) -> tuple[Tensor, str]:
    masks, centres = dense.transpose(1, 2).unflatten(2, (GRID, GRID)).chunk(2, dim=1)
    mask = functional.binary_cross_entropy_with_logits(masks, torch.from_numpy(data.masks))
    centre = functional.binary_cross_entropy_with_logits(centres, torch.from_numpy(data.centres))
    label = functional.binary_cross_entropy_with_logits(labels, torch.from_numpy(data.labels))
    parts = f"mask {mask.item():.4f} centre {centre.item():.4f} label {label.item():.4f}"
    return 4 * mask + 8 * centre + 2 * label, parts


@torch.no_grad()
def _scores(sight: Sight, data: Batch) -> str:
    labels = torch.cat([sight(normalise(part))[1] for part in np.split(data.pixels, 16)])
    right = ((labels > 0).numpy() == (data.labels > 0.5)).mean(0)
    return "tower labels right: " + ", ".join(
        f"{name} {score:.3f}" for name, score in zip(label_names(), right, strict=True)
    )


def _masks(phantom: Phantom) -> NDArray[np.float32]:
    maps = np.zeros((len(FINDINGS), GRID, GRID), np.float32)
    for i, name in enumerate(FINDINGS):
        if name in phantom.masks:
            maps[i] = phantom.masks[name].reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
    return maps


def _centres(phantom: Phantom) -> NDArray[np.float32]:
    """Each circle's centre shared out linearly among the four patches around it; sums to the count."""
    maps = np.zeros((len(FINDINGS), GRID + 2, GRID + 2), np.float32)
    a = phantom.anatomy
    for i, name in enumerate(FINDINGS):
        circles = phantom.findings[name].circles if name in phantom.findings else ()
        for x, y, _ in circles:
            column = (x * a.scale + a.shift_x + FIELD_CM / 2) / FIELD_CM * GRID + 0.5
            row = (y * a.scale + a.shift_y + FIELD_CM / 2) / FIELD_CM * GRID + 0.5
            left, top = int(column), int(row)
            for r, c in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                maps[i, r, c] += (1 - abs(row - r)) * (1 - abs(column - c))
    return maps[:, 1:-1, 1:-1]


def _labels(phantom: Phantom) -> NDArray[np.float32]:
    names = {name: i for i, name in enumerate(label_names())}
    labels = np.zeros(len(names), np.float32)
    for present in phantom.findings.values():
        labels[names[present.name]] = 1
        for key, value in present.values.items():
            labels[names[f"{present.name}.{key}={value}"]] = 1
    return labels
