"""What a user of radloop does: `radloop.training.finetune`."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.training import finetune
from radloop.training.examples import read_examples


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
    start = time.monotonic()
    config = FinetuneConfig(**settings)
    adapter = finetune(_train_only(prepared), ModelConfig(**model), config, seed)
    seconds = time.monotonic() - start
    Path(out).mkdir(parents=True)
    adapter.save(Path(out))
    return {
        "seconds": seconds,
        "training_seconds": adapter.record["seconds"] + _tokenizing_seconds(prepared, ModelConfig(**model)),
        "samples": round(prepared.split("train").num_rows * config.epochs),
        "trained_parameters": adapter.record["parameters"]["trained"],
        "tokens": _tokens(prepared, ModelConfig(**model)),
    }


def _train_only(prepared: PreparedData) -> PreparedData:
    """Return the data without its validation split, which the other side does not look at while it trains."""
    return PreparedData(prepared.images, prepared.split("train"), prepared.fingerprint)


def _tokenizing_seconds(prepared: PreparedData, model: ModelConfig) -> float:
    """Time what radloop does before its first step and the other side in each of its steps."""
    prompts = models.load(model).prompts
    start = time.monotonic()
    read_examples(prepared, "train", prompts, share_prefix=True)
    return time.monotonic() - start


def _tokens(prepared: PreparedData, model: ModelConfig) -> dict[str, Any]:
    """Describe the tokens of the first rows: to be held against the other side's."""
    rows = prepared.split("train").slice(0, 8).to_pylist()
    pairs = models.load(model).prompts.pairs(
        [row["prompt"] for row in rows],
        [row["answers"][0] for row in rows],
        [[prepared.size(name) for name in row["image_ids"]] for row in rows],
    )
    ids = [pair.ids for pair in pairs]
    with_loss = [pair.ids[len(pair) - pair.num_answer :] for pair in pairs]
    return described(ids, with_loss)


def described(ids: Sequence[Sequence[int]], with_loss: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return what is equal for equal rows of token ids, and of those of them that have a loss."""
    digest = hashlib.sha256(json.dumps([[*map(list, rows)] for rows in (ids, with_loss)]).encode())
    return {
        "all": sum(map(len, ids)),
        "with_loss": sum(map(len, with_loss)),
        "sha256": digest.hexdigest()[:16],
    }


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
