"""A suite over batches gives what one batch would have given, and its page is safe to open."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radloop.data.quality import gx
from radloop.data.quality.suite_run import SuiteRun
from radloop.data.quality.suites import SAMPLE_COLUMNS, Check, Suite
from radloop.errors import DataError


def check(expectation: str, reason: str = "it is wrong", **more: Any) -> Check:
    where, show = more.pop("where", {}), more.pop("show", more.get("column", "id"))
    return Check(reason, "mend it", more.pop("severity", "error"), expectation, more, where, show)


SUITE = Suite(
    "vqa",
    (
        check("ExpectColumnValuesToNotMatchRegex", "a", column="answer", regex=r"^\s*$", mostly=0.7),
        check(
            "ExpectColumnValuesToBeBetween", "b", column="answer_words", max_value=3, where={"split": "test"}
        ),
        check("ExpectColumnValuesToBeNull", "c", column="notes", mostly=0.5, severity="warning"),
        check("ExpectColumnValuesToMatchRegex", "d", column="notes", regex="mended"),
        check("ExpectColumnPairValuesToBeEqual", "e", column_A="question", column_B="answer"),
        check("ExpectColumnValuesToBeInSet", "f", column="contested", value_set=[False], show="question"),
    ),
)
ROW = st.fixed_dictionaries(
    {
        "answer": st.sampled_from(["yes", "", " ", None, "no"]),
        "question": st.sampled_from(["yes", "no", ""]),
        "split": st.sampled_from(["train", "test"]),
        "notes": st.sampled_from([None, "mended", "lost"]),
        "answer_words": st.integers(0, 5),
        "contested": st.booleans(),
    }
)


def frame(rows: list[dict[str, Any]], start: int = 1000) -> pd.DataFrame:
    return pd.DataFrame([{**SAMPLE_COLUMNS, **row, "row": start + number} for number, row in enumerate(rows)])


def in_batches(
    rows: pd.DataFrame, cuts: list[int]
) -> tuple[dict[str, Any], list[tuple[int, list[int], list[Any]]]]:
    run = SuiteRun(SUITE)
    found: dict[int, tuple[list[int], list[Any]]] = {}
    for batch in np.split(np.arange(len(rows)), sorted(cuts)):
        for item in run.add(rows.iloc[batch]):
            numbers, shown = found.setdefault(item.check, ([], []))
            numbers.extend(item.rows.tolist())
            shown.extend(item.shown)
    return run.result().json, [(number, *found[number]) for number in sorted(found)]


@settings(max_examples=6)
@given(st.lists(ROW, min_size=1, max_size=60), st.data())
def test_many_batches_give_what_one_gives(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=3))
    assert in_batches(frame(rows), cuts) == in_batches(frame(rows), [])


@settings(max_examples=5)
@given(st.lists(ROW, min_size=1, max_size=60))
def test_the_merged_result_is_that_of_great_expectations(rows: list[dict[str, Any]]) -> None:
    whole = frame(rows).set_index("row").rename_axis(None).fillna({"answer": ""})
    expected = gx.run([gx.build(item, number) for number, item in enumerate(SUITE.checks)], whole)
    merged, _ = in_batches(frame(rows), [len(rows) // 2])
    assert merged["success"] == all(item.success for item in expected)
    for found, item in zip(merged["results"], expected, strict=True):
        raw = item.to_json_dict()
        del raw["expectation_config"]["kwargs"]["batch_id"]
        assert found["success"] == raw["success"]
        assert found["expectation_config"] == raw["expectation_config"]
        assert found["result"] == {key: raw["result"][key] for key in found["result"]}
        assert raw["result"].keys() - found["result"].keys() == {"unexpected_list", "unexpected_index_list"}


def test_mostly_is_taken_over_all_batches_and_excuses_no_row() -> None:
    run = SuiteRun(Suite("vqa", (check("ExpectColumnValuesToNotBeNull", column="notes", mostly=0.9),)))
    [failures] = run.add(frame([{"notes": None}], start=5))  # all of this batch
    assert failures.rows.tolist() == [5]
    assert not run.result().success
    assert run.add(frame([{}] * 9, start=6)) == []
    assert run.result().success


def test_a_run_keeps_as_much_of_a_million_failures_as_of_a_few() -> None:
    run = SuiteRun(SUITE)
    sizes = []
    for number in range(4):
        run.add(
            frame([{"answer": "x" * 5000 + " ", "contested": True, "notes": "n"}] * 300, start=300 * number)
        )
        sizes.append(len(json.dumps(run.result().json)))
    assert max(sizes) - min(sizes) < 200  # some digits more
    assert sizes[-1] < 100_000


def test_a_suite_that_saw_no_row_holds() -> None:
    run = SuiteRun(SUITE)
    assert run.add(frame([{}]).iloc[:0]) == []
    result = run.result()
    assert result.success
    assert result.json["statistics"]["evaluated_expectations"] == len(SUITE.checks)
    assert "contested" in result.page


def test_regular_expressions_are_pythons_on_arrow_text() -> None:
    # Arrow's own engine, RE2, takes no no-break space for \s.
    suite = Suite("vqa", (check("ExpectColumnValuesToMatchRegex", column="answer", regex=r"^yes\s$"),))
    answers = pd.Series(["yes\u00a0", "no ", "yes"], dtype="str")
    [failures] = SuiteRun(suite).add(frame([{}] * 3).assign(answer=answers))
    assert failures.shown == ["no ", "yes"]


def test_a_check_that_cannot_run_on_the_rows_names_itself() -> None:
    suite = Suite(
        "vqa", (check("ExpectColumnValuesToBeBetween", "too few words", column="answer_words", min_value=1),)
    )
    with pytest.raises(
        DataError, match=r"'too few words' of vqa cannot run: .*list its reason under without"
    ):
        SuiteRun(suite).add(frame([{"answer_words": "many"}]))


def test_the_page_writes_values_and_arguments_as_text_and_asks_no_host() -> None:
    suite = Suite(
        "vqa",
        (
            check("ExpectColumnValuesToNotMatchRegex", "<b>bold", column="answer", regex="<script>alert"),
            check("ExpectColumnValuesToBeInSet", column="contested", value_set=[False], show="question"),
        ),
    )
    run = SuiteRun(suite)
    run.add(
        frame([{"answer": "<script>alert(1)</script>", "contested": True, "question": "<img src=x>$where"}])
    )
    page = run.result().page
    for tag in ("<script", "<img", "<b>", "<link", "<a ", "http:", "https:", "url("):
        assert tag not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;img src=x&gt;$where" in page  # in place of the flag's own True
    assert "error if &lt;b&gt;bold: mend it" in page
    assert "Content-Security-Policy" in page.split("<style>")[0]
    assert page.count("<title>") == page.count("<style>") == 1


def test_equal_runs_give_equal_pages() -> None:
    pages = set()
    for _ in range(2):
        run = SuiteRun(SUITE)
        run.add(frame([{"answer": ""}]))
        pages.add(run.result().page)
    assert len(pages) == 1
