from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from radloop.data.corpus import SAMPLES
from radloop.evaluation.baselines import BlindMajority, shuffle_images


def samples(*rows: tuple[str, str, str, str]) -> pa.Table:
    names = ("question", "answer", "question_type", "answer_type")
    values: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in rows]
    return pa.Table.from_pylist([row | {"answers": [row["answer"]]} for row in values], schema=SAMPLES)


TRAIN = samples(
    ("Is the heart enlarged?", "No", "heart", "closed"),
    ("is the heart enlarged", "no.", "heart", "closed"),
    ("Is the heart enlarged?", "Yes", "heart", "closed"),
    ("Is there a pacemaker?", "yes", "device", "closed"),
    ("Is there a wire?", "yes", "device", "closed"),
    ("Is there a tube?", "yes", "device", "closed"),
    ("Which side?", "left", "side", "open"),
    ("Which side?", "right", "side", "open"),
)


def blind(*row: str) -> str:
    return BlindMajority(TRAIN).answer(samples((row[0], "?", row[1], row[2])))[0]


def test_the_question_itself_comes_first() -> None:
    assert blind("IS THE HEART ENLARGED", "device", "closed") in ("No", "no.")


def test_then_its_type_then_its_answer_type_then_anything() -> None:
    assert blind("Is there a valve?", "device", "closed") == "yes"
    assert blind("Is the heart small?", "heart", "open") in ("No", "no.")
    assert blind("Is it?", "unheard of", "closed") == "yes"
    assert blind("What?", "unheard of", "open") == "left"
    assert blind("What?", "", "") == "yes"


def test_a_tie_is_decided_by_alphabet_whatever_the_order() -> None:
    assert blind("Which side?", "side", "open") == "left"
    reverse = TRAIN.take(list(reversed(range(TRAIN.num_rows))))
    questions = samples(*[(text, "?", "", "") for text in ("Which side?", "Is the heart enlarged?", "x")])
    assert BlindMajority(reverse).answer(questions) == BlindMajority(TRAIN).answer(questions)


def test_an_empty_type_is_no_type() -> None:
    train = samples(("a?", "x", "", "open"), ("b?", "x", "", "open"), ("c?", "y", "", "closed"))
    assert BlindMajority(train).answer(samples(("d?", "?", "", "closed"))) == ["y"]


groupings = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.sampled_from("ABCDE"), min_size=2)


@settings(deadline=None)
@given(groupings, st.integers(0, 2**31))
def test_no_image_keeps_its_place(groups: dict[str, str], seed: int) -> None:
    shown = shuffle_images(groups, seed)
    assert shown is not None
    assert set(shown) == set(shown.values()) == set(groups)
    assert all(image != other for image, other in shown.items())
    largest = max(list(groups.values()).count(name) for name in groups.values())
    if 2 * largest <= len(groups):
        assert all(groups[image] != groups[other] for image, other in shown.items())


def test_the_seed_decides_and_the_order_of_the_images_does_not() -> None:
    groups = {f"image{number}": f"patient{number // 2}" for number in range(40)}
    assert shuffle_images(groups, 1) == shuffle_images(dict(reversed(groups.items())), 1)
    assert shuffle_images(groups, 1) != shuffle_images(groups, 2)


def test_a_single_image_cannot_be_shuffled() -> None:
    assert shuffle_images({"a": "x"}, 0) is None
    assert shuffle_images({}, 0) is None
