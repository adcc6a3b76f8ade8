"""How the language model attends: in packed rows as in training, in plain rows as with other trainers."""

from __future__ import annotations

import copy
from typing import Any

import torch

from radloop.models.family import Family
from radloop.models.fast_attention import allow_variants, use_fast_attention
from radloop.models.packing import Batch

PLAIN = "sdpa"
ATTENTIONS = {"sdpa": "sdpa", "flex": "flex_attention"}


def causal(family: Family) -> Family:
    """Return the family for rows of one sample each, in which a token may look at all before it.

    It asks for no mask but that order, as other trainers do: a dense mask rules out the fastest kernels.
    """
    found = copy.copy(family)
    found.mask = _all_there  # type: ignore[method-assign]
    return found


def _all_there(model: Any, new: Batch, seen: Batch) -> torch.Tensor:
    """Return Transformers' 2-D mask of rows without padding: that comes last, where no sample looks."""
    return torch.ones_like(new.input_ids)


def use(name: str | None, family: Family, model: Any, device: torch.device) -> None:
    """Choose how packed rows attend.

    Args:
        name: Of `ATTENTIONS`; None: as in training.
        family: Of the model; with "flex", one that may be trained so.
        model: Without LoRA layers yet; changed in place. Its vision layers stay as they are.
        device: That it is on.
    """
    if name is None:
        use_fast_attention(family, model, device)
    else:
        allow_variants()
        model.config.get_text_config()._attn_implementation = ATTENTIONS[name]
