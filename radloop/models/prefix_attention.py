"""Attention over packed rows on a CPU, computed only where `block_mask` lets tokens look.

A dense kernel computes all pairs of a row's tokens and hides most: two tails of a group never see
each other. Here every token looks at its group's head, and every tail at itself; a softmax over the
two together is a weighted mean of theirs, with weights from their sums of exponents (as in ring attention,
Liu et al. 2023, arXiv:2310.01889).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from radloop.models.grouped_attention import grouped_attention
from radloop.models.packing import HEAD, PADDING, Batch

NAME = "radloop_prefix"  # of Transformers' attention implementations
_SHORT = 15  # queries: attentions of up to so many are one call, as they take the kernel alike
_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Part:
    """Attentions of one shape, computed in one call. A place is row * tokens + column.

    Attributes:
        queries: Places, int, shape (attentions, queries); fewer ones are filled up.
        keys: Places, int, shape (attentions, keys), filled up likewise.
        is_filler: Bool, shape (attentions, queries).
        is_causal: Whether the n-th query sees the first n + 1 keys, as far as there are so many, or all.
        is_all: Whether `queries` are all tokens, row by row; then nothing has to be copied.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    is_filler: torch.Tensor
    is_causal: bool
    is_all: bool

    def asking(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what `tokens` have for the queries, shape (attentions, heads, queries, width)."""
        if self.is_all:
            return tokens.view(*self.queries.shape, *tokens.shape[1:]).transpose(1, 2)
        return _taken(tokens, self.queries)

    def asked(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what `tokens` have for the keys, shape (attentions, heads, keys, width)."""
        return _taken(tokens, self.keys)


@dataclass(frozen=True)
class Layout:
    """How attention over the tokens of a batch is taken apart.

    Attributes:
        heads: Tokens of a group, looking at its head.
        tails: Tails, each looking at itself.
        of_heads: For each token, its place among the queries of `heads`, or behind them if it is none;
            int, shape (rows * tokens,). None if the queries are the tokens.
        tail_places: Tokens of tails that are also in `heads`, int.
        of_tails: For each of these, its place among the queries of `tails`, int.
        of_keys: For each token, its place among the keys of `heads` and `tails`, or behind them if it
            is padding; int, shape (rows * tokens,).
    """

    heads: tuple[Part, ...]
    tails: tuple[Part, ...]
    of_heads: torch.Tensor | None
    tail_places: torch.Tensor
    of_tails: torch.Tensor
    of_keys: torch.Tensor


# Parts, and for each token its place among their queries and among their keys.
_Parts = tuple[tuple[Part, ...], torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Layouts:
    """Of the layers of a model.

    Attributes:
        others: Of all layers but the last.
        last: For tokens that predict; nothing reads the output of others there, which is zero.
    """

    others: Layout
    last: Layout

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """Take apart the attention of whole rows."""
        heads: list[_Attention] = []
        tails: list[_Attention] = []
        for segment, run in _runs(batch.groups, batch.segments):
            if segment == HEAD:
                heads.append(_Attention(run, run))
            else:
                keys = heads[-1].keys
                heads[-1] = _Attention(range(keys[0], run.stop), keys)
                tails.append(_Attention(run, run))
        predicts = batch.predicts.flatten()
        predicting = [_Attention(_where(predicts, one.queries), one.keys) for one in heads]
        shape = batch.segments.shape
        of_tails = _parts(tails, shape)
        is_padding = batch.segments.flatten() == PADDING

        def layout(asking: torch.Tensor, parts: _Parts) -> Layout:
            head_parts, of_heads, head_keys = parts
            tail_parts, tail_queries, tail_keys = of_tails
            of_keys = torch.where(head_keys >= 0, head_keys, tail_keys + _num_keys(head_parts))
            of_keys[is_padding] = _num_keys(head_parts + tail_parts)
            of_heads[of_heads < 0] = sum(part.queries.numel() for part in head_parts)
            places = _numbers(asking)
            is_all = head_parts[0].is_all
            return Layout(
                head_parts, tail_parts, None if is_all else of_heads, places, tail_queries[places], of_keys
            )

        return cls(
            layout((batch.segments > HEAD).flatten(), _parts(heads, shape)),
            layout(predicts, _parts(predicting, shape, is_causal=False)),
        )


@dataclass(frozen=True)
class _Attention:
    """Places of tokens, and of those that they look at."""

    queries: Sequence[int]
    keys: Sequence[int]


def _runs(groups: torch.Tensor, segments: torch.Tensor) -> Iterator[tuple[int, range]]:
    """Yield segment and places of each head and tail, row by row."""
    rows = torch.arange(len(segments))[:, None].expand_as(segments)
    tokens = torch.stack([rows, groups, segments]).flatten(1)
    starts = _numbers((tokens[:, 1:] != tokens[:, :-1]).any(dim=0)) + 1
    edges = [0, *starts.tolist(), tokens.shape[1]]
    for start, end, segment in zip(edges, edges[1:], tokens[2, edges[:-1]].tolist(), strict=False):
        if segment != PADDING:
            yield segment, range(start, end)


def _parts(attentions: Sequence[_Attention], shape: Sequence[int], is_causal: bool = True) -> _Parts:
    """Return the parts, and for each token its place among their queries and keys, -1 where it has none."""
    found: dict[tuple[int, int], list[_Attention]] = defaultdict(list)
    for one in attentions:
        # Of like lengths; and where there is a query that sees all keys and more, of equally many keys.
        num_keys = 0 if one.keys == one.queries else len(one.keys)
        found[num_keys, max(len(one.queries), _SHORT).bit_length()].append(one)
    num_tokens = math.prod(shape)
    of_queries, of_keys = (torch.full((num_tokens,), -1) for _ in range(2))
    parts: list[Part] = []
    for alike in found.values():
        # A head is not empty, so then each row holds one group.
        is_all = len(found) == 1 and [one.queries[0] for one in alike] == [*range(0, num_tokens, shape[1])]
        queries, is_query = _stacked([one.queries for one in alike], shape[1] if is_all else 0)
        keys, is_key = _stacked([one.keys for one in alike])
        of_queries[queries[is_query]] = _numbers(is_query) + sum(part.queries.numel() for part in parts)
        of_keys[keys[is_key]] = _numbers(is_key) + _num_keys(parts)
        parts.append(Part(queries, keys, ~is_query, is_causal, is_all))
    return tuple(parts), of_queries, of_keys


def _stacked(places: Sequence[Sequence[int]], length: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return places as a tensor, shape (attentions, at least `length`), and which are no fillers."""
    lengths = [len(row) for row in places]
    length = max(*lengths, length)
    filled = torch.tensor([[*row, *[0] * (length - len(row))] for row in places])
    return filled, torch.arange(length) < torch.tensor(lengths)[:, None]


def _where(asking: torch.Tensor, places: Sequence[int]) -> Sequence[int]:
    """Return those of a range of places at which `asking` is true."""
    found: list[int] = (_numbers(asking[places[0] : places[-1] + 1]) + places[0]).tolist()
    return found


def _numbers(is_true: torch.Tensor) -> torch.Tensor:
    return is_true.flatten().nonzero().squeeze(1)


def _num_keys(parts: Sequence[Part]) -> int:
    return sum(part.keys.numel() for part in parts)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    layouts: Layouts | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As Transformers wants it; where the model was not called with `layouts`, the stock way."""
    if layouts is None:
        return grouped_attention(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    config: Any = module.config
    is_last = module.layer_idx == config.num_hidden_layers - 1
    # Autocast leaves queries and keys in full precision, as rotation makes them.
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

    Keys and values may have fewer heads, each for several of the queries'.
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
        def attend(parts: Sequence[Part], places: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
            found = [
                _kernel(
                    part.asking(query), part.asked(key), part.asked(value), 0.0, part.is_causal, scale=scale
                )
                for part in parts
            ]
            return _put([out for out, _ in found], places), _put(
                [sums for _, sums in found], places, torch.inf
            )

        out, sums = attend(layout.heads, layout.of_heads)  # sums: logarithms of those of the exponents
        if layout.tails:
            tails = layout.tail_places
            own, own_sums = attend(layout.tails, layout.of_tails)
            of_head, head_sums = out.index_select(0, tails), sums.index_select(0, tails)
            both = torch.logaddexp(head_sums, own_sums)
            of_head.mul_((head_sums - both).exp_()[..., None])
            of_head.addcmul_(own, (own_sums - both).exp_()[..., None].to(own.dtype))
            out.index_copy_(0, tails, of_head)
            sums.index_copy_(0, tails, both)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        layout: Layout = ctx.layout
        found = []
        for part in (*layout.heads, *layout.tails):
            seen = part.asking(sums[..., None])[..., 0]
            found.append(
                _kernel_backward(
                    part.asking(gradient),
                    part.asking(query),
                    part.asked(key),
                    part.asked(value),
                    part.asking(out),
                    seen.masked_fill(part.is_filler[:, None], torch.inf),  # a filler sees nothing
                    0.0,
                    part.is_causal,
                    scale=ctx.scale,
                )
            )
        of_query, of_key, of_value = zip(*found, strict=True)
        num = len(layout.heads)
        dq = _put(of_query[:num], layout.of_heads)
        if layout.tails:
            tails = layout.tail_places
            own = _put(of_query[num:], layout.of_tails)
            dq.index_copy_(0, tails, own.add_(dq.index_select(0, tails)))
        return dq, _put(of_key, layout.of_keys), _put(of_value, layout.of_keys), None, None


def _taken(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the tokens at `places`, shape (attentions, heads, tokens, width)."""
    taken = tokens.index_select(0, places.flatten()).view(*places.shape, *tokens.shape[1:])
    return taken.transpose(1, 2)


def _put(found: Sequence[torch.Tensor], places: torch.Tensor | None, filler: float = 0.0) -> torch.Tensor:
    """Undo `_taken`: return what stands at `places` of all `found`, `filler` behind the last one.

    Its shape is (tokens, heads, width), or without the width as in `found`.
    """
    flat = [one.transpose(1, 2).flatten(0, 1) for one in found]
    if places is None:
        return flat[0]
    last = flat[0].new_full((1, *flat[0].shape[1:]), filler)
    return torch.cat([*flat, last]).index_select(0, places)
