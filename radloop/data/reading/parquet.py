"""Folders of parquet files as the Hugging Face hub has them, some rows at a time."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from radloop.data.reading.files import refuse_pipe
from radloop.data.reading.text import refuse_repeated, some
from radloop.data.source import Unit, in_units, signature
from radloop.errors import DataError

_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation",
           "dev": "validation", "test": "test"}  # fmt: skip


_IMAGE_ROWS = 100  # of a unit with images, at most
_IMAGE_BYTES = 32 << 20  # of such a unit, about
_TEXT_ROWS = 1000  # read at a time
_BUFFER = 1 << 20  # bytes: without one, a column of a whole row group is read at once


@dataclass(frozen=True)
class ParquetFolder:
    """All parquet files of a folder that has the layout of a hub repository, or a single one.

    Attributes:
        root: A folder, or a parquet file.
        needed: Columns that each file must have.
        optional: Columns that are read where they exist.
    """

    root: Path
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def units(self) -> Iterator[Unit]:
        """Yield units of some hundred rows, whatever the size of the row groups; `rows` gives their rows.

        Units of text hold their rows, as those of other tables do. Images are read by whoever takes the
        unit, from (path, row group, first row in it, number of rows, rows at a time, signature).

        Raises:
            DataError: No parquet file, a damaged one, or one without a needed column or with one twice.
        """
        files = _files(self.root)
        if not files:
            raise DataError(f"{self.root}: holds no parquet file")
        for path in files:
            name = path.name if path == self.root else str(path.relative_to(self.root))
            file = _open(path)
            columns = self._columns(path, file)
            if any(_holds_bytes(file.schema_arrow.field(column).type) for column in columns):
                yield from _image_units(name, path, file, columns)
            else:
                yield from in_units(name, _text_rows(path, file, columns))

    def rows(self, unit: Unit) -> Iterator[dict[str, Any]]:
        """Yield the rows of a unit: the columns, and the published split under "split" if they have none.

        Raises:
            DataError: The file is damaged.
        """
        split = split_of(Path(unit.file))
        for held in unit.rows:
            for row in [held] if isinstance(held, dict) else self._image_rows(*held):
                yield {"split": split} | row

    def _columns(self, path: Path, file: pq.ParquetFile) -> tuple[str, ...]:
        found = file.schema_arrow.names
        if missing := [name for name in self.needed if name not in found]:
            raise DataError(
                f"{path}: lacks the columns {some(missing)}; found: {some(found)}; "
                f"needed: {some(self.needed)}"
            )
        columns = tuple(name for name in dict.fromkeys((*self.needed, *self.optional)) if name in found)
        refuse_repeated(path, [name for name in found if name in columns])
        return columns

    def _image_rows(
        self, path: str, group: int, start: int, count: int, batch: int, changed: tuple[int, int]
    ) -> Iterator[dict[str, Any]]:
        place = Path(path)
        file = _open(place)
        key = (place, changed, group, self._columns(place, file), batch)
        # Units mostly come in order: whoever read the last one goes on from there. Taken out while in use.
        reader = _idle.pop(key, None)
        if reader is None or reader.at > start:
            reader = _GroupReader(file, group, key[3], batch)
        with _readable(place, group):
            yield from reader.rows(start, count)
        _idle.clear()
        _idle[key] = reader


class _GroupReader:
    """Reads one row group from its beginning to its end, some rows at a time."""

    def __init__(self, file: pq.ParquetFile, group: int, columns: Iterable[str], batch: int) -> None:
        self.at = 0  # rows passed
        self._batches = file.iter_batches(
            batch_size=batch, row_groups=[group], columns=list(columns), use_threads=False
        )
        self._rest: pa.RecordBatch | None = None

    def rows(self, start: int, count: int) -> Iterator[dict[str, Any]]:
        """Yield the rows from `start` on, which must not lie before `at`."""
        while self.at < start + count:
            if self._rest is None or not self._rest.num_rows:
                self._rest = next(self._batches, None)
                if self._rest is None:
                    raise OSError(f"it has {self.at:,} rows, not as many as it states")
            passed = min(max(start - self.at, 0), self._rest.num_rows)
            wanted = self._rest.slice(passed, max(0, start + count - self.at - passed))
            self.at += passed + wanted.num_rows
            self._rest = self._rest.slice(passed + wanted.num_rows)
            yield from wanted.to_pylist()


_idle: dict[tuple[Any, ...], _GroupReader] = {}  # of this process: the last one used


def _image_units(name: str, path: Path, file: pq.ParquetFile, columns: Collection[str]) -> Iterator[Unit]:
    changed = signature(path)
    first = 1
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        chunks = [group.column(column) for column in range(group.num_columns)]
        size = sum(
            chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns
        )
        rows = max(1, min(_IMAGE_ROWS, _IMAGE_BYTES * group.num_rows // max(1, size)))
        for start in range(0, group.num_rows, rows):
            count = min(rows, group.num_rows - start)
            yield Unit(name, first, ((str(path), number, start, count, rows, changed),))
            first += count


def _text_rows(path: Path, file: pq.ParquetFile, columns: Collection[str]) -> Iterator[dict[str, Any]]:
    for group in range(file.metadata.num_row_groups):
        with _readable(path, group):
            for batch in file.iter_batches(
                batch_size=_TEXT_ROWS, row_groups=[group], columns=list(columns), use_threads=False
            ):
                yield from batch.to_pylist()


@contextmanager
def _readable(path: Path, group: int) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: row group {group} cannot be read: {error}") from None


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of the type are images, or hold some."""
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
        or any(_holds_bytes(kind.field(number).type) for number in range(kind.num_fields))
    )


def split_of(path: Path) -> str:
    """Return the published split that a file's name or folder tells, "" for none."""
    for part in (path.name, *reversed(path.parent.parts)):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return ""


def encoded_image(value: Any) -> tuple[bytes | None, str]:
    """Return (encoded file, name) of an image cell: bytes, {"bytes", "path"}, or a decoded image."""
    if isinstance(value, dict):
        data, name = value.get("bytes"), value.get("path")
        return data if isinstance(data, bytes) else None, name if isinstance(name, str) else ""
    if isinstance(value, Image.Image):
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        return buffer.getvalue(), ""
    return value if isinstance(value, bytes) else None, ""


def columns_of(folder: Path) -> Collection[str]:
    """Return the column names of a parquet file, or of the first one of a folder; [] where it has none."""
    first = next(iter(_files(folder)), None)
    return _open(first).schema_arrow.names if first else []


def _files(root: Path) -> list[Path]:
    return [root] if root.is_file() else sorted(root.rglob("*.parquet"))


def _open(path: Path) -> pq.ParquetFile:
    refuse_pipe(path)
    try:
        return _opened(path, signature(path))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no readable parquet file: {' '.join(str(error).split())}") from None


@lru_cache(maxsize=4)
def _opened(path: Path, _signature: tuple[int, int]) -> pq.ParquetFile:
    return pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
