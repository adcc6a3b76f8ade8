"""Tables of a team's own: the file's name says how it is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from radloop.data.reading.delimited import read_delimited
from radloop.data.reading.files import open_text
from radloop.data.reading.json_rows import read_json, read_json_lines
from radloop.data.reading.workbook import read_workbook

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
SUFFIXES = (".csv", ".tsv", *JSON_SUFFIXES, ".xlsx")
_CHUNK = 1 << 16  # characters


def kind_of(path: Path) -> str:
    """Return the suffix that tells the format, in lower case and without a final .gz."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def read_rows(path: Path) -> Iterator[Any]:
    """Yield the rows of a file with one of `SUFFIXES`; all but .xlsx may be packed as .gz.

    A .json file holds an array or one object a line: many write lines under that name.

    Raises:
        DataError: Not readable, or not what its name says.
    """
    kind = kind_of(path)
    if kind == ".xlsx":
        return read_workbook(path)
    if kind in JSON_SUFFIXES:
        return read_json(path) if _begins_with(path) == "[" else read_json_lines(path)
    return read_delimited(path, delimiter="\t" if kind == ".tsv" else ",")


def _begins_with(path: Path) -> str:
    with open_text(path, errors="replace") as file:
        while chunk := file.read(_CHUNK):
            if text := chunk.lstrip():
                return text[0]
    return ""
