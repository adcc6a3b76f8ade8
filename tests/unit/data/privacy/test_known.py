"""A sample's own patient and study are found in its texts, and what only looks like them stays."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radloop.data.privacy import KnownIds
from radloop.data.privacy.known import LEFT


def replaced(text: str, **ids: str) -> tuple[str, Counter[str]]:
    removed: Counter[str] = Counter()
    known = KnownIds([(kind, value, kind.upper()) for kind, value in ids.items()])
    return known.replace(text, removed), removed


def test_short_numbers_leave_measures_and_counts_alone() -> None:
    text = "Any 5 mm nodule in lobe 1? The patient is 5 years old, patient 5 mm."
    found, removed = replaced(text, patient="5", study="1")
    assert found == text
    assert removed[LEFT] == 4
    assert +removed == Counter({LEFT: 4})


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Has patient 5 a nodule?", "Has patient PATIENT a nodule?"),
        ("PATIENT ID: 5, study no. 1", "PATIENT ID: PATIENT, study no. STUDY"),
        ("subject #5.", "subject #PATIENT."),
        ("MRN=5; accession 1", "MRN=PATIENT; accession STUDY"),
        ("patient 1 and study 5", "patient 1 and study 5"),
    ],
)
def test_short_numbers_go_behind_the_word_that_says_what_they_are(text: str, clean: str) -> None:
    assert replaced(text, patient="5", study="1")[0] == clean


@pytest.mark.parametrize(
    ("number", "text", "clean"),
    [
        ("10000032", "p10000032, 10000032 and 1100000321", "pPATIENT, PATIENT and 1100000321"),
        ("JANE-ROE_1", "jane-roe_1 or JANE ROE 1", "PATIENT or PATIENT"),
        ("ab12345", "MRN_AB12345", "MRN_PATIENT"),
        ("Smith^John", "JOHN SMITH, Smith, John", "PATIENT, PATIENT"),
        ("Goldschmidt", "Has GOLDSCHMIDT effusion?", "Has PATIENT effusion?"),
    ],
)
def test_long_ones_go_wherever_they_stand_and_whatever_their_case(number: str, text: str, clean: str) -> None:
    assert replaced(text, patient=number)[0] == clean


@pytest.mark.parametrize("ids", [{"patient": "unknown"}, {"study": "baseline"}, {"patient": "a"}])
def test_words_that_are_no_names_stay(ids: dict[str, str]) -> None:
    text = "Is the patient a smoker? An unknown lesion, as at baseline."
    assert replaced(text, **ids)[0] == text


@settings(max_examples=100, deadline=None)
@given(number=st.text(min_size=1, max_size=30).filter(str.strip), text=st.text(max_size=200))
def test_no_identifier_breaks_it_and_none_of_eight_digits_stays(number: str, text: str) -> None:
    replaced(text, patient=number, study=number)
    assert "20815397" not in replaced(f"{text} 20815397 {text}", patient="20815397")[0]
