"""Where attention over packed rows is computed: which tokens look at which, in as few calls as shapes allow.

Nothing here knows queries, keys or values; `prefix_attention` computes what is laid out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

import numpy as np
import torch

from radloop.models.packing import HEAD, PADDING, Batch

_SHORT = 15  # queries: attentions of up to so many are one call, as they take the kernel alike
_MOST_TAKEN = 2  # times all tokens: more is taken again on the way back rather than kept in memory


@dataclass(frozen=True)
class Stacked:
    """Tokens of several attentions, filled up to equally many each. A place is row * tokens + column.

    Attributes:
        places: Int, shape (attentions, tokens); 0 where it is filled up.
        is_filler: Bool, of the same shape.
    """

    places: torch.Tensor
    is_filler: torch.Tensor

    @classmethod
    def of(cls, places: Sequence[Sequence[int]]) -> Self:
        """Stack those of each attention."""
        lengths = np.array([len(row) for row in places])
        is_place = np.arange(lengths.max()) < lengths[:, None]
        stacked = np.zeros(is_place.shape, dtype=np.int64)
        stacked[is_place] = np.fromiter(chain.from_iterable(places), np.int64, lengths.sum())
        return cls(torch.from_numpy(stacked), torch.from_numpy(~is_place))

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return these of `tokens`, shape (attentions, heads, tokens, width)."""
        taken = tokens.index_select(0, self.places.flatten())
        return taken.view(*self.places.shape, *tokens.shape[1:]).transpose(1, 2)


@dataclass(frozen=True)
class Part:
    """Attentions of one shape, computed in one call.

    Attributes:
        queries: The tokens that look.
        keys: Those that they look at.
        is_causal: Whether the n-th query sees the first n + 1 keys, as far as there are so many, or all.
    """

    queries: Stacked
    keys: Stacked
    is_causal: bool


@dataclass(frozen=True)
class Sources:
    """Where in the results of several parts those of some tokens stand.

    Tokens are numbered as they are wanted. One more row takes the results that nobody wants.

    Attributes:
        largest: Which part has most results, from 0.
        in_largest: For each token and the row more, its result in that part, or any where it has none there;
            int, shape (tokens + 1,).
        in_others: For each other part the tokens of its results, int.
        gaps: Tokens that have no result, int; None if there are none.
    """

    largest: int
    in_largest: torch.Tensor
    in_others: tuple[torch.Tensor, ...]
    gaps: torch.Tensor | None

    @classmethod
    def of(cls, parts: Sequence[Stacked], tokens: torch.Tensor, num_places: int) -> Self:
        """Find them.

        Args:
            parts: The tokens of each part's results.
            tokens: Places of those that are wanted, int.
            num_places: Of the batch.
        """
        sizes = [part.places.numel() for part in parts]
        largest = sizes.index(max(sizes))
        numbers = torch.full((num_places,), len(tokens))
        numbers[tokens] = torch.arange(len(tokens))
        found = [numbers[part.places].masked_fill_(part.is_filler, len(tokens)).flatten() for part in parts]
        in_largest = torch.full((len(tokens) + 1,), -1)
        in_largest[found[largest]] = torch.arange(sizes[largest])
        is_gap = in_largest[:-1] < 0
        others = tuple(one for number, one in enumerate(found) if number != largest)
        for one in others:
            is_gap[one[one < len(tokens)]] = False
        gaps = _numbers(is_gap)
        return cls(largest, in_largest.clamp_(min=0), others, gaps if len(gaps) else None)

    def put(self, found: Sequence[torch.Tensor], filler: float = 0.0) -> torch.Tensor:
        """Undo `Stacked.take`; tokens without a result are `filler`.

        Returns:
            Shape (tokens, heads, width), or without the width as in `found`.
        """
        results = [one.transpose(1, 2).flatten(0, 1) for one in found]
        whole = results.pop(self.largest).index_select(0, self.in_largest)
        for tokens, result in zip(self.in_others, results, strict=True):
            whole.index_copy_(0, tokens, result)
        if self.gaps is not None:
            whole.index_fill_(0, self.gaps, filler)
        return whole[:-1]


