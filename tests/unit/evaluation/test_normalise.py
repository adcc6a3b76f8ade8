from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radloop.evaluation.normalise import normalise


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Yes.", "yes"),
        ("  X-ray ", "x ray"),
        ("The left\tlung", "left lung"),
        ("in the right hilum", "In right hilum"),
        ("one", "1"),
        ("Ten nodules", "10 nodules"),
        ("patient\u2019s left", "patients left"),
        ("MRI/FLAIR", "mri flair"),
        ("\uff23\uff34", "CT"),  # full-width letters
        ("5.6cm focal, predominantly hypodense", "5.6CM focal predominantly hypodense"),
        ("(right) upper lobe;", "right upper lobe"),
    ],
)
def test_equal_answers(left: str, right: str) -> None:
    assert normalise(left) == normalise(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("yes, abnormal", "yes"),
        ("none", "0"),
        ("1.5 cm", "15 cm"),
        ("1.5 cm", "1 5 cm"),
        ("> 5 cm", "< 5 cm"),
        ("A", "the"),
        ("hepatitis A", "hepatitis"),
        ("-", "?"),
        ("", "-"),
        ("left", "right"),
    ],
)
def test_unequal_answers(left: str, right: str) -> None:
    assert normalise(left) != normalise(right)


@settings(deadline=None)
@given(st.text())
def test_a_second_time_changes_nothing_but_articles(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once or set(once.split()) & {"a", "an", "the"}
    assert once == " ".join(once.split())
