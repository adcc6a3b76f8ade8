"""How the language model attends: in packed rows as in training, in plain rows as with other trainers."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from radloop.models import prefix_attention
from radloop.models.family import Family
from radloop.models.packing import Batch

logger = logging.getLogger(__name__)

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
        name: Of `ATTENTIONS`; None: as `use_fast_attention` of radloop.training would, which needs packages
            that this script does without.
        family: Of the model; with "flex", one that may be trained so.
        model: Without LoRA layers yet; changed in place. Its vision layers stay as they are.
        device: That it is on.
    """
    config = model.config.get_text_config()
    if name is not None:
        config._attn_implementation = ATTENTIONS[name]
        return
    if not family.flex or getattr(config, "attention_dropout", None):
        return
    if device.type == "cpu":
        config._attn_implementation = prefix_attention.NAME
    elif device.type == "cuda":
        try:
            _try_out(config, model.dtype, device)
        except Exception as error:  # of a compiler, of any kind; there is always the other attention
            logger.warning("no FlexAttention here (%s), %s is used, as in training", error, family.attention)
        else:
            config._attn_implementation = "flex_attention"


def _try_out(config: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Raise an error if it does not give what the stock kernel gives, forward and backward."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    shape = (2, heads, 200, width)  # of no round length
    q, k, v = (torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    mask = create_block_mask(lambda _b, _h, query, key: query >= key, 2, None, 200, 200, device=str(device))
    found = torch.compile(flex_attention)(q, k, v, block_mask=mask)
    expected = scaled_dot_product_attention(q, k, v, is_causal=True)
    ours = torch.autograd.grad(found.float().square().sum(), (q, k, v))
    theirs = torch.autograd.grad(expected.float().square().sum(), (q, k, v))
    for one, other in zip((found, *ours), (expected, *theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05 * float(other.abs().max()))
