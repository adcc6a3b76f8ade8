"""Comma and tab separated tables, row by row."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from radloop.data.reading.files import lines_of, open_text
from radloop.data.reading.text import SURPLUS, refuse_repeated, some
from radloop.errors import DataError

_LARGEST = 16 << 20  # characters of a line, and of a field: a quote that is never closed makes a long one
_MOST_LINES = 1000  # of a row: no report in quotes has more
_MOST_BREAKS = 3  # between the lines of a column's name
_FAULT = "a quote is out of place"


def read_delimited(
    path: Path,
    needed: Collection[str] = (),
    *,
    delimiter: str = ",",
    header: Sequence[str] | None = None,
    quoted: bool = True,
) -> Iterator[dict[str | None, Any]]:
    """Yield the rows as dictionaries of text; fields beyond the header are a list under `SURPLUS`.

    Damaged characters become U+FFFD, which validation reports. Fields that a short row lacks are
    absent from its dictionary. A quote out of place, as one that is never closed, damages its own row
    only, which has a text on it under `SURPLUS`.

    Args:
        path: UTF-8 with or without a byte order mark, any line ends; may end in .gz.
        needed: Columns that the header must have.
        delimiter: One character.
        header: Column names, where the file has no line of them.
        quoted: Whether double quotes enclose fields, also over several lines.

    Raises:
        DataError: Not readable, no header, without the needed columns, or with one of them twice; a line
            of more than 16 Mi characters; a file that ends within quotes.
    """
    csv.field_size_limit(_LARGEST)
    with open_text(path, errors="replace") as file:
        table = _Table(path, lines_of(path, file, _LARGEST), delimiter, quoted)
        rows = table.rows()
        names = list(header) if header else _header(path, rows, needed)
        table.width = len(names)
        for fields, fault in rows:
            if not fields:  # an empty line
                continue
            row: dict[str | None, Any] = dict(zip(names, fields, strict=False))
            if wrong := fields[len(names) :] or fault:
                row[SURPLUS] = wrong
            yield row


def _header(path: Path, rows: Iterator[tuple[list[str], str]], needed: Collection[str]) -> list[str]:
    fields, fault = next(rows, ([], ""))
    names = [name.strip() for name in fields]
    if fault or any(name.count("\n") > _MOST_BREAKS for name in names):
        raise DataError(f"{path}: {_FAULT} in its header; mend the first line")
    refuse_repeated(path, names)
    if missing := [name for name in needed if name not in names]:
        raise DataError(
            f"{path}: its header lacks {some(missing)}; found: {some(names) or 'nothing'}; "
            f"needed: {some(needed)}. Is this another file, or another delimiter?"
        )
    return names


class _Table:
    """Cuts lines into rows of fields.

    A stray quote makes one field of all lines up to the next one, or to the end. Such a row is told from
    a report of several lines by what follows its quotes, or by lines in it that are rows of their own;
    then its first line alone counts as the row, and the lines after it are read again.
    """

    def __init__(self, path: Path, lines: Iterator[str], delimiter: str, quoted: bool) -> None:
        self.width = 0  # of the header, once that is known
        self._path, self._lines = path, lines
        self._delimiter = delimiter
        self._quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        self._again: deque[str] = deque()  # lines that are to be read once more
        self._held: list[str] = []  # lines of the row that is being read
        self._passed = 0  # lines before these
        self._ended = False

    def rows(self) -> Iterator[tuple[list[str], str]]:
        """Yield the fields of each row, and what is wrong with its quotes.

        Raises:
            DataError: The file ends within quotes, and what they hold does not read as rows.
        """
        reader = self._reader(self._next_lines())
        while True:
            self._passed += len(self._held)
            self._held.clear()
            try:
                fields = next(reader)
                stray = len(self._held) > 1 and self._swallows()
            except StopIteration:
                return
            except csv.Error:  # something follows a closing quote, or the file ends before one
                stray = True
            if stray:
                fields = self._first_alone()
                reader = self._reader(self._next_lines())
            yield fields, _FAULT if stray else ""

    def _reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=self._delimiter, quoting=self._quoting, strict=True)

    def _next_lines(self) -> Iterator[str]:
        while line := self._again.popleft() if self._again else next(self._lines, ""):
            line = line.replace("\0", "\N{REPLACEMENT CHARACTER}")
            self._held.append(line)
            yield line
        self._ended = True

    def _first_alone(self) -> list[str]:
        """Return the fields of the first line held, and have the others read again."""
        first, *others = self._held
        if self._ended and not self._swallows():
            raise DataError(
                f"{self._path}: ends within the quotes that begin in line {self._passed + 1:,}; "
                "was it copied completely, or is a quote never closed?"
            )
        self._again.extendleft(reversed(others))
        del self._held[1:]
        self._ended = False
        return self._fields(first)

    def _fields(self, line: str) -> list[str]:
        """Return the fields of a line whose quotes are not in order."""
        fields = next(csv.reader([line], delimiter=self._delimiter, quoting=self._quoting), [])
        if len(fields) == self.width:
            return fields
        return next(csv.reader([line], delimiter=self._delimiter, quoting=csv.QUOTE_NONE), [])

    def _swallows(self) -> bool:
        """Whether the lines after the first are more likely rows of their own than a field's text."""
        first, *others = self._held
        if len(others) >= _MOST_LINES:
            return True
        alone = self._fields(first)
        told = [line for line in others if line.strip()]  # empty lines are in tables and texts alike
        alike = sum(self._is_row(line, " " in alone[0]) for line in told)
        # A row of which nothing is missing but a quote has all its fields in its first line.
        return 2 * alike > len(told) + (len(alone) < self.width)

    def _is_row(self, line: str, has_space: bool) -> bool:
        """Whether a line reads as a row; text has spaces after and before commas, or decimals as "3,5"."""
        try:
            fields = next(self._reader([line]), [])
        except csv.Error:
            return False
        return (
            self.width == len(fields) > 1
            and not any(field.startswith(" ") for field in fields[1:])
            and (has_space or " " not in fields[0])
            and 2 * sum(a[-1:].isdigit() and b[:1].isdigit() for a, b in pairwise(fields)) < len(fields)
        )
