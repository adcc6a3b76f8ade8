"""What an adapter hands to `ingest`: a source that lists its rows and turns each into samples.

A source is opened once, in the process that runs the ingest. It is then pickled into workers, on
this machine or on others, so it holds paths and options, never open files or tables of all rows.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROW = "\ue000"  # in an id: stands for the number of the row, which depends on the rows before it
_SMALLEST, _MEAN, _LARGEST = 64, 256, 1024  # rows of a unit
_LONGEST = 32 << 20  # characters of a unit, about


@dataclass(frozen=True)
class Unit:
    """A few hundred rows of one file: what a worker reads in one go, and what a later run may skip.

    Attributes:
        file: Name for messages, relative to the source's root.
        first: Number of the first row, from 1; 0 where the file is no table.
        rows: Raw rows as read, of plain types.
    """

    file: str
    first: int
    rows: tuple[Any, ...]


def in_units(file: str, rows: Iterable[Any], first: int = 1) -> Iterator[Unit]:
    """Cut rows into units where their content says so, so that an inserted row moves one border only.

    Args:
        file: Name for messages, relative to the source's root.
        rows: Raw rows, of plain types.
        first: Number of the first row; 0 where the file is no table.
    """
    held: list[Any] = []
    length = 0
    for row in rows:
        held.append(row)
        text = repr(row)
        length += len(text)
        ends = zlib.crc32(text.encode("utf-8", "replace")) % _MEAN == 0
        if len(held) >= _LARGEST or length >= _LONGEST or (ends and len(held) >= _SMALLEST):
            yield Unit(file, first, tuple(held))
            first += len(held) if first else 0
            held, length = [], 0
    if held:
        yield Unit(file, first, tuple(held))


def signature(path: Path) -> tuple[int, int]:
    """Size in bytes and modification time in ns: what tells a changed file from an unchanged one."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class ImageRef:
    """Where the encoded bytes of an image are.

    Attributes:
        key: What samples name it by, until its content hash is known. The same file described in
            two ways has two.
        root: Folder or zip archive that it must lie in; "" for `data`.
        name: As the source calls it: a path relative to `root`, not yet checked.
        data: The encoded file where the source has no file of its own, as in parquet.
        columns: Of `corpus.IMAGES`: modality, body_part, view, study, patient, frame, window.
    """

    key: str
    root: str
    name: str
    data: bytes | None
    columns: dict[str, Any]


class Images:
    """Collects the images that the samples of one unit name."""

    def __init__(self) -> None:
        self.refs: dict[str, ImageRef] = {}

    def file(self, root: Path, name: str, **columns: Any) -> str:
        """Name the file `name` below `root`, a folder or a zip archive, and return its key.

        Names come from data: absolute ones, ones with ".." and links are not followed out of
        `root`. Whether the file is there and can be read shows later.

        Args:
            root: What must not be left.
            name: Relative path; any text.
            columns: Of `corpus.IMAGES`: modality, body_part, view, study, patient, frame, window.
        """
        return self._add(f"file:{root}/{name}#{sorted(columns.items())}", str(root), name, None, columns)

    def inline(self, data: bytes | None, name: str, **columns: Any) -> str:
        """Hand over an encoded file and return its key; None stands for a missing one."""
        content = f"missing:{name}" if data is None else f"data:{hashlib.sha256(data).hexdigest()}"
        key = f"{content}#{sorted(columns.items())}"
        return self._add(key, "", name, data, columns)

    def _add(self, key: str, root: str, name: str, data: bytes | None, columns: dict[str, Any]) -> str:
        self.refs.setdefault(key, ImageRef(key, root, name, data, columns))
        return key


class Source:
    """Base of all sources. Subclasses are frozen dataclasses of paths and options.

    Everything that `rows` and `samples` depend on must be in the source's fields or in the unit,
    files that they read by their `signature`: an ingest skips what has not changed.
    """

    def units(self) -> Iterator[Unit]:
        """List all rows, cheaply: runs in one process."""
        raise NotImplementedError

    def rows(self, unit: Unit) -> Iterator[Any]:
        """Return the unit's raw rows, one for each of `unit.rows`, with what else `samples` needs of them.

        Sources of packed rows, such as parquet, unpack them here.
        """
        return iter(unit.rows)

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        """Turn one raw row, whatever is in it, into samples.

        Never raises for what is in the row: an empty field and a note are left for validation to
        find. A row gives at least one sample, or `left_out(reason)`: nothing vanishes uncounted.

        Args:
            row: One of `rows`.
            images: Takes the images; `image_ids` of a sample are the keys that it returns.

        Returns:
            Dictionaries with columns of `corpus.SAMPLES`, without `file` and `row`. They depend on
            this row alone; an id that needs the number of the row has `ROW` in its place.
        """
        raise NotImplementedError


def left_out(reason: str) -> list[dict[str, Any]]:
    """What `Source.samples` returns for a row that the options exclude; counted by reason."""
    return [{"left_out": reason}]
