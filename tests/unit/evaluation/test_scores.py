from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from radloop.evaluation.scores import score
from tests.unit.scripted import CONFIG, HEART, answer_to, habit, half, prepared, report, sees


def test_figures_are_those_of_the_predictions() -> None:
    found = report(prepared(), base=habit, tuned=sees, champion=half)
    metrics, predictions = found.metrics, found.predictions
    assert metrics["n"] == 60
    assert metrics["num_groups"] == metrics["num_images"] == 30
    for system, ending in {"tuned": "", "base": "_base", "champion": "_champion", "blind": "_blind"}.items():
        rows = predictions.filter(pc.equal(predictions["system"], system))
        for name in ("exact_match", "token_f1"):
            assert metrics[name + ending] == pytest.approx(pc.mean(rows[name]).as_py())
            low, high = metrics["intervals"][name + ending]
            assert low <= metrics[name + ending] <= high
    assert metrics["exact_match"] == 1
    assert metrics["gain"]["incumbent"] == "champion"
    assert metrics["gain"]["difference"] == pytest.approx(1 - metrics["exact_match_champion"])
    assert metrics["over_blind"]["difference"] == pytest.approx(1 - metrics["exact_match_blind"])
    assert metrics["grounding"]["difference"] == pytest.approx(1 - metrics["exact_match_shuffled"])
    assert json.loads(json.dumps(metrics)) == metrics


def test_slices_add_up_to_the_whole() -> None:
    metrics = report(prepared(), base=habit, tuned=half).metrics
    for slices in (metrics["by_question_type"], metrics["by_answer_type"]):
        assert sum(found["n"] for found in slices.values()) == metrics["n"]
        for system, key in {"tuned": "exact_match", "shuffled": "exact_match_shuffled"}.items():
            total = sum(found["n"] * found[system] for found in slices.values())
            assert total / metrics["n"] == pytest.approx(metrics[key])
    assert metrics["by_question_type"]["heart"]["tuned"] == 1
    assert metrics["by_answer_type"]["open"]["tuned"] < 1


def test_order_of_rows_within_a_system_must_agree() -> None:
    predictions = report(prepared(), base=habit, tuned=sees).predictions
    base = predictions.filter(pc.equal(predictions["system"], "base"))
    rest = predictions.filter(pc.not_equal(predictions["system"], "base"))
    mixed = pa.concat_tables([rest, base.take(list(reversed(range(base.num_rows))))])
    with pytest.raises(ValueError, match="samples of system 'base'"):
        score(mixed, CONFIG, 7)


def test_missing_systems_are_an_error() -> None:
    predictions = report(prepared(), base=habit, tuned=sees).predictions
    with pytest.raises(ValueError, match="tuned, base and blind are needed"):
        score(predictions.filter(pc.equal(predictions["system"], "tuned")), CONFIG, 7)


class TestWhatWasLearnt:
    """The sentences follow the figures, good or bad."""

    def test_a_model_that_looks(self) -> None:
        gain, blind, image = report(prepared(), base=habit, tuned=sees).metrics["learnt"]
        assert gain.startswith("The tuned model is better than the base: exact match 100.0 % against")
        assert blind.startswith("It beats the most common training answer")
        assert image.startswith("It uses the image:")

    def test_a_model_of_habits(self) -> None:
        gain, blind, image = report(prepared(), base=sees, tuned=habit).metrics["learnt"]
        assert gain.startswith("The tuned model is worse than the base")
        assert blind.startswith("It does not beat the most common training answer")
        assert "equally well on other patients' images" in image
        assert "0.0 % of its answers change" in image
        assert image.endswith("it has learnt answer habits, not anatomy.")

    def test_a_model_whose_answers_change_at_random(self) -> None:
        def noise(question: str, grey: int) -> str:  # the bits above those of the findings
            return answer_to(question, grey >> 2)

        metrics = report(prepared(num_test=400), base=habit, tuned=noise).metrics
        assert metrics["grounding"]["changed"] > 0.3
        assert "it has learnt answer habits, not anatomy." in metrics["learnt"][2]
        metrics = report(prepared(num_test=30), base=habit, tuned=noise).metrics
        assert "take it to have learnt answer habits" in metrics["learnt"][2]

    def test_a_model_that_looks_now_and_then(self) -> None:
        def seldom(question: str, grey: int) -> str:
            return sees(question, grey) if question == HEART and grey >= 140 else habit(question, grey)

        image = report(prepared(num_test=300), base=habit, tuned=seldom).metrics["learnt"][2]
        assert image.startswith("It uses the image, but little")

    def test_no_change(self) -> None:
        gain = report(prepared(), base=half, tuned=half).metrics["learnt"][0]
        assert gain.startswith("No gain over the base can be shown")
        assert "+0.0 points" in gain

    def test_too_little_to_tell(self) -> None:
        # Three images: whatever the difference, the interval is far too wide for a verdict.
        image = report(prepared(num_test=3), base=habit, tuned=half).metrics["learnt"][2]
        assert image.startswith("That it uses the image cannot be shown")
        image = report(prepared(num_test=1), base=habit, tuned=half).metrics["learnt"][2]
        assert image.startswith("Whether it uses the image cannot be told")

    def test_nothing_right(self) -> None:
        image = report(prepared(), base=habit, tuned=lambda *_: "?!").metrics["learnt"][2]
        assert image.endswith("cannot be told: no answer is right.")

    def test_a_score_of_one_finding_only(self) -> None:
        def lucky(question: str, grey: int) -> str:
            return "yes" if question == HEART else "none"

        metrics = report(prepared(), base=habit, tuned=lucky).metrics
        assert metrics["by_question_type"]["side"]["tuned"] == 0
        assert metrics["exact_match"] < metrics["exact_match_blind"]
