"""Times of the tables, and the one at which EHRXQA asks."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

CURRENT_TIME = datetime(2105, 12, 31, 23, 59)
"""When all questions of EHRXQA are asked."""

_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def read_time(value: Any) -> datetime | None:
    """Return the time of a field "YYYY-MM-DD HH:MM:SS", None for anything else.

    A date alone means the end of that day: only then is it certain that it has happened.
    """
    if not isinstance(value, str) or not _DATE.match(value):
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return None
    if time.tzinfo is not None:
        return None
    return end_of_day(time) if len(value) == len("YYYY-MM-DD") else time


def end_of_day(time: datetime) -> datetime:
    """Return the last moment of the day."""
    return time.replace(hour=23, minute=59, second=59, microsecond=999_999)


def earlier(time: datetime, number: int, unit: str) -> datetime:
    """Return the time so many years, months or days before.

    As SQLite counts: a month before 31 December is 31 November, which is 1 December.
    """
    if unit == "day":
        return time - timedelta(days=number)
    months = time.year * 12 + time.month - 1 - number * (12 if unit == "year" else 1)
    first = time.replace(year=months // 12, month=months % 12 + 1, day=1)
    return first + timedelta(days=time.day - 1)
