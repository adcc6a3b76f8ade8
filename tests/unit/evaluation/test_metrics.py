from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radloop.evaluation.metrics import get_metric
from radloop.evaluation.metrics.exact_match import exact_match
from radloop.evaluation.metrics.token_f1 import token_f1


def test_an_unknown_metric_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown metric 'exact_mach'; known: exact_match, token_f1"):
        get_metric("exact_mach")


def test_exact_match_takes_any_answer() -> None:
    assert exact_match("Left lung.", ["right lung", "the left lung"]) == 1
    assert exact_match("left", ["left lung"]) == 0
    assert exact_match("", ["left"]) == 0


def test_token_f1_counts_shared_words_with_repetition() -> None:
    # 2 shared words; 3 predicted, 4 in the reference.
    assert token_f1("right upper zone", ["right upper lobe opacity"]) == pytest.approx(2 * 2 / (3 + 4))
    assert token_f1("left left", ["left lung"]) == pytest.approx(0.5)
    assert token_f1("left", ["right", "left side"]) == pytest.approx(2 / 3)
    assert token_f1("none", ["left"]) == 0
    assert token_f1("", ["left"]) == 0


@settings(deadline=None)
@given(st.text(), st.lists(st.text(min_size=1), min_size=1, max_size=3))
def test_an_exact_match_is_a_full_token_f1(prediction: str, answers: list[str]) -> None:
    assert 0 <= token_f1(prediction, answers) <= 1
    if exact_match(prediction, answers) and prediction.strip():
        assert token_f1(prediction, answers) == 1
    assert exact_match(answers[0], answers) == 1
