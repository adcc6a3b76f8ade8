from __future__ import annotations

import json
from pathlib import Path

import pytest

from radloop.artifact import Artifact
from radloop.config import JudgeConfig
from radloop.errors import JudgeError
from radloop.evaluation.metrics.exact_match import exact_match
from radloop.judging import JudgeReport, judge
from radloop.judging.judges import get_judge
from radloop.judging.protocol import Reply
from radloop.judging.run import compare, draw
from tests.unit.scripted import habit, half, prepared, report, sees

OFFLINE = JudgeConfig()


def test_the_better_system_wins_where_answers_differ() -> None:
    found = report(prepared(), base=habit, tuned=sees)
    summary = judge(found, OFFLINE, 7).summary
    wrong = round((1 - found.metrics["exact_match_base"]) * 60)
    assert summary["judge"] == "offline (rule-based, not a language model)"
    assert summary["incumbent"] == "base"
    assert summary["verdicts"] == {"challenger": wrong, "incumbent": 0, "tie": 60 - wrong, "invalid": 0}
    assert summary["win_rate"] == pytest.approx((wrong + (60 - wrong) / 2) / 60)
    assert summary["interval"][0] > 0.5
    assert summary["p"] < 0.01
    assert summary["consistency"] == 1


def test_the_champion_is_the_incumbent_where_there_is_one() -> None:
    summary = judge(report(prepared(), base=habit, tuned=half, champion=sees), OFFLINE, 7).summary
    assert summary["incumbent"] == "champion"
    assert summary["verdicts"]["challenger"] == 0
    assert summary["interval"][1] < 0.5


def test_equal_systems_tie_without_being_asked() -> None:
    summary = judge(report(prepared(), base=sees, tuned=sees), OFFLINE, 7).summary
    assert summary["num_asked"] == 0
    assert summary["win_rate"] == 0.5
    assert summary["p"] == 1
    assert summary["consistency"] is None


def test_pairs_are_drawn_by_the_seed() -> None:
    predictions = report(prepared(), base=habit, tuned=sees).predictions
    pairs = draw(predictions, "base", 20, 7)
    assert len({pair.sample_id for pair in pairs}) == 20
    assert pairs == draw(predictions, "base", 20, 7)
    assert pairs != draw(predictions, "base", 20, 8)
    assert len(draw(predictions, "base", 1000, 7)) == 60
    for pair in pairs:
        assert exact_match(pair.challenger, pair.references)


class Mumbles:
    """Answers outside the protocol, now and then or always."""

    name = "mumbling model"
    calls_at_once = 1

    def __init__(self, every: int) -> None:
        self.every = every
        self.count = 0

    def compare(self, question: str, references: tuple[str, ...], first: str, second: str) -> Reply:
        self.count += 1
        good = "A" if exact_match(first, references) else "B"
        return Reply("invalid" if self.count % self.every == 0 else good, 3)


def test_invalid_replies_are_counted_and_leave_the_rate() -> None:
    result = compare(Mumbles(every=5), report(prepared(), base=habit, tuned=sees), 60, 7)
    verdicts = result.summary["verdicts"]
    assert verdicts["invalid"] > 0
    valid = verdicts["challenger"] + verdicts["tie"]
    assert result.summary["win_rate"] == pytest.approx((verdicts["challenger"] + verdicts["tie"] / 2) / valid)
    assert result.summary["tokens"] == 6 * result.summary["num_asked"]


def test_mostly_invalid_replies_are_an_error() -> None:
    with pytest.raises(
        JudgeError, match=r"mumbling model: (\d+) of \1 pairs were answered outside the protocol"
    ):
        compare(Mumbles(every=1), report(prepared(), base=habit, tuned=sees), 60, 7)


def test_unknown_judge() -> None:
    with pytest.raises(JudgeError, match="unknown judge 'gpt'; known: offline, openai"):
        get_judge("gpt")


def test_round_trip_and_page(tmp_path: Path) -> None:
    result = judge(report(prepared(), base=habit, tuned=sees), OFFLINE, 7)
    assert isinstance(result, Artifact)
    result.save(tmp_path)
    assert JudgeReport.load(tmp_path) == result
    page = result.views()["judge.html"]
    assert isinstance(page, str)
    assert "not a language model" in page
    assert json.dumps(result.facts())
    assert result.facts()["win_rate"] == result.summary["win_rate"]


def test_the_page_escapes_answers() -> None:
    page = judge(report(prepared(), base=lambda *_: "<script>", tuned=sees), OFFLINE, 7).views()["judge.html"]
    assert isinstance(page, str)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
