"""A suite over a corpus in batches: failing rows at once, statistics as of one batch at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from radloop.data.quality import gx
from radloop.data.quality.suite_page import suite_page
from radloop.data.quality.suites import SAMPLE_COLUMNS, Suite
from radloop.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_MAX_ROWS = 20  # row numbers a check keeps for the page; as many examples as Great Expectations shows
_MAX_VALUES = 200  # unexpected values that Great Expectations itself looks at, to count the commonest
_VALUE_LENGTH = 300  # characters of an example; a report can have 100,000
_TEXTS = [name for name, value in SAMPLE_COLUMNS.items() if isinstance(value, str) and name != "notes"]


class Failures(NamedTuple):
    """The rows of one batch that fail one check.

    Attributes:
        check: Index in `Suite.checks`.
        rows: Corpus row numbers, int64, in the batch's order; never empty.
        shown: The rows' values of the check's `show` column.
    """

    check: int
    rows: np.ndarray
    shown: list[Any]


@dataclass(frozen=True)
class SuiteResult:
    """What a suite found in all batches together.

    Attributes:
        success: Whether every check holds, with its `mostly` taken over all rows.
        json: Great Expectations' result as JSON; `results` are in the order of `Suite.checks`.
        page: The Data Docs page: one HTML file that opens offline and runs nothing.
    """

    success: bool
    json: dict[str, Any]
    page: str


@dataclass
class _Tally:
    """One check's statistics over the batches so far, in bounded memory."""

    elements: int = 0
    unexpected: int = 0
    missing: int | None = None  # stays None for the checks on null themselves
    values: list[Any] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    shown: list[Any] = field(default_factory=list)

    def add(self, result: dict[str, Any], shown: list[Any]) -> None:
        self.elements += result["element_count"]
        self.unexpected += result["unexpected_count"]
        if "missing_count" in result:
            self.missing = (self.missing or 0) + result["missing_count"]
        self.values += map(_shortened, result["unexpected_list"][: _MAX_VALUES - len(self.values)])
        self.rows += map(int, result["unexpected_index_list"][: _MAX_ROWS - len(self.rows)])
        self.shown += map(_shortened, shown[: _MAX_ROWS - len(self.shown)])


class SuiteRun:
    """Runs a suite over the batches of a corpus, in memory that does not grow with the rows."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self._expectations = [gx.build(check, number) for number, check in enumerate(suite.checks)]
        self._columns = sorted(set().union(*(check.columns for check in suite.checks)))
        self._tallies = [_Tally() for _ in suite.checks]

    def add(self, frame: pd.DataFrame) -> list[Failures]:
        """Check one batch.

        Args:
            frame: Any number of rows, 50,000 at most for a small footprint, with the columns of
                `SAMPLE_COLUMNS` or `IMAGE_COLUMNS`; `row` numbers the corpus' rows, each once.

        Returns:
            The failing rows, one item for each check that has any, in the order of the suite.
            `mostly` does not excuse a row: it excuses the suite.

        Raises:
            DataError: A check cannot run on these rows.
        """
        if frame.empty or not self.suite.checks:
            return []
        frame = frame.set_index(frame["row"].to_numpy())[self._columns]
        if self.suite.name != "images":  # an absent text is an empty one, and must not pass as null
            frame = frame.fillna(dict.fromkeys(set(self._columns) & {*_TEXTS}, ""))
        found = []
        for number, item in enumerate(gx.run(self._expectations, frame)):
            check = self.suite.checks[number]
            if message := gx.raised(item):
                raise DataError(
                    f"the expectation {check.reason!r} of {self.suite.name} cannot run: {message}; "
                    "correct its arguments, or list its reason under without"
                )
            rows = item.result["unexpected_index_list"]
            shown = frame[check.show].loc[rows].tolist()
            self._tallies[number].add(item.result, shown)
            if rows:
                found.append(Failures(number, np.array(rows, np.int64), shown))
        return found

    def result(self) -> SuiteResult:
        """Merge the batches' statistics into what one batch of all rows would have given."""
        results = []
        for expectation, tally in zip(self._expectations, self._tallies, strict=True):
            counts = (tally.elements, tally.missing, tally.unexpected)
            results.append(gx.merged_result(expectation, *counts, tally.values, tally.rows))
        merged = gx.merged(self.suite.name, results)
        examples = [
            tally.shown if check.show not in check.arguments.values() else None
            for check, tally in zip(self.suite.checks, self._tallies, strict=True)
        ]
        page = suite_page(f"Expectations: {self.suite.name}", merged, examples)
        return SuiteResult(bool(merged.success), merged.to_json_dict(), page)


def _shortened(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _VALUE_LENGTH:
        return f"{value[:_VALUE_LENGTH]}..."
    if isinstance(value, tuple):  # of the columns that were compared
        return tuple(_shortened(item) for item in value)
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    return value
