from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from pydantic import ValidationError

from radloop.data.adapters.vqa_rad import RELEASE_FILE, RELEASE_IMAGES, VqaRad
from radloop.data.phantoms import questions
from radloop.data.phantoms.formats import Cohort
from radloop.data.phantoms.formats._files import jpeg
from radloop.data.phantoms.formats.vqa_rad import LAYOUTS
from radloop.data.source import ImageRef, Source
from radloop.errors import DataError
from tests.unit.data.adapters.drive import drive
from tests.unit.data.adapters.given import damage_and_read
from tests.unit.data.adapters.given import given as with_rows
from tests.unit.data.adapters.hostile import DAMAGES, json_values, rows_like, survives

COHORT = Cohort(train=3, validation=1, test=2, size=48)
ROW = {
    "qid": 1,
    "phrase_type": "freeform",
    "image_case_url": "https://medpix.nlm.nih.gov/case?id=48e1",
    "image_name": "a.jpg",
    "image_organ": "ABD",
    "question": "Is it?",
    "question_type": "PRES",
    "answer": "Yes",
    "answer_type": "CLOSED",
}
# What both the release and another layout of it hold.
SHARED = (
    "dataset",
    "split",
    "study",
    "task",
    "question",
    "answers",
    "answer_type",
    "question_type",
    "language",
)


def opened(folder: Path | str | None, layout: Any = "auto") -> Source:
    path = None if folder is None else str(folder)
    return VqaRad().open(path, VqaRad.Options(layout=layout))


def release(folder: Path, *rows: Any) -> Path:
    (folder / RELEASE_IMAGES).mkdir(parents=True)
    (folder / RELEASE_FILE).write_text(json.dumps(rows))
    return folder


def lone(path: Path) -> Path:
    """A folder that holds this empty file only."""
    path.parent.mkdir()
    path.touch()
    return path.parent


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, write in LAYOUTS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        write(folders[name], COHORT)
    return folders


def asked() -> Iterator[tuple[str, str, str, bytes]]:
    for study in COHORT.studies():
        split = "test" if study.split == "test" else "train"
        for question in questions(study.phantom):
            yield split, question.text, question.answer, jpeg(study.phantom)


def image_bytes(ref: ImageRef) -> bytes:
    return ref.data if ref.data is not None else (Path(ref.root) / ref.name).read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_back_what_was_written(written: dict[str, Path], layout: str) -> None:
    samples, refs = drive(pickle.loads(pickle.dumps(opened(written[layout]))))  # noqa: S301
    found = [
        (s["split"], s["question"], s["answers"][0].lower(), image_bytes(refs[s["image_ids"][0]]))
        for s in samples
    ]
    expected = list(asked())
    if layout == "hub":
        expected = [(split, question.lower(), answer, image) for split, question, answer, image in expected]
    assert sorted(found) == sorted(expected)
    assert len({sample["id"] for sample in samples}) == len(samples)
    answer_types = {
        sample["answers"][0].lower() in ("yes", "no"): sample["answer_type"] for sample in samples
    }
    assert answer_types == {True: "closed", False: "open"}


def test_the_files_of_the_release_agree(written: dict[str, Path]) -> None:
    json_samples, json_refs = drive(opened(written["json"]))
    for layout in ("xlsx", "xml", "mevf"):
        samples, refs = drive(opened(written[layout]))
        keys = [key for key in SHARED if not (layout == "mevf" and key == "study")]  # MEVF has no cases
        assert sorted(repr([s[key] for key in keys]) for s in samples) == sorted(
            repr([s[key] for key in keys]) for s in json_samples
        )
        assert sorted(ref.name for ref in refs.values()) == sorted(ref.name for ref in json_refs.values())
        assert {ref.columns["body_part"] for ref in refs.values()} == {"CHEST"}


