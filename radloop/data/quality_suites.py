"""The Great Expectations suites over samples and images, and their pages for the dashboard.

Each check is one line in `SAMPLE_CHECKS` or `IMAGE_CHECKS`. The columns they look at are made in
`radloop.data.quality_frames`.
"""

from __future__ import annotations

import contextlib
import copy
import html
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from radloop.data.imaging import DEEP_MODES, MODES

Severity = Literal["error", "warning"]
MIN_SIDE = 16  # pixels; below it there is no radiograph, but an icon or a spacer
MAX_QUESTION = 2000  # characters; more is a report in the wrong column
_BULKY = ("unexpected_list", "unexpected_index_list", "unexpected_index_query")


@dataclass(frozen=True)
class Check:
    """One expectation, in the report's words.

    Attributes:
        reason: What is wrong with a row that fails, such as "question is empty".
        remedy: What to do about it.
        column: The column whose value the report shows.
        expectation: Class name in `great_expectations.expectations`.
        arguments: The expectation's own arguments.
        severity: "error" quarantines the row, "warning" only reports it.
    """

    reason: str
    remedy: str
    column: str
    expectation: str
    arguments: dict[str, Any] = field(default_factory=dict)
    severity: Severity = "error"


@dataclass(frozen=True)
class SuiteResult:
    """What a suite found: failing frame rows per check, the raw results as JSON, and the page."""

    failures: list[list[int]]
    json: dict[str, Any]
    page: str


def _flag(reason: str, remedy: str, shown: str, flag: str, severity: Severity = "error") -> Check:
    arguments = {"column": flag, "value_set": [False]}
    return Check(reason, remedy, shown, "ExpectColumnValuesToBeInSet", arguments, severity)


def _filled(column: str) -> Check:
    return Check(
        f"{column} is empty",
        "fill it in, or leave the row out",
        column,
        "ExpectColumnValuesToNotMatchRegex",
        {"column": column, "regex": r"^\s*$"},
    )


def _text(column: str) -> Check:
    return Check(
        f"{column} is no text",
        "store it as text",
        column,
        "ExpectColumnValuesToBeOfType",
        {"column": column, "type_": "str"},
    )


def _vocabulary(column: str, values: tuple[str, ...], remedy: str) -> Check:
    arguments = {"column": column, "value_set": list(values)}
    return Check(f"{column} is not known", remedy, column, "ExpectColumnValuesToBeInSet", arguments)


SAMPLE_CHECKS = (
    _filled("id"),
    _filled("group"),
    Check(
        "id occurs more than once",
        "number the rows anew",
        "id",
        "ExpectColumnValuesToBeUnique",
        {"column": "id"},
    ),
    _text("question"),
    _filled("question"),
    Check(
        f"question has more than {MAX_QUESTION:,} characters",
        "is a report in the wrong column?",
        "question",
        "ExpectColumnValueLengthsToBeBetween",
        {"column": "question", "max_value": MAX_QUESTION},
    ),
    _text("answer"),
    _filled("answer"),
    _vocabulary("answer_type", ("open", "closed"), "use open or closed"),
    _vocabulary("task", ("vqa", "report", "caption", "ehr"), "use vqa, report, caption or ehr"),
    _vocabulary("split", ("train", "validation", "test", ""), "use train, validation, test or nothing"),
    _flag("sample names no image", "add the image's name", "image", "without_image"),
    _flag("image is not in the corpus", "an adapter's defect: please report it", "image", "unknown_image"),
    _flag(
        "test sample lies on an image of another split",
        "use preprocess.split: by_group for an honest score",
        "image",
        "leaks",
        "warning",
    ),
    _flag(
        "same image, question and answer occur again", "harmless in train", "question", "repeated", "warning"
    ),
    _flag("same image and question, another answer", "ask who is right", "question", "contested", "warning"),
    _flag(
        "text holds a damaged character (U+FFFD)",
        "copy the text from its origin",
        "question",
        "damaged",
        "warning",
    ),
    Check(
        "value was mended while reading",
        "look over the notes",
        "notes",
        "ExpectColumnValuesToBeNull",
        {"column": "notes"},
        "warning",
    ),
)
IMAGE_CHECKS = (
    _flag("image file is missing", "copy the file into the image folder", "image", "missing"),
    Check(
        "image cannot be read",
        "copy the file again from its source",
        "error",
        "ExpectColumnValuesToBeNull",
        {"column": "error"},
    ),
    Check(
        f"image is smaller than {MIN_SIDE} pixels",
        "use the original, not a preview",
        "size",
        "ExpectColumnValuesToBeBetween",
        {"column": "shortest_side", "min_value": MIN_SIDE},
    ),
    Check(
        "image has an unknown pixel mode",
        "save it as 8 or 16 bit grey or as RGB",
        "mode",
        "ExpectColumnValuesToBeInSet",
        {"column": "mode", "value_set": [*MODES, *DEEP_MODES]},
    ),
    _flag("image is blank", "was it exported completely?", "size", "blank"),
    Check(
        "same picture under several files",
        "its questions are kept in one group",
        "image",
        "ExpectColumnValuesToBeUnique",
        {"column": "pixel_hash"},
        "warning",
    ),
    Check(
        "file holds several frames",
        "only the first is used: export the others one by one if they matter",
        "frames",
        "ExpectColumnValuesToBeBetween",
        {"column": "frames", "max_value": 1},
        "warning",
    ),
)


