"""Attention over packed rows on a CPU, computed only where `block_mask` lets tokens look.

A dense kernel computes all pairs of a row's tokens and hides most: two tails of a group never see
each other. Here every token looks at its group's head, and every tail at itself; a softmax over the
two together is a weighted mean of theirs, with weights from their sums of exponents (as in ring attention,
Liu et al. 2023, arXiv:2310.01889).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from radloop.models.grouped_attention import MORE, grouped_attention
from radloop.models.packing import Batch
from radloop.models.prefix_layout import ByGroup, Layout, Layouts, Part, Sources

NAME = "radloop_prefix"  # of Transformers' attention implementations
_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    layouts: Layouts | None = None,
    by_group: ByGroup | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As Transformers wants it; where the model was not called with `layouts`, the stock way.

    With `by_group`, layers of cross attention have the keys of one group behind those of the other, equally
    many each, and a mask of shape (groups, 1, most tokens, keys of a group).
    """
    if layouts is None:
        return grouped_attention(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if unknown := [name for name in MORE if kwargs.get(name) is not None]:
        raise ValueError(f"attention over packed rows has no {unknown[0]}")
    config: Any = module.config
    if by_group is not None and module.layer_idx in config.cross_attention_layers:
        asking = by_group.tokens.take(query.transpose(1, 2).flatten(0, 1))
        key, value = (_split(tensor, len(asking)) for tensor in (key, value))
        found, _ = grouped_attention(module, asking, key, value, attention_mask, scaling=scaling)
        return found.flatten(0, 1).index_select(0, by_group.back)[None], None
    is_last = module.layer_idx == config.num_hidden_layers - 1
    # Autocast, where a caller has it on, leaves queries and keys in full precision, as rotation makes them.
    tokens = [tensor.to(value.dtype).transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)]
    out: torch.Tensor = _PrefixAttention.apply(*tokens, layouts.last if is_last else layouts.others, scaling)
    return out.view(query.shape[0], query.shape[2], *out.shape[1:]), None


def arguments(batch: Batch) -> dict[str, Any]:
    """Return the arguments of a model's forward over whole rows with answers."""
    # Of four dimensions, so that Transformers makes none; and a layer that has it in place of `layouts` sees
    # nothing, not everything.
    no_mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
    return {"attention_mask": no_mask, "layouts": Layouts.of(batch)}


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class _PrefixAttention(torch.autograd.Function):
    """Attention of tokens of shape (rows * tokens, heads, width); its result has the shape of the queries.

    Keys and values may have fewer heads, each for several of the queries'. The result must not be changed in
    place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: Layout,
        scale: float | None,
    ) -> torch.Tensor:
        kept = [] if layout.keeps_taken else [query, key, value]

        def attend(parts: Sequence[Part], sources: Sources) -> tuple[torch.Tensor, torch.Tensor]:
            found = []
            for part in parts:
                tokens = _taken(part, query, key, value)
                found.append(_kernel(*tokens, 0.0, part.is_causal, scale=scale))
                kept.extend(tokens if layout.keeps_taken else ())
            return sources.put([out for out, _ in found]), sources.put([sums for _, sums in found], torch.inf)

        out, sums = attend(layout.heads, layout.of_heads)  # sums: logarithms of those of the exponents
        if layout.of_tails:
            tails = layout.tail_places
            own, own_sums = attend(layout.tails, layout.of_tails)
            of_head, head_sums = out.index_select(0, tails), sums.index_select(0, tails)
            both = torch.logaddexp(head_sums, own_sums)
            of_head.mul_((head_sums - both).exp_()[..., None])
            of_head.addcmul_(own, (own_sums - both).exp_()[..., None].to(own.dtype))
            out.index_copy_(0, tails, of_head)
            sums.index_copy_(0, tails, both)
        ctx.save_for_backward(out, sums, *kept)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        out, sums, *kept = ctx.saved_tensors
        layout: Layout = ctx.layout
        found = []
        for number, part in enumerate((*layout.heads, *layout.tails)):
            tokens = kept[3 * number :][:3] if layout.keeps_taken else _taken(part, *kept)
            seen = part.queries.take(sums[..., None])[..., 0]
            found.append(
                _kernel_backward(
                    part.queries.take(gradient),
                    *tokens,
                    part.queries.take(out),
                    seen.masked_fill(part.queries.is_filler[:, None], torch.inf),  # a filler sees nothing
                    0.0,
                    part.is_causal,
                    scale=ctx.scale,
                )
            )
        of_query, of_key, of_value = zip(*found, strict=True)
        num = len(layout.heads)
        dq = layout.of_heads.put(of_query[:num])
        if layout.of_tails:
            tails = layout.tail_places
            own = layout.of_tails.put(of_query[num:])
            dq.index_copy_(0, tails, own.add_(dq.index_select(0, tails)))
        return dq, layout.of_keys.put(of_key), layout.of_keys.put(of_value), None, None


def _taken(part: Part, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> list[torch.Tensor]:
    """Return what a part's attentions are of."""
    return [part.queries.take(query), part.keys.take(key), part.keys.take(value)]


def _split(keys: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Return keys of shape (1, heads, groups * keys, width) as (groups, heads, keys, width)."""
    return keys.squeeze(0).unflatten(1, (num_groups, -1)).transpose(0, 1)
