"""Attention over packed rows on a CPU, computed only where `block_mask` lets tokens look.

A dense kernel computes all pairs of a row's tokens and hides most: two tails of a group never see
each other. Here every token looks at its group's head, and every tail at itself; a softmax over the
two together is a weighted mean of theirs, with weights from their sums of exponents (as in ring attention,
Liu et al. 2023, arXiv:2310.01889).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from radloop.models.grouped_attention import MORE, grouped_attention
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
    """

    queries: torch.Tensor
    keys: torch.Tensor
    is_filler: torch.Tensor
    is_causal: bool


@dataclass(frozen=True)
class Layout:
    """How attention over the tokens of a batch is taken apart.

    Attributes:
        heads: Tokens of a group, looking at its head. An only tail can be taken for a part of it.
        tails: Other tails, each looking at itself.
        of_heads: For each token, its place among the queries of `heads`, or behind them if it is none;
            int, shape (rows * tokens,).
        tail_places: Tokens of tails that are also in `heads`, int.
        of_tails: For each of these, its place among the queries of `tails`, int.
        of_keys: For each token, its place among the keys of `heads` and `tails`, or behind them if it
            is padding; int, shape (rows * tokens,).
    """

    heads: tuple[Part, ...]
    tails: tuple[Part, ...]
    of_heads: torch.Tensor
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
        groups = _groups(batch)
        of_all = _Attentions([], [])
        of_last = _Attentions([], [])
        predicts = batch.predicts.flatten()
        for head, tails in groups:
            whole = _whole(head, tails)
            own = [_Attention(tail, tail) for tail in tails]
            is_one = len(tails) == 1  # which comes after the head: one piece of text
            of_all.heads.append(_Attention(whole, whole if is_one else head))
            of_all.tails.extend([] if is_one else own)
            of_last.heads.append(_Attention(_where(predicts, whole), head))
            of_last.tails.extend(own)
        is_padding = batch.segments.flatten() == PADDING
        return cls(
            of_all.layout(is_padding, is_causal=True, asking=~is_padding),
            of_last.layout(is_padding, is_causal=False, asking=predicts),
        )


@dataclass(frozen=True)
class ByGroup:
    """The tokens of a batch with each group in a row of its own.

    Attributes:
        places: Of each group's tokens, int, shape (groups, most tokens); fewer ones are filled up.
        is_token: Bool, of the same shape, false where it is filled up.
        back: For each token of the batch its place in these rows, 0 for padding; int, shape (rows * tokens,).
    """

    places: torch.Tensor
    is_token: torch.Tensor
    back: torch.Tensor

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """Lay out whole rows."""
        places, is_token = _stacked([_whole(head, tails) for head, tails in _groups(batch)])
        back = torch.zeros(batch.segments.numel(), dtype=torch.long)
        back[places[is_token]] = _numbers(is_token)
        return cls(places, is_token, back)

    def of_batch(self, batch: Batch) -> Batch:
        """Return the batch in this layout; what it is to predict stays as it was."""

        def laid(tokens: torch.Tensor) -> torch.Tensor:
            return tokens.flatten()[self.places]

        return replace(
            batch,
            input_ids=laid(batch.input_ids),
            groups=laid(batch.groups).where(self.is_token, PADDING),
            segments=laid(batch.segments).where(self.is_token, PADDING),
            position_ids=torch.stack([laid(axis) for axis in batch.position_ids]),
        )


@dataclass(frozen=True)
class _Attention:
    """Places of tokens, and of those that they look at."""

    queries: Sequence[int]
    keys: Sequence[int]


@dataclass(frozen=True)
class _Attentions:
    """Of all groups of a batch, see `Layout`."""

    heads: list[_Attention]
    tails: list[_Attention]

    def layout(self, is_padding: torch.Tensor, is_causal: bool, asking: torch.Tensor) -> Layout:
        """Put them together; `asking` are the tokens whose output is read."""
        heads, of_heads, head_keys = _parts(self.heads, len(is_padding), is_causal)
        tails, tail_queries, tail_keys = _parts(self.tails, len(is_padding), is_causal=True)
        of_keys = torch.where(head_keys >= 0, head_keys, tail_keys + _num_keys(heads))
        of_keys[is_padding] = _num_keys(heads + tails)
        of_heads[of_heads < 0] = sum(part.queries.numel() for part in heads)
        places = _numbers(asking & (tail_queries >= 0))
        return Layout(heads, tails, of_heads, places, tail_queries[places], of_keys)


