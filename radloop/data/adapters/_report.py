"""The columns that samples share whose answer is a radiology report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from radloop.data.reports import ReportOptions


def report_columns(options: ReportOptions, found: Mapping[str, str]) -> dict[str, Any]:
    """Return task, question, answers and context of a report.

    Args:
        options: What of it is learned.
        found: Its sections, by name.
    """
    answer = options.answer(found)
    return {
        "task": "report",
        "question": options.question,
        "answers": [answer] if answer else [],
        "answer_type": "open",
        "question_type": "report",
        "language": "en",
        "context": options.given(found),
    }