def test_a_folder_with_all_layouts_is_read_as_json_or_as_the_options_say(
    written: dict[str, Path], tmp_path: Path
) -> None:
    for folder in written.values():
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    files = {
        layout: {unit.file for unit in opened(tmp_path, layout).units()}
        for layout in ("auto", "json", "xlsx", "xml", "mevf", "hub")
    }
    assert files == {
        "auto": {RELEASE_FILE},
        "json": {RELEASE_FILE},
        "xlsx": {RELEASE_FILE.replace("json", "xlsx")},
        "xml": {RELEASE_FILE.replace("json", "xml")},
        "mevf": {"trainset.json", "testset.json"},
        "hub": {"data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"},
    }
    with pytest.raises(DataError, match="vqa_rad with layout: mevf needs"):
        opened(written["json"], "mevf")
    with pytest.raises(ValidationError, match="layout"):
        VqaRad.Options(layout="csv")  # type: ignore[arg-type]


def test_a_release_row_becomes_a_sample(tmp_path: Path) -> None:
    folder = release(tmp_path / "r", ROW)
    samples, refs = drive(opened(folder))
    ref = next(iter(refs.values()))
    assert samples == [
        {
            "id": "vqa_rad-1",
            "dataset": "vqa_rad",
            "split": "train",
            "study": "48e1",
            "image_ids": list(refs),
            "task": "vqa",
            "question": "Is it?",
            "answers": ["Yes"],
            "answer_type": "closed",
            "question_type": "presence",
            "language": "en",
            "notes": [],
            "file": RELEASE_FILE,
            "row": 1,
        }
    ]
    assert (ref.root, ref.name) == (str(folder / RELEASE_IMAGES), "a.jpg")
    assert ref.columns == {"body_part": "ABDOMEN", "study": "48e1"}


@pytest.mark.parametrize(
    ("changes", "expected", "note"),
    [
        ({"answer": 5}, {"answers": ["5"]}, "answer: int 5 kept as text"),
        ({"answer": None}, {"answers": []}, "answer: null counts as missing"),
        ({"answer": float("nan")}, {"answers": []}, "answer: nan counts as missing"),
        ({"answer": ...}, {"answers": []}, "answer: null counts as missing"),
        ({"answer_type": "CLOSED "}, {"answer_type": "closed"}, "answer_type: white space tidied"),
        (
            {"answer_type": ..., "answer": "Left"},
            {"answer_type": "open"},
            "answer_type: missing, inferred from the answer",
        ),
        ({"answer_type": "MAYBE"}, {"answer_type": "maybe"}, None),
        ({"phrase_type": "test_para"}, {"split": "test"}, None),
        ({"phrase_type": "Other"}, {"split": "Other"}, None),
        ({"question_type": "ATRIB"}, {"question_type": "attribute"}, None),
        (
            {"question_type": "POS, PRES"},
            {"question_type": "position"},
            "question_type: the first of position, presence",
        ),
        ({"question_type": "NEW"}, {"question_type": "new"}, None),
        ({"question_type": ...}, {"question_type": ""}, None),
        ({"qid": "0"}, {"id": "vqa_rad-0"}, None),
        ({"qid": None}, {"id": ""}, None),
        ({"image_name": None}, {"image_ids": []}, "image_name: null counts as missing"),
    ],
)
def test_defects_are_mended_or_left_for_validation(
    tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any], note: str | None
) -> None:
    # A second row keeps the keys that the first one lacks known in the file.
    folder = release(tmp_path / "r", {k: v for k, v in (ROW | changes).items() if v is not ...}, ROW)
    found = drive(opened(folder))[0][0]
    assert {key: found[key] for key in expected} == expected
    assert found["notes"] == ([note] if note else [])


def test_a_row_that_is_no_object_is_kept_for_quarantine(tmp_path: Path) -> None:
    row = drive(opened(release(tmp_path / "r", ROW, "text")))[0][1]
    assert (row["id"], row["question"], row["row"]) == ("", "", 2)
    assert "row: is str, not an object" in row["notes"]


