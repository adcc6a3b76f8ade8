"""Which samples a step trains on, and in which forward passes: a function of seed and step alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from radloop.config import FinetuneConfig
from radloop.models import prefix_attention
from radloop.models.loading import Loaded
from radloop.models.packing import Group, Row, fill_rows, split_group
from radloop.training.examples import Examples, ImageSet
from radloop.training.losses import Weighting, total_weight
from radloop.training.processes import deal

RowLayout = Literal["rows", "shared rows", "one row"]


@dataclass(frozen=True)
class StepBatch:
    """What one optimiser step reads.

    Attributes:
        sets: The image sets.
        shares: For each process its groups of them, in the rows of each forward pass.
    """

    sets: list[ImageSet]
    shares: list[list[list[Row]]]

    def passes_of(self, process: int) -> list[tuple[list[Row], int]]:
        """Return the passes of a process, and how often each counts.

        All processes take part in equally many passes, because their gradients meet in each: whoever
        has fewer repeats the shortest group, which then does not count.
        """
        company: list[Row] = [(min((group for row in self.rows for group in row), key=len),)]
        own = self.shares[process]
        missing = max(map(len, self.shares)) - len(own)
        return [(rows, 1) for rows in own] + [(company, 0)] * missing

    def total_weight(self, weighting: Weighting) -> int:
        """Return what the answer tokens of all passes weigh together."""
        return total_weight(self.rows, weighting)

    @property
    def rows(self) -> list[Row]:
        """All rows, of all passes of all processes."""
        return [row for share in self.shares for rows in share for row in rows]

    def sample_ids(self, rows: Sequence[Row]) -> list[str]:
        """Return the ids of the samples in some of the batch's rows."""
        of_pair = {
            id(pair): found.sample_ids[number]
            for found in self.sets
            for group in found.groups
            for number, pair in zip(group.numbers, group.tails, strict=True)
        }
        return [of_pair[id(pair)] for row in rows for group in row for pair in group.tails]

    @cached_property
    def num_samples(self) -> int:
        return sum(len(group.tails) for group in groups_of(self.sets))

    @cached_property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return sum(map(row_length, self.rows))


class Batches:
    """The batches of a run; every epoch has every image set once, in an order of its own.

    Nothing here changes from step to step, so a run that is taken up again goes on as it would have.
    """

    def __init__(
        self,
        examples: Examples,
        images_per_step: int,
        tokens_per_pass: int | None,
        layout: RowLayout,
        seed: int,
        num_processes: int = 1,
    ) -> None:
        """Prepare the batches.

        Args:
            examples: Not empty.
            images_per_step: Image sets in one batch; the last one of an epoch may have fewer.
            tokens_per_pass: See `split_passes`.
            layout: See `split_passes`.
            seed: Of the orders.
            num_processes: That share each batch.
        """
        self._sets = examples.sets
        self._images_per_step = images_per_step
        self._tokens_per_pass = tokens_per_pass
        self._layout = layout
        self._seed = seed
        self._num_processes = num_processes
        self.steps_per_epoch = math.ceil(len(examples.sets) / images_per_step)

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 0, of a step, from 1."""
        return (step - 1) // self.steps_per_epoch

    def of(self, step: int) -> StepBatch:
        """Return the batch of a step, from 1."""
        order = np.random.default_rng([self._seed, self.epoch_of(step)]).permutation(len(self._sets))
        start = (step - 1) % self.steps_per_epoch * self._images_per_step
        return self._batch([self._sets[n] for n in order[start : start + self._images_per_step]])

    def in_order(self) -> list[StepBatch]:
        """Return the batches of one pass over the data as it is."""
        size = self._images_per_step
        return [self._batch(self._sets[at : at + size]) for at in range(0, len(self._sets), size)]

    def _batch(self, sets: list[ImageSet]) -> StepBatch:
        shares = [
            split_passes(groups, self._tokens_per_pass, self._layout) if groups else []
            for groups in deal(groups_of(sets), self._num_processes)
        ]
        return StepBatch(sets, shares)


def arrangement(loaded: Loaded, config: FinetuneConfig) -> tuple[int, int | None, RowLayout]:
    """Return the arguments of `Batches` that model and config decide: images, tokens and layout."""
    by_group = loaded.base_model.config.get_text_config()._attn_implementation == prefix_attention.NAME
    by_row: RowLayout = "shared rows" if config.share_prefix else "rows"
    return config.images_per_step, config.tokens_per_pass, "one row" if by_group else by_row


def split_passes(groups: Sequence[Group], tokens_per_pass: int | None, layout: RowLayout) -> list[list[Row]]:
    """Arrange groups in rows, and these in forward passes of bounded size.

    Args:
        groups: In any order, not empty.
        tokens_per_pass: Most tokens, padding included, in one pass. A group with more is taken apart;
            only a single pair may still have more. None: all in one pass.
        layout: "rows": every group has a row. "shared rows": groups that are together no longer than the
            longest share one. "one row": a pass is one row, which has no padding; for attention that
            goes by groups, while a dense mask would hide most of it.
    """
    if tokens_per_pass is not None:
        groups = [part for group in groups for part in split_group(group, tokens_per_pass)]
    if layout == "one row":
        return [[row] for row in fill_rows(groups, tokens_per_pass or sum(map(len, groups)))]
    is_shared = layout == "shared rows"
    rows = fill_rows(groups, max(map(len, groups))) if is_shared else [(group,) for group in groups]
    rows.sort(key=row_length, reverse=True)  # rows of like length together: less padding
    passes: list[list[Row]] = [[]]
    for row in rows:
        if tokens_per_pass and passes[-1]:
            num_tokens = (len(passes[-1]) + 1) * row_length(passes[-1][0])
            if num_tokens > tokens_per_pass:
                passes.append([])
        passes[-1].append(row)
    return passes


def pass_size(rows: Sequence[Row]) -> str:
    """Return the size of a forward pass, for people."""
    tokens = f"{max(map(row_length, rows)):,} tokens"
    return tokens if len(rows) == 1 else f"{len(rows)} rows of {tokens}"


def groups_of(sets: Sequence[ImageSet]) -> list[Group]:
    """Return the groups of all sets."""
    return [group for found in sets for group in found.groups]


def row_length(row: Row) -> int:
    """Return the number of tokens of a row."""
    return sum(map(len, row))
