from __future__ import annotations

import csv
import json
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings

from radloop.data.adapters.ehrxqa import Ehrxqa, scope
from radloop.data.ehr import estimate_tokens
from radloop.data.phantoms.formats import Cohort, Study
from radloop.data.phantoms.formats._ehr_patients import CLINIC, Clinic
from radloop.data.phantoms.formats._files import jpeg
from radloop.data.phantoms.formats.ehrxqa import LAYOUTS
from radloop.data.source import Source
from radloop.errors import DataError
from tests.unit.data.adapters.drive import drive
from tests.unit.data.adapters.given import damage_and_read, given
from tests.unit.data.adapters.hostile import DAMAGES, json_values, rows_like, survives

COHORT = Cohort(train=4, validation=2, test=2, size=24)
STUDIES = list(COHORT.studies())
TRAIN = Path("database", "mimic_iv_cxr", "train", "mimic_iv_cxr.db")
QUESTIONS = Path("dataset", "mimic_iv_cxr")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {layout: tmp_path_factory.mktemp(layout) for layout in LAYOUTS}
    for layout, folder in found.items():
        LAYOUTS[layout](folder, COHORT)
    return found


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the release that a test may change."""
    shutil.copytree(folders["release"], tmp_path, dirs_exist_ok=True)
    return tmp_path


def opened(folder: Path, **options: Any) -> Source:
    return Ehrxqa().open(str(folder), Ehrxqa.Options(**options))


def read(folder: Path, **options: Any) -> list[dict[str, Any]]:
    return drive(opened(folder, **options))[0]


def rows(folder: Path, split: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / QUESTIONS / f"{split}.json").read_text())
    return found


def asked(folder: Path, *changed: Any, **options: Any) -> list[dict[str, Any]]:
    """Samples of these rows in place of the training questions."""
    return drive(given(opened(folder, **options), str(QUESTIONS / "train.json"), *changed))[0]


def test_the_release_gives_back_all_questions_with_the_images_they_name(folders: dict[str, Path]) -> None:
    samples, refs = drive(opened(folders["release"]))
    by_id = {sample["id"]: sample for sample in samples}
    number = 0
    pictures = {str(study.study_id): jpeg(study.phantom) for study in STUDIES}
    for file, split in (("train", "train"), ("valid", "validation"), ("test", "test")):
        for row in rows(folders["release"], file):
            sample = by_id[f"ehrxqa-{split}-{row['id']}"]
            assert (sample["question"], sample["split"], sample["task"]) == (row["question"], split, "ehr")
            named = [str(value) for name, value in row["value"].items() if name.startswith("study_id")]
            named = named or [str(study.study_id) for study in chosen(row)]
            found = [refs[key] for key in sample["image_ids"]]
            assert [ref.columns["study"] for ref in found] == named
            assert [(Path(ref.root) / ref.name).read_bytes() for ref in found] == [pictures[n] for n in named]
            number += 1
    assert number == len(samples) > 150
    assert len(refs) == len(STUDIES)


def chosen(row: dict[str, Any]) -> list[Study]:
    """The studies that the question chooses, by its English and not by its query, oldest first."""
    own = [study for study in STUDIES if study.patient_id == row["value"].get("patient_id")]
    if not row["question"].startswith("given the last study"):
        return []
    if until := re.search(r"until (\d{4}-\d\d-\d\d)", row["question"]):
        return [study for study in own if f"{study.time:%Y-%m-%d}" <= until[1]][-1:]
    if "previous study" in row["question"]:
        return own[-2:]
    return [own[0], own[-1]] if "the first study" in row["question"] else own[-1:]


def truth(row: dict[str, Any], studies: list[Study]) -> str | None:
    """The answer by the findings of the phantoms, not by the database; None where they do not tell it."""
    values, tag = row["value"], row["q_tag"]
    visual = {name: found[0] for name, found in row["v_tag"].items() if found}
    name = next((name for name, c in CLINIC.items() if c.attribute == visual.get("attribute")), "")
    showing = [study for study in studies if name in study.phantom.findings]
    treated = [study for study in studies if any(is_for(values, CLINIC[it]) for it in study.phantom.findings)]
    shown, was_treated = (
        any(study.patient_id == values.get("patient_id") for study in found) for found in (showing, treated)
    )
    if tag == "given the study {study_id}, is there ${attribute} in the ${object}?":
        here = [study for study in showing if study.study_id == values["study_id"]]
        return YES[bool(here) and lies_in(here[0].phantom.findings[name].values, visual["object"])]
    if meant := chosen(row):
        inside = [study for study in meant if study in showing]
        if "object" in visual:
            inside = [it for it in inside if lies_in(it.phantom.findings[name].values, visual["object"])]
        return YES[inside == meant]
    if "compared to" in tag:
        return YES[{values["study_id1"], values["study_id2"]} <= {study.study_id for study in showing}]
    if tag.startswith("has_verb"):
        return YES[was_treated and (shown or "also had" not in tag)]
    if tag.startswith("has "):
        return YES[shown]
    if tag.startswith("count the number of times"):
        return str(sum(study.patient_id == values["patient_id"] for study in showing))
    people = treated if "prescribed" in tag else showing
    people = [study for study in people if 60 <= study.age <= 69 or "aged" not in tag]
    ids = list(dict.fromkeys(str(study.patient_id) for study in people))
    if tag.startswith("list the ids"):
        return ", ".join(ids) or "none"
    return str(len(ids)) if tag.startswith("count the number of patients") else None


YES = {True: "yes", False: "no"}


def is_for(values: dict[str, Any], clinic: Clinic) -> bool:
    return values.get("drug_name") == clinic.drug[0] or values.get("diagnosis_name") == clinic.title


def lies_in(found: dict[str, str], place: str) -> bool:
    words = place.split()
    side = words[0] if words[0] in ("left", "right") else None
    zone = words[1].replace("mid", "middle") if "zone" in words else None
    return side in (None, found.get("side")) and zone in (None, found.get("zone"))


def test_answers_are_what_the_phantoms_show(folders: dict[str, Path]) -> None:
    samples = {sample["id"]: sample for sample in read(folders["release"], context_tokens=0)}
    told: Counter[str] = Counter()
    for file, split in (("train", "train"), ("valid", "validation"), ("test", "test")):
        held = [study for study in STUDIES if (study.split == "test") == (file == "test")]
        for row in rows(folders["release"], file):
            answer = truth(row, held)
            if answer is not None:
                assert samples[f"ehrxqa-{split}-{row['id']}"]["answers"] == [answer], row["question"]
                told[answer] += 1
    assert told["yes"] > 20
    assert told["no"] > 20
    assert len(told) > 4


def test_the_plain_table_agrees_with_the_release(folders: dict[str, Path]) -> None:
    names = ("split", "patient", "study", "question", "answers", "answer_type", "context")
    release, table = (
        {(s["split"], s["question"]): [s[name] for name in names] for s in read(folders[layout])}
        for layout in ("release", "table")
    )
    assert table == {key: release[key] for key in table}
    assert {key for key, found in release.items() if found[1]} - set(table) == {
        key for key in release
        # The table has no column for a second study, and none for a study's time.
        if "compared to" in key[1] or key[1].startswith("given the last study")
    }  # fmt: skip


def test_the_same_table_as_json_with_the_database_elsewhere(folders: dict[str, Path], tmp_path: Path) -> None:
    with (folders["table"] / QUESTIONS / "train.csv").open() as file:
        (tmp_path / "questions.json").write_text(json.dumps(list(csv.DictReader(file))))
    database = folders["release"] / TRAIN
    options = {"database": str(database), "images": str(folders["release"])}
    samples, refs = drive(opened(tmp_path / "questions.json", **options))
    first = [sample for sample in read(folders["table"]) if sample["split"] == "train"]
    assert [(s["question"], s["context"], s["patient"]) for s in samples] == [
        (s["question"], s["context"], s["patient"]) for s in first
    ]
    assert {sample["split"] for sample in samples} == {""}
    assert all((Path(ref.root) / ref.name).exists() for ref in refs.values())
    assert len({sample["id"] for sample in samples}) == len(samples)


def test_the_record_is_that_of_the_moment_of_the_study(folders: dict[str, Path]) -> None:
    samples = read(folders["release"])
    study = STUDIES[1]
    (about, *_) = [
        s for s in samples if s["study"] == str(study.study_id) and "given the study" in s["question"]
    ]
    (whole, *_) = [s for s in samples if s["patient"] == str(study.patient_id) and not s["study"]]
    day = f"{study.time:%Y-%m-%d}"
    assert f"Earlier chest radiographs: {STUDIES[0].time:%Y-%m-%d %H:%M} PA" in about["context"]
    assert f"urgent since {day}" in about["context"]
    assert f"urgent {day} to {day}" in whole["context"]
    times = re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d", about["context"])
    assert (
        max(times)
        <= f"{study.time:%Y-%m-%d %H:%M}"
        < max(re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d", whole["context"]))
    )


def test_the_record_keeps_to_its_budget_and_can_be_left_out(folders: dict[str, Path]) -> None:
    full, small, none = (read(folders["release"], context_tokens=number) for number in (512, 60, 0))
    assert all(estimate_tokens(sample["context"]) <= 60 for sample in small)
    assert any(len(sample["context"]) > 200 for sample in full)
    assert not any(sample["context"] for sample in none)
    assert all(bool(sample["context"]) == bool(sample["patient"]) for sample in full)


def test_the_record_of_a_chosen_study_ends_with_that_study(folders: dict[str, Path]) -> None:
    chosen = f"given the last study of patient {STUDIES[0].patient_id}"
    samples = [s for s in read(folders["release"]) if s["question"].startswith(chosen)]
    first = next(s for s in samples if "until" in s["question"])
    both = next(s for s in samples if "previous study" in s["question"])
    assert (first["study"], both["study"]) == (str(STUDIES[0].study_id), "")
    assert f"{STUDIES[1].time:%Y-%m-%d}" not in first["context"]
    assert f"since {STUDIES[1].time:%Y-%m-%d}" in both["context"]


NOT_CHOSEN = (
    "image: the question is about all studies that fit, or chooses them in a way that is not understood; "
    "only studies named by number are attached"
)


def test_a_choice_that_is_not_understood_attaches_only_what_is_named_and_says_so(folder: Path) -> None:
    asked_of = {row["question"]: row for row in rows(folder, "train")}
    row = next(row for question, row in asked_of.items() if question.startswith("given the last study"))
    strange = row | {"query": row["query"].replace("limit 1", "limit 2")}
    for value, number in (({"patient_id": 11_000_000}, 0), ({"study_id": 51_000_000}, 1)):
        (sample,) = asked(folder, strange | {"value": value})
        assert len(sample["image_ids"]) == number
        assert NOT_CHOSEN in sample["notes"]
    (sample,) = asked(folder, next(row for row in asked_of.values() if row["question"].startswith("has 1")))
    assert (sample["image_ids"], NOT_CHOSEN in sample["notes"]) == ([], True)


def test_a_question_that_names_more_images_than_the_option_gets_none(folder: Path) -> None:
    row = next(row for row in rows(folder, "train") if "study_id1" in row["value"])
    (two,), (none,) = asked(folder, row), asked(folder, row, max_images=1)
    assert len(two["image_ids"]) == 2
    assert none["image_ids"] == []
    assert none["notes"] == ["image: 2 are named, more than max_images 1; none is used"]


EMPTY = "answer: an empty list, the record holds none; read as 'none'"
ROW: dict[str, Any] = {
    "db_id": "mimic_iv_cxr", "split": "train", "id": 3,
    "question": "has patient 11000000 been prescribed aspirin?",
    "template": "", "query": "select 1", "value": {"patient_id": 11_000_000},
    "q_tag": "has_verb patient {patient_id}", "t_tag": ["", "", "", "", ""], "o_tag": {}, "v_tag": {},
    "tag": "", "para_type": "machine",
    "is_impossible": False, "answer": [1],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected", "note"),
    [
        ({}, {"answers": ["yes"], "answer_type": "closed", "patient": "11000000"}, None),
        ({"answer": [0]}, {"answers": ["no"]}, None),
        ({"answer": [0], "q_tag": "how many"}, {"answers": ["0"], "answer_type": "open"}, None),
        ({"answer": [1.5, "b  c", 3]}, {"answers": ["1.5, b c, 3"]}, "answer: white space tidied"),
        ({"answer": []}, {"answers": ["none"]}, EMPTY),
        ({"answer": [None]}, {"answers": ["none"]}, EMPTY),
        ({"answer": [""]}, {"answers": []}, "answer: '' counts as missing"),
        ({"answer": [{}, "b"]}, {"answers": ["b"]}, "answer: dict {} is no text, counts as missing"),
        ({"answer": "left"}, {"answers": ["left"]}, None),
        ({"answer": None}, {"answers": [], "answer_type": ""}, "answer: null counts as missing"),
        ({"split": "valid"}, {"split": "validation"}, None),
        ({"split": None}, {"split": "train"}, None),
        ({"id": None}, {"id": ""}, None),
        ({"value": {}, "query": "where t.subject_id = 11000001 and"}, {"patient": "11000001"}, None),
        ({"value": {"patient_id": "11000000.0"}}, {"patient": "11000000"}, None),
        ({"value": {"patient_id": 5}}, {"patient": "5", "context": ""},
         "context: the patient is not in the database, or context_tokens is too small"),
        ({"value": {"study_id": 5}}, {"patient": "", "image_ids": []}, "image: TB_CXR has none of the study"),
        ({"value": {"patient_id": 11_000_000, "study_id": 5}}, {"context": "", "image_ids": []},
         "context: left empty, since the time of the study is not known"),
        ({"value": {"patient_id": 11_000_001, "study_id": 51_000_000}}, {"patient": "11000001"},
         "patient: the study is another patient's"),
        ({"value": {"patient_id": "1 OR 1=1"}, "question": "'; DROP TABLE PATIENTS"}, {"patient": ""}, None),
        ({"value": {"patient_id": [11_000_000, 11_000_001]}}, {"patient": "", "context": ""}, None),
    ],
)  # fmt: skip
def test_defects_are_mended_or_left_for_validation(
    folder: Path, changes: dict[str, Any], expected: dict[str, Any], note: str | None
) -> None:
    (sample,) = asked(folder, ROW | changes)
    assert {key: sample[key] for key in expected} == expected
    assert (note in sample["notes"]) if note else not sample["notes"]


def test_a_prerelease_has_no_answers_and_says_why(folder: Path) -> None:
    row = {key: value for key, value in ROW.items() if key != "answer"} | {"_gold_program": "select 1"}
    (folder / QUESTIONS / "_train.json").write_text(json.dumps([row]))
    assert "_train.json" not in {Path(sample["file"]).name for sample in read(folder)}
    (folder / QUESTIONS / "train.json").unlink()
    (sample,) = [s for s in read(folder) if Path(s["file"]).name == "_train.json"]
    assert (sample["split"], sample["answers"]) == ("train", [])
    assert sample["notes"] == [
        "answer: missing in this pre-release file; EHRXQA's generate_answer.py computes it"
    ]


def test_rows_without_a_time_are_counted(folder: Path) -> None:
    with closing(sqlite3.connect(folder / TRAIN)) as connection:
        connection.execute(
            "UPDATE LABEVENTS SET CHARTTIME = NULL WHERE SUBJECT_ID = 11000000 AND ITEMID = 50963"
        )
        connection.commit()
    (sample,) = asked(folder, ROW)
    assert sample["notes"] == ["context: left out are 6 rows whose time cannot be read"]
    assert "ntprobnp" not in sample["context"]


def test_a_study_without_a_time_gives_no_record_but_its_image(folder: Path) -> None:
    with closing(sqlite3.connect(folder / TRAIN)) as connection:
        connection.execute("UPDATE TB_CXR SET STUDYDATETIME = 'soon' WHERE STUDY_ID = 51000000")
        connection.commit()
    (sample,) = asked(folder, ROW | {"value": {"study_id": 51_000_000}})
    assert (sample["context"], len(sample["image_ids"]), sample["patient"]) == ("", 1, "11000000")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: shutil.rmtree(folder / "dataset"), "holds database, files; ehrxqa needs"),
        (lambda folder: (folder / TRAIN).unlink(), r"train\.json: no database goes with it; .*test/mimic"),
        (lambda folder: shutil.rmtree(folder / "database"), "found below .*: none; needed: mimic_iv_cxr.db"),
        (lambda folder: (folder / QUESTIONS / "train.json").write_text("[{}]"), "no row has the keys quest"),
    ],
)  # fmt: skip
def test_unusable_sources_are_one_clear_error(
    folder: Path, change: Callable[[Path], Any], words: str
) -> None:
    change(folder)
    with pytest.raises(DataError, match=words):
        read(folder)


@settings(max_examples=60)
@hypothesis_given(row=rows_like(ROW | {"_gold_program": "x", "study_id": 51_000_000}, json_values()))
def test_whatever_a_row_holds_survives(folders: dict[str, Path], row: Any) -> None:
    survives(given(opened(folders["release"]), str(QUESTIONS / "train.json"), row))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [QUESTIONS / "train.json", QUESTIONS / "train.csv", TRAIN])
def test_a_damaged_file_is_named_or_its_rows_survive(
    folders: dict[str, Path], tmp_path: Path, name: Path, damage: str
) -> None:
    layout = "table" if name.suffix == ".csv" else "release"
    copy = tmp_path / "copy"
    shutil.copytree(folders[layout], copy, ignore=shutil.ignore_patterns("files"))
    damage_and_read(copy / name, damage, lambda: opened(copy))


def test_scopes_of_all_published_templates(real_data: Callable[[str], Path]) -> None:
    text = (real_data("ehrxqa") / "template_idx_to_template_info.json").read_text()
    limits = ((6, "table, none"), (122, "table, single patient"), (183, "table, group"),
              (4000, "image, single patient"), (5000, "image, group"),
              (6000, "image + table, single patient"), (7000, "image + table, group"))  # fmt: skip
    found: Counter[str] = Counter()
    for number, template in json.loads(text).items():
        tag = template["question_template"]
        single = bool(re.search(r"\{(patient|study)_id\d?\}", tag))
        expected = next(name for limit, name in limits if int(number) < limit)
        assert scope(tag, single) == expected, (number, tag)
        found[expected] += 1
    assert sum(found.values()) == 426
    assert len(found) == 7


def test_the_phantoms_tables_and_templates_are_the_published_ones(
    real_data: Callable[[str], Path], folders: dict[str, Path]
) -> None:
    root = real_data("ehrxqa")
    published = sqlite3.connect(":memory:")
    published.executescript((root / "database/mimic_iv_cxr/train/mimic_iv_cxr.sqlite").read_text())
    ours = sqlite3.connect(folders["release"] / TRAIN)
    names = "SELECT name FROM sqlite_master WHERE type = 'table'"
    tables = {name for (name,) in published.execute(names)}
    assert tables == {name for (name,) in ours.execute(names)}
    assert len(tables) == 19
    for table in tables:
        columns = [
            [row[1:4] for row in one.execute(f"PRAGMA table_info({table})")] for one in (published, ours)
        ]
        assert columns[0] == columns[1], table
        assert next(ours.execute(f"SELECT count(*) FROM {table}"))[0] > 0, table  # noqa: S608
    published.close()
    ours.close()
    known = {
        template["question_template"]
        for template in json.loads((root / "template_idx_to_template_info.json").read_text()).values()
    }
    assert {row["q_tag"] for row in rows(folders["release"], "train")} <= known


def test_every_scope_occurs_and_no_question_is_in_two_splits(folders: dict[str, Path]) -> None:
    samples = read(folders["release"], context_tokens=0)
    assert set(Counter(sample["question_type"] for sample in samples)) == {
        "table, none", "table, single patient", "table, group", "image, single patient", "image, group",
        "image + table, single patient", "image + table, group",
    }  # fmt: skip
    splits: dict[str, set[str]] = {}
    for sample in samples:
        splits.setdefault(sample["question"], set()).add(sample["split"])
    assert all(len(found) == 1 for found in splits.values())