def run_suite(name: str, frame: pd.DataFrame, checks: tuple[Check, ...]) -> SuiteResult:
    """Run the checks over a frame with a column `row` that numbers its rows from 0.

    Returns:
        Failing rows in the order of `checks`; JSON and page are cut to a few examples per check.
    """
    with _quiet():
        import great_expectations as gx  # three seconds of import
        from great_expectations.data_context.types.base import ProgressBarsConfig

        context = gx.get_context(mode="ephemeral")
        context.enable_analytics(False)
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        suite = gx.ExpectationSuite(name=name)
        for check in checks:
            kind = getattr(gx.expectations, check.expectation)
            suite.add_expectation(kind(**check.arguments, description=f"{check.severity} if {check.reason}"))
        source = context.data_sources.add_pandas("corpus").add_dataframe_asset(name)
        batch = source.add_batch_definition_whole_dataframe("all")
        validation = gx.ValidationDefinition(name=name, data=batch, suite=context.suites.add(suite))
        context.validation_definitions.add(validation)
        result = validation.run(
            batch_parameters={"dataframe": frame},
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["row"]},
        )
        by_id = {item.expectation_config.id: item for item in result.results if item.expectation_config}
        failures = [
            _failing_rows(by_id[rule.id], check, len(frame))
            for rule, check in zip(suite.expectations, checks, strict=True)
        ]
        for item in result.results:
            item.result = {key: value for key, value in item.result.items() if key not in _BULKY}
        raw: dict[str, Any] = result.to_json_dict()  # type: ignore[no-untyped-call]
        return SuiteResult(failures, raw, _page(name, result))


def _failing_rows(item: Any, check: Check, num_rows: int) -> list[int]:
    if item.exception_info.get("raised_exception"):
        raise RuntimeError(f"check {check.reason!r} could not run: {item.exception_info}")
    if item.success:
        return []
    rows = item.result.get("unexpected_index_list")
    if rows is None:  # an expectation over the column as a whole
        return list(range(num_rows))
    return sorted(int(row["row"]) for row in rows)


_PAGE_STYLE = """
:root { color-scheme: light; }
body { font: 14px/1.5 system-ui, "DejaVu Sans", sans-serif; margin: 1.5rem; color: #1c2733; }
table { border-collapse: collapse; margin: .4rem 0; } th, td { text-align: left; vertical-align: top;
padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #d9e0e7; overflow-wrap: anywhere; }
ul { list-style: none; padding-left: 1rem; }
.alert { font-weight: 600; } .row { margin-bottom: .6rem; } h5 { font-size: 1rem; margin: .8rem 0 .2rem; }
.sticky, .lead { display: none; } a { color: inherit; text-decoration: none; pointer-events: none; }
i.fa-check-circle::before { content: "\\2713"; color: #1a7f4b; font-style: normal; font-weight: 700; }
i.fa-times::before { content: "\\2717"; color: #b3261e; font-style: normal; font-weight: 700; }
i.fa-exclamation-triangle::before { content: "!"; color: #8a5a00; font-style: normal; font-weight: 700; }
"""
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
)


def _page(name: str, result: Any) -> str:
    """Render the Data Docs page of a result so that it opens offline and runs nothing.

    Great Expectations 1.24 links its style and scripts from other hosts and writes values from the
    data into the page as they are, `<script>` included.
    """
    from great_expectations.render.renderer import ValidationResultsPageRenderer  # type: ignore[attr-defined]
    from great_expectations.render.view import DefaultJinjaPageView  # type: ignore[attr-defined]

    result = copy.deepcopy(result)
    for item in result.results:
        item.result = _escaped(item.result)
    document = ValidationResultsPageRenderer(run_info_at_end=True).render(result)
    page: str = DefaultJinjaPageView().render(document)  # type: ignore[no-untyped-call]
    page = re.sub(
        r"<script\b.*?</script\s*>|<link\b[^>]*>|<(nav|footer)\b.*?</\1\s*>", "", page, flags=re.S | re.I
    )
    page = re.sub(r"<img\b[^>]*\bsrc=[\"']http[^>]*>", "", page, flags=re.I)
    return page.replace("<head>", f"<head>{_POLICY}<style>{_PAGE_STYLE}</style>", 1)


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Great Expectations' informational log lines out of the step's log."""
    # The second sets its own level, so that the first one's does not reach it.
    names = ("great_expectations", "great_expectations.data_context.types.base")
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    try:
        for logger in levels:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of Google's client, about Python versions
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
