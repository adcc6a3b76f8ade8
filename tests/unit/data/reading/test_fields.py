from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from radloop.data.reading import answer_type_of, as_object, clean_text, file_name, parse_answers
from tests.unit.data.adapters.hostile import values


@pytest.mark.parametrize(
    ("value", "text", "note"),
    [
        ("Is it?", "Is it?", None),
        (" Is\t it?", "Is it?", "q: white space tidied"),
        ("Two\n lines,\r\nthree", "Two lines, three", None),
        (5, "5", "q: int 5 kept as text"),
        (0.5, "0.5", "q: float 0.5 kept as text"),
        pytest.param(10**5000, "", "q: int int of thousands of digits kept as text", id="huge"),
        (None, "", "q: null counts as missing"),
        (float("nan"), "", "q: nan counts as missing"),
        (float("inf"), "", "q: inf counts as missing"),
        ("NULL", "", "q: 'NULL' counts as missing"),
        ("", "", "q: '' counts as missing"),
        ("None", "None", None),  # an answer in VQA-RAD
        (True, "", "q: bool True is no text, counts as missing"),
        (["a"], "", "q: list ['a'] is no text, counts as missing"),
        ("a\ud800b", "a?b", "q: half of a surrogate pair replaced by '?'"),
    ],
)
def test_clean_text(value: Any, text: str, note: str | None) -> None:
    notes: list[str] = []
    assert clean_text(value, "q", notes) == text
    assert notes == ([note] if note else [])


@given(values())
def test_any_value_becomes_clean_text_or_nothing_with_a_note(value: Any) -> None:
    notes: list[str] = []
    text = clean_text(value, "q", notes)
    text.encode()
    assert text == " ".join(text.split())
    assert text or notes
    again: list[str] = []
    assert clean_text(text, "q", again) == text
    assert not text or not again
    assert all(len(note) < 200 for note in notes)


@pytest.mark.parametrize(
    ("value", "name"),
    [("a  b .jpg", "a  b .jpg"), (" ", ""), (None, ""), (12, "12"), ("NULL", ""), (["a"], "")],
)
def test_file_names_keep_their_white_space(value: Any, name: str) -> None:
    assert file_name(value, "image", []) == name


def test_rows_that_are_no_objects_or_have_too_many_fields_say_so() -> None:
    notes: list[str] = []
    assert as_object("text", notes) == {}
    assert as_object({"a": 1, None: ["x", "y"]}, notes)["a"] == 1
    assert as_object({"a": 1, None: "a quote is out of place"}, notes)["a"] == 1
    assert notes == [
        "row: is str, not an object",
        "row: has 2 fields more than the header, ['x', 'y']",
        "row: a quote is out of place",
    ]


def test_answers_may_be_one_or_several() -> None:
    notes: list[str] = []
    assert parse_answers("left", notes) == ["left"]
    assert parse_answers(["left", 2], notes) == ["left", "2"]
    assert parse_answers([], notes) == parse_answers([None, ""], notes) == []


@pytest.mark.parametrize(
    ("answer", "kind"), [("Yes", "closed"), ("no.", "closed"), ("yes, left", "open"), ("", "open")]
)
def test_answer_type_is_inferred(answer: str, kind: str) -> None:
    assert answer_type_of(answer) == kind
