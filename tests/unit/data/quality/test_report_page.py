from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from radloop import html
from radloop.config import ValidationConfig
from radloop.data.corpus import Corpus
from radloop.data.imaging import to_png
from radloop.data.quality import charts, validate
from radloop.data.quality.overview import overview
from radloop.data.quality.report import FINDINGS
from radloop.data.quality.report_page import report_pages

HOSTILE = "<script>alert('x')</script></div></section><img src=http://evil/x onerror=alert(2)>"
LENIENT = ValidationConfig(max_quarantined=1.0, min_samples=1)


def picture(seed: int) -> bytes:
    return to_png(Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 48), dtype=np.uint8)))


def corpus(num_samples: int = 12, **columns: Any) -> Corpus:
    images = [
        {"id": f"i{n}", "name": f"{n}.png", "bytes": picture(n), "modality": "CT", "width": 48, "height": 64}
        for n in range(3)
    ]
    samples = [
        {
            "id": f"s{n}", "dataset": "rad", "task": "vqa", "split": ("train", "test")[n % 2],
            "image_ids": [f"i{n % 3}"], "question": f"Is there {'a ' * n}mass?", "answers": ["yes"],
            "answer_type": "closed", "labels": ["Mass"], "file": "rows.json", "row": n + 1,
        }
        | columns
        for n in range(num_samples)
    ]  # fmt: skip
    return Corpus.of(images, samples)


def summary(**changes: Any) -> dict[str, Any]:
    leakage = dict.fromkeys(("patient", "study", "image", "near_image", "text"), 0)
    leakage |= dict.fromkeys(("test_samples", "leaking_samples", "test_images", "other_images"), 0)
    return {
        "fingerprint": "0123456789abcdef", "rows": 12, "samples": 12, "images": 3, "accepted": 12,
        "quarantined": 0, "splits": {"train": 6, "": 6}, "reasons": [], "left_out": {}, "removed": {},
        "leakage": leakage | {"share": 0.0, "shared_images": 0},
        "duplicates": {"pixels": 0, "near_pixels": 0, "questions": 0, "contested": 0, "across_datasets": []},
        "suites": {"vqa": {"evaluated": 24, "successful": 23}}, "rejected": [],
    } | changes  # fmt: skip


def findings(count: int, **changes: Any) -> pa.Table:
    row = {
        "severity": "error", "row": 1, "sample_id": "s1", "image": "1.png", "reason": "image is blank",
        "column": "image", "value": "1.png", "file": "rows.json", "row_in_file": 2,
    }  # fmt: skip
    return pa.Table.from_pylist([row | changes] * count, schema=FINDINGS)


def page(data: Corpus | None = None, found: pa.Table | None = None, **changes: Any) -> str:
    data = corpus() if data is None else data
    shown = overview(data, np.zeros(data.samples.num_rows, bool))
    pages = report_pages(summary(**changes), findings(0) if found is None else found, shown)
    assert list(pages) == ["validation.html"]
    return pages["validation.html"]


def section(text: str, title: str) -> str:
    """Return the words of a section, without tags."""
    (body,) = re.findall(rf"<section><h2>{re.escape(title)}</h2>(.*?)</section>", text, flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def test_pictures_come_first_and_sections_without_content_are_left_out() -> None:
    text = page(left_out={"no English question": 7}, removed={"text: date": 3, "text: name": 0})
    assert headings(text) == [
        "Samples, as a reader of the data sees them",
        "Samples and images",
        "Answers",
        "Findings and concepts",
        "Lengths",
        "Image sizes and use",
        "Defects",
        "Duplicates",
        "Leakage of the published test split",
        "Rows left out by the options",
        "Identifiers removed",
        "Quarantine",
    ]
    bare = page(Corpus.of([], [{"id": "s", "task": "ehr"}]))
    assert headings(bare)[1:] == [
        *("Samples and images", "Defects", "Duplicates", "Leakage of the published test split", "Quarantine")
    ]


def test_the_head_says_the_verdict_and_why() -> None:
    assert '<span class="badge good">accepted</span>' in page()
    text = page(rejected=["3 of 4 samples are quarantined", HOSTILE])
    assert '<span class="badge bad">rejected</span>' in text
    assert text.index("3 of 4 samples are quarantined") < text.index("<h2>")


def test_counts_are_told_beside_their_bars() -> None:
    text = page()
    assert "Modality 3 of 3 images CT 3 \u00b7 100%" in section(text, "Samples and images")
    assert "12 answers (100% closed), of which 1 differ" in section(text, "Answers")
    assert "Not given by the data: body part, view, file format, question type." in text
    assert "train test Mass 12" in section(text, "Findings and concepts")
    assert "Commonest size: about 48 x 64 pixels (3 \u00b7 100%)" in section(text, "Image sizes and use")


def test_a_card_shows_picture_question_answer_and_split() -> None:
    text = page(corpus(1, dataset="my set"))
    assert text.count('class="card"><img src="data:image/png;base64,') == 1
    words = section(text, "Samples, as a reader of the data sees them")
    assert words == "Is there mass? yes my set, vqa, train"


def test_a_card_without_picture_says_so() -> None:
    assert "picture cannot be shown" in page(corpus(1, image_ids=["gone"]))
    assert "no picture" in page(corpus(1, image_ids=[]))


def reason(severity: str, name: str, samples: int, images: int = 1) -> dict[str, Any]:
    example = f"rows.json row 3: {name}"
    return {
        "severity": severity, "reason": name, "remedy": f"mend {name}", "samples": samples,
        "images": images, "example": example,
    }  # fmt: skip


def test_defects_come_by_severity_and_frequency_with_place_and_remedy() -> None:
    reasons = [reason("error", "few", 1), reason("error", "unused", 0, 9), reason("warning", "many", 40)]
    words = section(page(reasons=reasons), "Defects")
    assert "unused 9 unused images few 1 many 40 Errors: quarantined" in words
    assert "few 1 1 rows.json row 3: few mend few" in words
    assert words.index("Warnings: reported only") < words.index("mend many")


def test_duplicates_across_data_sets_are_a_table() -> None:
    pair = {"datasets": ["vqa_rad", "vqa_med_2019"], "by": "file name", "images": 42}
    counts = summary()["duplicates"] | {"contested": 5, "across_datasets": [pair]}
    words = section(page(duplicates=counts), "Duplicates")
    assert "samples whose question has another answer elsewhere 5" in words
    assert "with the pixels" not in words
    assert "vqa_rad vqa_med_2019 file name 42" in words


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [("patient", "by_patient"), ("study", "by_patient"), ("near_image", "by_image"), ("text", "same words")],
)
def test_leakage_is_told_by_kind_with_its_remedy(kind: str, remedy: str) -> None:
    leakage = summary()["leakage"] | {"test_samples": 80, kind: 20}
    if kind == "near_image":
        leakage |= {"leaking_samples": 20, "share": 0.25, "shared_images": 0, "test_images": 9}
    text = page(leakage=leakage)
    words = section(text, "Leakage of the published test split")
    assert "20 \u00b7 25.0%" in words
    assert remedy in words
    assert ("20 of 80 test samples (25.0%) lie on a picture" in words) == (kind == "near_image")
    assert 'style="width:25.00%"' in text  # of all test samples, not of the commonest kind


