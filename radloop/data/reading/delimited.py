"""Comma and tab separated tables, row by row."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from radloop.data.reading.files import open_text
from radloop.data.reading.text import SURPLUS, some
from radloop.errors import DataError

_LARGEST_FIELD = 16 << 20  # characters: a quote that is never closed makes a field of the whole file


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
    absent from its dictionary.

    Args:
        path: UTF-8 with or without a byte order mark, any line ends; may end in .gz.
        needed: Columns that the header must have.
        delimiter: One character.
        header: Column names, where the file has no line of them.
        quoted: Whether double quotes enclose fields.

    Raises:
        DataError: Not readable, no header, without the needed columns, or a quote that is never closed.
    """
    csv.field_size_limit(_LARGEST_FIELD)
    with open_text(path, errors="replace") as file:
        lines = (line.replace("\0", "\N{REPLACEMENT CHARACTER}") for line in file)
        rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
        try:
            names = list(header) if header else [name.strip() for name in next(rows, [])]
            if missing := [name for name in needed if name not in names]:
                raise DataError(
                    f"{path}: its header lacks {some(missing)}; found: {some(names) or 'nothing'}; "
                    f"needed: {some(needed)}. Is this another file, or another delimiter?"
                )
            for fields in rows:
                if not fields:  # an empty line
                    continue
                row: dict[str | None, Any] = dict(zip(names, fields, strict=False))
                if len(fields) > len(names):
                    row[SURPLUS] = fields[len(names) :]
                yield row
        except csv.Error as error:
            raise DataError(
                f"{path}: cannot be read from line {rows.line_num:,} on: {error}; is a quote never closed?"
            ) from None
