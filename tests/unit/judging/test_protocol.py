from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radloop.judging.judges.offline import OfflineJudge
from radloop.judging.protocol import Choice, Pair, Reply, judge_pair, parse_choice


def pair(
    challenger: str = "left lung", incumbent: str = "right", references: tuple[str, ...] = ("left",)
) -> Pair:
    return Pair("s1", "p1", "Which side?", references, challenger, incumbent)


class Says:
    """Gives the same two replies to every pair."""

    name = "test"
    calls_at_once = 1

    def __init__(self, forth: Choice, back: Choice) -> None:
        self.replies = [Reply(forth, 10), Reply(back, 5)]
        self.asked: list[tuple[str, str]] = []

    def compare(self, question: str, references: tuple[str, ...], first: str, second: str) -> Reply:
        self.asked.append((first, second))
        return self.replies[len(self.asked) - 1]


@pytest.mark.parametrize(
    ("forth", "back", "verdict"),
    [
        ("A", "B", "challenger"),
        ("B", "A", "incumbent"),
        ("A", "A", "tie"),  # always the first: position bias
        ("B", "B", "tie"),
        ("tie", "tie", "tie"),
        ("A", "tie", "tie"),
        ("A", "invalid", "invalid"),
        ("invalid", "tie", "invalid"),
    ],
)
def test_a_pair_is_won_in_both_orders_only(forth: Choice, back: Choice, verdict: str) -> None:
    judge = Says(forth, back)
    judgement = judge_pair(judge, pair())
    assert judge.asked == [("left lung", "right"), ("right", "left lung")]
    assert judgement.verdict == verdict
    assert judgement.tokens == 15


def test_equal_answers_are_not_sent() -> None:
    judge = Says("A", "B")
    assert judge_pair(judge, pair("left", " left ")).verdict == "tie"
    assert judge.asked == []


@pytest.mark.parametrize("text", ["A", " a\n", "A.", "**A**", "[[A]]", '"A"', "`A`"])
def test_the_word_alone_is_understood(text: str) -> None:
    assert parse_choice(text) == "A"
    assert parse_choice(text.replace("A", "B").replace("a", "b")) == "B"
    assert parse_choice(text.replace("A", "Tie").replace("a", "tie")) == "tie"


@pytest.mark.parametrize(
    "text", ["", "Answer A", "A or B", "A: it names the side", "both", "AB", "C", "tied", "neither"]
)
def test_anything_else_is_invalid(text: str) -> None:
    assert parse_choice(text) == "invalid"


@settings(deadline=None)
@given(st.text())
def test_parsing_never_guesses(text: str) -> None:
    letters = "".join(filter(str.isalpha, text)).upper()
    if letters not in ("A", "B", "TIE"):
        assert parse_choice(text) == "invalid"


class TestOfflineJudge:
    """By rule, and named so."""

    def test_it_is_named_as_what_it_is(self) -> None:
        assert OfflineJudge.from_environment().name == "offline (rule-based, not a language model)"

    @pytest.mark.parametrize(
        ("challenger", "incumbent", "verdict"),
        [
            ("Left.", "left lung", "challenger"),  # exact before overlapping
            ("right", "left lung", "incumbent"),  # overlapping before neither
            ("left lower lung zone", "left lung", "incumbent"),  # more overlap
            ("right", "none", "tie"),
            ("left", "the left", "tie"),
        ],
    )
    def test_exact_match_then_token_f1(self, challenger: str, incumbent: str, verdict: str) -> None:
        assert judge_pair(OfflineJudge(), pair(challenger, incumbent)).verdict == verdict

    def test_any_reference_counts(self) -> None:
        assert (
            judge_pair(OfflineJudge(), pair("effusion", "none", ("opacity", "effusion"))).verdict
            == "challenger"
        )
