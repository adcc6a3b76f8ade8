"""Attention on a CPU whose keys and values each serve several heads of queries, without a copy for each.

Where there is a mask, Transformers copies them, because kernels of GPUs want it; that of a CPU does not.
Source: Ainslie et al., GQA, 2023, arXiv:2305.13245.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "radloop_grouped"  # of Transformers' attention implementations
_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
MORE = ("position_bias", "softcap", "cache")  # that the stock way can be asked for


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As Transformers wants it; the stock way where there is no mask, or more to do than to apply it."""
    if attention_mask is None or dropout or any(kwargs.get(name) is not None for name in MORE):
        kwargs |= {"dropout": dropout, "scaling": scaling}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast may leave them in full precision
    if attention_mask.dtype == torch.bool:
        seen = torch.zeros((), dtype=value.dtype, device=value.device)
        attention_mask = torch.where(attention_mask, seen, -torch.inf)
    # By name, because `scaled_dot_product_attention` takes another kernel where memory is simulated.
    out, _ = _kernel(query, key, value, attn_mask=attention_mask, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
