"""A judge without a language model: who is nearer to the reference, by rule."""

from __future__ import annotations

from typing import Self

from radloop.evaluation.metrics.exact_match import exact_match
from radloop.evaluation.metrics.token_f1 import token_f1
from radloop.judging.protocol import Reply


class OfflineJudge:
    """Prefers the answer that matches a reference; if both or none do, the higher token F1.

    Deterministic, and of no opinion beyond these two metrics: it adds nothing to them but the
    pairwise form, and stands in where no endpoint is configured.
    """

    name = "offline (rule-based, not a language model)"
    calls_at_once = 1

    @classmethod
    def from_environment(cls) -> Self:
        """Return the judge; it needs nothing from the environment."""
        return cls()

    def compare(self, question: str, references: tuple[str, ...], first: str, second: str) -> Reply:
        """Compare by (exact match, token F1); equal pairs are a tie."""
        ours, theirs = _merit(first, references), _merit(second, references)
        return Reply("A" if ours > theirs else "B" if theirs > ours else "tie")


def _merit(answer: str, references: tuple[str, ...]) -> tuple[float, float]:
    return exact_match(answer, references), token_f1(answer, references)
