"""Token F1: how many words prediction and answer share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from radloop.evaluation.normalise import normalise


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the best F1, 0 to 1, of the words (with repetition) against any of the answers.

    Source: SQuAD 1.1's official scorer (Rajpurkar et al. 2016), with `normalise` in place of its
    own normalisation.
    """
    words = normalise(prediction).split()
    return max((_f1(words, normalise(answer).split()) for answer in answers), default=0.0)


def _f1(predicted: list[str], reference: list[str]) -> float:
    shared = (Counter(predicted) & Counter(reference)).total()
    return 2 * shared / (len(predicted) + len(reference)) if shared else 0.0
