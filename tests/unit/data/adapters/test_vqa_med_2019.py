from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radloop.data.adapters.vqa_med_2019 import (
    BARE_QUESTIONS,
    REFERENCE_ANSWERS,
    VqaMed2019,
    _alternatives,
)
from radloop.data.phantoms import questions
from radloop.data.phantoms.formats import Cohort
from radloop.data.phantoms.formats._files import jpeg
from radloop.data.phantoms.formats.vqa_med_2019 import LAYOUTS
from radloop.data.source import Source
from radloop.errors import DataError
from tests.unit.data.adapters.drive import drive
from tests.unit.data.adapters.given import damage_and_read
from tests.unit.data.adapters.given import given as with_rows
from tests.unit.data.adapters.hostile import DAMAGES, json_values, rows_like, survives

COHORT = Cohort(train=3, validation=1, test=2, size=48)
JSON_ROW = {
    "qid": 1,
    "image_name": "synpic1.jpg",
    "answer": "ct w/contrast (iv)",
    "answer_type": "OPEN",
    "question_type": "MODALITY",
    "question": "what modality is shown?",
    "phrase_type": "freeform",
}
TEXT_ROW = {"image": "synpic1", "category": "plane", "question": "which plane?", "answer": "axial"}


def opened(folder: Path | None, layout: Any = "auto") -> Source:
    return VqaMed2019().open(str(folder) if folder else None, VqaMed2019.Options(layout=layout))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, write in LAYOUTS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        write(folders[name], COHORT)
    return folders


def content(source: Source) -> list[tuple[Any, ...]]:
    samples, refs = drive(source)
    keys = ("split", "question", "answer_type", "question_type")
    images = [(Path(ref.root) / ref.name).read_bytes() for ref in (refs[s["image_ids"][0]] for s in samples)]
    return sorted((*(s[key] for key in keys), *s["answers"], i) for s, i in zip(samples, images, strict=True))


def test_the_text_files_give_back_what_was_written(written: dict[str, Path]) -> None:
    found = content(pickle.loads(pickle.dumps(opened(written["text"]))))  # noqa: S301
    asked = [
        (study.split, q.text.lower(), q.answer_type, "abnormality", q.answer, jpeg(study.phantom))
        for study in COHORT.studies()
        for q in questions(study.phantom)
    ]
    assert [row for row in found if row[3] == "abnormality"] == sorted(asked)
    kinds = Counter((row[0], row[3], row[4:-1]) for row in found if row[3] != "abnormality")
    modality, organ = ("xr - plain film",), ("lung, mediastinum, pleura",)
    assert kinds == {
        ("train", "modality", modality): 3,
        ("train", "plane", ("pa",)): 3,
        ("train", "organ", organ): 3,
        ("validation", "modality", modality): 1,
        ("validation", "plane", ("pa",)): 1,
        ("validation", "organ", organ): 1,
        ("test", "modality", modality): 2,
        ("test", "plane", ("pa (posteroanterior)", "pa")): 2,
        ("test", "organ", (*organ, "heart and great vessels")): 2,
    }


def test_text_and_json_agree_where_they_hold_the_same(written: dict[str, Path]) -> None:
    text = [row for row in content(opened(written["text"])) if row[0] != "test"]
    assert content(opened(written["mevf"])) == text
    ids = [sample["id"] for sample in drive(opened(written["mevf"]))[0]]
    assert len(set(ids)) == len(ids), "both JSON files count from 1"