@dataclass(frozen=True)
class Layout:
    """How attention over the tokens of a batch is taken apart.

    Attributes:
        heads: Tokens of a group, looking at its head. An only tail can be taken for a part of it.
        tails: Other tails, each looking at itself.
        of_heads: Where among the queries of `heads` the tokens are.
        tail_places: Tokens of tails that are also in `heads`, int.
        of_tails: Where among the queries of `tails` these are; None if there are none.
        of_keys: Where among the keys of `heads` and `tails` the tokens are.
        keeps_taken: Whether what is taken for the kernels is kept for the way back, not taken again.
    """

    heads: tuple[Part, ...]
    tails: tuple[Part, ...]
    of_heads: Sources
    tail_places: torch.Tensor
    of_tails: Sources | None
    of_keys: Sources
    keeps_taken: bool


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
        is_token = batch.segments.flatten() != PADDING
        return cls(of_all.layout(is_token, is_causal=True), of_last.layout(predicts, is_causal=False))


@dataclass(frozen=True)
class ByGroup:
    """The tokens of a batch with each group in a row of its own.

    Attributes:
        tokens: Of each group.
        back: For each token of the batch its place in these rows, 0 for padding; int, shape (rows * tokens,).
    """

    tokens: Stacked
    back: torch.Tensor

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """Lay out whole rows."""
        tokens = Stacked.of([_whole(head, tails) for head, tails in _groups(batch)])
        back = torch.zeros(batch.segments.numel(), dtype=torch.long)
        back[tokens.places[~tokens.is_filler]] = _numbers(~tokens.is_filler)
        return cls(tokens, back)

    def of_batch(self, batch: Batch) -> Batch:
        """Return the batch in this layout; what it is to predict stays as it was."""

        def laid(of_tokens: torch.Tensor) -> torch.Tensor:
            return of_tokens.flatten()[self.tokens.places]

        return replace(
            batch,
            input_ids=laid(batch.input_ids),
            groups=laid(batch.groups).masked_fill(self.tokens.is_filler, PADDING),
            segments=laid(batch.segments).masked_fill(self.tokens.is_filler, PADDING),
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

    def layout(self, asking: torch.Tensor, is_causal: bool) -> Layout:
        """Put them together; `asking` are the tokens whose output is read."""
        heads, tails = _parts(self.heads, is_causal), _parts(self.tails, is_causal=True)
        num = len(asking)
        every = torch.arange(num)
        in_tails = torch.zeros(num, dtype=torch.bool)
        for part in tails:
            in_tails[part.queries.places[~part.queries.is_filler]] = True
        tail_places = _numbers(in_tails & asking)
        return Layout(
            heads,
            tails,
            Sources.of([part.queries for part in heads], every, num),
            tail_places,
            Sources.of([part.queries for part in tails], tail_places, num) if tails else None,
            Sources.of([part.keys for part in (*heads, *tails)], every, num),
            _num_taken((*heads, *tails)) <= _MOST_TAKEN * 3 * num,
        )


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


def _parts(attentions: Sequence[_Attention], is_causal: bool) -> tuple[Part, ...]:
    """Put attentions of like shapes together."""
    found: dict[tuple[int, int], list[_Attention]] = defaultdict(list)
    for one in attentions:
        # Of like lengths; and where there is a query that sees all keys and more, of equally many keys.
        num_keys = 0 if one.keys == one.queries else len(one.keys)
        found[num_keys, max(len(one.queries), _SHORT).bit_length()].append(one)
    return tuple(
        Part(Stacked.of([one.queries for one in alike]), Stacked.of([one.keys for one in alike]), is_causal)
        for alike in found.values()
    )


def _where(asking: torch.Tensor, places: Sequence[int]) -> Sequence[int]:
    """Return those of a range of places at which `asking` is true."""
    found: list[int] = (_numbers(asking[places[0] : places[-1] + 1]) + places[0]).tolist()
    return found


def _num_taken(parts: Sequence[Part]) -> int:
    """Return how many queries, keys and values are taken, fillers included."""
    return sum(part.queries.places.numel() + 2 * part.keys.places.numel() for part in parts)


def _numbers(is_true: torch.Tensor) -> torch.Tensor:
    return is_true.flatten().nonzero().squeeze(1)
