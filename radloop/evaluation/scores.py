"""From predictions to figures: every score with n, its interval, and the baselines beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from radloop.config import EvaluationConfig
from radloop.evaluation.learnt import findings
from radloop.evaluation.metrics import REGISTRY
from radloop.evaluation.normalise import normalise
from radloop.evaluation.predict import BASE, BLIND, CHAMPION, SHUFFLED, SYSTEMS, TUNED
from radloop.evaluation.statistics import Comparison, Groups

Scores = dict[str, NDArray[np.float64]]  # system -> (n,) in the order of the samples


def score(predictions: pa.Table, config: EvaluationConfig, seed: int) -> dict[str, Any]:
    """Compute all figures of a prediction table; nothing else enters them.

    Args:
        predictions: Table of schema `radloop.evaluation.predict.PREDICTIONS`.
        config: Number of resamples and confidence of the intervals.
        seed: Of the resamples.

    Returns:
        JSON values. For each metric M the tuned model's score under "M" and those of the other
        systems under "M_base", "M_blind", "M_shuffled" (None with a single test image) and, where
        there is one, "M_champion"; the [low, high] of each under "intervals"; "n", "num_groups" and
        "num_images"; the paired differences of exact match "gain" (tuned - incumbent), "over_blind"
        (tuned - blind) and "grounding" (tuned - shuffled, with the share of answers "changed" by the
        other image; or None); exact match "by_question_type" and "by_answer_type"; and "learnt", the
        sentences that follow from these.
    """
    frame = predictions.filter(pc.equal(predictions["system"], TUNED))
    labels = frame["group"].to_pylist()
    groups = Groups(labels, config.resamples, config.confidence, seed)
    metrics: dict[str, Any] = {
        "n": frame.num_rows,
        "num_groups": len(groups),
        "num_images": len(pc.unique(pc.list_flatten(frame["image_ids"]))),
        "confidence_level": config.confidence,
        "intervals": {},
    }
    for name in REGISTRY:
        scores = _by_system(predictions, name)
        metrics |= {f"{name}_{SHUFFLED}": None}
        for system, values in scores.items():
            key = name if system == TUNED else f"{name}_{system}"
            estimate = groups.mean(values.tolist())
            metrics[key] = estimate.value
            metrics["intervals"][key] = [estimate.low, estimate.high]
    scores = _by_system(predictions, "exact_match")
    incumbent = CHAMPION if CHAMPION in scores else BASE
    metrics["gain"] = {"incumbent": incumbent} | _difference(groups, scores, incumbent)
    metrics["over_blind"] = _difference(groups, scores, BLIND)
    metrics["grounding"] = None
    if SHUFFLED in scores:
        metrics["grounding"] = {"changed": _changed(predictions)} | _difference(groups, scores, SHUFFLED)
    for column in ("question_type", "answer_type"):
        metrics[f"by_{column}"] = _slices(frame[column].to_pylist(), labels, scores, config, seed)
    return metrics | {"learnt": [finding.text for finding in findings(metrics)]}


def _by_system(predictions: pa.Table, metric: str) -> Scores:
    """Return each system's scores, checked to be of the same samples in the same order."""
    scores: Scores = {}
    samples: list[str] = []
    for system in SYSTEMS:
        rows = predictions.filter(pc.equal(predictions["system"], system))
        if rows.num_rows:
            samples = samples or rows["sample_id"].to_pylist()
            if rows["sample_id"].to_pylist() != samples:
                raise ValueError(f"the samples of system {system!r} are not those of the others")
            scores[system] = rows[metric].to_numpy()
    if not {TUNED, BASE, BLIND} <= set(scores):
        raise ValueError(f"got predictions of {sorted(scores)}; tuned, base and blind are needed")
    return scores


def _changed(predictions: pa.Table) -> float:
    """Return the share of the tuned model's answers that become others on other images."""
    own, other = (
        predictions.filter(pc.equal(predictions["system"], system))["prediction"].to_pylist()
        for system in (TUNED, SHUFFLED)
    )
    return float(
        np.mean([normalise(left) != normalise(right) for left, right in zip(own, other, strict=True)])
    )


def _difference(groups: Groups, scores: Scores, other: str) -> dict[str, Any]:
    found: Comparison = groups.compare(scores[TUNED].tolist(), scores[other].tolist())
    return {"difference": found.difference, "interval": [found.low, found.high], "p": found.p}


def _slices(
    kinds: list[str], labels: list[str], scores: Scores, config: EvaluationConfig, seed: int
) -> dict[str, dict[str, Any]]:
    """Return exact match of every system for each kind of question, the most frequent kind first."""
    slices: dict[str, dict[str, Any]] = {}
    for kind in sorted(set(kinds), key=lambda kind: (-kinds.count(kind), kind)):
        rows = [row for row, its_kind in enumerate(kinds) if its_kind == kind]
        groups = Groups([labels[row] for row in rows], config.resamples, config.confidence, seed)
        estimates = {system: groups.mean(values[rows].tolist()) for system, values in scores.items()}
        slices[kind or "(none)"] = {
            "n": len(rows),
            "num_groups": len(groups),
            **{system: estimate.value for system, estimate in estimates.items()},
            "intervals": {system: [found.low, found.high] for system, found in estimates.items()},
        }
    return slices
