"""Exact match: the whole answer is right or it is not."""

from __future__ import annotations

from collections.abc import Sequence

from radloop.evaluation.normalise import normalise


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 if the prediction equals any of the answers after `normalise`, else 0.0."""
    return float(normalise(prediction) in {normalise(answer) for answer in answers})
