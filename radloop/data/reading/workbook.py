"""Tables in Excel workbooks, row by row."""

from __future__ import annotations

import itertools
import warnings
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from radloop.data.reading.files import refuse_pipe
from radloop.data.reading.text import SURPLUS, refuse_repeated, some
from radloop.errors import DataError

_LARGEST = 512 << 20  # bytes, unpacked: a workbook of Excel's size has less, a zip bomb more
_MOST_ROWS = 1_048_576  # of a sheet; a damaged row number makes openpyxl invent blank rows without end
_BATCH = 256


def read_workbook(path: Path, needed: Collection[str] = ()) -> Iterator[dict[str | None, Any]]:
    """Yield the rows of the first sheet as dictionaries; its first row is the header.

    Numbers that Excel shows as percentages become that text ("5%", stored as 0.05), formulas their last
    result, error values such as #N/A None. Blank rows are passed over. Cells without a header are a
    list under `SURPLUS`.

    Args:
        path: An .xlsx file without a password.
        needed: Columns that the header must have.

    Raises:
        DataError: Not readable, no workbook, unpacks to more than 512 MiB, without the needed columns, or
            with one of them twice.
    """
    _check_size(path)
    rows = _rows(path)
    names = ["" if value is None else str(value).strip() for value in next(rows, [])]
    refuse_repeated(path, names)
    if missing := [name for name in needed if name not in names]:
        raise DataError(
            f"{path}: the header of its first sheet lacks {some(missing)}; "
            f"found: {some(names) or 'nothing'}; needed: {some(needed)}. Is this another file?"
        )
    for values in rows:
        row: dict[str | None, Any] = {name: v for name, v in zip(names, values, strict=False) if name}
        unnamed = [v for name, v in itertools.zip_longest(names, values) if not name and v is not None]
        if unnamed:
            row[SURPLUS] = unnamed
        yield row


def _check_size(path: Path) -> None:
    """Refuse a zip bomb before it is unpacked; `zipfile` never unpacks more than the sizes stated."""
    refuse_pipe(path)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _no_workbook(path, error) from None
    if size > _LARGEST:
        raise DataError(
            f"{path}: unpacks to {size / 2**20:,.0f} MiB; allowed are {_LARGEST >> 20}. "
            "Save the table alone, without pictures and other sheets"
        )


def _rows(path: Path) -> Iterator[list[Any]]:
    import openpyxl

    try:
        with path.open("rb") as file:
            book = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
            if not book.worksheets:
                raise DataError(f"{path}: has no sheet with cells")
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # what it states is often less than what it holds
            rows = enumerate(sheet.iter_rows())
            while batch := _batch(rows):
                for number, cells in batch:
                    if number >= _MOST_ROWS:
                        raise DataError(f"{path}: has more than {_MOST_ROWS:,} rows; is it damaged?")
                    values = [_shown(cell) for cell in cells]
                    if any(value is not None for value in values):
                        yield values
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # openpyxl has no error of its own: a damaged part shows as any of Python's
        raise _no_workbook(path, error) from None


def _batch(rows: Iterator[tuple[int, Any]]) -> list[tuple[int, Any]]:
    with warnings.catch_warnings():  # on extensions of Excel that hold no data
        warnings.simplefilter("ignore")
        return list(itertools.islice(rows, _BATCH))


def _shown(cell: Any) -> Any:
    value = cell.value
    if isinstance(value, str):
        return None if cell.data_type == "e" else value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and "%" in cell.number_format:
        return f"{value * 100:g}%"
    return value


def _no_workbook(path: Path, error: Exception) -> DataError:
    words = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"{path}: is no readable .xlsx workbook ({words[:200]}); save it as one, without a password"
    )
