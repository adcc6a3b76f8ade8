"""Scores an adapter, whoever trained it, by the same code: validation loss and exact match."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from radloop import models
from radloop.config import ModelConfig
from radloop.data.prepared import PreparedData
from radloop.evaluation.metrics import get_metric
from radloop.inference import Engine, Request
from radloop.models import packing
from radloop.models.packing import Batch


def main(model: str, adapter: str, data: str) -> dict[str, float]:
    """Ask all validation questions.

    Returns:
        "loss": mean over all answer tokens, nats; "exact_match": share of the answers, 0 to 1.
    """
    prepared = PreparedData.load(Path(data))
    rows = prepared.split("validation").to_pylist()
    base = ModelConfig(base=model)
    engine = Engine(base, Path(adapter))
    pictures = {name: prepared.image(name) for row in rows for name in row["image_ids"]}
    requests = [Request(tuple(row["image_ids"]), row["prompt"]) for row in rows]
    answers = engine.answer(pictures, requests)
    exact = get_metric("exact_match")
    scores = [exact(answer.text, row["answers"]) for answer, row in zip(answers, rows, strict=True)]
    return {"loss": _loss(base, Path(adapter), prepared), "exact_match": sum(scores) / len(scores)}


@torch.no_grad()
def _loss(base: ModelConfig, adapter: Path, prepared: PreparedData) -> float:
    """Return the mean over all answer tokens, each pair in a row of its own."""
    loaded = models.load(base, adapter)
    losses = []
    for row in prepared.split("validation").to_pylist():
        sizes = [prepared.size(name) for name in row["image_ids"]]
        pairs = loaded.prompts.pairs([row["prompt"]], row["answers"][:1], [sizes])
        (group,) = packing.groups(row["image_ids"], pairs)
        batch = Batch.of([(group,)], loaded.device)
        features = loaded.encode([prepared.image(name) for name in row["image_ids"]])
        logits = loaded.family.logits(loaded.model, batch, features)
        losses.append(torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none"))
    return torch.cat(losses).mean().item()


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
