"""The shipped suites, and their extension by a user's YAML."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from radloop.data import imaging
from radloop.data.quality.suite_run import SuiteRun
from radloop.data.quality.suites import IMAGE_COLUMNS, SAMPLE_COLUMNS, SUITES, TASKS, Suite, load_suites
from radloop.errors import ConfigError

GOOD_SAMPLE = dict(SAMPLE_COLUMNS) | {
    "id": "s1",
    "split": "train",
    "question": "Is there a pneumothorax?",
    "answer": "There is no pneumothorax.",
    "answer_type": "open",
    "language": "en",
    "notes": None,
    "answer_words": 4,
}
GOOD_IMAGE = dict(IMAGE_COLUMNS) | {"error": None, "mode": "L", "size": "512 x 640", "shortest_side": 512}
UNREAD_IMAGE = {
    "size": None,
    "shortest_side": None,
    "mode": None,
    "format": None,
    "frames": None,
    "blank": None,
}


@pytest.fixture(scope="module")
def shipped() -> dict[Any, Suite]:
    return load_suites()


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(text: str, name: str = "ours.yaml") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return written


def found(suite: Suite, *rows: dict[str, Any]) -> dict[int, list[tuple[str, str]]]:
    """Run the suite over rows; return the severity and reason of each failed check by the row's number."""
    told: dict[int, list[tuple[str, str]]] = {}
    for failures in SuiteRun(suite).add(pd.DataFrame(rows).assign(row=range(len(rows)))):
        check = suite.checks[failures.check]
        for row in failures.rows.tolist():
            told.setdefault(row, []).append((check.severity, check.reason))
    return told


