"""The pairwise protocol: two answers in both orders, and when one has won.

A judge that always names the first answer wins nothing here: a pair is won only by the answer that
is preferred in both orders, whatever else the judge says about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Choice = Literal["A", "B", "tie", "invalid"]
Verdict = Literal["challenger", "incumbent", "tie", "invalid"]


@dataclass(frozen=True)
class Pair:
    """Two systems' answers to one test question."""

    sample_id: str
    group: str
    question: str
    references: tuple[str, ...]
    challenger: str
    incumbent: str

    @property
    def equal(self) -> bool:
        """Both systems gave the same answer."""
        return self.challenger.strip() == self.incumbent.strip()


@dataclass(frozen=True)
class Reply:
    """What a judge said of two answers: "A" for the first, "B" for the second."""

    choice: Choice
    tokens: int = 0  # prompt and completion


class Judge(Protocol):
    """Names the better of two answers; called from several threads at once."""

    name: str  # as results show it: who judged, and whether it is a language model
    calls_at_once: int

    def compare(self, question: str, references: tuple[str, ...], first: str, second: str) -> Reply:
        """Compare two answers with the reference answers.

        Raises:
            JudgeError: No answer can be had. There is no fall-back to another judge.
        """


@dataclass(frozen=True)
class Judgement:
    """A pair's verdicts: with the challenger's answer first, with it second, and both together."""

    pair: Pair
    first: Verdict
    second: Verdict
    tokens: int = 0

    @property
    def verdict(self) -> Verdict:
        """The system preferred in both orders; a tie where the orders disagree."""
        if "invalid" in (self.first, self.second):
            return "invalid"
        return self.first if self.first == self.second else "tie"


def judge_pair(judge: Judge, pair: Pair) -> Judgement:
    """Ask for both orders. Equal answers are a tie: they are not sent, and cost nothing."""
    if pair.equal:
        return Judgement(pair, "tie", "tie")
    ours, theirs = pair.challenger, pair.incumbent
    forth = judge.compare(pair.question, pair.references, ours, theirs)
    back = judge.compare(pair.question, pair.references, theirs, ours)
    return Judgement(
        pair,
        _verdict(forth.choice, {"A": "challenger", "B": "incumbent"}),
        _verdict(back.choice, {"A": "incumbent", "B": "challenger"}),
        forth.tokens + back.tokens,
    )


def parse_choice(text: str) -> Choice:
    """Return the choice of a reply that is 'A', 'B' or 'TIE' and nothing else; all else is invalid.

    Case, white space, and quotes, brackets, asterisks or a full stop around the word are let pass.
    """
    word = text.strip(" \t\r\n\"'`*[](){}.").upper()
    return {"A": "A", "B": "B", "TIE": "tie"}.get(word, "invalid")  # type: ignore[return-value]


def _verdict(choice: Choice, names: dict[str, Verdict]) -> Verdict:
    return choice if choice in ("tie", "invalid") else names[choice]  # type: ignore[return-value]
