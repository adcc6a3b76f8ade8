"""Greedy decoding of questions that are packed behind the keys and values of their image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import DynamicCache

from radloop.models.loading import Loaded
from radloop.models.packing import PADDING, Batch, Group


@dataclass
class Continuation:
    """How one question goes on.

    Attributes:
        row: Which row it is in.
        segment: Its number in the row, from 1.
        position: Position id of its next token.
        ids: Tokens generated so far.
        log_probability: Sum over `ids`, natural logarithm.
        ended: Whether the last of `ids` is an end token.
    """

    row: int
    segment: int
    position: int
    ids: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    ended: bool = False


def decode(
    loaded: Loaded, cache: DynamicCache, groups: Sequence[Group], max_new_tokens: int
) -> list[Continuation]:
    """Continue the questions of `groups` until each has ended or has `max_new_tokens`, >= 1.

    Args:
        loaded: The model.
        cache: Keys and values of the groups' heads, which are of one length; grows.
        groups: Tails without answers, a group a row.
        max_new_tokens: Longest answer.

    Returns:
        One for each tail, group by group.
    """
    batch = Batch.of([(group,) for group in groups], loaded.device, with_head=False)
    seen = layout_of_heads(groups, loaded.device)
    num_axes = len(batch.position_ids)
    going = continuations = [
        Continuation(place, number, group.head.next_position + len(tail.tail))
        for place, group in enumerate(groups)
        for number, tail in enumerate(group.tails, start=1)
    ]
    for _ in range(max_new_tokens):
        seen = batch.after(seen)
        _add_tokens(going, loaded.family.logits(loaded.model, batch, (), seen, cache), loaded)
        going = [continuation for continuation in going if not continuation.ended]
        if not going:
            break
        batch = _next_tokens(going, len(groups), num_axes, loaded.device)
    return continuations


def layout_of_heads(groups: Sequence[Group], device: torch.device) -> Batch:
    """Return the layout of the groups' heads, which are of one length, a group a row."""
    return Batch.of([(replace(group, tails=()),) for group in groups], device)


def _add_tokens(going: Sequence[Continuation], logits: torch.Tensor, loaded: Loaded) -> None:
    """Give each question the likeliest token that `logits`, shape (questions, vocabulary), say."""
    best, ids = torch.log_softmax(logits.float(), dim=-1).max(dim=-1)
    for continuation, log_probability, token in zip(going, best.tolist(), ids.tolist(), strict=True):
        continuation.ids.append(token)
        continuation.log_probability += log_probability
        continuation.ended = token in loaded.prompts.end_ids


def _next_tokens(going: Sequence[Continuation], num_rows: int, num_axes: int, device: torch.device) -> Batch:
    """Lay out the last token of each question that goes on, row by row, padded at the right."""
    of_row: list[list[Continuation]] = [[] for _ in range(num_rows)]
    for continuation in going:
        of_row[continuation.row].append(continuation)
        continuation.position += 1
    width = max(map(len, of_row))
    pads = [width - len(row) for row in of_row]
    layout = list(zip(of_row, pads, strict=True))
    positions = torch.tensor(
        [[c.position - 1 for c in row] + [0] * pad for row, pad in layout], device=device
    )
    nothing = torch.empty(0, dtype=torch.long, device=device)
    return Batch(
        input_ids=torch.tensor(
            [[c.ids[-1] for c in row] + [going[0].ids[-1]] * pad for row, pad in layout], device=device
        ),
        groups=torch.tensor([[0] * len(row) + [PADDING] * pad for row, pad in layout], device=device),
        segments=torch.tensor(
            [[c.segment for c in row] + [PADDING] * pad for row, pad in layout], device=device
        ),
        position_ids=positions.expand(num_axes, *positions.shape),
        predicts=torch.tensor([[True] * len(row) + [False] * pad for row, pad in layout], device=device),
        targets=nothing,
        answers=nothing,
    )