def test_mevf_takes_the_split_from_the_file_and_keeps_its_framed_questions(tmp_path: Path) -> None:
    place = tmp_path / "mevf_data_RAD"
    place.mkdir()
    (place / "trainset.json").write_text(json.dumps([ROW | {"phrase_type": "frame"}]))
    (place / "testset.json").write_text(json.dumps([ROW | {"qid": 2, "phrase_type": "para"}]))
    with pytest.raises(DataError, match=f"images are in none of .*copy the folder '{RELEASE_IMAGES}' there"):
        opened(tmp_path)
    (tmp_path / RELEASE_IMAGES).mkdir()
    samples, refs = drive(opened(tmp_path))
    assert [(s["id"], s["split"], s["question_type"]) for s in samples] == [
        ("vqa_rad-mevf-1", "train", "presence"),
        ("vqa_rad-mevf-2", "test", "presence"),
    ]
    assert {ref.root for ref in refs.values()} == {str(tmp_path / RELEASE_IMAGES)}
    (place / "images").mkdir()
    assert {ref.root for ref in drive(opened(place))[1].values()} == {str(place / "images")}


def test_vqa_med_2019_under_the_file_names_of_mevf_is_not_taken_for_vqa_rad(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    row = {key: value for key, value in ROW.items() if key != "image_organ"}
    (tmp_path / "trainset.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=r"trainset.json: no row has the keys image_organ.*another data set"):
        drive(opened(tmp_path))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root / "none", "no such file or folder; vqa_rad needs"),
        (lambda root: "nobody/data", "no such file or folder in /.*; vqa_rad needs"),
        (lambda root: "hf://nobody/data", "hf download nobody/data --repo-type dataset"),
        (lambda root: None, "data.path: is missing"),
        (lambda root: release(root, ROW) / RELEASE_FILE, "is a file of another kind; vqa_rad needs"),
        (lambda root: lone(root / "x.csv"), "holds x.csv; vqa_rad needs"),
        (lambda root: lone(root / RELEASE_FILE), f"images are in none of .*{RELEASE_IMAGES}"),
        (lambda root: release(root), "holds no row"),
        (lambda root: release(root, {"id": 1, "q": "x"}), "no row has the keys qid, .*found: id, q"),
    ],
)
def test_unusable_sources_are_one_clear_error(
    tmp_path: Path, make: Callable[[Path], Path | str | None], words: str
) -> None:
    source = make(tmp_path / "root")
    with pytest.raises(DataError, match=words):
        drive(opened(source))


@pytest.mark.parametrize(
    ("layout", "file"),
    [
        ("json", RELEASE_FILE),
        ("xlsx", RELEASE_FILE.replace(".json", ".xlsx")),
        ("xml", RELEASE_FILE.replace(".json", ".xml")),
        ("mevf", "mevf_data_RAD/trainset.json"),
        ("mevf", "mevf_data_RAD/testset.json"),
        ("hub", "data/train-00000-of-00001.parquet"),
    ],
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_error_that_names_it_or_survives(
    written: dict[str, Path], tmp_path: Path, layout: str, file: str, damage: str
) -> None:
    folder = shutil.copytree(written[layout], tmp_path / "copy")
    damage_and_read(folder / file, damage, lambda: opened(folder, layout))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=rows_like(ROW))
def test_no_value_of_a_row_raises(tmp_path: Path, row: Any) -> None:
    (tmp_path / "images").mkdir(exist_ok=True)
    for name in (RELEASE_FILE, "trainset.json"):
        (tmp_path / name).touch()
    for layout, file in (("json", RELEASE_FILE), ("mevf", "trainset.json")):
        source = opened(tmp_path, layout)
        survives(with_rows(source, file, row))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=rows_like(ROW, json_values()))
def test_no_value_of_a_json_file_raises(tmp_path: Path, row: Any) -> None:
    (tmp_path / RELEASE_IMAGES).mkdir(exist_ok=True)
    (tmp_path / RELEASE_FILE).write_text(json.dumps([ROW, row]))
    assert len(survives(opened(tmp_path))) == 2


