from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from radloop.config import ValidationConfig
from radloop.data.corpus import Corpus
from radloop.data.imaging import to_png
from radloop.data.quality import validate
from radloop.data.quality.report import ValidationReport
from radloop.errors import DataError

LENIENT = ValidationConfig(max_quarantined=1.0, min_samples=1)
HOSTILE = "<script>alert('x')</script><img src=http://evil/x onerror=alert(2)>"


def picture(seed: int, size: int = 32) -> bytes:
    return to_png(Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size), dtype=np.uint8)))


def sample(number: int, image: str = "good", **changes: Any) -> dict[str, Any]:
    return {
        "id": f"s{number}",
        "group": image,
        "split": "train",
        "image_ids": [image],
        "task": "vqa",
        "question": f"Question {number}?",
        "answers": ["yes"],
        "answer_type": "closed",
        "source": f"rows.json row {number}",
    } | changes


def corpus(*samples: dict[str, Any], **images: bytes | None) -> Corpus:
    images = {"good": picture(0)} | images
    rows = [{"id": name, "name": f"{name}.png", "bytes": data} for name, data in images.items()]
    return Corpus.of(rows, [sample(0), *samples])


def findings(report: ValidationReport) -> list[tuple[str, str | None, str]]:
    return [(row["severity"], row["sample_id"], row["reason"]) for row in report.findings.to_pylist()]


def test_good_data_has_no_findings() -> None:
    report = validate(corpus(sample(1), b=picture(1)), ValidationConfig())
    assert findings(report) == []
    assert report.quarantined_ids == set()
    assert report.facts()["expectations"] == "25 of 25 met"
    assert report.facts()["verdict"] == "accepted"


FAULTY_SAMPLES: list[tuple[dict[str, Any], str, str]] = [
    ({"id": ""}, "id is empty", ""),
    ({"id": "s0"}, "id occurs more than once", "s0"),
    ({"group": ""}, "group is empty", ""),
    ({"question": ""}, "question is empty", ""),
    ({"question": "x" * 2001}, "question has more than 2,000 characters", "x" * 77 + "..."),
    ({"answers": []}, "answer is empty", ""),
    ({"answers": [""]}, "answer is empty", ""),
    ({"answers": [], "notes": ["answer: nan is missing"]}, "answer is empty", "answer: nan is missing"),
    ({"answer_type": "maybe"}, "answer_type is not known", "maybe"),
    ({"task": "chat"}, "task is not known", "chat"),
    ({"split": "dev"}, "split is not known", "dev"),
    ({"image_ids": []}, "sample names no image", ""),
    ({"image_ids": ["other"]}, "image is not in the corpus", "other"),
]


@pytest.fixture(scope="module")
def faulty_samples() -> ValidationReport:
    rows = [sample(number, **changes) for number, (changes, _, _) in enumerate(FAULTY_SAMPLES, 1)]
    return validate(corpus(*rows, sample(99)), LENIENT)


@pytest.mark.parametrize("number", range(1, len(FAULTY_SAMPLES) + 1))
def test_a_faulty_sample_is_quarantined_with_its_reason(
    faulty_samples: ValidationReport, number: int
) -> None:
    changes, reason, value = FAULTY_SAMPLES[number - 1]
    rows = [
        (row["reason"], row["value"], row["sample_id"])
        for row in faulty_samples.quarantine.to_pylist()
        if row["source"] == f"rows.json row {number}"
    ]
    assert rows == [(reason, value, changes.get("id", f"s{number}"))]
    assert changes.get("id", f"s{number}") in faulty_samples.quarantined_ids


def test_the_samples_beside_faulty_ones_are_accepted(faulty_samples: ValidationReport) -> None:
    assert "s99" not in faulty_samples.quarantined_ids
    assert faulty_samples.summary["accepted"] == 1  # s0 shares its id with another


def test_a_health_record_sample_needs_no_image() -> None:
    assert findings(validate(corpus(sample(1, task="ehr", image_ids=[])), LENIENT)) == []


FAULTY_IMAGES: dict[str, tuple[bytes | None, str, str]] = {
    "gone": (None, "image file is missing", "gone.png"),
    "text": (b"some text", "image cannot be read", "text.png: is none of PNG"),
    "cut": (picture(2)[:-300], "image cannot be read", "cut.png: cannot be decoded"),
    "icon": (picture(2, 15), "image is smaller than 16 pixels", "icon.png: 15 x 15"),
    "blank": (to_png(Image.new("L", (40, 30), 9)), "image is blank", "blank.png: 40 x 30"),
}


