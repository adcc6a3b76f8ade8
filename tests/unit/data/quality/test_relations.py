"""What rows have in common is found exactly: held against an oracle that compares all with all."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radloop.config import DataConfig, SourceConfig
from radloop.data.corpus import Corpus
from radloop.data.ingest import ingest
from radloop.data.quality import ValidationReport
from radloop.data.quality.relations import LEAKS, Relations
from tests.unit.data.small import image, noise, phantom, sample

Row = dict[str, Any]
FLAGS = (
    *("repeated_id", "without_image", "unknown_image", "repeated", "contested"),
    *(f"leaks_{kind}" for kind in LEAKS),
)
PNG = image("a.png", phantom(0))
TIFF = image("b.tiff", phantom(0, "TIFF"))
WEBP = image("c.webp", phantom(0, "WEBP"))
SMALLER = image("d.png", phantom(0, size=80))
JPEG = image("e.jpg", phantom(0, "JPEG"))
OTHER = image("f.png", phantom(1))
LOST = image("g.png", None)


def flags(corpus: Corpus) -> list[set[str]]:
    with Relations(corpus) as relations:
        return flags_of(relations, corpus.samples.num_rows)


def flags_of(relations: Relations, num_samples: int) -> list[set[str]]:
    """The names of the flags that are set, of each sample."""
    found: list[set[str]] = [set() for _ in range(num_samples)]
    for suite in relations.suites():
        for frame in relations.sample_frames(suite):
            for row in frame.to_dict("records"):
                found[row["row"]] = {name for name in FLAGS if row[name]}
    return found


def image_flags(*images: Row) -> dict[str, set[str]]:
    with Relations(Corpus.of(list(images), [])) as relations:
        rows = [row for frame in relations.image_frames() for row in frame.to_dict("records")]
    names = ("missing", "same_pixels", "near_duplicate")
    return {row["image"]: {name for name in names if row[name]} for row in rows}


def duplicates(corpus: Corpus) -> dict[str, Any]:
    with Relations(corpus) as relations:
        return relations.duplicates()


def leakage(corpus: Corpus) -> dict[str, Any]:
    with Relations(corpus) as relations:
        return relations.leakage()


def test_the_same_pixels_are_found_in_any_encoding() -> None:
    assert image_flags(PNG, TIFF, WEBP, OTHER) == {
        "a.png": {"same_pixels"},
        "b.tiff": {"same_pixels"},
        "c.webp": {"same_pixels"},
        "f.png": set(),
    }


def test_resized_and_lossy_copies_are_nearly_the_same() -> None:
    assert image_flags(PNG, SMALLER, JPEG, OTHER, LOST) == {
        "a.png": {"near_duplicate"},
        "d.png": {"near_duplicate"},
        "e.jpg": {"near_duplicate"},
        "f.png": set(),
        "g.png": {"missing"},
    }


def test_missing_and_unreadable_files_are_no_duplicates_of_each_other() -> None:
    broken = [image(f"{n}.png", b"broken" + bytes([n])) for n in range(2)]
    found = image_flags(*broken, LOST, image("h.png", None))
    assert {name for name, some in found.items() if some - {"missing"}} == set()


def test_frames_and_windows_of_one_file_are_pictures_of_their_own() -> None:
    second = image("a.png", phantom(0), frame=1, pixel_hash="second frame", perceptual_hash=None)
    corpus = Corpus.of([PNG, second], [sample(1, PNG), sample(2, second, split="test")])
    assert flags(corpus) == [set(), set()]


def ask(question: str, answer: str, number: int = 2, **columns: Any) -> Row:
    return sample(number, PNG, question=question, answers=[answer], **columns)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("is the heart   ENLARGED", "no."),
        ("Is the heart enlarged??", "No"),
        ("Is\nthe heart-enlarged ?", " no "),
    ],
)
def test_a_question_is_the_same_whatever_its_case_spaces_and_punctuation(question: str, answer: str) -> None:
    first = ask("Is the heart enlarged?", "no", 1)
    assert flags(Corpus.of([PNG], [first, ask(question, answer)])) == [{"repeated"}] * 2
    assert flags(Corpus.of([PNG], [first, ask(question, "yes")])) == [{"contested"}] * 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("< 5 mm", "> 5 mm"),
        ("+", "-"),
        ("\u0915\u093f", "\u0915\u093e"),  # Hindi: only the vowel signs differ
        ("5", "6"),
    ],
)
def test_answers_that_differ_in_meaning_contradict_each_other(one: str, other: str) -> None:
    corpus = Corpus.of([PNG], [ask("How much?", one, 1), ask("How much?", other)])
    assert flags(corpus) == [{"contested"}] * 2
    assert duplicates(corpus)["contested"] == 2


def test_composed_and_decomposed_letters_are_the_same() -> None:
    one, other = (unicodedata.normalize(form, "Où est l'épanchement ?") for form in ("NFC", "NFD"))
    assert flags(Corpus.of([PNG], [ask(one, "là", 1), ask(other, "là")])) == [{"repeated"}] * 2


def test_an_empty_answer_contradicts_nobody() -> None:
    assert flags(Corpus.of([PNG], [ask("Why?", "", 1), ask("Why?", "no")])) == [set(), set()]


@pytest.mark.parametrize(
    "columns", [{"context": "Aged 70."}, {"question": "Where?"}, {"image_ids": [OTHER["id"]]}]
)
def test_another_image_question_or_context_is_another_question(columns: Row) -> None:
    samples = [ask("Why?", "no", 1), ask("Why?", "yes") | columns]
    assert flags(Corpus.of([PNG, OTHER], samples)) == [set(), set()]


def test_a_question_about_several_images_is_the_same_in_any_order() -> None:
    samples = [
        sample(n, *images, question="Worse?") for n, images in enumerate([(PNG, OTHER), (OTHER, TIFF)])
    ]
    assert flags(Corpus.of([PNG, TIFF, OTHER], samples)) == [{"repeated"}] * 2


def test_duplicates_contradictions_and_leaks_are_found_across_data_sets() -> None:
    corpus = Corpus.of(
        [PNG, TIFF, SMALLER, OTHER],
        [
            ask("Why?", "no", 1),
            sample(2, TIFF, question="why", dataset="chest"),
            sample(3, SMALLER, dataset="chest", split="test"),
            sample(4, OTHER, dataset="chest", split="test"),
            sample(5, OTHER, dataset="third", split="test"),
        ],
    )
    assert flags(corpus) == [{"contested"}, {"contested"}, {"leaks_near_image"}, set(), set()]
    assert duplicates(corpus) == {
        "pixels": 2,
        "near_pixels": 3,
        "questions": 0,
        "contested": 2,
        "across_datasets": [
            {"datasets": ["chest", "rad"], "by": "pixels", "images": 1},
            {"datasets": ["chest", "third"], "by": "pixels", "images": 1},
            {"datasets": ["chest", "rad"], "by": "near", "images": 1},
            {"datasets": ["chest", "third"], "by": "near", "images": 1},
        ],
    }


@pytest.mark.parametrize("kind", ["patient", "study"])
def test_a_patient_of_two_data_sets_is_two_patients(kind: str) -> None:
    rows = [sample(1, PNG, **{kind: "1"}), sample(2, OTHER, split="test", **{kind: "1"})]
    assert flags(Corpus.of([PNG, OTHER], rows)) == [set(), {f"leaks_{kind}"}]
    rows[0]["dataset"] = "chest"
    assert flags(Corpus.of([PNG, OTHER], rows)) == [set(), set()]


REPORT = "The lungs are clear, and the heart is of normal size."


def test_a_report_in_the_same_words_is_a_leak_but_a_short_one_is_not() -> None:
    def reports(text: str) -> Corpus:
        split = [("train", text), ("test", text.upper()), ("validation", f"{text} Yes, of normal size.")]
        rows = [
            sample(n, PNG, task="report", split=s, answers=[t], question=str(n))
            for n, (s, t) in enumerate(split)
        ]
        return Corpus.of([PNG], [row | {"image_ids": []} for row in rows])

    assert ["leaks_text" in some for some in flags(reports(REPORT))] == [False, True, False]
    assert ["leaks_text" in some for some in flags(reports("Normal chest."))] == [False, False, False]


def test_a_file_that_is_missing_leaks_nothing() -> None:
    corpus = Corpus.of([LOST], [sample(1, LOST), sample(2, LOST, split="test", dataset="chest")])
    assert flags(corpus) == [set(), set()]
    found = leakage(corpus)
    assert (found["leaking_samples"], found["test_images"], found["shared_images"]) == (0, 0, 0)


def test_leakage_counts_samples_and_pictures() -> None:
    corpus = Corpus.of(
        [PNG, TIFF, SMALLER, OTHER],
        [
            sample(1, PNG),
            sample(2, TIFF, split="test"),
            sample(3, SMALLER, split="test"),
            sample(4, OTHER, split="test"),
            sample(5, OTHER, split="dev"),
        ],
    )
    assert leakage(corpus) == {
        "test_samples": 3,
        **{"patient": 0, "study": 0, "image": 1, "near_image": 1, "text": 0},
        "leaking_samples": 2,
        "share": 2 / 3,
        **{"test_images": 3, "other_images": 1, "shared_images": 1},
    }


POOL = [
    image(f"case{number}{base}.{form}", phantom(base, form, size), patient=patient)
    for base in range(3)
    for number, form, size, patient in (
        (1000, "PNG", 128, ""),
        (1000, "TIFF", 128, "p1"),
        (30, "PNG", 80, ""),
    )
] + [LOST, image("h1000.png", None, patient="p2")]
BASE = {row["id"]: number // 3 for number, row in enumerate(POOL[:9])}
ROWS = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["", "1", "2", "3", "4", "5"]),
        "dataset": st.sampled_from(["rad", "chest"]),
        "split": st.sampled_from(["train", "train", "validation", "test", "", "dev"]),
        "patient": st.sampled_from(["", "", "p1", "p2"]),
        "study": st.sampled_from(["", "", "st1"]),
        "image_ids": st.lists(st.sampled_from([*(row["id"] for row in POOL), "nowhere"]), max_size=2),
        "task": st.sampled_from(["vqa", "report", "ehr", "unheard of"]),
        "question": st.sampled_from(["Why?", "why", "Who?", ""]),
        "answers": st.sampled_from([[], ["yes"], ["Yes."], ["no", "yes"], [REPORT], [REPORT.upper()]]),
        "context": st.sampled_from(["", "", "Aged 70."]),
    }
)


@settings(max_examples=40)
@given(st.lists(st.sampled_from(range(len(POOL))), unique=True), st.lists(ROWS, min_size=1, max_size=12))
def test_all_relations_are_those_of_an_oracle(numbers: list[int], rows: list[Row]) -> None:
    images = [POOL[number] for number in sorted(numbers)]
    corpus = Corpus.of(images, rows)
    oracle = Oracle(images, rows)
    with Relations(corpus) as relations:
        assert flags_of(relations, len(rows)) == [oracle.flags(row) for row in rows]
        assert relations.duplicates() == oracle.duplicates()
        assert relations.leakage() == oracle.leakage()


class Oracle:
    """Says the same in plain Python, from how the pool was made."""

    def __init__(self, images: list[Row], rows: list[Row]) -> None:
        self.images = {row["id"]: row for row in images}
        self.rows = rows

    def flags(self, row: Row) -> set[str]:
        asked = [other for other in self.rows if self._asked(other) == self._asked(row)]
        said = Counter(_plain(*other["answers"][:1]) for other in asked)
        found = {
            "repeated_id": row["id"] and sum(other["id"] == row["id"] for other in self.rows) > 1,
            "without_image": not row["image_ids"] and row["task"] != "ehr",
            "unknown_image": any(name not in self.images for name in row["image_ids"]),
            "repeated": said[_plain(*row["answers"][:1])] > 1,
            "contested": len(set(said) - {""}) > 1,
            **{f"leaks_{kind}": kind in self._leaks(row) for kind in LEAKS},
        }
        return {name for name, value in found.items() if value}

    def duplicates(self) -> dict[str, Any]:
        pictures = Counter(self._picture(name) for name in self.images if name in BASE)
        flagged = Counter(flag for row in self.rows for flag in self.flags(row))
        looks: dict[int, set[str]] = {}
        for name in self.images.keys() & BASE:
            looks.setdefault(BASE[name], set()).add(self._picture(name))
        return {
            "pixels": sum(count for count in pictures.values() if count > 1),
            "near_pixels": sum(len(looks[BASE[name]]) > 1 for name in self.images if name in BASE),
            "questions": flagged["repeated"],
            "contested": flagged["contested"],
            "across_datasets": [
                item for kind in ("pixels", "near", "file name") for item in self._across(kind)
            ],
        }

    def leakage(self) -> dict[str, Any]:
        test = [row for row in self.rows if row["split"] == "test"]
        leaks = [self._leaks(row) for row in test]
        leaking = sum(bool(some & {"image", "near_image"}) for some in leaks)
        pictures = [
            {self._picture(name) for row in self.rows if row["split"] in names for name in self._seen(row)}
            for names in (("test",), ("train", "validation"))
        ]
        return {
            "test_samples": len(test),
            **{kind: sum(kind in some for some in leaks) for kind in LEAKS},
            "leaking_samples": leaking,
            "share": leaking / len(test) if test else 0.0,
            "test_images": len(pictures[0]),
            "other_images": len(pictures[1]),
            "shared_images": len(pictures[0] & pictures[1]),
        }

    def _across(self, kind: str) -> list[Row]:
        of_set: list[set[Any]] = []
        for dataset in ("chest", "rad"):
            used = {
                n
                for row in self.rows
                if row["dataset"] == dataset
                for n in row["image_ids"]
                if n in self.images
            }
            if kind == "file name":
                names = {self.images[name]["name"].rpartition(".")[0] for name in used}
                of_set.append({name for name in names if "1000" in name})
            else:
                of_set.append({self._picture(n) if kind == "pixels" else BASE[n] for n in used if n in BASE})
        count = len(of_set[0] & of_set[1])
        return [{"datasets": ["chest", "rad"], "by": kind, "images": count}] if count else []

    def _leaks(self, row: Row) -> set[str]:
        if row["split"] not in ("validation", "test"):
            return set()
        others = {
            key
            for other in self.rows
            if other["split"] in {"train", "validation", "test"} - {row["split"]}
            for key in self._keys(other)
        }
        found = {kind for kind, *_ in self._keys(row) & others}
        return found - {"near_image"} if "image" in found else found

    def _keys(self, row: Row) -> set[tuple[str, ...]]:
        keys: set[tuple[str, ...]] = {("image", self._picture(name)) for name in self._seen(row)}
        keys |= {("near_image", str(BASE[name])) for name in self._seen(row)}
        for kind in ("patient", "study"):
            about = [self.images.get(name, {}).get(kind, "") for name in row["image_ids"]] or [""]
            keys |= {
                (kind, row["dataset"], row[kind] or of_image) for of_image in about if row[kind] or of_image
            }
        if row["task"] == "report" and len("".join(row["answers"][:1])) >= 20:
            keys.add(("text", _plain(*row["answers"][:1])))
        return keys

    def _asked(self, row: Row) -> tuple[Any, ...]:
        pictures = sorted(self._picture(name) for name in row["image_ids"])
        return pictures, pictures or row["patient"], row["context"], _plain(row["question"])

    def _seen(self, row: Row) -> list[str]:
        return [name for name in row["image_ids"] if name in self.images and name in BASE]

    def _picture(self, name: str) -> str:
        return str(self.images[name].get("pixel_hash", name)) if name in self.images else name


def _plain(text: str = "") -> str:
    return text.lower().strip("?.")


def test_closing_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path))
    with Relations(Corpus.of([PNG], [sample(1, PNG)])) as relations:
        assert list(tmp_path.rglob("*.duckdb"))
        assert relations.suites() == ["vqa"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_noise_is_not_taken_for_other_noise() -> None:
    assert set().union(*image_flags(*(image(f"{n}.png", noise(n)) for n in range(30))).values()) == set()


def test_the_published_vqa_rad(vqa_rad: tuple[Corpus, ValidationReport]) -> None:
    assert leakage(vqa_rad[0]) == {
        "test_samples": 451,
        **{"patient": 0, "study": 444, "image": 446, "near_image": 0, "text": 0},
        "leaking_samples": 446,
        "share": 446 / 451,
        **{"test_images": 203, "other_images": 313, "shared_images": 202},
    }
    assert duplicates(vqa_rad[0]) == {
        **{"pixels": 0, "near_pixels": 0, "questions": 8, "contested": 0},
        "across_datasets": [],
    }


def test_vqa_rad_and_vqa_med_2019_share_images_of_medpix(real_data: Callable[[str], Path]) -> None:
    corpus = ingest(
        DataConfig(
            sources=(
                SourceConfig(adapter="vqa_rad", path=str(real_data("vqa_rad"))),
                SourceConfig(adapter="vqa_med_2019", path=str(real_data("vqa_med_2019"))),
            ),
            workers=1,
        )
    )
    is_rad = pc.equal(corpus.samples["dataset"], "vqa_rad")
    shared = {}
    for split in ("train", "validation", "test"):
        part = corpus.samples.filter(pc.or_(is_rad, pc.equal(corpus.samples["split"], split)))
        (found,) = duplicates(Corpus(corpus.images, part, split))["across_datasets"]
        shared[split] = found["images"]
        assert (found["datasets"], found["by"]) == (["vqa_med_2019", "vqa_rad"], "file name")
    assert shared == {"train": 32, "validation": 6, "test": 4}


def test_each_pair_of_data_sets_is_counted() -> None:
    rows = [sample(n, PNG, dataset=name) for n, name in enumerate("abc")]
    pairs = [pair["datasets"] for pair in duplicates(Corpus.of([PNG], rows))["across_datasets"]]
    assert pairs == [list(pair) for pair in combinations("abc", 2)] * 2  # by pixels, and nearly
