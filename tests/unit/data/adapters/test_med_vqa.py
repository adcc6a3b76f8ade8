from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radloop.data.adapters.med_vqa import MedVqa
from radloop.data.phantoms import questions
from radloop.data.phantoms.formats import Cohort
from radloop.data.phantoms.formats._files import jpeg
from radloop.data.phantoms.formats.med_vqa import LAYOUTS
from radloop.data.source import Images, Source, Unit
from radloop.errors import DataError
from tests.unit.data.adapters.drive import drive
from tests.unit.data.adapters.given import damage_and_read
from tests.unit.data.adapters.hostile import DAMAGES, rows_like, survives, values

COHORT = Cohort(train=3, validation=1, test=2, size=48)
ROW = {
    "split": "train",
    "ids": "7",
    "image_names": "cxr_7",
    "images": {"bytes": b"encoded", "path": None},
    "questions": "Is it?",
    "answers": "Yes",
}


def opened(folder: Path | None) -> Source:
    return MedVqa().open(str(folder) if folder else None, MedVqa.Options())


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    LAYOUTS["hub"](folder, COHORT)
    return folder


def asked() -> Iterator[tuple[str, str, str, bytes]]:
    for study in COHORT.studies():
        split = "test" if study.split == "test" else "train"
        for question in questions(study.phantom):
            yield split, question.text, question.answer, jpeg(study.phantom)


def saved(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "split"}
    pq.write_table(pa.table(columns), path)
    return path.parent


def test_the_hub_layout_gives_back_what_was_written(hub: Path) -> None:
    samples, refs = drive(opened(hub))
    found = [(s["split"], s["question"], s["answers"][0], refs[s["image_ids"][0]].data) for s in samples]
    assert sorted(found) == sorted(asked())
    assert len({sample["id"] for sample in samples}) == len(samples)
    assert len(refs) == 6, "an image of several questions is handed over once"
    closed = {sample["answers"][0] in ("yes", "no"): sample["answer_type"] for sample in samples}
    assert closed == {True: "closed", False: "open"}
    assert {ref.name.rpartition(".")[2] == "jpg" for ref in refs.values()} == {True, False}


def test_a_row_becomes_a_sample(tmp_path: Path) -> None:
    samples, refs = drive(opened(saved(tmp_path / "data" / "test-00000-of-00001.parquet", ROW)))
    assert samples == [
        {
            "id": "med_vqa-test-7",
            "dataset": "med_vqa",
            "split": "test",
            "image_ids": list(refs),
            "task": "vqa",
            "question": "Is it?",
            "answers": ["Yes"],
            "answer_type": "closed",
            "language": "en",
            "notes": [],
            "file": "test-00000-of-00001.parquet",
            "row": 1,
        }
    ]
    assert [(ref.name, ref.data) for ref in refs.values()] == [("cxr_7", b"encoded")]


@pytest.mark.parametrize(
    ("changes", "expected", "note"),
    [
        ({"answers": None}, {"answers": [], "answer_type": "open"}, "answer: null counts as missing"),
        ({"answers": ["no", "none"]}, {"answers": ["no", "none"], "answer_type": "closed"}, None),
        ({"questions": " Is  it?"}, {"question": "Is it?"}, "questions: white space tidied"),
        ({"ids": 7}, {"id": "med_vqa-train-7"}, None),
        ({"ids": None}, {"id": ""}, None),
        ({"split": ""}, {"id": "med_vqa-7"}, None),
        ({"images": None}, {"image_ids": ["cxr_7"]}, None),
        (
            {"images": None, "image_names": None},
            {"image_ids": ["7"]},
            "image_names: null counts as missing",
        ),
    ],
)
def test_defects_are_mended_or_left_for_validation(
    hub: Path, changes: dict[str, Any], expected: dict[str, Any], note: str | None
) -> None:
    (found,) = opened(hub).samples(ROW | changes, images := Images())
    found["image_ids"] = [images.refs[key].name for key in found["image_ids"]]
    assert {key: found[key] for key in expected} == expected
    assert found["notes"] == ([note] if note else [])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=rows_like({key: ROW[key] for key in ("ids", "image_names")}), cells=st.tuples(*[values()] * 3))
def test_no_value_of_a_row_raises(hub: Path, row: Any, cells: tuple[Any, Any, Any]) -> None:
    # A file without one of these columns is refused as a whole.
    needed = dict(zip(("questions", "answers", "images"), cells, strict=True))
    named = row if isinstance(row, dict) else {}
    survives(_Given(opened(hub), Unit("train.parquet", 1, ({"split": "train"} | named | needed,))))


class _Given(Source):
    """A source of which other rows are given."""

    def __init__(self, source: Source, unit: Unit) -> None:
        self.source, self.unit = source, unit

    def units(self) -> Iterator[Unit]:
        yield self.unit

    def samples(self, row: Any, images: Images) -> Any:
        return self.source.samples(row, images)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_error_that_names_it_or_survives(
    hub: Path, tmp_path: Path, damage: str
) -> None:
    folder = shutil.copytree(hub, tmp_path / "copy")
    damage_and_read(folder / "data" / "test-00000-of-00001.parquet", damage, lambda: opened(folder))


def test_unusable_sources_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path: is missing; med_vqa needs the hub's data"):
        opened(None)
    with pytest.raises(DataError, match="no such file or folder; med_vqa needs"):
        opened(tmp_path / "none")
    with pytest.raises(DataError, match="holds nothing; med_vqa needs"):
        opened(tmp_path)
    other = saved(tmp_path / "train.parquet", {"image": b"x", "question": "q", "answer": "a"})
    with pytest.raises(
        DataError, match="lacks the columns questions, answers, images; found: image, question"
    ):
        drive(opened(other))


def test_a_copy_without_ids_and_names_is_read(tmp_path: Path) -> None:
    row = {key: ROW[key] for key in ("images", "questions", "answers")}
    samples, _ = drive(opened(saved(tmp_path / "train.parquet", row)))
    assert [(s["id"], s["question"], s["notes"]) for s in samples] == [
        ("", "Is it?", ["image_names: null counts as missing"])
    ]
