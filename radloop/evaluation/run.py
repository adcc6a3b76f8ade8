"""The evaluation as a whole: ask, score, show."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from radloop import workspace
from radloop.config import EvaluationConfig, ModelConfig
from radloop.evaluation.page import render
from radloop.evaluation.predict import BASE, CHAMPION, TUNED, Answerer, predict
from radloop.evaluation.report import EvaluationReport
from radloop.evaluation.scores import score
from radloop.training.adapter import Adapter

if TYPE_CHECKING:
    from radloop.data.prepared import PreparedData


def evaluate(
    data: PreparedData,
    model: ModelConfig,
    adapters: dict[str, Path | None],
    config: EvaluationConfig,
    seed: int,
) -> EvaluationReport:
    """Score base, tuned and champion model on the test split, beside what is reached without looking.

    Args:
        data: Test split to ask, train split for the blind baseline.
        model: The untuned base; an adapter is put on the base that it was trained on.
        adapters: Folder of the adapter of "tuned" and maybe of "champion"; None for "base".
        config: Sizes of batches and answers, resamples and confidence of the intervals.
        seed: Of the shuffled images, the resamples and the examples shown.

    Raises:
        ModelError: The base or an adapter cannot be loaded.
        ValueError: `adapters` names other systems, or lacks base or tuned.
    """
    if not {BASE, TUNED} <= set(adapters) <= {BASE, TUNED, CHAMPION}:
        raise ValueError(f"got adapters for {sorted(adapters)}; needed: base, tuned; allowed: champion")
    systems = {
        name: partial(_open_engine, model, adapter, config.batch_images) for name, adapter in adapters.items()
    }
    return score_all(data, predict(data, systems, config, seed), config, seed)


def score_all(
    data: PreparedData, predictions: pa.Table, config: EvaluationConfig, seed: int
) -> EvaluationReport:
    """Score the test split, and beside it the published one where that was asked, too."""
    test = predictions.filter(pc.equal(predictions["split"], "test"))
    published = predictions.filter(predictions["published_test"])
    metrics = {"fingerprint": data.fingerprint} | score(test, config, seed)
    if published.num_rows:
        metrics["published"] = score(published, config, seed)
    return EvaluationReport(test, metrics, render(data, test, metrics, seed), published)


def _open_engine(model: ModelConfig, adapter: Path | None, batch_images: int) -> Answerer:
    from radloop.inference import Engine  # brings torch, which reading a report does not need

    # A champion may have been trained on another base than the challenger.
    base = Adapter.load(adapter).base if adapter else model
    return Engine(base, adapter, batch_images, features=workspace.features())
