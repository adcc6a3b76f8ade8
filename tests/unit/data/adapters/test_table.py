from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings
from pydantic import ValidationError

from radloop.data.adapters.table import Table, _Rows
from radloop.data.phantoms import questions
from radloop.data.phantoms.formats import Cohort
from radloop.data.phantoms.formats.table import LAYOUTS
from radloop.errors import DataError
from tests.unit.data.adapters.drive import drive
from tests.unit.data.adapters.given import damage_and_read, given
from tests.unit.data.adapters.hostile import DAMAGES, rows_like, survives

COHORT = Cohort(train=3, validation=1, test=2, size=48)
ROW = {"image": "a.png", "question": "Is it?", "answer": "yes"}


def read(path: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return drive(Table().open(str(path), Table.Options(**options)))


def first(path: Path, **options: Any) -> dict[str, Any]:
    return read(path, **options)[0][0]


def written(folder: Path, layout: str) -> Path:
    folder.mkdir()
    LAYOUTS[layout](folder, COHORT)
    return folder


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def as_sheet(path: Path, rows: list[dict[str, Any]]) -> None:
    book = openpyxl.Workbook()
    for line in (list(rows[0]), *(list(row.values()) for row in rows)):
        book.active.append(line)
    book.save(path)


KINDS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "t.csv": as_csv,
    "t.tsv": lambda path, rows: as_csv(path, rows, "\t"),
    "t.json": lambda path, rows: path.write_text(json.dumps(rows)) and None,
    "lines.json": lambda path, rows: lines(path, *rows) and None,
    "t.jsonl": lambda path, rows: lines(path, *rows) and None,
    "t.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(json.dumps(rows[0]).encode())) and None,
    "t.xlsx": as_sheet,
    "t.parquet": lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_back_what_was_written(tmp_path: Path, layout: str) -> None:
    samples, refs = read(next(written(tmp_path / layout, layout).glob("questions.*")))
    found = [
        (s["split"], s["patient"], s["study"], s["question"], s["answers"], s["answer_type"],
         s["question_type"],
         [(Path(refs[key].root) / refs[key].name).read_bytes() for key in s["image_ids"]], s["notes"])
        for s in samples
    ]  # fmt: skip
    assert found == [
        (study.split, str(study.patient_id), str(study.study_id), q.text, [q.answer], q.answer_type, q.type,
         [study.phantom.png()], [])
        for study in COHORT.studies() for q in questions(study.phantom)
    ]  # fmt: skip
    ref = next(iter(refs.values()))
    assert {key: ref.columns[key] for key in ("modality", "body_part", "view")} == {
        "modality": "XR", "body_part": "CHEST", "view": "PA",
    }  # fmt: skip


def test_all_layouts_agree(tmp_path: Path) -> None:
    found = [read(written(tmp_path / layout, layout))[0] for layout in LAYOUTS]
    for samples in found:
        for sample in samples:
            del sample["file"], sample["image_ids"]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_sample(tmp_path: Path, name: str) -> None:
    row = {"picture_file": "p/a.png", "q": "Where?", "a": "left", "mrn": "17", "fold": "val"}
    KINDS[name](tmp_path / name, [row])
    sample = first(
        tmp_path / name,
        columns={"image": "picture_file", "question": "q", "answer": "a", "patient": "mrn", "split": "fold"},
    )
    assert sample | {"image_ids": []} == {
        "id": f"table-{name}-1", "dataset": "table", "split": "validation", "patient": "17", "study": "",
        "image_ids": [], "task": "vqa", "question": "Where?", "answers": ["left"], "answer_type": "open",
        "question_type": "", "language": "en", "context": "", "labels": [], "notes": [], "file": name,
        "row": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "options", "expected"),
    [
        ({"answer": ["left", "Left lung"]}, {}, {"answers": ["left", "Left lung"]}),
        ({"answer": "left;right"}, {}, {"answers": ["left;right"]}),
        ({"answer": "left; right;; "}, {"separators": {"answer": ";"}}, {"answers": ["left", "right"]}),
        ({"labels": "a|b"}, {"separators": {"labels": "|"}}, {"labels": ["a", "b"]}),
        ({"labels": ["a", None]}, {}, {"labels": ["a"], "notes": ["labels: null counts as missing"]}),
        ({"answer": 3, "id": 9, "patient": 4}, {}, {"answers": ["3"], "id": "table-9", "patient": "4"}),
        ({"split": "Testing"}, {}, {"split": "Testing"}),
        ({"language": "de"}, {"language": "fr"}, {"language": "de"}),
        ({}, {"language": "fr"}, {"language": "fr"}),
        ({"answer_type": "OPEN"}, {}, {"answer_type": "open"}),
        ({"question": None}, {"question": "Write a report."}, {"question": "Write a report.", "notes": []}),
        ({"question": "Own?"}, {"question": "Write a report."}, {"question": "Own?"}),
        ({"question": None}, {}, {"question": "", "notes": ["question: null counts as missing"]}),
        ({"answer": "no"}, {"task": "report"}, {"answer_type": "open", "task": "report"}),
        ({"context": "age 70"}, {"task": "ehr"}, {"context": "age 70"}),
        ({"image": None}, {}, {"image_ids": []}),
        ({"answer": None}, {}, {"answers": [], "notes": ["answer: null counts as missing"]}),
    ],
)
def test_fields_are_read_as_the_options_say(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], expected: dict[str, Any]
) -> None:
    sample = first(lines(tmp_path / "t.jsonl", ROW | row), **options)
    assert {name: sample[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        (["a.png", "sub/b.png"], {}),
        ("a.png; sub/b.png", {"separators": {"image": ";"}}),
        (["{root}/a.png", "{root}/sub/b.png"], {}),
    ],
)
def test_a_row_may_have_several_images(tmp_path: Path, cell: Any, options: dict[str, Any]) -> None:
    (tmp_path / "pictures").mkdir()
    if isinstance(cell, list):
        cell = [name.replace("{root}", str(tmp_path / "pictures")) for name in cell]
    samples, refs = read(lines(tmp_path / "t.jsonl", ROW | {"image": cell}), images="pictures", **options)
    found = [(refs[key].root, refs[key].name) for key in samples[0]["image_ids"]]
    assert found == [(str(tmp_path / "pictures"), name) for name in ("a.png", "sub/b.png")]


