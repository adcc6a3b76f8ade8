from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from radloop.data.corpus import Corpus
from radloop.data.imaging import to_png, to_rgb
from radloop.data.quality.overview import CARD_PIXELS, Frequency, Overview, overview


def picture(seed: int, width: int = 32, height: int = 32) -> bytes:
    grey = np.random.default_rng(seed).integers(0, 255, (height, width), dtype=np.uint8)
    return to_png(Image.fromarray(grey))


def image(name: str, data: bytes | None = b"x", **columns: Any) -> dict[str, Any]:
    return {"id": name, "name": f"{name}.png", "bytes": data} | columns


def sample(number: int, **columns: Any) -> dict[str, Any]:
    return {
        "id": f"s{number}",
        "dataset": "rad",
        "task": "vqa",
        "question": "Why?",
        "answers": ["yes"],
    } | columns


def count(
    images: list[dict[str, Any]], *samples: dict[str, Any], quarantined: tuple[int, ...] = ()
) -> Overview:
    bad = np.zeros(len(samples), bool)
    bad[list(quarantined)] = True
    return overview(Corpus.of(images, list(samples)), bad)


def test_samples_are_counted_by_data_set_task_and_split() -> None:
    found = count(
        [],
        sample(1, split="train"),
        sample(2, split="test"),
        sample(3, split="dev"),
        sample(4, dataset="chest", task="report", split="validation"),
        quarantined=(1, 3),
    )
    assert [tuple(group) for group in found.groups] == [
        ("rad", "vqa", (1, 0, 1, 1), 1),
        ("chest", "report", (0, 1, 0, 0), 1),
    ]
    assert [group.samples for group in found.groups] == [3, 1]


def test_images_are_counted_by_what_is_known_of_them() -> None:
    found = count(
        [image("a", modality="CT", format="PNG"), image("b", modality="CT"), image("c", modality="MR")],
        sample(1),
    )
    assert found.num_images == 3
    assert found.images["modality"].top == [Frequency("CT", (2,)), Frequency("MR", (1,))]
    assert found.images["format"].occurrences == 1
    assert found.images["view"].top == []


def test_sizes_are_those_of_readable_images_and_near_ones_come_together() -> None:
    sizes = [(512, 512), (512, 512), (520, 512), (1024, 256)]
    rows = [image(f"i{n}", width=width, height=height) for n, (width, height) in enumerate(sizes)]
    found = count([*rows, image("broken")], sample(1))
    assert [tuple(size) for size in found.sizes] == [(512, 512, 3), (1024, 256, 1)]


def test_answers_are_counted_by_task_and_type_whatever_their_case() -> None:
    found = count(
        [],
        sample(1, answers=["Yes"], answer_type="closed"),
        sample(2, answers=["yes "], answer_type="open"),
        sample(3, answers=["left", "yes"], answer_type="maybe"),
        sample(4, answers=[]),
        sample(5, task="ehr", answers=["4"]),
    )
    assert found.answers["vqa"].top == [Frequency("yes", (1, 1, 0)), Frequency("left", (0, 0, 1))]
    assert found.answers["vqa"].totals == (1, 1, 1)
    assert found.answers["ehr"].top == [Frequency("4", (0, 0, 1))]


def test_rare_values_are_summed_up_as_others() -> None:
    found = count([], *(sample(n, question_type=f"type {n % 20}") for n in range(45)))
    types = found.question_types
    assert (len(types.top), types.distinct, types.occurrences, types.others) == (
        12,
        20,
        45,
        45 - 5 * 3 - 7 * 2,
    )


