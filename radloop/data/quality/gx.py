"""The seam to Great Expectations: its row-wise expectations, run over frames quickly and quietly."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from radloop.data.quality.suites import Check

_CROSS_ROW = "rows come in batches, and it compares rows with each other"
_FIXED_TYPE = "the columns' types are fixed; look at the values instead"
_SQL_ONLY = "it works on SQL tables only; use ExpectColumnValues{}MatchRegex"
_FLAGS = "use ExpectColumnValuesToBeInSet with value_set: [false] on a flag column"
_REFUSED = {
    "ExpectColumnValuesToBeUnique": f"{_CROSS_ROW}; {_FLAGS}, such as repeated_id, or same_pixels of images",
    "ExpectCompoundColumnsToBeUnique": f"{_CROSS_ROW}; {_FLAGS}, such as repeated or contested",
    "ExpectMulticolumnValuesToBeUnique": "use ExpectSelectColumnValuesToBeUniqueWithinRecord",
    "ExpectColumnValuesToBeIncreasing": _CROSS_ROW,
    "ExpectColumnValuesToBeDecreasing": _CROSS_ROW,
    "ExpectColumnValueZScoresToBeLessThan": f"{_CROSS_ROW}; use ExpectColumnValuesToBeBetween",
    "ExpectColumnValuesToNotBeOutliers": f"{_CROSS_ROW}; use ExpectColumnValuesToBeBetween",
    "ExpectColumnValuesToBeOfType": _FIXED_TYPE,
    "ExpectColumnValuesToBeInTypeList": _FIXED_TYPE,
    "ExpectColumnValuesToMatchLikePattern": _SQL_ONLY.format("To"),
    "ExpectColumnValuesToMatchLikePatternList": _SQL_ONLY.format("To"),
    "ExpectColumnValuesToNotMatchLikePattern": _SQL_ONLY.format("ToNot"),
    "ExpectColumnValuesToNotMatchLikePatternList": _SQL_ONLY.format("ToNot"),
}
# Fields of every expectation that radloop fills in itself, or that would change what it gets back.
_OWN_FIELDS = {
    *("id", "meta", "notes", "description", "severity", "rendered_content", "windows", "batch_id"),
    *("result_format", "catch_exceptions", "row_condition", "condition_parser"),
}
# With one of the index columns named, Great Expectations makes a dict per failing row and column: the
# frame's own index tells the rows a hundred times faster. The query would list all rows once more.
_RESULT_FORMAT = {"result_format": "COMPLETE", "return_unexpected_index_query": False}


@functools.cache
def row_wise() -> Mapping[str, type[Any]]:
    """Return the expectations that judge each row by itself, by their class names."""
    with quiet():
        import great_expectations.expectations as known
        from great_expectations.expectations import expectation as base

    kinds = (base.ColumnMapExpectation, base.ColumnPairMapExpectation, base.MulticolumnMapExpectation)
    classes = inspect.getmembers(known, inspect.isclass)
    return {name: kind for name, kind in classes if issubclass(kind, kinds) and name not in _REFUSED}


def refusal(name: str) -> str | None:
    """Say why an expectation of Great Expectations is not possible here; None for names it has not."""
    import great_expectations.expectations as known

    if name in _REFUSED:
        return _REFUSED[name]
    if not inspect.isclass(getattr(known, name, None)) or not name.startswith("Expect"):
        return None
    return (
        f"it looks at more than one row, and each failure must name its row; known: {', '.join(row_wise())}"
    )


def arguments(kind: type[Any]) -> dict[str, bool]:
    """Return the expectation's own arguments, and whether each is required."""
    fields = kind.__fields__.items()
    return {name: field.required is True for name, field in fields if name not in _OWN_FIELDS}


def build(check: Check, number: int = 0) -> Any:
    """Make the expectation of a check; `number` comes back in its results' meta.

    Raises:
        pydantic.v1.ValidationError: An argument has a value that the expectation refuses.
    """
    with quiet():
        from great_expectations.expectations.row_conditions import Column

        conditions: list[Any] = [
            Column(name).is_in(wanted) if isinstance(wanted, list) else Column(name) == wanted
            for name, wanted in check.where.items()
        ]
        return row_wise()[check.expectation](
            **check.arguments,
            row_condition=functools.reduce(lambda one, two: one & two, conditions) if conditions else None,
            severity="critical" if check.severity == "error" else "warning",
            description=f"{check.severity} if {check.reason}: {check.remedy}",
            meta={"check": number, "reason": check.reason, "remedy": check.remedy},
        )


