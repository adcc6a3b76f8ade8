from __future__ import annotations

import csv
import json
import os
import pickle
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings
from pydantic import ValidationError

from radloop.config import DataConfig
from radloop.data import adapters
from radloop.data.adapters._dicom_tree import Index, read_tags, spread
from radloop.data.adapters.dicom import Dicom, _Rows
from radloop.data.imaging import to_rgb
from radloop.data.ingest import cleaning, ingest
from radloop.data.phantoms import questions
from radloop.data.phantoms.formats import Cohort
from radloop.data.phantoms.formats.dicom import LAYOUTS
from radloop.errors import DataError
from tests.unit.data.adapters.drive import drive
from tests.unit.data.adapters.given import damage_and_read, given
from tests.unit.data.adapters.hostile import DAMAGES, json_values, rows_like, survives
from tests.unit.data.imaging.dicoms import make, shipped

COHORT = Cohort(train=3, validation=1, test=2, size=48)
KEYS: dict[str, dict[str, Any]] = {
    "file": {},
    "instance": {"by": "instance", "columns": {"image": "instance"}},
    "study": {"by": "study"},
    "accession": {"by": "study", "columns": {"study": "accession"}},
}
ROW = {"image": "a", "question": "Is it?", "answer": "yes"}
UNNAMED = "DICOM file that the table does not name"
REPEATED = "DICOM file with the SOPInstanceUID of another one"


def opened(folder: Path, **options: Any) -> _Rows:
    source = Dicom().open(str(folder), Dicom.Options(**options))
    assert isinstance(source, _Rows)
    return source