@pytest.fixture(scope="module")
def faulty_images() -> ValidationReport:
    rows = [sample(2 * n, name, id=f"{name}-alone") for n, name in enumerate(FAULTY_IMAGES, 1)]
    rows += [
        sample(50 + n, image_ids=["good", name], id=f"{name}-second") for n, name in enumerate(FAULTY_IMAGES)
    ]
    return validate(corpus(*rows, **{name: data for name, (data, _, _) in FAULTY_IMAGES.items()}), LENIENT)


@pytest.mark.parametrize("name", FAULTY_IMAGES)
def test_a_faulty_image_quarantines_all_its_samples(faulty_images: ValidationReport, name: str) -> None:
    _, reason, value = FAULTY_IMAGES[name]
    rows = [row for row in faulty_images.quarantine.to_pylist() if row["image"] == f"{name}.png"]
    assert {(row["sample_id"], row["reason"]) for row in rows} == {
        (f"{name}-alone", reason),
        (f"{name}-second", reason),
    }
    assert all(row["value"].startswith(value) for row in rows)


def test_the_samples_beside_faulty_images_are_accepted(faulty_images: ValidationReport) -> None:
    assert len(faulty_images.quarantined_ids) == 2 * len(FAULTY_IMAGES)
    assert "s0" not in faulty_images.quarantined_ids


def test_an_empty_file_is_unreadable_not_missing(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    images = [{"id": "e", "name": "empty.jpg", "uri": str(tmp_path / "empty.jpg")}]
    report = validate(Corpus.of(images, [sample(1, "e")]), ValidationConfig())
    with pytest.raises(DataError, match=r"image cannot be read; first: .* empty.jpg: the file is empty"):
        report.require_accepted()


def test_a_faulty_image_that_no_sample_uses_is_reported_only() -> None:
    report = validate(corpus(bad=b"text"), ValidationConfig(max_quarantined=0))
    assert findings(report) == [("error", None, "image cannot be read")]
    assert report.quarantined_ids == set()


def test_warnings_keep_the_sample() -> None:
    report = validate(
        corpus(
            sample(1, question="Same?"),
            sample(2, question="same?", answers=["Yes"]),
            sample(3, question="Contested?"),
            sample(4, question="Contested?", answers=["no"]),
            sample(5, "twin"),
            sample(6, question="Da\ufffdmaged?"),
            sample(7, notes=["answer: int 5 kept as '5'"]),
            sample(8, split="test"),
            twin=picture(0),
        ),
        ValidationConfig(max_quarantined=0),
    )
    assert report.quarantined_ids == set()
    found: dict[str, set[str | None]] = {}
    for _, sample_id, reason in findings(report):
        found.setdefault(reason, set()).add(sample_id)
    assert found == {
        "same image, question and answer occur again": {"s1", "s2"},
        "same image and question, another answer": {"s3", "s4"},
        "same picture under several files": {f"s{n}" for n in range(9)},
        "text holds a damaged character (U+FFFD)": {"s6"},
        "value was mended while reading": {"s7"},
        "test sample lies on an image of another split": {"s8"},
    }


def test_leakage_is_found_through_other_files_of_the_same_picture() -> None:
    report = validate(
        corpus(sample(1, "twin", split="test"), sample(2, "b", split="test"), twin=picture(0), b=picture(1)),
        LENIENT,
    )
    assert report.summary["leakage"] == {
        "test_samples": 2,
        "leaking_samples": 1,
        "share": 0.5,
        "test_images": 2,
        "other_images": 1,
        "shared_images": 1,
    }


def test_leakage_counts_no_missing_images() -> None:
    report = validate(corpus(sample(1, "b"), sample(2, "b", split="test"), b=None), LENIENT)
    assert report.summary["leakage"]["leaking_samples"] == 0


BAD = [sample(n, "bad") for n in range(1, 4)]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            ValidationConfig(max_quarantined=0.7),
            "3 of 4 samples (75.0%) are quarantined; validation.max_quarantined allows 70.0%",
        ),
        (
            ValidationConfig(max_quarantined=1, min_samples=2),
            "1 samples are left; validation.min_samples asks for 2",
        ),
        (
            ValidationConfig(max_quarantined=1, max_leakage=0.5),
            "1 of 1 test samples (100.0%) lie on pictures of other splits; "
            "validation.max_leakage allows 50.0%",
        ),
    ],
)
def test_exceeded_thresholds_stop_with_counts_and_examples(config: ValidationConfig, words: str) -> None:
    samples = BAD if config.max_leakage is None else [sample(1, split="test")]
    report = validate(corpus(*samples, bad=b"text"), config)
    with pytest.raises(DataError) as caught:
        report.require_accepted()
    message = str(caught.value)
    assert words in message
    if config.max_leakage is None:
        assert "     3  image cannot be read; first: rows.json row 1: bad.png: is none of PNG" in message
        assert "copy the file again" in message
    assert report.facts()["verdict"] == words
    assert "rejected" in report.views()["validation.html"]


