from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from radloop.artifact import Artifact
from radloop.config import JudgeConfig, PromotionConfig
from radloop.evaluation import EvaluationReport
from radloop.judging import JudgeReport, judge
from radloop.promotion import PromotionDecision, decide
from tests.unit.scripted import habit, half, prepared, report, sees

CONFIG = PromotionConfig()
GOOD = report(prepared(), base=habit, tuned=sees)


def judged(evaluation: EvaluationReport) -> JudgeReport:
    return judge(evaluation, JudgeConfig(), 7)


def decided(evaluation: EvaluationReport, config: PromotionConfig = CONFIG) -> PromotionDecision:
    return decide(evaluation, judged(evaluation), config, "base")


def with_metrics(**changes: Any) -> EvaluationReport:
    return replace(GOOD, metrics=GOOD.metrics | changes)


def failed(decision: PromotionDecision) -> list[str]:
    return [gate.name for gate in decision.gates if not gate.passed]


def test_a_model_that_looks_and_gains_is_promoted() -> None:
    decision = decided(GOOD)
    assert decision.promoted
    assert failed(decision) == []
    assert decision.reason.startswith("promoted: better than base: +")
    assert "looks at the image: +" in decision.reason


def test_a_model_of_habits_is_not() -> None:
    decision = decided(report(prepared(), base=sees, tuned=habit))
    assert not decision.promoted
    assert failed(decision) == ["better than base", "looks at the image", "no veto by the judge"]
    for name in failed(decision):
        assert name in decision.reason
    assert "\n" not in decision.reason


def test_a_gain_without_looking_is_refused_and_the_reason_has_the_figures() -> None:
    evaluation = report(prepared(num_test=60), base=lambda *_: "?!", tuned=habit)
    decision = decided(evaluation)
    assert failed(decision) == ["looks at the image"]
    assert decision.reason.startswith("not promoted: looks at the image: +0.0 points of exact match")
    assert "needed: all of it above +2.0, p at most 0.05" in decision.reason


def test_equal_to_the_champion_is_not_better() -> None:
    evaluation = report(prepared(), base=habit, tuned=sees, champion=sees)
    decision = decide(evaluation, judged(evaluation), CONFIG, "champion 3")
    assert failed(decision) == ["better than champion 3"]
    assert decision.incumbent == "champion 3"


@pytest.mark.parametrize(("low", "passed"), [(0.0201, True), (0.02, False), (0.0, False)])
@pytest.mark.parametrize("name", ["gain", "grounding"])
def test_the_interval_must_lie_above_the_threshold(name: str, low: float, passed: bool) -> None:
    comparison = GOOD.metrics[name] | {"difference": 0.1, "interval": [low, 0.2], "p": 0.001}
    decision = decided(with_metrics(**{name: comparison}), PromotionConfig(min_gain=0.02, min_grounding=0.02))
    assert decision.promoted == passed


@pytest.mark.parametrize("name", ["gain", "grounding"])
def test_p_must_agree(name: str) -> None:
    comparison = GOOD.metrics[name] | {"p": 0.06}
    assert not decided(with_metrics(**{name: comparison})).promoted


def test_a_handful_of_images_promotes_nothing() -> None:
    """However good: five images cannot show at 95 % that it was no accident."""
    assert not decided(report(prepared(num_test=5), base=lambda *_: "?!", tuned=sees)).promoted


def test_one_image_cannot_show_grounding() -> None:
    decision = decided(report(prepared(num_test=1), base=habit, tuned=sees))
    gate = decision.gates[1]
    assert (gate.passed, gate.figure, gate.interval) == (False, None, None)
    assert "looks at the image: cannot be told: there is one test image only" in decision.reason


@pytest.mark.parametrize(("high", "passed"), [(0.49, False), (0.5, True), (0.6, True)])
def test_the_judge_can_only_veto(high: float, passed: bool) -> None:
    verdicts = judged(GOOD)
    verdicts = replace(verdicts, summary=verdicts.summary | {"win_rate": 0.4, "interval": [0.3, high]})
    decision = decide(GOOD, verdicts, CONFIG, "base")
    assert decision.promoted == passed
    assert "offline (rule-based, not a language model)" in decision.gates[2].explanation
    if not passed:
        assert failed(decision) == ["no veto by the judge"]


@pytest.mark.parametrize("num_test", [1, 30])
def test_round_trip_and_page(num_test: int, tmp_path: Path) -> None:
    decision = decided(report(prepared(num_test=num_test), base=habit, tuned=half))
    assert isinstance(decision, Artifact)
    decision.save(tmp_path)
    assert PromotionDecision.load(tmp_path) == decision
    page = decision.views()["promotion.html"]
    assert isinstance(page, str)
    assert "looks at the image" in page
    assert decision.facts()["reason"] == decision.reason
