"""Attention that skips what the masks of packed rows hide, where stock kernels compute it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from radloop.models.family import Family

logger = logging.getLogger(__name__)

# Variants of the compiled kernel: one row or several, with a gradient or without, short or long, and so on.
# Beyond the limit PyTorch takes, with no more than a warning, an attention that holds all scores in memory.
# A run needs about ten; PyTorch's own limit is 8.
MOST_VARIANTS = 64


def use_fast_attention(family: Family, model: Any, device: torch.device) -> None:
    """Give the language model the attention that packed rows are fastest with, if it may use it.

    That is its family's `packed_attention` on a CPU, and FlexAttention on a GPU where the family may have it
    and a trial goes well. Neither has dropout: a model with some keeps the stock attention.

    Args:
        family: Of the model.
        model: Without LoRA layers yet; changed in place. Its vision layers stay as they are.
        device: That it is on.
    """
    config = model.config.get_text_config()
    has_dropout = any(getattr(config, name, None) for name in ("attention_dropout", "dropout"))
    if has_dropout or (torch.cuda.is_available() and not family.flex):
        return
    # Not by `set_attn_implementation`: it asks whether the class announces FlexAttention, and Qwen's text
    # models do not, though all their layers take it.
    if not torch.cuda.is_available():
        config._attn_implementation = family.packed_attention
    elif device.type == "cuda":  # not of a sketch
        allow_variants()
        try:
            _try_out(config, model.dtype, device)
        except Exception as error:  # of a compiler, of any kind; there is always the other attention
            logger.info("no FlexAttention here (%s), %s is used", error, family.attention)
        else:
            config._attn_implementation = "flex_attention"


def allow_variants() -> None:
    """Let FlexAttention be compiled for all shapes of a run."""
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_VARIANTS)


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
