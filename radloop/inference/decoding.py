"""Greedy decoding of questions that are packed behind the keys and values of their image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from radloop.models.loading import Loaded
from radloop.training.packing import HEAD, PADDING, Batch, Row, block_mask


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
    loaded: Loaded, cache: DynamicCache, rows: Sequence[Row], max_new_tokens: int
) -> list[Continuation]:
    """Continue the questions of `rows` until each has ended or has `max_new_tokens`, >= 1.

    Args:
        loaded: The model.
        cache: Keys and values of the rows' heads, which are of one length; grows.
        rows: Tails without answers.
        max_new_tokens: Longest answer.

    Returns:
        One for each tail, row by row.
    """
    prompts = Batch.of(rows, loaded.device, with_head=False)
    continuations = [
        Continuation(place, number, len(row.head) + len(tail.tail))
        for place, row in enumerate(rows)
        for number, tail in enumerate(row.tails, start=1)
    ]
    segments = torch.full((len(rows), len(rows[0].head)), HEAD, device=loaded.device)
    going, batch = continuations, prompts
    for step in range(max_new_tokens):
        segments = torch.cat([segments, batch.segments], dim=1)
        logits = loaded.model(
            input_ids=batch.input_ids,
            attention_mask=block_mask(batch.segments, segments),
            position_ids=batch.position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=batch.predicts,
        ).logits
        best, ids = torch.log_softmax(logits.float(), dim=-1).max(dim=-1)
        for continuation, log_probability, token in zip(going, best.tolist(), ids.tolist(), strict=True):
            continuation.ids.append(token)
            continuation.log_probability += log_probability
            continuation.ended = token in loaded.prompts.end_ids
        going = [continuation for continuation in going if not continuation.ended]
        if not going or step == max_new_tokens - 1:
            break
        batch = _next_tokens(going, len(rows), loaded.device)
    return continuations


def _next_tokens(going: Sequence[Continuation], num_rows: int, device: torch.device) -> Batch:
    """Lay out the last token of each question that goes on, row by row, padded at the right."""
    of_row: list[list[Continuation]] = [[] for _ in range(num_rows)]
    for continuation in going:
        of_row[continuation.row].append(continuation)
        continuation.position += 1
    width = max(map(len, of_row))
    pads = [width - len(row) for row in of_row]
    layout = list(zip(of_row, pads, strict=True))
    return Batch(
        input_ids=torch.tensor(
            [[c.ids[-1] for c in row] + [going[0].ids[-1]] * pad for row, pad in layout], device=device
        ),
        segments=torch.tensor(
            [[c.segment for c in row] + [PADDING] * pad for row, pad in layout], device=device
        ),
        position_ids=torch.tensor(
            [[c.position - 1 for c in row] + [0] * pad for row, pad in layout], device=device
        ),
        predicts=torch.tensor([[True] * len(row) + [False] * pad for row, pad in layout], device=device),
        targets=torch.empty(0, dtype=torch.long, device=device),
    )