def _groups(batch: Batch) -> list[tuple[range, list[range]]]:
    """Return the places of each group's head and tails."""
    found: list[tuple[range, list[range]]] = []
    for segment, run in _runs(batch.groups, batch.segments):
        if segment == HEAD:
            found.append((run, []))
        else:
            found[-1][1].append(run)
    return found


def _whole(head: range, tails: Sequence[range]) -> range:
    """Return the places of a group."""
    return range(head.start, tails[-1].stop if tails else head.stop)


def _runs(groups: torch.Tensor, segments: torch.Tensor) -> Iterator[tuple[int, range]]:
    """Yield segment and places of each head and tail, row by row."""
    rows = torch.arange(len(segments))[:, None].expand_as(segments)
    tokens = torch.stack([rows, groups, segments]).flatten(1)
    starts = _numbers((tokens[:, 1:] != tokens[:, :-1]).any(dim=0)) + 1
    edges = [0, *starts.tolist(), tokens.shape[1]]
    for start, end, segment in zip(edges, edges[1:], tokens[2, edges[:-1]].tolist(), strict=False):
        if segment != PADDING:
            yield segment, range(start, end)


def _parts(attentions: Sequence[_Attention], num_tokens: int, is_causal: bool) -> _Parts:
    """Return the parts, and for each token its place among their queries and keys, -1 where it has none."""
    found: dict[tuple[int, int], list[_Attention]] = defaultdict(list)
    for one in attentions:
        # Of like lengths; and where there is a query that sees all keys and more, of equally many keys.
        num_keys = 0 if one.keys == one.queries else len(one.keys)
        found[num_keys, max(len(one.queries), _SHORT).bit_length()].append(one)
    of_queries, of_keys = (torch.full((num_tokens,), -1) for _ in range(2))
    parts: list[Part] = []
    for alike in found.values():
        queries, is_query = _stacked([one.queries for one in alike])
        keys, is_key = _stacked([one.keys for one in alike])
        of_queries[queries[is_query]] = _numbers(is_query) + sum(part.queries.numel() for part in parts)
        of_keys[keys[is_key]] = _numbers(is_key) + _num_keys(parts)
        parts.append(Part(queries, keys, ~is_query, is_causal))
    return tuple(parts), of_queries, of_keys


def _stacked(places: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return places as a tensor, shape (attentions, most places), and which are no fillers."""
    lengths = [len(row) for row in places]
    length = max(lengths)
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
        asking = _taken(query.transpose(1, 2).flatten(0, 1), by_group.places)
        key, value = (_split(tensor, len(asking)) for tensor in (key, value))
        found, _ = grouped_attention(module, asking, key, value, attention_mask, scaling=scaling)
        return found.flatten(0, 1).index_select(0, by_group.back)[None], None
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
        def attend(parts: Sequence[Part], places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = [
                _kernel(
                    _taken(query, part.queries),
                    _taken(key, part.keys),
                    _taken(value, part.keys),
                    0.0,
                    part.is_causal,
                    scale=scale,
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
            seen = _taken(sums[..., None], part.queries)[..., 0]
            found.append(
                _kernel_backward(
                    _taken(gradient, part.queries),
                    _taken(query, part.queries),
                    _taken(key, part.keys),
                    _taken(value, part.keys),
                    _taken(out, part.queries),
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


def _split(keys: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Return keys of shape (1, heads, groups * keys, width) as (groups, heads, keys, width)."""
    return keys[0].unflatten(1, (num_groups, -1)).transpose(0, 1)


def _taken(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the tokens at `places`, shape (attentions, heads, tokens, width)."""
    taken = tokens.index_select(0, places.flatten()).view(*places.shape, *tokens.shape[1:])
    return taken.transpose(1, 2)


def _put(found: Sequence[torch.Tensor], places: torch.Tensor, filler: float = 0.0) -> torch.Tensor:
    """Undo `_taken`: return what stands at `places` of all `found`, `filler` behind the last one.

    Its shape is (tokens, heads, width), or without the width as in `found`.
    """
    flat = [one.transpose(1, 2).flatten(0, 1) for one in found]
    last = flat[0].new_full((1, *flat[0].shape[1:]), filler)
    return torch.cat([*flat, last]).index_select(0, places)
