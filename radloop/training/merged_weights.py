"""Merging layer by layer, and proof that the weights of a merged checkpoint are those of base and adapter.

What questions show of a merge drowns in the rounding of half precision; what a weight has to be does not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from peft.tuners.lora.layer import LoraLayer

from radloop.errors import ModelError
from radloop.models.checkpoint_files import listed
from radloop.models.family import base_of

_ROWS = 1024  # of a weight that are looked at together, in double precision
_EPS = torch.finfo(torch.float32).eps  # PEFT computes what it adds in fp32


@dataclass(frozen=True)
class Digest:
    """What a tensor holds.

    Attributes:
        dtype: In which the hash was taken.
        sha256: Over its numbers, in order.
    """

    dtype: torch.dtype
    sha256: str

    @classmethod
    def of(cls, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> Self:
        """Take the hash of a tensor, in its own dtype or as another, which changes no number that fits."""
        dtype = dtype or tensor.dtype
        numbers = tensor.detach().to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data
        return cls(dtype, hashlib.sha256(numbers).hexdigest())


@dataclass(frozen=True)
class MergedWeights:
    """What a merged checkpoint has to hold: a digest of each tensor by its name in the model.

    Attributes:
        adapted: Weights with the adapter in them.
        kept: All others, as the base has them.
    """

    adapted: Mapping[str, Digest]
    kept: Mapping[str, Digest]

    def faults(self, model: Any) -> list[str]:
        """Return the names of tensors that a model lacks, has beyond these, or holds other numbers in."""
        expected = {**self.kept, **self.adapted}
        found = model.state_dict()
        differing = (
            name
            for name, tensor in found.items()
            if name in expected and Digest.of(tensor, expected[name].dtype) != expected[name]
        )
        return sorted({*(expected.keys() ^ found.keys()), *differing})


def merge_layers(model: Any) -> MergedWeights:
    """Have PEFT add an adapter to its layers' weights, one at a time, and check what each has become.

    Args:
        model: A PeftModel with plain base layers; changed in place. `unload` takes its LoRA layers out.

    Raises:
        ModelError: A layer's weight is not that of base and adapter, but for one rounding.
    """
    base = base_of(model)
    layers: dict[str, Any] = {
        name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)
    }
    adapted = {f"{name}.weight" for name in layers}
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in base.state_dict().items()}
    kept = {
        name: Digest.of(tensor)
        for name, tensor in plain.items()
        if name not in adapted and ".lora_" not in name
    }
    faults = []
    for name, layer in layers.items():
        weight = layer.get_base_layer().weight
        before = weight.detach().clone()
        layer.merge()
        if not is_merged(layer, before, weight.detach()):
            faults.append(name)
    if faults:
        raise ModelError(
            f"merge: PEFT has made other weights than those of base and adapter of {len(faults)} of "
            f"{len(layers)} layers: {listed(faults)}; nothing has been written, install the versions that "
            "radloop asks for, or fine-tune again if the adapter holds what is not a number"
        )
    merged = {f"{name}.weight": Digest.of(layer.get_base_layer().weight) for name, layer in layers.items()}
    return MergedWeights(merged, kept)


def is_merged(layer: Any, before: torch.Tensor, after: torch.Tensor) -> bool:
    """Say whether every number of a merged weight is what base and adapter give, but for rounding.

    LoRA has W + sBA; DoRA scales each row of that to the length that it has learnt. A number may be off
    by the rounding of the result to the weight's precision, by that of what is added if PEFT rounds it
    on its own first, and by what sums in fp32 lose.

    Args:
        layer: With the adapter; of one adapter only.
        before: The base's weight, shape (out, in).
        after: The merged one.
    """
    (adapter,) = layer.active_adapters
    down, up = layer.lora_A[adapter].weight.detach().double(), layer.lora_B[adapter].weight.detach().double()
    lengths = None
    if adapter in layer.lora_variant:  # DoRA
        lengths = layer.lora_magnitude_vector[adapter].weight.detach().double()
    reach = down.norm(dim=0)  # times that of a row of B no less than the products that a number sums
    for start in range(0, len(before), _ROWS):
        rows = slice(start, start + _ROWS)
        change = layer.scaling[adapter] * (up[rows] @ down)
        lost = abs(layer.scaling[adapter]) * (len(down) + 2) * _EPS * torch.outer(up[rows].norm(dim=1), reach)
        expected = before[rows].double() + change
        if lengths is not None:
            length = expected.norm(dim=1)
            # Of the length: by the sum of squares and three more steps, and as the numbers below it are off.
            off = (math.sqrt(before.shape[1]) + 3) * _EPS + lost.norm(dim=1) / length
            factor = (lengths[rows] / length)[:, None]
            expected, change, lost = factor * expected, factor * change, (factor * lost).abs()
            lost += off[:, None] * expected.abs()
        allowed = lost + _rounding(expected, after.dtype) + _rounding(change, after.dtype)
        if not bool(((after[rows].double() - expected).abs() <= allowed).all()):  # False of what is no number
            return False
    return True


def _rounding(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return how far each number can be from the nearest of `dtype`."""
    kind = torch.finfo(dtype)
    return kind.eps / 2 * numbers.abs().clamp(min=kind.smallest_normal)
