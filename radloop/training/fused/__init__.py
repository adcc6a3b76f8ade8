"""Layers of the language model in fewer passes over memory than the stock ones, with the same result.

On a CPU, whose memory is slow, what stands between the matrix products takes as long as they do. Each
layer differs from its stock one in the last digits only, and leaves to that whatever it is not made for.
"""

from __future__ import annotations

from typing import Any

from radloop.training.fused.rms_norm import fuse_norms
from radloop.training.fused.rotary import fuse_rotations
from radloop.training.fused.swiglu import fuse_mlps


def fuse_layers(decoder: Any) -> None:
    """Let the layers of a language model with LoRA layers compute so; weights and names stay as they are."""
    fuse_norms(decoder)
    fuse_rotations(decoder)
    fuse_mlps(decoder)
