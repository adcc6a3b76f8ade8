"""Layers of the language model in fewer passes over memory than the stock ones, with the same result.

On a CPU, whose memory is slow, what stands between the matrix products takes as long as they do. Each
layer differs from its stock one in the last digits only. Where it is not made for what it is given, or for
how it is set, it calls the stock one.
"""

from __future__ import annotations

from typing import Any

from radloop.training.fused.rms_norm import fuse_norms
from radloop.training.fused.rotary import fuse_rotations
from radloop.training.fused.swiglu import fuse_mlps


def fuse_layers(decoder: Any) -> None:
    """Change how norms, attention and MLPs of a language model with LoRA layers compute.

    Weights and names stay as they are. An MLP does not call its layers, unless one of them has hooks.
    """
    fuse_norms(decoder)
    fuse_rotations(decoder)
    fuse_mlps(decoder)