def test_images_may_lie_in_an_archive(tmp_path: Path) -> None:
    (tmp_path / "pictures.zip").touch()
    _, refs = read(lines(tmp_path / "t.jsonl", ROW), images="pictures.zip")
    assert [(ref.root, ref.name) for ref in refs.values()] == [(str(tmp_path / "pictures.zip"), "a.png")]


def test_paths_written_on_windows_are_read_and_noted(tmp_path: Path) -> None:
    samples, refs = read(lines(tmp_path / "t.jsonl", ROW | {"image": "sub\\a.png"}))
    assert [ref.name for ref in refs.values()] == ["sub/a.png"]
    assert samples[0]["notes"] == ["image: backslashes read as slashes"]


def test_two_targets_may_share_a_column(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([ROW | {"case": "7"}]), tmp_path / "t.parquet")
    sample = first(tmp_path / "t.parquet", columns={"patient": "case", "study": "case"})
    assert (sample["patient"], sample["study"]) == ("7", "7")


def test_images_may_lie_in_the_rows_of_a_parquet_file(tmp_path: Path) -> None:
    image = [b"one", b"two"]
    table = {"image": image, "question": ["q", "q"], "answer": ["a", "b"], "modality": ["CT", "CT"]}
    pq.write_table(pa.table(table), tmp_path / "test.parquet")
    samples, refs = read(tmp_path / "test.parquet")
    assert [refs[key].data for sample in samples for key in sample["image_ids"]] == image
    assert {ref.columns["modality"] for ref in refs.values()} == {"CT"}
    assert [sample["split"] for sample in samples] == ["", ""]


def test_several_tables_of_a_folder_are_splits_and_one_table_alone_is_none(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", ROW)
    as_csv(tmp_path / "my_test.csv", [ROW])
    pq.write_table(pa.Table.from_pylist([ROW]), tmp_path / "val.parquet")
    assert sorted((s["file"], s["split"]) for s in read(tmp_path)[0]) == [
        ("my_test.csv", "test"), ("train.jsonl", "train"), ("val.parquet", "validation")
    ]  # fmt: skip
    assert [first(path)["split"] for path in sorted(tmp_path.iterdir())] == ["", "", ""]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": {"image": "imgae"}}, r"no column 'imgae', which data\.options\.columns\.image needs; "
         r"nearest: image; found: image, question, answer"),
        ({"columns": {"patient": "mrn"}}, r"no column 'mrn', which data\.options\.columns\.patient needs"),
        ({"images": "pictures"}, r"pictures: no such folder of images; data\.options\.images is relative to"),
    ],
)  # fmt: skip
def test_what_the_file_lacks_is_one_clear_error(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(lines(tmp_path / "t.jsonl", ROW), **options)


def test_a_missing_question_column_can_be_replaced_by_a_fixed_question(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", {"image": "a.png", "answer": "A long report."})
    with pytest.raises(
        DataError, match=r"no column 'question'.*a fixed one can be given in data\.options\.question"
    ):
        read(path)
    assert first(path, question="Report.", task="report")["question"] == "Report."


def test_health_records_need_no_image(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", {"question": "q", "answer": "a"})
    assert first(path, task="ehr")["image_ids"] == []
    with pytest.raises(DataError, match="no column 'image'"):
        read(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": {"answers": "a"}}, "unknown target 'answers'; nearest: answer; known: image, question"),
        ({"separators": {"image": ""}}, "the separator of image is empty"),
        ({"separators": {"question": ";"}}, "separators.question"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Table.Options(**options)


def test_a_file_of_another_kind_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.docx").touch()
    for path in (tmp_path, tmp_path / "a.docx"):
        with pytest.raises(DataError, match=r"table needs a table \(\.csv, \.tsv"):
            read(path)


FULL = ROW | dict.fromkeys(("id", "split", "patient", "language", "labels", "context", "view"), "x")


@hypothesis_given(rows_like(FULL))
@settings(max_examples=60)
def test_whatever_a_row_holds_survives(row: Any) -> None:
    options = Table.Options(separators={"image": ";", "answer": ";"}, question="Report.")
    survives(given(_Rows((), Path("/nowhere"), False, options), "t.jsonl", row))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_named_or_its_rows_survive(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    KINDS[name](path, [ROW | {"answer": f"answer {number}"} for number in range(5)])
    damage_and_read(path, damage, lambda: Table().open(str(path), Table.Options()))


def test_the_real_tables_of_slake_need_no_mapping_but_the_image(real_data: Callable[[str], Path]) -> None:
    folder = real_data("slake") / "Slake1.0"
    for name, number in (("test_open.csv", 645), ("test_close.csv", 416)):
        samples, refs = read(folder / name, columns={"image": "img_name"})
        assert len(samples) == number
        assert "xmlab102/source.jpg" in {ref.name for ref in refs.values()}