def parquet(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize("kind", ["struct", "bytes"])
def test_hub_columns_in_a_local_folder(tmp_path: Path, kind: str) -> None:
    files = [b"one", b"one", b"two"]
    images = pa.array(files if kind == "bytes" else [{"bytes": file, "path": "a.jpg"} for file in files])
    columns = {
        "image": images,
        "question": ["q1", "q2", None],
        "answer": ["Yes", "left", "no"],
        "extra": [1, 2, 3],
    }
    parquet(tmp_path / "data" / "train-00000-of-00001-ab.parquet", **columns)
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", **{n: c[:1] for n, c in columns.items()})
    samples, refs = drive(opened(tmp_path))
    assert {ref.data for ref in refs.values()} == set(files)
    assert [(s["split"], s["answer_type"], s["question"], s["row"]) for s in samples] == [
        ("test", "closed", "q1", 1),
        ("train", "closed", "q1", 1),
        ("train", "open", "q2", 2),
        ("train", "closed", "", 3),
    ]


def test_parquet_without_image_bytes_or_columns(tmp_path: Path) -> None:
    struct = pa.array(
        [{"bytes": None, "path": "/etc/hostname"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    parquet(tmp_path / "1" / "train.parquet", image=struct, question=["q"], answer=["a"])
    (ref,) = drive(opened(tmp_path / "1"))[1].values()
    assert (ref.root, ref.name, ref.data) == ("", "/etc/hostname", None)  # missing, and not looked for
    parquet(tmp_path / "2" / "train.parquet", images=[b"x"], question=["q"], answer=["a"])
    with pytest.raises(DataError, match="lacks the columns image; found: images, question, answer; needed"):
        drive(opened(tmp_path / "2"))


def test_the_published_release(real_data: Callable[[str], Path]) -> None:
    samples, refs = drive(opened(real_data("vqa_rad")))
    assert (len(samples), len({ref.name for ref in refs.values()})) == (2248, 314)
    assert Counter(row["split"] for row in samples) == {"train": 1797, "test": 451}
    assert Counter(row["answer_type"] for row in samples) == {"closed": 1299, "open": 949}
    assert len({row["question_type"] for row in samples}) == 11
    assert sum("answer: int" in note for row in samples for note in row["notes"]) == 5
    assert all((Path(ref.root) / ref.name).is_file() for ref in refs.values())
    parts = Counter(refs[row["image_ids"][0]].columns["body_part"] for row in samples)
    assert parts == {"CHEST": 794, "ABDOMEN": 739, "HEAD": 715}


@pytest.mark.parametrize("layout", ["xlsx", "xml"])
def test_the_published_files_agree(real_data: Callable[[str], Path], layout: str) -> None:
    folder = real_data("vqa_rad")
    samples, refs = drive(opened(folder, layout))
    expected, expected_refs = drive(opened(folder, "json"))
    assert refs == expected_refs
    keys = ("id", "image_ids", *SHARED)
    unlike = [
        (mine["id"], key, theirs[key], mine[key])
        for mine, theirs in zip(samples, expected, strict=True)
        for key in keys
        if mine[key] != theirs[key]
    ]
    # The conversion from the workbook lost an apostrophe.
    text = "How can you tell if it{}s the common bile duct vs the cystic duct?"
    lost = ("vqa_rad-2136", "question", text.format("\N{REPLACEMENT CHARACTER}"), text.format("\u2019"))
    assert unlike == ([lost] if layout == "xlsx" else [])


def test_the_published_mevf_variant(real_data: Callable[[str], Path]) -> None:
    folder = real_data("vqa_rad")
    samples, refs = drive(opened(folder, "mevf"))
    assert Counter(row["split"] for row in samples) == {"train": 3064, "test": 451}
    assert (len(refs), len({row["id"] for row in samples})) == (314, 3515)
    assert all((Path(ref.root) / ref.name).is_file() for ref in refs.values())
    assert sum("answer: int" in note for row in samples for note in row["notes"]) == 10

    def content(rows: list[dict[str, Any]], named: dict[str, ImageRef]) -> set[tuple[str, ...]]:
        keys = ("split", "question", "answer_type", "question_type")
        return {(named[s["image_ids"][0]].name, s["answers"][0], *(s[key] for key in keys)) for s in rows}

    expected = content(*drive(opened(folder, "json")))
    assert expected <= content(samples, refs), "MEVF adds framed questions and changes none"
