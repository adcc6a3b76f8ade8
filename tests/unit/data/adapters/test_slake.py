from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings

from radloop.data.adapters._hub import HubQuestions
from radloop.data.adapters.slake import Slake, _Release
from radloop.data.phantoms import questions
from radloop.data.phantoms.formats import Cohort
from radloop.data.phantoms.formats._files import jpeg
from radloop.data.phantoms.formats.slake import LAYOUTS
from radloop.data.reading import ParquetFolder
from radloop.data.source import Images
from radloop.errors import ConfigError, DataError
from tests.unit.data.adapters.drive import drive
from tests.unit.data.adapters.given import damage_and_read, given
from tests.unit.data.adapters.hostile import DAMAGES, json_values, rows_like, survives, values

COHORT = Cohort(train=3, validation=1, test=2, size=48)
ROW = {
    "img_id": 7, "img_name": "xmlab7/source.jpg", "question": "Is it?", "answer": "Yes", "q_lang": "en",
    "location": "Chest_heart", "modality": "MRI", "answer_type": "CLOSED", "base_type": "vqa",
    "content_type": "KG", "triple": ["vhead", "_", "_"], "qid": 5,
}  # fmt: skip


def read(folder: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return drive(Slake().open(str(folder), Slake.Options(**options)))


def written(folder: Path, layout: str) -> Path:
    folder.mkdir()
    LAYOUTS[layout](folder, COHORT)
    return folder


def image_bytes(ref: Any) -> bytes:
    if ref.data is not None:
        return bytes(ref.data)
    if ref.root.endswith(".zip"):
        return zipfile.ZipFile(ref.root).read(ref.name)
    return (Path(ref.root) / ref.name).read_bytes()


def content(folder: Path, **options: Any) -> list[tuple[Any, ...]]:
    samples, refs = read(folder, **options)
    return sorted(
        (s["split"], s["language"], s["question"], *s["answers"], s["answer_type"],
         *(image_bytes(refs[key]) for key in s["image_ids"]))
        for s in samples if "left_out" not in s
    )  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_back_what_was_written(tmp_path: Path, layout: str) -> None:
    found = content(written(tmp_path / layout, layout))
    assert all(row in found for row in (
        (study.split, "en", q.text, q.answer.capitalize(), q.answer_type, jpeg(study.phantom))
        for study in COHORT.studies() for q in questions(study.phantom)
    ))  # fmt: skip
    assert len(found) == sum(len(questions(study.phantom)) + 1 for study in COHORT.studies())


@pytest.mark.parametrize("language", ["en", "zh", "both"])
def test_the_renamed_copy_agrees_with_the_release(tmp_path: Path, language: str) -> None:
    release, renamed = (written(tmp_path / layout, layout) for layout in ("original", "bokelvin"))
    assert content(release, language=language) == content(renamed, language=language)
    (renamed / "imgs").mkdir()  # unpacked: the archive may stay
    assert all(ref.root == str(renamed / "imgs") for ref in read(renamed)[1].values())


def test_a_row_becomes_a_sample(tmp_path: Path) -> None:
    (tmp_path / "validate.json").write_text(json.dumps([ROW]))
    samples, refs = read(tmp_path)
    assert samples == [
        {
            "id": "slake-5", "dataset": "slake", "split": "validation", "study": "xmlab7",
            "image_ids": list(refs), "task": "vqa", "question": "Is it?", "answers": ["Yes"],
            "answer_type": "closed", "question_type": "knowledge", "language": "en", "notes": [],
            "file": "validate.json", "row": 1,
        }
    ]  # fmt: skip
    (ref,) = refs.values()
    assert (ref.root, ref.name) == (str(tmp_path / "imgs"), "xmlab7/source.jpg")
    assert ref.columns == {"modality": "MR", "body_part": "CHEST", "study": "xmlab7"}


@pytest.mark.parametrize(
    ("changes", "expected", "note"),
    [
        ({"answer": "Transverse  Plane"}, {"answers": ["Transverse Plane"]}, "answer: white space tidied"),
        ({"answer": "Lung, Heart"}, {"answers": ["Lung, Heart"]}, None),
        ({"answer": ""}, {"answers": []}, "answer: '' counts as missing"),
        ({"q_lang": None}, {"language": "en"}, "q_lang: missing, inferred from the question"),
        (
            {"q_lang": None, "question": "有肝脏吗?"},
            {"language": "zh"},
            "q_lang: missing, inferred from the question",
        ),
        (
            {"answer_type": None},
            {"answer_type": "closed"},
            "answer_type: missing, inferred from the answer",
        ),
        ({"img_name": 5}, {"image_ids": ["file:"], "study": ""}, "img_name: int 5 kept as text"),
        ({"img_name": None}, {"image_ids": [], "study": ""}, "img_name: null counts as missing"),
        ({"qid": None}, {"id": ""}, None),
    ],
)
def test_defects_are_mended_or_left_for_validation(
    tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any], note: str | None
) -> None:
    (tmp_path / "train.json").write_text(json.dumps([ROW | changes, ROW]))
    sample = read(tmp_path, language="both")[0][0]
    sample["image_ids"] = [key[:5] for key in sample["image_ids"]]
    assert {key: sample[key] for key in expected} == expected
    assert sample["notes"] == ([note] if note else [])