def read(folder: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Samples, and images by key."""
    samples, refs = drive(opened(folder, **options))
    return [sample for sample in samples if "left_out" not in sample], refs


def one(folder: Path, **options: Any) -> tuple[dict[str, Any], list[Any]]:
    """The only sample, and its images."""
    (sample,), refs = read(folder, **options)
    return sample, [refs[key] for key in sample["image_ids"]]


def left_out(folder: Path, **options: Any) -> Counter[str]:
    return Counter(s["left_out"] for s in drive(opened(folder, **options))[0] if "left_out" in s)


def table(folder: Path, *rows: Any) -> Path:
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def file(path: Path, frames: int = 1, **elements: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (frames, 4, 4) if frames > 1 else (4, 4)
    path.write_bytes(make(np.arange(16 * frames, dtype=np.uint16).reshape(shape), **elements))
    return path


LINES = {"table": "questions.jsonl"}


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    LAYOUTS["csv"](folder, COHORT)
    return folder


@pytest.mark.parametrize("key", KEYS)
def test_every_key_gives_back_what_was_written(export: Path, key: str) -> None:
    samples, refs = read(export, **KEYS[key])
    rows = list(csv.DictReader((export / "questions.csv").open()))
    expected = [(study, question) for study in COHORT.studies() for question in questions(study.phantom)]
    for sample, row, (study, question) in zip(samples, rows, expected, strict=True):
        (ref,) = (refs[key] for key in sample["image_ids"])
        pixels = np.asarray(to_rgb((Path(ref.root) / ref.name).read_bytes()))
        assert (pixels == study.phantom.pixels[..., None]).all()
        assert ref.columns == {
            "modality": "CR", "body_part": "CHEST", "view": "PA", "study": row["study"],
            "patient": str(study.patient_id), "frame": 0, "window": "",
        }  # fmt: skip
        assert sample | {"image_ids": []} == {
            "id": f"dicom-{row['id']}", "dataset": "dicom", "split": study.split,
            "patient": str(study.patient_id), "study": row["study"], "image_ids": [], "task": "vqa",
            "question": question.text, "answers": [question.answer], "answer_type": question.answer_type,
            "question_type": question.type, "language": "en", "context": "", "labels": [], "notes": [],
            "file": "questions.csv", "row": sample["row"],
        }  # fmt: skip
    assert [sample["row"] for sample in samples] == list(range(1, len(rows) + 1))
    assert not left_out(export, **KEYS[key])


def test_the_table_goes_before_the_headers_which_fill_the_rest(tmp_path: Path) -> None:
    file(tmp_path / "a", PatientID="17", StudyInstanceUID="1.2", BodyPartExamined="HEAD", ViewPosition="AP")
    row = ROW | {"patient": "P1", "modality": "", "body_part": "BRAIN", "study": None}
    sample, (ref,) = one(table(tmp_path, row), **LINES)
    assert (sample["patient"], sample["study"]) == ("P1", "1.2")
    assert ref.columns == {
        "modality": "CT", "body_part": "BRAIN", "view": "AP", "study": "1.2", "patient": "P1", "frame": 0,
        "window": "",
    }  # fmt: skip


def test_a_study_comes_in_the_order_of_series_and_instance(tmp_path: Path) -> None:
    places = {"z": (1, 1), "b": (1, 2), "y": (1, 10), "a": (2, 1), "c": (2, 3)}
    for name, (series, number) in places.items():
        file(tmp_path / "x" / name, StudyInstanceUID="1.2", SeriesNumber=series, InstanceNumber=number)
    file(tmp_path / "other", StudyInstanceUID="1.3")
    table(tmp_path, ROW | {"study": "1.2"})
    sample, refs = one(tmp_path, by="study", **LINES)
    assert [ref.name for ref in refs] == [f"x/{name}" for name in places]
    assert sample["notes"] == []
    assert left_out(tmp_path, by="study", **LINES) == {UNNAMED: 1}


def test_of_a_large_study_evenly_spread_images_are_taken_and_the_rest_is_noted(tmp_path: Path) -> None:
    for number in range(20):
        file(tmp_path / f"{number:02d}", StudyInstanceUID="1.2", InstanceNumber=number)
    table(tmp_path, ROW | {"study": "1.2"})
    sample, refs = one(tmp_path, by="study", max_images=4, **LINES)
    assert [ref.name for ref in refs] == ["02", "07", "12", "17"]
    assert sample["notes"] == ["images: 4 of 20 in the study are taken"]
    assert not left_out(tmp_path, by="study", max_images=4, **LINES)


def test_spread_places_are_distinct_and_in_order() -> None:
    for count in range(12):
        for limit in range(1, 14):
            places = spread(count, limit)
            assert places == sorted(set(places))
            assert len(places) == min(count, limit)
            assert all(0 <= place < count for place in places)


@pytest.mark.parametrize(
    ("options", "frames", "notes"),
    [
        ({}, [3], []),
        ({"frames": "first"}, [0], []),
        ({"frames": "all"}, [0, 1, 2, 3, 4, 5], []),
        ({"frames": "all", "max_images": 2}, [1, 4], ["images: 2 of 6 are taken"]),
    ],
)
@pytest.mark.parametrize("by", ["file", "study"])
def test_frames_of_a_file_with_several(
    tmp_path: Path, options: dict[str, Any], frames: list[int], notes: list[str], by: str
) -> None:
    path = file(tmp_path / "a", frames=6, StudyInstanceUID="1.2")
    sample, refs = one(table(tmp_path, ROW | {"study": "1.2"}), by=by, **options, **LINES)
    assert [ref.columns["frame"] for ref in refs] == frames
    assert sample["notes"] == notes
    assert [len(to_rgb(path.read_bytes(), frame=ref.columns["frame"]).size) for ref in refs]


@pytest.mark.parametrize("frames", [-3, 0, 2**31 - 1])
def test_an_impossible_number_of_frames_is_one(tmp_path: Path, frames: int) -> None:
    file(tmp_path / "a", NumberOfFrames=frames)
    _, refs = one(table(tmp_path, ROW), frames="all", **LINES)
    assert [ref.columns["frame"] for ref in refs] == [0]


@pytest.mark.parametrize(
    ("modality", "window", "expected"),
    [("CT", "brain", "brain"), ("MR", "brain", ""), ("MR", "40/80", "40/80"), ("CT", "", "")],
)
def test_a_window_in_hounsfield_units_is_for_ct_only(
    tmp_path: Path, modality: str, window: str, expected: str
) -> None:
    file(tmp_path / "a", Modality=modality)
    _, (ref,) = one(table(tmp_path, ROW), window=window, **LINES)
    assert ref.columns["window"] == expected


@pytest.mark.parametrize("options", [{"window": "brian"}, {"window": "40/0"}, {"max_images": 0}, {"by": "x"}])
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Dicom.Options(**options)


def test_reports_of_studies_need_two_columns(tmp_path: Path) -> None:
    file(tmp_path / "a", AccessionNumber="A 7 ")
    with (tmp_path / "reports.csv").open("w") as stream:
        csv.writer(stream).writerows([("acc", "text"), ("A 7", "FINDINGS:\nNone.")])
    sample, refs = one(
        tmp_path, table="reports.csv", by="study", columns={"study": "acc", "answer": "text"}, task="report",
        question="Write the report.",
    )  # fmt: skip
    assert [ref.name for ref in refs] == ["a"]
    assert (sample["task"], sample["question"], sample["answers"], sample["study"]) == (
        "report", "Write the report.", ["FINDINGS: None."], "A 7",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("by", "cell", "names"),
    [
        ("file", ["sub/b", "{root}/a"], ["sub/b", "a"]),
        ("file", ["sub\\b", "./a"], ["sub/b", "./a"]),
        ("instance", ["1.2.2", "1.2.1"], ["sub/b", "a"]),
        ("instance", "1.2.2; 1.2.1", ["sub/b", "a"]),
    ],
)
def test_a_row_may_name_several_images(tmp_path: Path, by: str, cell: Any, names: list[str]) -> None:
    file(tmp_path / "a", SOPInstanceUID="1.2.1")
    file(tmp_path / "sub" / "b", SOPInstanceUID="1.2.2")
    if isinstance(cell, list):
        cell = [name.replace("{root}", str(tmp_path)) for name in cell]
    options = LINES | {"by": by, "separators": {"image": ";"}}
    _, refs = one(table(tmp_path, ROW | {"image": cell}), **options)
    assert [ref.name for ref in refs] == names
    assert all(ref.columns["modality"] == "CT" for ref in refs)
    assert not left_out(tmp_path, **options)


@pytest.mark.parametrize(("by", "note"), [
    ("file", "image: names no file of the folder"),
    ("instance", "image: no file of the folder has this SOPInstanceUID"),
    ("study", "study: no image of the folder is of this study"),
])  # fmt: skip
def test_an_image_that_is_not_there_is_noted_and_will_be_missing(tmp_path: Path, by: str, note: str) -> None:
    file(tmp_path / "other")
    table(tmp_path, ROW | {"image": "9.9", "study": "9.9", "patient": "P"})
    sample, (ref,) = one(tmp_path, by=by, **LINES)
    assert sample["notes"] == [note]
    assert (ref.name, ref.data, ref.columns["patient"]) == ("9.9", None, "P")
    assert left_out(tmp_path, by=by, **LINES) == {UNNAMED: 1}


@pytest.mark.parametrize(("by", "column"), [("file", "image"), ("instance", "image"), ("study", "study")])
def test_a_row_without_a_key_has_no_image_and_a_note(tmp_path: Path, by: str, column: str) -> None:
    file(tmp_path / "a")
    sample, refs = one(table(tmp_path, ROW | {"image": None, "study": None}), by=by, **LINES)
    assert refs == []
    assert sample["notes"] == [f"{column}: null counts as missing"]


def test_of_files_with_the_same_instance_the_first_by_path_is_taken(tmp_path: Path) -> None:
    for name in ("z", "b/copy", "a/first"):
        file(tmp_path / name, SOPInstanceUID="1.2.1", StudyInstanceUID="1.2")
    table(tmp_path, ROW | {"image": "1.2.1", "study": "1.2"})
    for by in ("instance", "study"):
        sample, refs = one(tmp_path, by=by, **LINES)
        assert [ref.name for ref in refs] == ["a/first"]
        assert sample["notes"] == ["images: 1 in several files of one SOPInstanceUID; the first by path"]
        assert left_out(tmp_path, by=by, **LINES) == {REPEATED: 2}


def test_an_instance_of_two_patients_gives_no_image(tmp_path: Path) -> None:
    for name in "ab":
        file(tmp_path / name, SOPInstanceUID="1.2.1", StudyInstanceUID=f"1.{ord(name)}", PatientID=name)
    table(tmp_path, ROW | {"image": "1.2.1", "study": "1.98"})
    sample, (ref,) = one(tmp_path, by="instance", **LINES)
    assert (ref.name, ref.data, sample["patient"]) == ("1.2.1", None, "")
    assert sample["notes"] == ["image: 2 patients have this SOPInstanceUID; no file is taken"]
    sample, (ref,) = one(tmp_path, by="study", **LINES)
    assert (ref.name, sample["patient"], sample["notes"]) == ("b", "b", [])


def test_an_image_filed_in_two_studies_is_in_both(tmp_path: Path) -> None:
    for name, study in (("a", "1.1"), ("b", "1.2")):
        file(tmp_path / name, SOPInstanceUID="1.2.1", StudyInstanceUID=study, PatientID="1")
    table(tmp_path, ROW | {"study": "1.1"}, ROW | {"study": "1.2"})
    samples, refs = read(tmp_path, by="study", **LINES)
    assert [refs[key].name for sample in samples for key in sample["image_ids"]] == ["a", "b"]


def test_a_study_of_two_patients_gets_no_image(tmp_path: Path) -> None:
    file(tmp_path / "a", AccessionNumber="7", PatientID="1", StudyInstanceUID="1.1")
    file(tmp_path / "b", AccessionNumber="7", PatientID="2", StudyInstanceUID="1.2")
    table(tmp_path, ROW | {"study": "7"}, ROW | {"study": "1.2"})
    samples, refs = read(tmp_path, by="study", **LINES)
    assert [[refs[key].root and refs[key].name for key in s["image_ids"]] for s in samples] == [[""], ["b"]]
    assert [s["notes"] for s in samples] == [
        ["study: is that of 2 patients in the folder; none of its images is taken"], [],
    ]  # fmt: skip
    assert [s["patient"] for s in samples] == ["", "2"]


def test_two_studies_of_one_order_are_both_taken(tmp_path: Path) -> None:
    for name, study in (("b", "1.1"), ("a", "1.2")):
        file(tmp_path / name, AccessionNumber="7", PatientID="1", StudyInstanceUID=study)
    sample, refs = one(table(tmp_path, ROW | {"study": "7"}), by="study", **LINES)
    assert [(ref.name, ref.columns["study"]) for ref in refs] == [("b", "1.1"), ("a", "1.2")]
    assert sample["notes"] == ["study: 2 studies have this accession number; images of all are taken"]
    assert sample["study"] == "1.1"


def test_images_of_two_patients_in_a_row_are_noted(tmp_path: Path) -> None:
    for name in "ab":
        file(tmp_path / name, PatientID=name)
    sample, _ = one(table(tmp_path, ROW | {"image": ["a", "b"]}), **LINES)
    assert sample["notes"] == ["patient: the images are of 2 patients"]
    assert sample["patient"] == "a"


@pytest.mark.parametrize("by", ["file", "instance", "study"])
def test_what_else_lies_in_the_folder_is_counted_by_what_it_is(tmp_path: Path, by: str) -> None:
    file(tmp_path / "a", SOPInstanceUID="1.2.1", StudyInstanceUID="1.2")
    table(tmp_path, ROW | {"image": "a" if by == "file" else "1.2.1", "study": "1.2"})
    (tmp_path / "more").mkdir()
    names = ("test-SR.dcm", "rtstruct.dcm", "waveform_ecg.dcm", "dicomdirtests/DICOMDIR", "MR_small.dcm",
             "meta_missing_tsyntax.dcm", "ExplVR_LitEndNoMeta.dcm", "JPEG2000.dcm", "image_dfl.dcm",
             "README.txt")  # fmt: skip
    for name in names:
        (tmp_path / "more" / Path(name).stem).write_bytes(shipped(name))
    assert left_out(tmp_path, by=by, **LINES) == {
        "DICOM file without an image (Comprehensive SR Storage)": 1,
        "DICOM file without an image (RT Structure Set Storage)": 1,
        "DICOM file without an image (12-lead ECG Waveform Storage)": 1,
        "DICOM file without an image (Media Storage Directory Storage)": 1,
        "DICOM file without an image (RT Ion Plan Storage)": 1,
        "DICOM file without an image (of unknown class)": 1,
        UNNAMED: 3,
        "file is not DICOM": 1,
    }


@pytest.mark.parametrize("by", ["file", "instance"])
@pytest.mark.parametrize("name", ["MR_small.dcm", "JPEG2000.dcm", "image_dfl.dcm", "MR_small_bigendian.dcm",
                                  "SC_rgb_rle_2frame.dcm", "MR_truncated.dcm"])  # fmt: skip
def test_files_of_real_equipment_are_found_and_described(tmp_path: Path, name: str, by: str) -> None:
    import pydicom

    (tmp_path / "a").write_bytes(shipped(name))
    header = pydicom.dcmread(tmp_path / "a", force=True)
    table(tmp_path, ROW | {"image": "a" if by == "file" else header.SOPInstanceUID})
    sample, (ref,) = one(tmp_path, by=by, **LINES)
    assert (ref.root, ref.name) == (str(tmp_path), "a")
    assert sample["patient"] == str(header.PatientID).strip()
    assert ref.columns["modality"] == header.Modality
    assert ref.columns["frame"] == int(header.get("NumberOfFrames", 1)) // 2


def test_links_out_of_the_folder_are_not_opened(tmp_path: Path) -> None:
    file(tmp_path / "secret" / "b", SOPInstanceUID="1.2.2", PatientID="secret")
    root = tmp_path / "root"
    file(root / "a", SOPInstanceUID="1.2.1", PatientID="known")
    (root / "out").symlink_to(tmp_path / "secret" / "b")
    (root / "folder").symlink_to(tmp_path / "secret")
    (root / "round").symlink_to(root)
    (root / "nowhere").symlink_to(root / "none")
    (root / "inside").symlink_to("a")
    os.mkfifo(root / "pipe")
    (root / os.fsdecode(b"caf\xe9")).write_bytes(b"")
    names = ("out", "folder/b", "../secret/b", str(tmp_path / "secret" / "b"), "x/../../secret/b", "pipe")
    table(root, *(ROW | {"image": name} for name in names), ROW | {"image": "inside"})
    samples, refs = read(root, **LINES)
    assert [s["patient"] for s in samples] == [""] * len(names) + ["known"]
    assert {ref.root for ref in refs.values()} == {str(root)}
    table(root, ROW | {"image": "1.2.2"}, ROW | {"image": "1.2.1"})
    samples, _ = read(root, by="instance", **LINES)
    assert [s["patient"] for s in samples] == ["", "known"]
    assert left_out(root, by="instance", **LINES) == {
        "link that leads out of the folder": 2,
        "device, pipe or link to a folder": 2,
        "link to nothing": 1,
        REPEATED: 1,
        "file name with unprintable characters": 1,
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_and_folders_that_may_not_be_read(tmp_path: Path) -> None:
    file(tmp_path / "a")
    file(tmp_path / "b").chmod(0)
    table(tmp_path, ROW)
    assert left_out(tmp_path, **LINES) == {"file cannot be read": 1}
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(DataError, match="closed: cannot be listed"):
        read(tmp_path, **LINES)


@pytest.mark.parametrize(
    ("make_folder", "options", "words"),
    [
        (lambda root: root / "none", {}, "no such file or folder; dicom needs a folder of DICOM files"),
        (lambda root: file(root / "a"), {}, "is a file of another kind; dicom needs"),
        (lambda root: file(root / "a").parent, {},
         r"questions\.csv: no such table; dicom needs one with a question, an answer and the file of each"),
        (lambda root: file(root / "a").parent, {"table": "a"}, "a: is a file of another kind; dicom needs"),
        (lambda root: table(root, ROW), LINES, "holds no DICOM file"),
        (lambda root: table(file(root / "a").parent, ROW), LINES | {"by": "study"},
         r"no column 'study', which data\.options\.columns\.study needs"),
        (lambda root: table(file(root / "a").parent, ROW), LINES | {"columns": {"image": "imgae"}},
         "no column 'imgae'.*nearest: image"),
    ],
)  # fmt: skip
def test_unusable_sources_are_one_clear_error(
    tmp_path: Path, make_folder: Callable[[Path], Path], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read(make_folder(tmp_path), **options)


@hypothesis_given(rows_like(ROW | dict.fromkeys(("id", "study", "patient", "modality"), "x"), json_values()))
@settings(max_examples=60)
def test_whatever_a_row_holds_survives(tmp_path_factory: pytest.TempPathFactory, row: Any) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    file(folder / "a")
    table(folder, ROW | {"study": "1", "image": "a"}, row)
    for by in ("file", "instance", "study"):
        assert len(survives(opened(folder, by=by, question="q", separators={"image": ";"}, **LINES))) >= 2


@hypothesis_given(rows_like(ROW | dict.fromkeys(("id", "study", "patient", "modality"), "x")))
@settings(max_examples=60)
def test_whatever_a_row_of_any_reader_holds_survives(
    tmp_path_factory: pytest.TempPathFactory, row: Any
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    for by in ("file", "instance", "study"):
        source = _Rows(folder, folder / "t.csv", Dicom.Options(by=by))
        with Index(folder, source.table, headers=by != "file") as index:
            survives(given(source, "t.csv", source._joined(row, index)))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_named_or_its_rows_survive(tmp_path: Path, damage: str) -> None:
    LAYOUTS["csv"](tmp_path, Cohort(train=2, validation=0, test=0, size=16))
    damage_and_read(tmp_path / "questions.csv", damage, lambda: opened(tmp_path))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_dicom_file_changes_no_other_sample(tmp_path: Path, damage: str, key: str) -> None:
    LAYOUTS["csv"](tmp_path, Cohort(train=2, validation=0, test=0, size=16))
    path = sorted(tmp_path.rglob("IM*"))[0]
    try:
        DAMAGES[damage](path)
    except UnicodeDecodeError:
        pytest.skip("this damage is one of text files")
    samples = [s for s in survives(opened(tmp_path, **KEYS[key])) if "left_out" not in s]
    assert len(samples) == len((tmp_path / "questions.csv").read_text().splitlines()) - 1
    assert all(len(s["image_ids"]) == 1 for s in samples)
    assert samples[-1]["patient"]
    assert samples[-1]["notes"] == []


def test_a_header_cut_anywhere_survives(tmp_path: Path) -> None:
    whole = shipped("MR_small.dcm")
    file(tmp_path / "a")
    table(tmp_path, ROW)
    for number in range(60):
        (tmp_path / f"cut{number}").write_bytes(whole[: 133 + 30 * number])
    assert sum(left_out(tmp_path, by="instance", **LINES).values()) == 61


def test_a_damaged_header_is_a_counted_reason(tmp_path: Path) -> None:
    file(tmp_path / "a")
    table(tmp_path, ROW)
    whole = shipped("image_dfl.dcm")
    (tmp_path / "b").write_bytes(whole[:400] + bytes(range(255, 155, -1)) + whole[500:])
    assert left_out(tmp_path, **LINES) == {"DICOM file with a damaged header": 1}


def test_units_follow_the_files_they_read_and_reach_workers(export: Path, tmp_path: Path) -> None:
    LAYOUTS["csv"](tmp_path, Cohort(train=2, validation=0, test=0, size=16))
    for options in KEYS.values():
        sent = pickle.dumps(opened(tmp_path, **options))  # as to a worker
        source = pickle.loads(sent)  # noqa: S301
        before = [*source.units()]
        assert [*source.units()] == before
        image = sorted(tmp_path.rglob("IM*"))[0]
        whole = image.read_bytes()
        image.write_bytes(whole.replace(b"CHEST ", b"SKULL "))
        assert [*source.units()] != before
        image.write_bytes(whole)


@pytest.mark.parametrize("by", ["file", "instance"])
def test_thousands_of_files_take_seconds(tmp_path: Path, by: str) -> None:
    whole = make(np.zeros((2, 2), np.uint16), SOPInstanceUID="1.2.1000", PatientID="1000")
    rows = []
    for number in range(3000):
        mark = f"{1000 + number}".encode()
        path = tmp_path / f"{number // 500}" / f"{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(whole.replace(b"1000", mark))
        rows.append(ROW | {"image": f"{number // 500}/{number}" if by == "file" else f"1.2.{1000 + number}"})
    source = opened(table(tmp_path, *rows), by=by, **LINES)
    read_tags(tmp_path / "0" / "0")  # imports pydicom
    start = time.perf_counter()
    assert sum(len([*source.rows(unit)]) for unit in source.units()) == 3000
    assert time.perf_counter() - start < 20  # 2 on a free core


def test_memory_stays_the_same_whatever_the_number_of_files(tmp_path: Path) -> None:
    one_file = file(tmp_path / "image")
    table(tmp_path, ROW | {"image": "image"})

    def peak(first: int, last: int) -> int:
        for number in range(first, last):
            folder = tmp_path / f"{number // 200}"
            folder.mkdir(exist_ok=True)
            os.link(one_file, folder / f"{number:06d}")
        source = opened(tmp_path, **LINES)
        found = []
        for _ in range(2):  # threads that other tests have left may allocate meanwhile
            tracemalloc.start()
            num_rows = sum(len(unit.rows) for unit in source.units())
            found.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert num_rows == 1 + last
        return min(found)

    few = peak(0, 1200)
    assert peak(1200, 6000) < 1.5 * few


IDENTIFIERS = ("PatientID", "AccessionNumber", "StudyID", "SOPInstanceUID", "StudyInstanceUID",
               "SeriesInstanceUID")  # fmt: skip


def identifiers(folder: Path) -> dict[str, set[str]]:
    """What the files of an export say of whom and where, by kind."""
    import pydicom

    found: dict[str, set[str]] = {"path": set()}
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".csv":
            name = str(path.relative_to(folder))
            found["path"] |= {name, name.rpartition("/")[0], name.partition("/SE")[0]}
            header = pydicom.dcmread(path, stop_before_pixels=True)
            for element in header.iterall():
                if element.VR in ("PN", "DA", "TM") or element.keyword in IDENTIFIERS:
                    found.setdefault(element.keyword, set()).add(str(element.value))
    return {kind: {value for value in values if value} for kind, values in found.items()}


@pytest.mark.parametrize("key", KEYS)
def test_de_identification_leaves_no_identifier_of_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path / "home"))
    cleaning._load.cache_clear()  # another test's key
    monkeypatch.setitem(adapters.REGISTRY, "dicom", "radloop.data.adapters.dicom:Dicom")
    export = tmp_path / "export"
    export.mkdir()
    LAYOUTS["csv"](export, COHORT)
    images = sorted(export.rglob("IM*"))
    known = identifiers(export)
    images[0].unlink()  # a missing and a damaged file must not tell, either
    images[1].write_bytes(images[1].read_bytes()[:-100])
    images[2].write_bytes(images[2].read_bytes()[:200])
    config = DataConfig(adapter="dicom", path=str(export), options=KEYS[key], workers=1, deidentify=True)
    corpus = ingest(config)
    assert corpus.samples.num_rows == len((export / "questions.csv").read_text().splitlines()) - 1
    assert len(set(corpus.samples["patient"].to_pylist()) - {""}) >= 3
    (tmp_path / "saved").mkdir()
    corpus.save(tmp_path / "saved")
    saved = b"".join(path.read_bytes() for path in (tmp_path / "saved").iterdir())
    assert known["PatientID"]
    told = {(kind, value) for kind, values in known.items() for value in values if value.encode() in saved}
    assert told == set()
