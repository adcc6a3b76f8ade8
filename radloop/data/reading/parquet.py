"""Folders of parquet files as the Hugging Face hub has them, a row group at a time."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from radloop.data.reading.text import some
from radloop.data.source import Unit, signature
from radloop.errors import DataError

_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation",
           "dev": "validation", "test": "test"}  # fmt: skip


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
        """Yield one unit per row group; its rows come from `rows`.

        Raises:
            DataError: No parquet file, a damaged one, or one without a needed column.
        """
        files = _files(self.root)
        if not files:
            raise DataError(f"{self.root}: holds no parquet file")
        for path in files:
            first = 1
            file = _open(path)
            if missing := [name for name in self.needed if name not in file.schema_arrow.names]:
                raise DataError(
                    f"{path}: lacks the columns {some(missing)}; found: {some(file.schema_arrow.names)}; "
                    f"needed: {some(self.needed)}"
                )
            for group in range(file.metadata.num_row_groups):
                name = path.name if path == self.root else str(path.relative_to(self.root))
                yield Unit(name, first, ((str(path), group, signature(path)),))
                first += file.metadata.row_group(group).num_rows

    def rows(self, unit: Unit) -> Iterator[dict[str, Any]]:
        """Yield the rows of a unit: the columns, and the published split under "split" if they have none.

        Raises:
            DataError: The file is damaged.
        """
        path, group, _ = unit.rows[0]
        file = _open(Path(path))
        names = [name for name in (*self.needed, *self.optional) if name in file.schema_arrow.names]
        split = split_of(Path(unit.file))
        try:
            for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=names):
                for row in batch.to_pylist():
                    yield {"split": split} | row
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: row group {group} cannot be read: {error}") from None


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
    try:
        return _opened(path, signature(path))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no readable parquet file: {' '.join(str(error).split())}") from None


@lru_cache(maxsize=4)
def _opened(path: Path, _signature: tuple[int, int]) -> pq.ParquetFile:
    return pq.ParquetFile(path)