def test_the_file_of_all_questions_serves_where_the_categories_are_absent(
    written: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(written["text"], tmp_path / "copy")
    shutil.rmtree(folder / "ImageClef-2019-VQA-Med-Training" / "QAPairsByCategory")
    (folder / "ImageClef-2019-VQA-Med-Validation" / "QAPairsByCategory" / "C2_Plane_val.txt").unlink()
    blank = [
        row if row[0] == "test" else (*row[:3], "", *row[4:]) for row in content(opened(written["text"]))
    ]
    assert content(opened(folder)) == sorted(blank)


def test_a_subfolder_is_a_source_of_its_own(written: dict[str, Path]) -> None:
    folder = written["text"] / "ImageClef-2019-VQA-Med-Training"
    assert content(opened(folder)) == [row for row in content(opened(written["text"])) if row[0] == "train"]


def test_json_gives_the_splits_that_have_no_text_files(written: dict[str, Path], tmp_path: Path) -> None:
    for name in ("text", "mevf"):
        shutil.copytree(written[name], tmp_path, dirs_exist_ok=True)
    everything = content(opened(written["text"]))
    assert content(opened(tmp_path)) == content(opened(tmp_path, "text")) == everything
    assert content(opened(tmp_path, "mevf")) == [row for row in everything if row[0] != "test"]
    shutil.rmtree(tmp_path / "ImageClef-2019-VQA-Med-Validation")
    assert content(opened(tmp_path)) == everything
    assert [row for row in everything if row[0] != "validation"] == content(opened(tmp_path, "text"))


def test_test_questions_without_answers_are_read_where_the_answers_are_not(tmp_path: Path) -> None:
    (tmp_path / BARE_QUESTIONS).write_text("synpic1|what plane?\n")
    samples, refs = drive(opened(tmp_path))
    assert [(s["question"], s["answers"], s["split"]) for s in samples] == [("what plane?", [], "test")]
    assert [ref.name for ref in refs.values()] == ["synpic1.jpg"]
    (tmp_path / REFERENCE_ANSWERS).write_text("synpic1|plane|what plane?|axial#(an) oblique\r\n")
    (sample,) = drive(opened(tmp_path))[0]
    assert (sample["answers"], sample["question_type"]) == (["axial", "(an) oblique", "oblique"], "plane")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("axial", ["axial"]),
        ("", []),
        (" # #", []),
        ("a#b#a", ["a", "b"]),
        ("(iatrogenic) pneumoperitoneum", ["(iatrogenic) pneumoperitoneum", "pneumoperitoneum"]),
        ("tumor (cyst) of cns", ["tumor (cyst) of cns", "tumor of cns"]),
        ("a (b (c)) d", ["a (b (c)) d", "a d"]),
        ("(iv)", ["(iv)"]),
        ("a (b", ["a (b"]),
        ("a) b (c", ["a) b (c"]),
    ],
)
def test_alternatives_and_optional_parts(answer: str, expected: list[str]) -> None:
    assert _alternatives(answer) == expected


@given(st.text("ab()# ", max_size=30))
def test_the_reference_is_the_text_before_the_first_separator(answer: str) -> None:
    answers = _alternatives(answer)
    written = [" ".join(text.split()) for text in answer.split("#") if text.strip()]
    assert answers[:1] == written[:1]
    assert set(written) <= set(answers)
    assert len(set(answers)) == len(answers)


def test_long_rows_of_brackets_take_no_time() -> None:
    assert _alternatives("(" * 50_000 + ")" * 50_000 + " a")[1] == "a"


def test_images_are_found_where_the_archives_put_them(tmp_path: Path) -> None:
    (tmp_path / REFERENCE_ANSWERS).write_text(
        "synpic1|plane|what plane?|axial\nsynpic2.png|plane|which?|pa\n"
    )
    for place in ("VQAMed2019_Test_Images", "VQAMed2019_Test_Images/VQAMed2019_Test_Images"):
        (tmp_path / place).mkdir()
        refs = drive(opened(tmp_path))[1]
        assert {ref.root for ref in refs.values()} == {str(tmp_path / place)}
        assert {ref.name for ref in refs.values()} == {"synpic1.jpg", "synpic2.png"}


@pytest.mark.parametrize(
    ("line", "expected", "note"),
    [
        ("synpic1|q", {"answers": []}, "answer: null counts as missing"),
        ("synpic1|q|a|b", {"answers": ["a"]}, "row: has 1 fields more than the header, ['b']"),
        ("|q|a", {"image_ids": []}, "image: '' counts as missing"),
        ('synpic1|"q|a', {"question": '"q'}, None),
        ("synpic1|q|NULL", {"answers": []}, "answer: 'NULL' counts as missing"),
    ],
)
def test_defects_are_mended_or_left_for_validation(
    tmp_path: Path, line: str, expected: dict[str, Any], note: str | None
) -> None:
    (tmp_path / "All_QA_Pairs_val.txt").write_text(f"synpic1|what?|this\n{line}\n")
    found = drive(opened(tmp_path))[0][1]
    assert {key: found[key] for key in expected} == expected
    assert found["notes"] == ([note] if note else [])
    assert (found["id"], found["split"], found["row"]) == ("vqa_med_2019-All_QA_Pairs_val-2", "validation", 2)