def test_no_leakage_is_told_in_a_sentence() -> None:
    leakage = summary()["leakage"] | {"test_samples": 80}
    text = page(leakage=leakage)
    assert "None of 80 test samples" in section(text, "Leakage of the published test split")
    assert "names no test split" in section(page(), "Leakage of the published test split")


def test_quarantine_lists_the_first_rows_and_says_how_many_there_are() -> None:
    found = pa.concat_tables([findings(3, severity="warning", reason="harmless"), findings(1234)])
    words = section(page(found=found), "Quarantine")
    assert words.count("rows.json row 2 s1 image is blank 1.png") == 200
    assert "The first 200 of 1,234; findings.arrow holds all." in words
    assert "harmless" not in words


def test_an_image_that_no_sample_uses_is_listed_without_place() -> None:
    words = section(page(found=findings(1, row=None, sample_id=None, file=None)), "Quarantine")
    assert "no sample uses it image is blank 1.png" in words


def test_text_from_data_cannot_break_the_page() -> None:
    arabic = "\u202e\u0647\u0644 \u0627\u0644\u0631\u0626\u0629"
    values = {
        "dataset": HOSTILE, "question": f"{arabic} {HOSTILE}", "answers": [HOSTILE], "split": HOSTILE,
        "labels": [HOSTILE, "x" * 100_000], "question_type": HOSTILE, "language": HOSTILE,
        "context": "y" * 100_000, "file": HOSTILE, "task": f"${HOSTILE}$",
    }  # fmt: skip
    text = page(
        corpus(4, **values),
        findings(1, value=HOSTILE, sample_id="z" * 100_000, file=HOSTILE),
        left_out={HOSTILE: 1}, removed={HOSTILE: 1}, splits={HOSTILE * 1000: 1},
        reasons=[reason("error", HOSTILE, 1)],
    )  # fmt: skip
    assert "<script" not in text
    assert "<img src=http" not in text
    assert max(len(word) for word in re.sub(r'"data:[^"]*"', "", text).split()) < 500
    assert re.findall(r"</?(?:section|html|body)\b", text).count("</section") == len(headings(text))


def test_validation_hands_the_page_out() -> None:
    text = validate(corpus(), LENIENT).pages["validation.html"]
    assert "Data report" in text
    assert "rows.json row" in section(text, "Defects")


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def test_lengths_that_are_all_alike_have_no_chart() -> None:
    found = overview(corpus(question="Why?"), np.zeros(12, bool))
    assert charts.lengths(found) is None
    drawn = charts.lengths(overview(corpus(), np.zeros(12, bool)))
    assert drawn is not None
    assert pixels(drawn).min() < 150 < pixels(drawn).mean()  # bars on white


def test_a_bar_is_as_long_as_its_share_of_the_longest() -> None:
    chart = html.bars("Title", [("a", (3, 1), "4"), ("b", (0, 2), "2")], [("x", "first"), ("y", "second")])
    assert re.findall(r'class="(\w+)" style="width:([\d.]+)%"', chart) == [
        *(("first", "75.00"), ("second", "25.00"), ("second", "50.00"))
    ]
    assert chart.count('class="key"') == 2
    assert 'class="key"' not in html.bars("Title", [("a", (3,), "3")], [("x", "first")])


def test_names_that_look_like_formulas_are_drawn_as_they_are() -> None:
    assert charts.lengths(overview(corpus(task=r"$\frac$"), np.zeros(12, bool))) is not None
