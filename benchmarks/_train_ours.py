"""What a user of radloop does: `radloop.training.finetune`."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.models.packing import Tokens
from radloop.training import finetune, loop
from radloop.training.examples import Examples, read_examples


def main(model: dict[str, Any], data: str, out: str, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train LoRA layers and write them to `out`.

    Args:
        model: A `ModelConfig`.
        data: Folder of prepared data.
        out: Where the adapter goes.
        settings: A `FinetuneConfig`.
        seed: Of weights and order.
    """
    prepared = PreparedData.load(Path(data))
    reading = _TimedReading()
    start = time.monotonic()
    with mock.patch.object(loop, "read_examples", reading):
        adapter = finetune(_train_only(prepared), ModelConfig(**model), FinetuneConfig(**settings), seed)
    seconds = time.monotonic() - start
    Path(out).mkdir(parents=True)
    adapter.save(Path(out))
    record = adapter.record
    return {
        "seconds": seconds,
        "training_seconds": record["seconds"] + reading.seconds,
        "samples": round(record["samples_per_s"] * record["seconds"]),
        "steps": len(record["history"]),
        "trained_parameters": record["parameters"]["trained"],
        "tokens": _tokens(reading.train),
    }


class _TimedReading:
    """Reads the texts in the place of `read_examples`, which the other side does in each of its steps.

    Attributes:
        seconds: That it took, the first time in this process: that is what a user waits for.
        train: What it made of the train split.
    """

    seconds: float
    train: Examples

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, data: PreparedData, split: str, *arguments: Any) -> Examples:
        start = time.monotonic()
        found = read_examples(data, split, *arguments)
        self.seconds += time.monotonic() - start
        if split == "train":
            self.train = found
        return found


def _train_only(prepared: PreparedData) -> PreparedData:
    """Return the data without its validation split, which the other side does not look at while it trains."""
    return PreparedData(prepared.images, prepared.split("train"), prepared.fingerprint)


def _tokens(train: Examples) -> dict[str, Any]:
    """Describe the tokens of all samples that were trained on: to be held against the other side's."""
    pairs: list[Tokens] = [pair for found in train.sets for group in found.groups for pair in group.tails]
    return described(
        [pair.ids for pair in pairs], [pair.ids[len(pair) - pair.num_answer :] for pair in pairs]
    )


def described(ids: Sequence[Sequence[int]], with_loss: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return what is equal for equal rows, in any order, of token ids and of those that have a loss."""
    rows = sorted([*map(list, row)] for row in zip(ids, with_loss, strict=True))
    digest = hashlib.sha256(json.dumps(rows).encode())
    return {
        "all": sum(map(len, ids)),
        "with_loss": sum(map(len, with_loss)),
        "sha256": digest.hexdigest()[:16],
    }


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
