"""Single fields: to text, with a note on whatever had to be mended."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from radloop.errors import DataError

_MISSING = {"", "null", "nan"}
_CLOSED = {"yes", "no"}
SURPLUS = None  # key of what a table's header has no name for: surplus fields, or a text on what is wrong


def as_object(row: Any, notes: list[str]) -> dict[str, Any]:
    """Return the row as a dictionary of its named fields; {} with a note where it is none."""
    if not isinstance(row, dict):
        notes.append(f"row: is {type(row).__name__}, not an object")
        return {}
    surplus = row.get(SURPLUS)
    if isinstance(surplus, str):
        notes.append(f"row: {surplus}")
    elif surplus:
        notes.append(f"row: has {len(surplus)} fields more than the header, {clip(surplus)}")
    return row


def refuse_repeated(path: Path, names: Iterable[str]) -> None:
    """Raise DataError if two columns have one name: only one of them could be read."""
    repeated = [name for name, times in Counter(names).items() if name and times > 1]
    if repeated:
        raise DataError(f"{path}: its header has {some(repeated)} more than once; rename or remove a column")


def clean_text(value: Any, column: str, notes: list[str]) -> str:
    """Return the text of a field, "" for a missing one; what had to be mended goes to `notes`.

    Numbers become text; white space is tidied; "NULL" and NaN count as missing; booleans, lists and
    objects are no text and count as missing.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        notes.append(f"{column}: {'null' if value is None else value} counts as missing")
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        notes.append(f"{column}: {type(value).__name__} {clip(value)} is no text, counts as missing")
        return ""
    if not isinstance(value, str):
        notes.append(f"{column}: {type(value).__name__} {clip(value)} kept as text")
        return _number_text(value)
    if value.isprintable() and value.strip() == value and "  " not in value and value.lower() not in _MISSING:
        return value
    whole = value.encode("utf-8", "replace").decode()
    if whole != value:
        notes.append(f"{column}: half of a surrogate pair replaced by '?'")
    one_line = re.sub(r" *\r?\n *", " ", whole)  # reports have lines: that is nothing to mend
    text = re.sub(r"[\s\x00-\x1f\x7f]+", " ", one_line).strip()
    if text.lower() in _MISSING:
        notes.append(f"{column}: {clip(value)} counts as missing")
        return ""
    if text != one_line:
        notes.append(f"{column}: white space tidied")
    return text


def file_name(value: Any, column: str, notes: list[str]) -> str:
    """Return a file name as it is, white space and all; "" with a note where it is none."""
    if isinstance(value, str) and value.strip() and value.strip().lower() not in _MISSING:
        return value.encode("utf-8", "replace").decode()
    return clean_text(value, column, notes)


def parse_answers(value: Any, notes: list[str]) -> list[str]:
    """Return the answers of a field that holds one text, or a list of them; the first is the reference."""
    values = value if isinstance(value, list) else [value]
    texts = [clean_text(one, "answer", notes) for one in values]
    return [text for text in texts if text]


def answer_type_of(answer: str) -> str:
    """Infer "closed" for yes and no, "open" for all else, as VQA data sets without the field need."""
    return "closed" if answer.strip(" .").lower() in _CLOSED else "open"


def answer_type(value: Any, answer: str, notes: list[str]) -> str:
    """Return the field's "open" or "closed", inferred from the answer with a note where it is missing."""
    mended: list[str] = []
    if text := clean_text(value, "answer_type", mended).lower():
        notes += mended
        return text
    notes.append("answer_type: missing, inferred from the answer")
    return answer_type_of(answer)


def clip(value: Any, length: int = 80) -> str:
    """Return `repr(value)`, cut for messages."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes out
        text = f"{type(value).__name__} of thousands of digits"
    return text if len(text) <= length else text[: length - 3] + "..."


def some(names: Collection[Any], most: int = 20) -> str:
    """Return the first names, for messages."""
    listed = ", ".join(list(map(str, names))[:most])
    return listed + (f" and {len(names) - most} more" if len(names) > most else "")


def _number_text(value: float) -> str:
    try:
        return str(value)
    except ValueError:  # as in `clip`
        return ""
