"""Several questions behind one image in one sequence, exactly as if each had a sequence of its own.

A row is `[head with the image][tail of question 1][tail of question 2]...`. Position ids restart
after the head, and a block mask lets each tail see the head and itself only. Training packs tails
with their answers; inference packs questions behind a head whose keys and values it already has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from radloop.models.prompts import Tokens

HEAD, PADDING = 0, -1  # segments of a row; tails count from 1
_MAX_TAIL_TOKENS = 2048  # of a row, so that the mask of an image with hundreds of questions stays small


@dataclass(frozen=True)
class Row:
    """One sequence: tails behind the head of one image.

    Attributes:
        image_id: Whose features stand at the head's image tokens.
        head: Token ids up to and including the last image token.
        tails: What comes after it, one for each question.
        numbers: For each tail, which of the pairs given to `rows` it is, from 0.
    """

    image_id: str
    head: tuple[int, ...]
    tails: tuple[Tokens, ...]
    numbers: tuple[int, ...]

    @property
    def num_answer_tokens(self) -> int:
        return sum(tail.num_answer for tail in self.tails)


def rows(image_id: str, pairs: Sequence[Tokens], share_prefix: bool = True) -> list[Row]:
    """Arrange the pairs about one image in rows: as few as memory allows, or one row a pair.

    Pairs share a row only if their heads are the same token for token; a chat template that puts
    the question before the image yields a row a pair by itself.
    """
    closed: list[list[int]] = []
    open_rows: dict[object, list[int]] = {}
    for number, pair in enumerate(pairs):
        key = pair.head if share_prefix else number
        row = open_rows.setdefault(key, [])
        if row and sum(len(pairs[other].tail) for other in (*row, number)) > _MAX_TAIL_TOKENS:
            closed.append(row)
            row = open_rows[key] = []
        row.append(number)
    return [
        Row(image_id, pairs[row[0]].head, tuple(pairs[number] for number in row), tuple(row))
        for row in (*closed, *open_rows.values())
    ]


def block_mask(query_segments: torch.Tensor, key_segments: torch.Tensor) -> torch.Tensor:
    """Say who may look at whom: a token at the head, and at its own segment up to itself.

    Args:
        query_segments: Segment of each new token, int, shape (rows, queries).
        key_segments: Segment of each token so far, the new ones last, int, shape (rows, keys).

    Returns:
        Bool, shape (rows, 1, queries, keys), true where a query attends. No query is left without
        a key, padding included: softmax over nothing is not a number.
    """
    queries, keys = query_segments.shape[1], key_segments.shape[1]
    same = query_segments[:, :, None] == key_segments[:, None, :]
    of_head = (key_segments == HEAD)[:, None, :]
    past = torch.ones(queries, keys, dtype=torch.bool, device=key_segments.device).tril(keys - queries)
    return ((same | of_head) & past)[:, None]


@dataclass(frozen=True)
class Batch:
    """Rows as tensors of one length; shorter rows are padded at the right.

    Attributes:
        input_ids: Int, shape (rows, tokens).
        segments: `HEAD`, `PADDING` or the tail's number from 1, int, shape (rows, tokens).
        position_ids: Restarting after the head, int, shape (rows, tokens).
        predicts: Bool, shape (rows, tokens), true where an answer token comes next. The answer of a
            tail without one comes after its last token.
        targets: Those answer tokens, as far as they are known, int, row by row.
    """

    input_ids: torch.Tensor
    segments: torch.Tensor
    position_ids: torch.Tensor
    predicts: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device | str = "cpu", with_head: bool = True) -> Self:
        """Lay out `rows`; without the head where its keys and values are known already."""
        length = max(with_head * len(row.head) + sum(len(tail.tail) for tail in row.tails) for row in rows)
        ids, segments, positions, predicts = [], [], [], []
        targets: list[int] = []
        for row in rows:
            head = row.head if with_head else ()
            row_ids, row_segments, row_positions = [*head], [HEAD] * len(head), [*range(len(head))]
            row_predicts = [False] * len(head)
            for number, pair in enumerate(row.tails, start=1):
                asked = len(pair.tail) - pair.num_answer
                row_ids += pair.tail
                row_segments += [number] * len(pair.tail)
                row_positions += range(len(row.head), len(row.head) + len(pair.tail))
                row_predicts += [False] * (asked - 1) + [True] * max(1, pair.num_answer)
                row_predicts += [False] * (pair.num_answer > 0)  # the end token predicts nothing
                targets += pair.tail[asked:]
            missing = length - len(row_ids)
            ids.append(row_ids + [row.tails[0].tail[-1]] * missing)  # any id that the vocabulary has
            segments.append(row_segments + [PADDING] * missing)
            positions.append(row_positions + [0] * missing)
            predicts.append(row_predicts + [False] * missing)
        return cls(
            torch.tensor(ids, device=device),
            torch.tensor(segments, device=device),
            torch.tensor(positions, device=device),
            torch.tensor(predicts, device=device),
            torch.tensor(targets, dtype=torch.long, device=device),
        )

    def mask(self) -> torch.Tensor:
        """Return the rows' own `block_mask`, bool, shape (rows, 1, tokens, tokens)."""
        return block_mask(self.segments, self.segments)