def run(expectations: Sequence[Any], frame: pd.DataFrame) -> list[Any]:
    """Run expectations made by `build` over a frame, whose index tells the rows.

    Returns:
        One `ExpectationValidationResult` each, in the order of their numbers.
    """
    with quiet():
        import great_expectations as ge

        suite = ge.ExpectationSuite(name="rows", expectations=list(expectations))
        batch = _batch_definition().get_batch(batch_parameters={"dataframe": frame})
        # A ValidationDefinition would keep each batch's result, and with it every failing row.
        results = batch.validate(suite, result_format=_RESULT_FORMAT).results
    return sorted(results, key=lambda item: int(item.expectation_config.meta["check"]))


def try_out(checks: Sequence[Check], columns: Mapping[str, Any]) -> list[str | None]:
    """Run checks over one row with a value of each column's type; say why one cannot run, or None."""
    import pandas as pd
    from great_expectations.compatibility.pydantic import ValidationError

    faults: list[str | None] = [None] * len(checks)
    expectations = []
    for number, check in enumerate(checks):
        try:
            expectations.append(build(check, number))
        except ValidationError as error:
            faults[number] = _refused(check, error)
    for result in run(expectations, pd.DataFrame([columns])) if expectations else ():
        faults[result.expectation_config.meta["check"]] = raised(result)
    return faults


def _refused(check: Check, error: Any) -> str:
    # A union's branches fail one by one, and the first says best what is wanted.
    messages = {str(item["loc"][0]): item["msg"] for item in reversed(error.errors())}
    given = check.arguments
    told = (f"{key}: {text}, got {given[key]!r}" if key in given else text for key, text in messages.items())
    return "; ".join(told)


def merged_result(
    expectation: Any, elements: int, missing: int | None, unexpected: int, values: list[Any], rows: list[int]
) -> Any:
    """Make the `ExpectationValidationResult` of all batches from their summed counts.

    Args:
        expectation: Made by `build`.
        elements: Rows that the expectation looked at.
        missing: Those without a value, which neither pass nor fail; None where null is the question.
        unexpected: Rows that fail.
        values: The first 200 unexpected values.
        rows: The first 20 failing rows.
    """
    from great_expectations.core import ExpectationValidationResult
    from great_expectations.core.result_format import ResultFormat
    from great_expectations.expectations.expectation import _format_map_output

    judged = elements - (missing or 0)
    success = not judged or (judged - unexpected) / judged >= expectation.mostly
    output = _format_map_output(
        result_format={
            "result_format": ResultFormat.SUMMARY,
            "partial_unexpected_count": 20,
            "include_unexpected_rows": False,
        },
        success=success,
        element_count=elements,
        nonnull_count=None if missing is None else judged,
        unexpected_count=unexpected,
        unexpected_list=values,
        unexpected_index_list=rows,
    )
    return ExpectationValidationResult(
        success=success,
        expectation_config=expectation.configuration,
        result=output["result"],
        exception_info={"raised_exception": False, "exception_message": None, "exception_traceback": None},
    )


def merged(name: str, results: list[Any]) -> Any:
    """Make the `ExpectationSuiteValidationResult` of a suite."""
    import great_expectations as ge
    from great_expectations.core import ExpectationSuiteValidationResult

    num_successful = sum(bool(item.success) for item in results)
    return ExpectationSuiteValidationResult(
        success=num_successful == len(results),
        results=results,
        suite_name=name,
        statistics={
            "evaluated_expectations": len(results),
            "successful_expectations": num_successful,
            "unsuccessful_expectations": len(results) - num_successful,
            "success_percent": 100 * num_successful / len(results) if results else None,
        },
        meta={"great_expectations_version": ge.__version__},
    )


def raised(result: Any) -> str | None:
    """Return the message of the exception that kept an expectation from running, or None."""
    info = result.exception_info or {}
    infos = [info] if "raised_exception" in info else list(info.values())
    return next((str(item["exception_message"]) for item in infos if item["raised_exception"]), None)


@functools.cache
def _batch_definition() -> Any:
    """Make one context for all suites of the process: it costs 0.1 s, and a batch belongs to its own."""
    import great_expectations as ge
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = ge.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("corpus").add_dataframe_asset("rows")
    return asset.add_batch_definition_whole_dataframe("batch")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Great Expectations' informational log lines out of the step's log."""
    # The second sets its own level, so that the first one's does not reach it.
    names = ("great_expectations", "great_expectations.data_context.types.base")
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    try:
        for logger in levels:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            # Of Google's client about Python versions; of pandas about a regex's groups.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