@pytest.mark.parametrize("config", [ValidationConfig(max_quarantined=0.75), LENIENT])
def test_thresholds_are_inclusive(config: ValidationConfig) -> None:
    report = validate(corpus(*BAD, bad=b"text"), config)
    report.require_accepted()
    assert report.summary["quarantined"] == 3


def test_report_survives_saving(tmp_path: Path) -> None:
    report = validate(corpus(sample(1, answers=[])), LENIENT)
    report.save(tmp_path)
    loaded = ValidationReport.load(tmp_path)
    assert loaded.summary == report.summary
    assert loaded.findings.equals(report.findings)
    assert loaded.views() == report.views()
    assert loaded.facts() == report.facts()
    assert json.dumps(loaded.results) == json.dumps(report.results)
    assert sorted(loaded.views()) == [
        "expectations_images.html",
        "expectations_samples.html",
        "validation.html",
    ]


def test_pages_run_and_load_nothing_whatever_the_data_says() -> None:
    hostile = sample(
        1,
        HOSTILE,
        id=HOSTILE,
        question=HOSTILE,
        answers=[HOSTILE],
        answer_type=HOSTILE,
        task=HOSTILE,
        source=HOSTILE,
    )
    images = [
        {"id": HOSTILE, "name": HOSTILE, "bytes": b"<script>"},
        {"id": "good", "name": "good", "bytes": picture(0)},
    ]
    report = validate(Corpus.of(images, [hostile, hostile, sample(2, question=HOSTILE)]), LENIENT)
    for page in report.views().values():
        assert isinstance(page, str)
        assert "&lt;script&gt;" in page or "images" in page
        assert "<script" not in page
        assert not re.search(r"<(img|link|iframe)\b[^>]*http", page)
    assert "Content-Security-Policy" in report.views()["expectations_samples.html"]
    assert HOSTILE[:8] not in report.views()["expectations_samples.html"]


def test_page_shows_counts_pictures_and_the_quarantine() -> None:
    page = validate(corpus(sample(1, "bad"), bad=b"text"), LENIENT).views()["validation.html"]
    assert isinstance(page, str)
    assert page.index("data:image/png;base64") < page.index("Quarantined, by reason")
    for words in ("Question 0?", "image cannot be read", "rows.json row 1", "copy the file again"):
        assert words in page


def test_empty_tables_do_not_break_the_suites() -> None:
    with pytest.raises(DataError, match="0 samples are left"):
        validate(Corpus.of([], []), ValidationConfig()).require_accepted()
    report = validate(Corpus.of([], [sample(1, task="ehr", image_ids=[])]), ValidationConfig())
    assert report.summary["accepted"] == 1


def test_the_published_vqa_rad(vqa_rad: tuple[Corpus, ValidationReport]) -> None:
    report = vqa_rad[1]
    counts = {
        reason["reason"]: (reason["severity"], reason["samples"]) for reason in report.summary["reasons"]
    }
    assert counts == {
        "test sample lies on an image of another split": ("warning", 446),
        "value was mended while reading": ("warning", 53),
        "same image, question and answer occur again": ("warning", 8),
        "text holds a damaged character (U+FFFD)": ("warning", 1),
    }
    leakage = report.summary["leakage"]
    assert (leakage["leaking_samples"], leakage["test_samples"]) == (446, 451)
    assert (leakage["shared_images"], leakage["test_images"], leakage["other_images"]) == (202, 203, 313)