def test_rows_of_the_other_language_are_counted(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps([ROW, ROW | {"q_lang": "zh"}]))
    reasons = [[sample.get("left_out") for sample in read(tmp_path, language=it)[0]] for it in ("en", "zh")]
    told = "question in another language than the option"
    assert reasons == [[None, told], [told, None]]
    assert len([s for s in read(tmp_path, language="both")[0] if "left_out" not in s]) == 2


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["validate.json", "validation.json"], "two names of one file; remove one"),
        (["notes.txt"], "holds notes.txt; slake needs train.json"),
    ],
)
def test_folders_that_cannot_be_used_are_one_clear_error(
    tmp_path: Path, names: list[str], words: str
) -> None:
    for name in names:
        (tmp_path / name).write_text(json.dumps([ROW]))
    with pytest.raises(DataError, match=words):
        read(tmp_path)


def test_another_data_set_in_files_of_the_same_name_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps([{"qid": 1, "image_name": "a", "question": "b"}]))
    with pytest.raises(DataError, match=r"train\.json: no row has the keys img_name, answer, q_lang"):
        read(tmp_path)


def test_chinese_is_refused_for_the_english_copy(tmp_path: Path) -> None:
    folder = written(tmp_path / "hub", "hub")
    with pytest.raises(ConfigError, match=r"data\.options\.language: got 'zh'.*is English only"):
        read(folder, language="zh")


@hypothesis_given(rows_like(ROW, json_values()))
@settings(max_examples=60)
def test_whatever_a_row_of_the_release_holds_survives(row: Any) -> None:
    survives(given(_Release(Path("/nowhere"), ("train.json",), False, "en"), "train.json", row))


@hypothesis_given(values(), values(), values())
@settings(max_examples=60)
def test_whatever_the_columns_of_the_hub_hold_survives(image: Any, question: Any, answer: Any) -> None:
    # The columns are there, of whatever type: an earlier check of the file made sure of it.
    row = {"image": image, "question": question, "answer": answer, "split": "train", "id": "1", "file": "x"}
    (sample,) = HubQuestions("slake", ParquetFolder(Path(), ())).samples(row, images := Images())
    assert sample["image_ids"] == list(images.refs)
    assert all(sample["answers"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_or_its_rows_survive(tmp_path: Path, layout: str, damage: str) -> None:
    folder = written(tmp_path / layout, layout)
    path = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".parquet"))[0]
    damage_and_read(path, damage, lambda: Slake().open(str(folder), Slake.Options()))


def test_the_published_release(real_data: Callable[[str], Path]) -> None:
    folder = real_data("slake") / "Slake1.0"
    samples, refs = read(folder, language="both")
    assert Counter((s["split"], s["language"]) for s in samples) == {
        ("train", "en"): 4919, ("train", "zh"): 4916, ("validation", "en"): 1053,
        ("validation", "zh"): 1046, ("test", "en"): 1061, ("test", "zh"): 1033,
    }  # fmt: skip
    assert Counter((s["split"], s["answer_type"]) for s in samples) == {
        ("train", "open"): 5954, ("train", "closed"): 3881, ("validation", "open"): 1255,
        ("validation", "closed"): 844, ("test", "open"): 1258, ("test", "closed"): 836,
    }  # fmt: skip
    assert len(refs) == len({s["study"] for s in samples}) == 642
    assert {ref.columns["modality"] for ref in refs.values()} == {"CT", "MR", "XR"}
    parts = {ref.columns["body_part"] for ref in refs.values()}
    assert parts == {"ABDOMEN", "BRAIN", "CHEST", "NECK", "PELVIS"}
    assert [s["id"] for s in samples if not s["answers"]] == ["slake-1622"]
    assert len({s["id"] for s in samples}) == 14028
    tidied = [s for s in samples if "answer: white space tidied" in s["notes"]]
    assert sum(s["answers"] == ["Transverse Plane"] for s in tidied) == 91
    assert Counter(s["question_type"] for s in samples if s["split"] == "test")["knowledge"] == 267


def test_english_and_chinese_are_split_apart_and_each_language_is_not(
    real_data: Callable[[str], Path],
) -> None:
    samples, _ = read(real_data("slake") / "Slake1.0", language="both")

    def shared(languages: set[str]) -> int:
        studies = [{s["study"] for s in samples if s["split"] == split and s["language"] in languages}
                   for split in ("train", "test")]  # fmt: skip
        return len(studies[0] & studies[1])

    assert (shared({"en"}), shared({"zh"}), shared({"en", "zh"})) == (0, 0, 142)
