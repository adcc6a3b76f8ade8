"""Several questions behind one image in one sequence, exactly as if each had a sequence of its own.

A group is `[head with the image][tail of question 1][tail of question 2]...`. Position ids restart
after the head, and a block mask lets each tail see the head and itself only. A row holds one group
or, where they fit, several that do not see each other. Training packs tails with their answers;
inference packs questions behind a head whose keys and values it already has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

HEAD, PADDING = 0, -1  # segments of a group; tails count from 1
_MAX_TAIL_TOKENS = 2048  # of a group, so that the mask of an image with hundreds of questions stays small


@dataclass(frozen=True)
class Head:
    """What all questions about the same images begin with.

    Attributes:
        ids: Token ids up to and including the last image token; the first token where there is no image.
            What all tails begin with may come after that, see `_with_longer_head`.
        positions: Position id of each token, one tuple for each axis of the family (M-RoPE has three).
        next_position: Where each tail starts counting, on every axis.
    """

    ids: tuple[int, ...]
    positions: tuple[tuple[int, ...], ...]
    next_position: int

    @classmethod
    def counted(cls, ids: Sequence[int]) -> Self:
        """Return the head of a model whose positions are 0, 1, 2, ..."""
        return cls((*ids,), ((*range(len(ids)),),), len(ids))

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Tokens:
    """The token ids of one prompt, or of one prompt with its answer.

    Attributes:
        head: See `Head`.
        tail: The rest. `head.ids + tail` are the tokens of the chat template.
        num_answer: How many of the last tokens of `tail` are the answer with its end token.
    """

    head: Head
    tail: tuple[int, ...]
    num_answer: int = 0

    def __len__(self) -> int:
        """All tokens, with the last one, which is not read."""
        return len(self.head) + len(self.tail)

    @property
    def ids(self) -> tuple[int, ...]:
        return self.head.ids + self.tail

    @property
    def read(self) -> tuple[int, ...]:
        """What the model reads of the tail: after the last token of an answer it has nothing to predict."""
        return self.tail[:-1] if self.num_answer else self.tail


@dataclass(frozen=True)
class Group:
    """Tails behind one head.

    Attributes:
        image_ids: Whose features stand at the head's image tokens, in order.
        head: Shared by all tails.
        tails: What comes after it, one for each question.
        numbers: For each tail, which of the pairs given to `groups` it is, from 0.
    """

    image_ids: tuple[str, ...]
    head: Head
    tails: tuple[Tokens, ...]
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        """Tokens that the model reads."""
        return len(self.head) + sum(len(tail.read) for tail in self.tails)

    @property
    def num_answer_tokens(self) -> int:
        return sum(tail.num_answer for tail in self.tails)


Row = tuple[Group, ...]


def groups(
    image_ids: Sequence[str],
    pairs: Sequence[Tokens],
    share_prefix: bool = True,
    lengthen_heads: bool = False,
) -> list[Group]:
    """Arrange the pairs about the same images in groups: as few as memory allows, or one a pair.

    Pairs share a group only if their heads are the same token for token; a chat template that puts
    the question before the image yields a group a pair by itself.
    """
    alike: dict[object, list[int]] = {}
    for number, pair in enumerate(pairs):
        alike.setdefault(pair.head if share_prefix else number, []).append(number)
    found = [
        Group((*image_ids,), pairs[numbers[0]].head, tuple(pairs[n] for n in numbers), tuple(numbers))
        for numbers in alike.values()
    ]
    if lengthen_heads:
        found = [*map(_with_longer_head, found)]
    return [part for group in found for part in split_group(group, len(group.head) + _MAX_TAIL_TOKENS)]


def split_group(group: Group, max_tokens: int) -> list[Group]:
    """Take a group apart, each part with the whole head, so that none is longer than `max_tokens`.

    A part has at least one tail, so it may be longer than that.
    """
    parts: list[list[int]] = [[]]
    length = len(group.head)
    for place, pair in enumerate(group.tails):
        if parts[-1] and length + len(pair.read) > max_tokens:
            parts.append([])
            length = len(group.head)
        parts[-1].append(place)
        length += len(pair.read)
    if len(parts) == 1:
        return [group]
    return [
        replace(
            group, tails=tuple(group.tails[n] for n in part), numbers=tuple(group.numbers[n] for n in part)
        )
        for part in parts
    ]


def _with_longer_head(group: Group) -> Group:
    """Move what all tails begin with, such as the wording of a prompt, to the end of the head.

    Each tail keeps the last token before its answer, which predicts the first one of that.
    """
    if len(group.tails) == 1:
        return group
    movable = [pair.tail[: len(pair.tail) - pair.num_answer - 1] for pair in group.tails]
    places = enumerate(zip(*movable, strict=False))
    num = next((place for place, tokens in places if len(set(tokens)) > 1), min(map(len, movable)))
    before, end = group.head, group.head.next_position + num
    positions = tuple((*axis, *range(before.next_position, end)) for axis in before.positions)
    head = Head((*before.ids, *movable[0][:num]), positions, end)
    tails = tuple(replace(pair, head=head, tail=pair.tail[num:]) for pair in group.tails)
    return replace(group, head=head, tails=tails)


def fill_rows(groups: Sequence[Group], max_tokens: int) -> list[Row]:
    """Put groups into rows of at most `max_tokens` (a longer group has a row of its own), in few rows.

    First fit, longest first; which row a group is in changes no figure of it.
    """
    rows: list[list[Group]] = []
    room: list[int] = []
    for group in sorted(groups, key=len, reverse=True):
        place = next((n for n, free in enumerate(room) if len(group) <= free), None)
        if place is None:
            rows.append([group])
            room.append(max_tokens - len(group))
        else:
            rows[place].append(group)
            room[place] -= len(group)
    return [tuple(row) for row in rows]


@dataclass(frozen=True)
class Batch:
    """Rows as tensors of one length; shorter rows are padded at the right.

    Attributes:
        input_ids: Int, shape (rows, tokens).
        groups: The token's group in its row from 0, or `PADDING`, int, shape (rows, tokens).
        segments: `HEAD`, `PADDING` or the tail's number in its group from 1, int, shape (rows, tokens).
        position_ids: Restarting after the head, int, shape (axes, rows, tokens).
        predicts: Bool, shape (rows, tokens), true where an answer token comes next. The answer of a
            tail without one comes after its last token.
        targets: Those answer tokens, as far as they are known, int, row by row.
        answers: For each target which answer of the batch it belongs to, from 0, int.
    """

    input_ids: torch.Tensor
    groups: torch.Tensor
    segments: torch.Tensor
    position_ids: torch.Tensor
    predicts: torch.Tensor
    targets: torch.Tensor
    answers: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device | str = "cpu", with_head: bool = True) -> Self:
        """Lay out `rows`; without the heads where their keys and values are known already."""
        laid = [_Lane.of(row, with_head) for row in rows]
        length = max(len(lane.ids) for lane in laid)
        num_axes = len(rows[0][0].head.positions)
        targets: list[int] = []
        answers: list[int] = []
        for tail in (tail for row in rows for group in row for tail in group.tails):
            known = tail.tail[len(tail.tail) - tail.num_answer :]
            answers += [answers[-1] + 1 if answers else 0] * len(known)
            targets += known
        missing = [length - len(lane.ids) for lane in laid]

        def padded(values: list[list[int]], filler: int) -> torch.Tensor:
            rows = [row + [filler] * count for row, count in zip(values, missing, strict=True)]
            return tensor(rows)

        def tensor(values: list[int] | list[list[int]]) -> torch.Tensor:
            # NumPy reads lists in less than half the time.
            return torch.from_numpy(np.array(values, dtype=np.int64)).to(device)

        return cls(
            padded([lane.ids for lane in laid], laid[0].ids[-1]),  # any id that the vocabulary has
            padded([lane.groups for lane in laid], PADDING),
            padded([lane.segments for lane in laid], PADDING),
            torch.stack([padded([lane.positions[axis] for lane in laid], 0) for axis in range(num_axes)]),
            padded([lane.predicts for lane in laid], 0).bool(),
            tensor(targets),
            tensor(answers),
        )

    def after(self, seen: Self | None) -> Self:
        """Return the layout of `seen` with this one's tokens behind; `predicts` and later are this one's."""
        if seen is None:
            return self
        return replace(
            self,
            input_ids=torch.cat([seen.input_ids, self.input_ids], dim=1),
            groups=torch.cat([seen.groups, self.groups], dim=1),
            segments=torch.cat([seen.segments, self.segments], dim=1),
            position_ids=torch.cat([seen.position_ids, self.position_ids], dim=2),
        )


@dataclass
class _Lane:
    """One row while it is laid out."""

    ids: list[int]
    groups: list[int]
    segments: list[int]
    positions: list[list[int]]
    predicts: list[int]

    @classmethod
    def of(cls, row: Row, with_head: bool) -> Self:
        axes = range(len(row[0].head.positions))
        lane = cls([], [], [], [[] for _ in axes], [])
        for number, group in enumerate(row):
            if with_head:
                lane._add(number, HEAD, group.head.ids, group.head.positions)
                lane.predicts += [0] * len(group.head)
            for segment, pair in enumerate(group.tails, start=1):
                start = group.head.next_position
                places = range(start, start + len(pair.read))
                lane._add(number, segment, pair.read, [places for _ in axes])
                predicting = max(1, pair.num_answer)
                lane.predicts += [0] * (len(pair.read) - predicting) + [1] * predicting
        return lane

    def _add(self, group: int, segment: int, ids: Sequence[int], positions: Sequence[Sequence[int]]) -> None:
        self.ids += ids
        self.groups += [group] * len(ids)
        self.segments += [segment] * len(ids)
        for axis, places in zip(self.positions, positions, strict=True):
            axis += places


def block_mask(new: Batch, seen: Batch) -> torch.Tensor:
    """Say who may look at whom: a token at its group's head, and at its own segment, up to itself.

    Args:
        new: Layout of the tokens that look.
        seen: Layout of all tokens so far, the new ones last.

    Returns:
        Bool, shape (rows, 1, new tokens, seen tokens), true where a token attends. No token is left
        without any, padding included: softmax over nothing is not a number.
    """
    queries, keys = new.input_ids.shape[1], seen.input_ids.shape[1]
    same_group = new.groups[:, :, None] == seen.groups[:, None, :]
    same_segment = new.segments[:, :, None] == seen.segments[:, None, :]
    of_head = (seen.segments == HEAD)[:, None, :]
    past = torch.ones(queries, keys, dtype=torch.bool, device=new.input_ids.device).tril(keys - queries)
    return (same_group & (same_segment | of_head) & past)[:, None]


def flex_mask(new: Batch, seen: Batch) -> BlockMask:
    """Return `block_mask` for FlexAttention, which skips blocks of which nothing is attended to.

    Its shape is (rows, 1, new tokens, seen tokens); it holds no tensor of that size.
    """
    queries, keys = new.input_ids.shape[1], seen.input_ids.shape[1]

    def attends(
        row: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        segment = seen.segments[row, key]
        own = (new.segments[row, query] == segment) | (segment == HEAD)
        return own & (new.groups[row, query] == seen.groups[row, key]) & (key <= query + keys - queries)

    rows, device = new.input_ids.shape[0], str(new.input_ids.device)
    return create_block_mask(attends, rows, None, queries, keys, device=device)