def test_unusable_sources_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path: is missing; vqa_med_2019 needs"):
        opened(None)
    with pytest.raises(DataError, match="holds nothing; vqa_med_2019 with layout: auto needs text files"):
        opened(tmp_path)
    (tmp_path / "All_QA_Pairs_train.txt").write_text("no bar\nin any line\n")
    with pytest.raises(DataError, match="is a file of another kind"):
        opened(tmp_path / "All_QA_Pairs_train.txt")
    with pytest.raises(DataError, match=r"All_QA_Pairs_train.txt: no row has the keys question, answer"):
        drive(opened(tmp_path))
    (tmp_path / "trainset.json").write_text(json.dumps([JSON_ROW | {"image_organ": "HEAD"}]))
    with pytest.raises(DataError, match="it is VQA-RAD as MEVF has it; use adapter: vqa_rad"):
        opened(tmp_path, "mevf")


@pytest.mark.parametrize(
    ("layout", "file"),
    [
        ("text", "ImageClef-2019-VQA-Med-Training/QAPairsByCategory/C3_Organ_train.txt"),
        ("text", f"VQAMed2019Test/{REFERENCE_ANSWERS}"),
        ("mevf", "data_RAD/trainset.json"),
        ("mevf", "data_RAD/testset.json"),
    ],
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_error_that_names_it_or_survives(
    written: dict[str, Path], tmp_path: Path, layout: str, file: str, damage: str
) -> None:
    folder = shutil.copytree(written[layout], tmp_path / "copy")
    damage_and_read(folder / file, damage, lambda: opened(folder, layout))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(json_row=rows_like(JSON_ROW), text_row=rows_like(TEXT_ROW))
def test_no_value_of_a_row_raises(tmp_path: Path, json_row: Any, text_row: Any) -> None:
    (tmp_path / "trainset.json").write_text(json.dumps([JSON_ROW]))
    (tmp_path / REFERENCE_ANSWERS).write_text("synpic1|plane|which?|axial\n")
    for file, row in (("trainset.json", json_row), (REFERENCE_ANSWERS, text_row)):
        survives(with_rows(opened(tmp_path), file, row))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=rows_like(JSON_ROW, json_values()))
def test_no_value_of_a_json_file_raises(tmp_path: Path, row: Any) -> None:
    (tmp_path / "trainset.json").write_text(json.dumps([JSON_ROW, row]))
    assert len(survives(opened(tmp_path))) == 2


def test_the_published_test_set(real_data: Callable[[str], Path]) -> None:
    samples, refs = drive(opened(real_data("vqa_med_2019"), "text"))
    assert (len(samples), len(refs)) == (500, 500)
    assert Counter(sample["question_type"] for sample in samples) == dict.fromkeys(
        ("modality", "plane", "organ", "abnormality"), 125
    )
    by_image = {refs[s["image_ids"][0]].name: s["answers"] for s in samples}
    assert by_image["synpic54143.jpg"] == [
        "anaplastic oligodendroglioma", "multi-cystic complex mass", "neoplasm",
    ]  # fmt: skip
    assert by_image["synpic35171.jpg"] == [
        "(angioinvasive aspergillosis with) septic cerebral emboli", "septic cerebral emboli",
    ]  # fmt: skip
    assert sum(len(sample["answers"]) > 1 for sample in samples) == 32
    assert all(sample["answers"] and sample["question"] for sample in samples)


def test_the_published_training_and_validation_sets(real_data: Callable[[str], Path]) -> None:
    samples, refs = drive(opened(real_data("vqa_med_2019")))
    assert len(refs) == 4200
    assert Counter(s["split"] for s in samples) == {"train": 12792, "validation": 2000, "test": 500}
    assert len({s["id"] for s in samples}) == 15292
    types = Counter(s["question_type"] for s in samples if s["split"] == "train")
    assert types == {"modality": 3200, "plane": 3200, "organ": 3200, "abnormality": 3192}
    assert Counter(s["answer_type"] for s in samples if s["split"] == "train") == {
        "open": 11498,
        "closed": 1294,
    }
