"""How much arithmetic a training step is, and how much of it a device can do in a second.

Counted are the multiplications and additions (2 operations for a pair of numbers) of matrix products, on real
tokens and on those pairs of positions that may look at each other: padding, masked pairs, what gradient
checkpointing computes again, and the unpacking of 4-bit weights are no work.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.shapes import Shape
from radloop.models.family import base_of
from radloop.models.packing import Group, Row

# Sides m, k, n of products of an m x k and a k x n matrix: those of 7B models, and square ones.
PEAK_SIZES = ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 4096, 11008), (16384, 8192, 8192))
_TINY_SIZES = ((128, 128, 128), (256, 256, 256))


@dataclass(frozen=True)
class Load:
    """What goes through a model in one step.

    Attributes:
        tokens: Of the text, image tokens included.
        pairs: Token looks at token.
        predicts: Tokens whose logits are computed.
        images: Whose features enter the language model.
        encoded: Images that go through the vision tower.
        cross_pairs: Token looks at a state of an image.
    """

    tokens: int
    pairs: int
    predicts: int
    images: int
    encoded: int
    cross_pairs: int

    @classmethod
    def of(cls, rows: Sequence[Row], shape: Shape, cached: bool) -> Load:
        groups = [group for row in rows for group in row]
        tokens = sum(map(len, groups))
        return cls(
            tokens,
            sum(map(_pairs, groups)),
            sum(group.num_answer_tokens for group in groups),
            len(groups),
            0 if cached else len(groups),
            tokens * shape.vision.states,
        )


def _pairs(group: Group) -> int:
    """Count who sees whom: the head itself, each tail the head and itself, all of them backwards only."""
    head, tails = len(group.head), [len(tail.read) for tail in group.tails]
    return _triangle(head) + sum(tail * head + _triangle(tail) for tail in tails)


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one step.

    Attributes:
        forward: Of the forward pass.
        done: Of the step. A frozen weight takes part in the forward pass (2 operations for each token) and in
            the gradient of its input (2), but has no gradient of its own (2): 4 for each parameter and token
            where training all weights needs 6. Frozen layers before the first LoRA layer need 2.
        as_full: Of a step that would train the whole language model, 6 for each of its parameters and
            tokens: what shares of the peak in papers are mostly based on. The vision tower stays frozen.
    """

    forward: float
    done: float
    as_full: float


def count(model: Any, shape: Shape, load: Load) -> Work:
    """Count the work of a step of `model`, which has LoRA layers, on `load`."""
    base = base_of(model)
    forward = done = as_full = 0.0
    for name, module in base.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d):
            work = 2.0 * _num_weights(module) * _times(name, shape, load)
            in_text = _is_text(name)
            forward += work
            done += work * _passes(name)
            as_full += work * (3 if in_text else 1)
    text = base.config.text_config
    crossing = getattr(text, "cross_attention_layers", ())
    of_pair = 4.0 * text.hidden_size  # two products of all heads together
    attention = of_pair * (
        (text.num_hidden_layers - len(crossing)) * load.pairs + len(crossing) * load.cross_pairs
    )
    seeing = 4.0 * base.config.vision_config.hidden_size * shape.vision.pairs * load.encoded
    return Work(
        forward + attention + seeing,
        done + 3 * attention + seeing,  # each product has two gradients
        as_full + 3 * attention + seeing,
    )


def _num_weights(module: Any) -> int:
    if isinstance(module, torch.nn.Linear):
        return module.in_features * module.out_features  # 4-bit weights are stored in another shape
    count: int = module.weight.numel()
    return count


def _is_text(name: str) -> bool:
    return "language_model." in name or name.startswith("lm_head")


def _times(name: str, shape: Shape, load: Load) -> int:
    """Return how often a layer's weights are multiplied with something."""
    if name.startswith("lm_head"):
        return load.predicts
    if re.search(r"cross_attn\.[kv]_proj", name):
        return load.images * shape.vision.states
    if "language_model." in name:
        return load.tokens
    if "multi_modal_projector" in name:
        # Mllama's comes before the cache, LLaVA's behind it.
        return shape.vision.merged * (load.encoded if shape.vision.states else load.images)
    if "visual.merger" in name:
        return shape.vision.merged * load.encoded
    return shape.vision.positions * load.encoded


def _passes(name: str) -> int:
    """Return how many products of the size of the forward one a step needs of a layer."""
    if not _is_text(name):
        return 1
    # Nothing before them is trained, so their input needs no gradient.
    first = re.search(r"layers\.0\.self_attn\.[qkv]_proj|cross_attn\.[kv]_proj", name) is not None
    trained = "lora_" in name
    return 1 + trained + (not first or "lora_B" in name)


def measure_peak(device: torch.device, synchronize: Callable[[], None], seconds: float) -> dict[str, float]:
    """Return the operations a second of bf16 matrix products, by size, each tried for so many seconds."""
    found = {}
    for m, k, n in PEAK_SIZES if device.type == "cuda" else _TINY_SIZES:
        left = torch.randn(m, k, device=device, dtype=torch.bfloat16)
        right = torch.randn(k, n, device=device, dtype=torch.bfloat16)
        out = torch.empty(m, n, device=device, dtype=torch.bfloat16)
        best, end = 0.0, time.perf_counter() + seconds
        while best == 0 or time.perf_counter() < end:  # the first round warms up and counts like any other
            synchronize()
            start = time.perf_counter()
            for _ in range(10):
                torch.mm(left, right, out=out)
            synchronize()
            best = max(best, 10 * 2.0 * m * k * n / (time.perf_counter() - start))
        found[f"{m} x {k} x {n}"] = best
    return found