def faults(*paths: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_suites(paths)
    return str(caught.value).splitlines()[1:]


ENTRY = """
    task: vqa
    expectations:
      - expect: ExpectColumnValuesToNotMatchRegex
        column: answer
        regex: (?i)see report
        reason: answer points to the report
        remedy: copy the sentence
        severity: error
"""


def test_every_task_has_the_common_checks_and_some_of_its_own(shipped: dict[Any, Suite]) -> None:
    assert tuple(shipped) == SUITES
    for task in TASKS:
        assert shipped[task].checks[: len(shipped["common"].checks)] == shipped["common"].checks
        assert len(shipped[task].checks) > len(shipped["common"].checks)


def test_the_pixel_modes_are_those_that_imaging_reads(shipped: dict[Any, Suite]) -> None:
    [check] = [check for check in shipped["images"].checks if "mode" in check.columns]
    assert set(check.arguments["value_set"]) == {*imaging.MODES, *imaging.DEEP_MODES}


def test_a_missing_image_is_blamed_for_nothing_else(shipped: dict[Any, Suite]) -> None:
    missing = GOOD_IMAGE | UNREAD_IMAGE | {"missing": True}
    assert found(shipped["images"], GOOD_IMAGE, missing) == {1: [("error", "image file is missing")]}
    assert found(shipped["images"], missing) == {0: [("error", "image file is missing")]}


SAMPLE_DEFECTS: list[tuple[str, dict[str, Any], str, str]] = [
    ("vqa", {"id": " "}, "error", "id is empty"),
    ("vqa", {"repeated_id": True}, "error", "id occurs more than once"),
    ("common", {"task": "vqua"}, "error", "task is not known"),
    ("vqa", {"split": "dev"}, "error", "split is not known"),
    ("vqa", {"without_image": True}, "error", "sample names no image"),
    ("vqa", {"unknown_image": True}, "error", "image is not in the corpus"),
    ("vqa", {"damaged_text": True}, "warning", "text holds a damaged character (U+FFFD)"),
    ("vqa", {"leaks_patient": True}, "warning", "patient is in another split, too"),
    ("report", {"leaks_text": True}, "warning", "the same text is in another split, word for word"),
    ("vqa", {"notes": "answer: int 5 kept as '5'"}, "warning", "value was mended while reading"),
    ("vqa", {"question": "\u00a0\n"}, "error", "question is empty"),
    ("vqa", {"question": None}, "error", "question is empty"),
    ("vqa", {"question": " ?_ "}, "error", "question holds no letter or digit"),
    ("vqa", {"question": "x" * 2001}, "error", "question has more than 2,000 characters"),
    ("vqa", {"answer": ""}, "error", "answer is empty"),
    ("vqa", {"answer": "x" * 1001}, "error", "answer has more than 1,000 characters"),
    ("vqa", {"answer": "NaN"}, "warning", "answer is a spreadsheet's word for nothing"),
    ("vqa", {"answer_type": "CLOSED "}, "error", "answer_type is not known"),
    (
        "vqa",
        {"answer_type": "closed", "answer_words": 11},
        "warning",
        "closed answer has more than 10 words",
    ),
    ("vqa", {"answer": "Yes."}, "warning", "open answer is only yes or no"),
    ("report", {"answer": ""}, "error", "report is empty"),
    ("report", {"answer": "XXXX, ___.\nXXXX"}, "error", "report holds only placeholders"),
    ("report", {"answer": "word " * 2001}, "warning", "report has more than 10,000 characters"),
    ("report", {"answer_words": 2}, "warning", "report has fewer than 3 words"),
    (
        "report",
        {"answer": "No effusion 未见异常."},
        "warning",
        "English report holds characters of another script",
    ),
    ("report", {"answer": "is normal.&gt;] Lung volumes"}, "warning", "report holds HTML"),
    ("caption", {"answer": " "}, "error", "caption is empty"),
    ("caption", {"answer": "12."}, "error", "caption holds no letter"),
    (
        "caption",
        {"answer": r"at \documentclass[12pt]{minimal} rate"},
        "warning",
        "caption holds LaTeX source",
    ),
    ("ehr", {"patient": ""}, "warning", "question names no patient"),
    ("ehr", {"answer": None}, "error", "answer is empty"),
    ("ehr", {"context": "x" * 20_001}, "warning", "record has more than 20,000 characters"),
]
IMAGE_DEFECTS: list[tuple[dict[str, Any], str, str]] = [
    ({"error": "cannot identify image file", **UNREAD_IMAGE}, "error", "image cannot be read"),
    ({"mode": "XYZ"}, "error", "image has an unknown pixel mode"),
    ({"blank": True}, "error", "image is blank"),
    ({"shortest_side": 100}, "warning", "image is smaller than 128 pixels"),
    ({"frames": 5}, "warning", "file holds several frames"),
    ({"burnt_in_text": True}, "warning", "picture seems to hold burnt-in text"),
]


@pytest.mark.parametrize("task", ["common", *TASKS])
def test_each_defect_of_a_sample_is_found_alone(shipped: dict[Any, Suite], task: str) -> None:
    defects = [item for item in SAMPLE_DEFECTS if item[0] == task]
    good = GOOD_SAMPLE | {"task": task if task in TASKS else "vqa"}
    rows = [good | changed for _, changed, _, _ in defects]
    assert found(shipped[task], good, *rows) == {
        number: [(severity, reason)] for number, (_, _, severity, reason) in enumerate(defects, start=1)
    }


def test_each_defect_of_an_image_is_found_alone(shipped: dict[Any, Suite]) -> None:
    rows = [GOOD_IMAGE | changed for changed, _, _ in IMAGE_DEFECTS]
    assert found(shipped["images"], GOOD_IMAGE, *rows) == {
        number: [(severity, reason)] for number, (_, severity, reason) in enumerate(IMAGE_DEFECTS, start=1)
    }


def test_what_open_i_and_vqa_rad_hold_is_no_defect(shipped: dict[Any, Suite]) -> None:
    report = "The XXXX examination consists of frontal and lateral radiographs. Heart < 15 cm, µ and α."
    chinese = GOOD_SAMPLE | {"task": "report", "language": "zh", "answer": "未见异常", "answer_words": 3}
    assert found(shipped["report"], GOOD_SAMPLE | {"task": "report", "answer": report}, chinese) == {}
    plus = GOOD_SAMPLE | {"answer": "5", "question": "肺?", "task": "vqa"}
    assert found(shipped["vqa"], plus) == {}


def test_a_file_adds_to_its_task_only(shipped: dict[Any, Suite], write: Any) -> None:
    suites = load_suites([write(ENTRY)])
    row = GOOD_SAMPLE | {"task": "vqa", "answer": "See report."}
    assert found(suites["vqa"], row) == {0: [("error", "answer points to the report")]}
    assert suites["ehr"] == shipped["ehr"]


def test_a_file_on_common_adds_to_every_task_and_without_takes_away(write: Any) -> None:
    path = write(ENTRY.replace("task: vqa", "task: common\n    without: [value was mended while reading]"))
    suites = load_suites([path])
    for name in ("common", *TASKS):
        reasons = [check.reason for check in suites[name].checks]
        assert "answer points to the report" in reasons
        assert "value was mended while reading" not in reasons


def test_a_file_can_switch_a_common_check_off_for_one_task(write: Any) -> None:
    suites = load_suites([write("task: report\nwithout: [sample names no image]\n")])
    assert "sample names no image" not in {check.reason for check in suites["report"].checks}
    assert "sample names no image" in {check.reason for check in suites["vqa"].checks}


def test_a_shipped_check_is_replaced_under_its_own_reason(write: Any) -> None:
    text = ENTRY.replace("answer points to the report", "answer is empty")
    path = write(text.replace("task: vqa", "task: vqa\n    without: [answer is empty]"))
    [check] = [check for check in load_suites([path])["vqa"].checks if check.reason == "answer is empty"]
    assert check.arguments["regex"] == "(?i)see report"


def test_where_limits_the_rows_and_show_names_the_column(write: Any) -> None:
    entry = ENTRY + "        where: {split: [test, validation], language: en}\n        show: id\n"
    suite = load_suites([write(entry)])["vqa"]
    rows = [
        GOOD_SAMPLE
        | {"task": "vqa", "row": number, "answer": "see report", "split": split, "id": f"s{number}"}
        for number, split in enumerate(["train", "test", "train", "validation"], start=10)
    ]
    [failures] = SuiteRun(suite).add(pd.DataFrame(rows))
    assert failures.rows.tolist() == [11, 13]
    assert failures.shown == ["s11", "s13"]


def test_all_faults_of_all_files_are_told_at_once(write: Any, tmp_path: Path) -> None:
    ours = write("""
        task: vqa
        without: [question is emty]
        expectations:
          - {expect: ExpectColumnValuesToNotMatchRegx, column: answer, reason: a, remedy: b, severity: error}
          - {expect: ExpectColumnValuesToNotBeNull, column: anser, reason: c, remedy: d, severity: errors}
          - {expect: ExpectColumnValuesToNotBeNull, column: answer, mostli: 0.5, severity: error}
          - just words
          - {expect: ExpectColumnValuesToNotMatchRegex, column: answer, reason: e, remedy: f, severity: error}
          - {expect: ExpectColumnValuesToBeNull, column: id, reason: id is empty, remedy: f, severity: error}
          - {expect: ExpectColumnValuesToMatchRegex, column: id, regex: (,
             reason: g, remedy: h, severity: error}
          - {expect: ExpectColumnValuesToBeNull, column: id, mostly: 2, reason: i, remedy: j, severity: error}
          - {expect: ExpectColumnValuesToBeBetween, column: id, min_value: 2,
             reason: k, remedy: l, severity: error}
          - {expect: ExpectColumnValuesToBeNull, column: id, where: {split: null},
             reason: m, remedy: n, severity: error}
    """)
    theirs = write("task: vqua\nexpectation: []\n", "theirs.yaml")
    told = faults(ours, theirs, tmp_path / "gone.yaml")
    wanted = [
        ("ours.yaml: unknown expectation in without 'question is emty'", "did you mean 'question is empty'?"),
        ("ours.yaml: entry 1: unknown expectation", "did you mean 'ExpectColumnValuesToNotMatchRegex'?"),
        ("ours.yaml: entry 2: unknown severity 'errors'; known: error, warning", "did you mean 'error'?"),
        ("ours.yaml: entry 2: unknown column 'anser'; known: row, id,", "did you mean 'answer'?"),
        ("ours.yaml: entry 3: reason is missing", ""),
        ("ours.yaml: entry 3: remedy is missing", ""),
        ("ours.yaml: entry 3: unknown argument of ExpectColumnValuesToNotBeNull", "did you mean 'mostly'?"),
        ("ours.yaml: entry 4: is 'just words'; a mapping with expect", ""),
        ("ours.yaml: entry 5: argument regex of ExpectColumnValuesToNotMatchRegex is missing", ""),
        ("ours.yaml: entry 6: reason 'id is empty' is taken", ""),
        ("ours.yaml: entry 7: ", "missing )"),
        ("ours.yaml: entry 8: mostly: ensure this value is less than or equal to 1", "got 2"),
        ("ours.yaml: entry 9: ", "must either be None or of the same type"),
        ("ours.yaml: entry 10: where.split: needs a text, a number", "got None"),
        ("theirs.yaml: unknown task 'vqua'; known: common, vqa", "did you mean 'vqa'?"),
        ("theirs.yaml: unknown key 'expectation'", "did you mean 'expectations'?"),
        ("gone.yaml: cannot be read as YAML: ", "No such file"),
    ]
    for beginning, part in wanted:
        assert any(beginning in line and part in line for line in told), (beginning, part, "\n".join(told))
    assert len(told) == len(wanted)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ExpectColumnValuesToBeUnique", "repeated_id"),
        ("ExpectCompoundColumnsToBeUnique", "contested"),
        ("ExpectColumnValuesToBeOfType", "types are fixed"),
        ("ExpectColumnValuesToMatchLikePattern", "ExpectColumnValuesToMatchRegex"),
        ("ExpectColumnMeanToBeBetween", "looks at more than one row"),
        ("ExpectTableRowCountToBeBetween", "looks at more than one row"),
    ],
)
def test_an_expectation_across_rows_is_refused_with_a_hint(write: Any, name: str, hint: str) -> None:
    [told] = faults(
        write(f"""
        task: vqa
        expectations:
          - {{expect: {name}, column: id, reason: a, remedy: b, severity: error}}
    """)
    )
    assert f"entry 1: {name} is not possible here: " in told
    assert hint in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("task: [vqa", "cannot be read as YAML"),
        ("- task", "holds ['task']; a mapping with task and expectations is needed"),
        ("", "holds None; a mapping"),
        ("task: vqa\nexpectations: many\n", "expectations: input should be a valid list; got 'many'"),
        ("task: !!python/object/apply:os.getcwd []\n", "cannot be read as YAML"),
    ],
)
def test_a_file_of_another_form_is_refused(write: Any, text: str, told: str) -> None:
    [fault] = faults(write(text))
    assert told in fault