def test_a_finding_counts_once_a_sample_and_by_split() -> None:
    found = count(
        [],
        sample(1, split="train", labels=["Edema", "Edema", ""]),
        sample(2, split="test", labels=["Edema", "Fracture"]),
    )
    assert found.labels.top == [Frequency("Edema", (1, 0, 1, 0)), Frequency("Fracture", (0, 0, 1, 0))]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Is there a 3.5 cm mass?", 9),
        ("___ x-ray", 4),
        ("caf\u00e9 e\u0301tude", 2),
        ("\u80ba\u708e\u3002", 3),
        ("CT\u80ba", 2),
        ("\u0647\u0644 \u0627\u0644\u0631\u0626\u0629\u061f", 3),
        (" \n", 0),
    ],
)
def test_lengths_are_words_and_punctuation_marks(text: str, tokens: int) -> None:
    found = count([], sample(1, question=text, context=text, answers=[text, "second"]))
    assert found.lengths == {"vqa": {part: {tokens: 1} for part in ("question", "answer", "context")}}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text("aZ09_ \t\n!#$%&'()*+,-./:;<=>?@[]^`{|}~", min_size=1), min_size=1))
def test_lengths_do_not_depend_on_whether_a_text_is_all_ascii(texts: list[str]) -> None:
    expected = Counter(len(re.findall(r"\w+|[^\w\s]", text)) for text in texts)
    rows = [sample(n, question=text, context=f"\u00e9 {text}") for n, text in enumerate(texts)]
    found = count([], *rows).lengths["vqa"]
    assert found["question"] == expected
    assert found["context"] == {length + 1: number for length, number in expected.items()}


def test_empty_texts_have_no_length() -> None:
    found = count([], sample(1, question="", answers=[]))
    assert found.lengths == {"vqa": {"question": {}, "answer": {}, "context": {}}}


def test_images_are_counted_by_the_samples_that_use_them() -> None:
    found = count(
        [image("a"), image("b"), image("unused")],
        sample(1, image_ids=["a", "a"]),
        sample(2, image_ids=["a", "b"]),
        sample(3, image_ids=["elsewhere"]),
    )
    assert found.questions_per_image == {0: 1, 1: 1, 2: 1}


def test_cards_take_turns_among_data_sets_and_tasks_and_show_no_quarantined_sample() -> None:
    many = [sample(n, dataset="big", question=f"Question {n}?") for n in range(50)]
    few = [sample(n, dataset="small", task=task) for n, task in enumerate(("report", "caption", "vqa"))]
    found = count([], *many, *few, quarantined=(52,))
    assert len(found.cards) == 12
    assert {(card.dataset, card.task) for card in found.cards} == {
        ("big", "vqa"),
        ("small", "report"),
        ("small", "caption"),
    }


def test_cards_show_different_pictures_while_there_are_any() -> None:
    pictures = [image(f"i{n}", picture(n)) for n in range(12)]
    found = count(pictures, *(sample(n, image_ids=[f"i{n % 12}"]) for n in range(300)))
    assert len({card.png for card in found.cards}) == 12


def test_a_card_holds_a_thumbnail_and_the_beginning_of_long_texts() -> None:
    rows = [image("wide", picture(1, 600, 300))]
    (card,) = count(rows, sample(1, image_ids=["wide", "b"], answers=["word " * 20_000], split="test")).cards
    assert card.png is not None
    assert to_rgb(card.png).size == (CARD_PIXELS, CARD_PIXELS // 2)
    assert len(card.answer) < 1000
    assert (card.split, card.num_images) == ("test", 2)


@pytest.mark.parametrize("kind", ["missing", "damaged", "changed"])
def test_a_card_survives_a_picture_that_cannot_be_shown(kind: str, tmp_path: Path) -> None:
    (tmp_path / "new.png").write_bytes(picture(5))
    bad = {
        "missing": image("bad", None),
        "damaged": image("bad", picture(1)[:-300]),
        "changed": image("bad", None, uri=str(tmp_path / "new.png")),
    }[kind]
    found = count(
        [bad, image("good", picture(2))], sample(1, image_ids=["bad"]), sample(2, image_ids=["good"])
    )
    assert sorted(card.png is None for card in found.cards) == [False, True]


def test_the_same_corpus_gives_the_same_overview() -> None:
    rows = [sample(n, labels=[f"label {n % 7}"], answers=[f"answer {n % 5}"]) for n in range(200)]
    assert count([], *rows) == count([], *rows)


def test_a_corpus_without_images_or_values_has_an_overview() -> None:
    found = count([], {"id": "s"})
    assert (found.sizes, found.questions_per_image, found.labels.top) == ([], {}, [])
    assert [card.question for card in found.cards] == [""]
