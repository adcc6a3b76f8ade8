"""What a worker does: rows to samples, and files to what is known of their images."""

from __future__ import annotations

import json
import os
import stat
import time
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from radloop.data.corpus import NOT_CONTENT, SAMPLES, empty_row, image_id, sample_digest
from radloop.data.imaging import MAX_BYTES
from radloop.data.ingest.cleaning import UNREAD, Cleaner
from radloop.data.ingest.facts import FACTS, examine
from radloop.data.ingest.index import KnownImage, find_images
from radloop.data.source import ImageRef, Images, Source, Unit
from radloop.source import code_hash

MISSING = "the file is missing"
_MOST_SEEN = 10_000
_SETTLED_NS = 50_000_000
_EMPTY = empty_row(SAMPLES)
DIGEST = pa.field("digest", pa.binary(32))
PART = SAMPLES.append(DIGEST)  # image_ids: still the keys that `Images` gave


@dataclass
class Part:
    """What one unit gave.

    Attributes:
        samples: Table of schema `PART`; `row` counts from 0 within the unit.
        refs: Images that lie in files of their own, not yet looked at.
        images: Rows of `corpus.IMAGES` for those that do not, each with its "key".
        num_rows: Raw rows read.
        left_out: (row, reason) of rows that the options exclude; rows as in `samples`.
        removed: Identifiers taken out, by kind.
    """

    samples: pa.Table
    refs: list[ImageRef]
    images: list[dict[str, Any]]
    num_rows: int
    left_out: list[tuple[int, str]] = field(default_factory=list)
    removed: Counter[str] = field(default_factory=Counter)

    def to_bytes(self) -> bytes:
        """Serialise a part without images of its own."""
        refs = [[ref.key, ref.root, ref.name, ref.columns] for ref in self.refs]
        facts = json.dumps([refs, self.num_rows, self.left_out, self.removed]).encode()
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        table = self.samples.replace_schema_metadata({b"part": facts})
        with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue())

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read back what `to_bytes` gave."""
        table = pa.ipc.open_stream(data).read_all()
        refs, num_rows, left_out, removed = json.loads(table.schema.metadata[b"part"])
        found = [ImageRef(key, root, name, None, columns) for key, root, name, columns in refs]
        pairs = [(row, reason) for row, reason in left_out]
        return cls(table.replace_schema_metadata(), found, [], num_rows, pairs, Counter(removed))

    def placed(self, rows: list[int]) -> Self:
        """Return the same samples in other rows: those of row n are put into `rows[n]`, of -1 dropped."""
        where = np.array(rows, np.int64)
        moved = where[self.samples["row"].to_numpy()]
        kept = self.samples.filter(pa.array(moved >= 0))
        at = PART.get_field_index("row")
        kept = kept.set_column(at, PART.field(at), pa.array(moved[moved >= 0]))
        left_out = [(rows[row], reason) for row, reason in self.left_out if rows[row] >= 0]
        return type(self)(kept, self.refs, self.images, len(rows), left_out, self.removed)

    def joined(self, other: Self) -> Self:
        """Return the samples of both parts in the order of their rows, and the images that they name."""
        samples = pa.concat_tables([self.samples, other.samples])
        samples = samples.take(pa.array(np.argsort(samples["row"].to_numpy(), kind="stable")))
        named = set(pc.unique(pc.list_flatten(samples["image_ids"])).to_pylist())
        refs = {ref.key: ref for ref in (*self.refs, *other.refs) if ref.key in named}
        return type(self)(
            samples,
            list(refs.values()),
            [*self.images, *other.images],
            self.num_rows + other.num_rows,
            sorted([*self.left_out, *other.left_out]),
            self.removed + other.removed,
        )


def read_unit(task: tuple[Source, Unit, Cleaner | None]) -> Part:
    """Turn the rows of a unit into samples."""
    source, unit, cleaner = task
    images = Images()
    samples: list[dict[str, Any]] = []
    left_out: list[tuple[int, str]] = []
    removed: Counter[str] = Counter()
    num_rows = 0
    for offset, row in enumerate(source.rows(unit)):
        num_rows += 1
        found = list(source.samples(row, images))
        if not found:
            raise ValueError(f"{unit.file} row {unit.first + offset}: {type(source).__name__} gave no sample")
        for values in found:
            if reason := values.get("left_out"):
                left_out.append((offset, reason))
                continue
            sample = _EMPTY | values | {"row": offset}
            if cleaner:
                sample = cleaner.clean_sample(sample, removed)
            content = {name: value for name, value in sample.items() if name not in NOT_CONTENT}
            samples.append(sample | {"digest": sample_digest(content)})
    refs = [ref for ref in images.refs.values() if ref.root]
    inline = [_row(ref, ref.data, cleaner, removed) for ref in images.refs.values() if not ref.root]
    table = pa.Table.from_pylist(samples, schema=PART)
    return Part(table, refs, inline, num_rows, left_out, removed)


@dataclass
class Look:
    """What a batch of image files gave.

    Attributes:
        images: Rows of `corpus.IMAGES`, each with its "key".
        fresh: Those that had to be read, for the index.
        removed: Identifiers taken out, by kind.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    fresh: list[KnownImage] = field(default_factory=list)
    num_read: int = 0
    removed: Counter[str] = field(default_factory=Counter)


def look_at(task: tuple[list[ImageRef], Path | None, Cleaner | None]) -> Look:
    """Read, hash and decode image files, each once; of those known from before only the date is read.

    Args:
        task: The images, the index of what is known (None for nothing), and what takes identifiers out.
    """
    refs, index, cleaner = task
    _real.cache_clear()  # a link may lead elsewhere than at the last ingest of this process
    places = [_inside(ref) for ref in refs]
    stamps = {ref.key: _version(place) for ref, place in zip(refs, places, strict=True) if place.stamp}
    known = find_images(index, stamps) if index and not cleaner else {}
    look = Look()
    for ref, place in zip(refs, places, strict=True):
        if facts := known.get(ref.key):
            where = {"bytes": _read(place)[0]} if place.member else {"uri": place.path}
            look.images.append(_columns(ref) | facts | where | {"key": ref.key})
        else:
            look.images.append(_look(ref, place, cleaner, look))
    return look


@dataclass(frozen=True)
class _Place:
    """Where an image really is: a path, its `stamp` (what changes with its content), or what is wrong."""

    path: str = ""
    stamp: str = ""
    settled: bool = False  # a file that changes right now may do so without a new stamp
    member: str = ""  # of a zip archive
    error: str = ""


def _look(ref: ImageRef, place: _Place, cleaner: Cleaner | None, look: Look) -> dict[str, Any]:
    if place.error:
        return _missing(ref, place.error, cleaner)
    look.num_read += 1
    data, error = _read(place)
    if data is None:
        return _missing(ref, error, cleaner)
    row = _row(ref, data, cleaner, look.removed)
    if cleaner:
        return row
    if place.settled and not row["error"]:  # a decoder that was killed or missing may do better later
        look.fresh.append((ref.key, _version(place), {name: row[name] for name in FACTS}))
    return row if place.member else row | {"bytes": None, "uri": place.path}


def _row(ref: ImageRef, data: bytes | None, cleaner: Cleaner | None, removed: Counter[str]) -> dict[str, Any]:
    columns = _columns(ref)
    if cleaner:
        data, columns = cleaner.clean_image(data, columns, removed)
    if data is None:
        return (
            columns
            | {"key": ref.key, "id": f"missing:{columns['name']}"}
            | {"error": columns.get("error", MISSING)}
        )
    frame, window = columns["frame"], columns["window"]
    found = image_id(data, frame, window)
    return columns | _facts(found, data, frame, window) | {"key": ref.key, "bytes": data}


_seen: dict[str, dict[str, Any]] = {}  # of this process: the hub repeats a picture for each question


def _facts(image: str, data: bytes, frame: int, window: str) -> dict[str, Any]:
    if image not in _seen:
        if len(_seen) >= _MOST_SEEN:
            _seen.clear()
        _seen[image] = {"id": image} | examine(data, frame, window)
    return _seen[image]


def _columns(ref: ImageRef) -> dict[str, Any]:
    plain = {
        "modality": "",
        "body_part": "",
        "view": "",
        "study": "",
        "patient": "",
        "frame": 0,
        "window": "",
    }
    return plain | {"name": ref.name} | ref.columns


def _missing(ref: ImageRef, error: str, cleaner: Cleaner | None) -> dict[str, Any]:
    columns = _columns(ref)
    if cleaner:
        columns = cleaner.clean_image(None, columns, Counter())[1]
        error = error if error == MISSING else UNREAD
    return columns | {"key": ref.key, "id": f"missing:{columns['name']}", "error": error}


def _inside(ref: ImageRef) -> _Place:
    """Find the file below its root, without leaving it by "..", an absolute path or a link."""
    root = Path(ref.root)
    try:
        if root.suffix.lower() == ".zip" and root.is_file():
            found = os.stat(root)
            return _Place(ref.root, _stamp(found), _settled(found), ref.name)
        folder, name = os.path.split(os.path.join(ref.root, ref.name))
        path = os.path.join(_real(folder), name)
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            path = os.path.realpath(path)
            found = os.stat(path)
        if name in ("", ".", "..") or not Path(path).is_relative_to(_real(ref.root)):
            return _Place(error=f"{_clip(ref.name)} leads out of '{root.name}', not followed")
        if not stat.S_ISREG(found.st_mode):
            return _Place(error=f"{_clip(ref.name)} is no file")
        return _Place(path, _stamp(found), _settled(found))
    except FileNotFoundError:
        return _Place(error=MISSING)
    except (OSError, ValueError) as error:  # name too long, null byte, loop of links
        reason = getattr(error, "strerror", None) or error
        return _Place(error=f"{_clip(ref.name)} cannot be found ({reason})")


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _stamp(found: os.stat_result) -> str:
    return json.dumps([found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino])


def _version(place: _Place) -> str:
    """What the facts of an image depend on: its file, and the code that looked at it."""
    return f"{_lookers()} {place.stamp}"


@lru_cache(maxsize=1)
def _lookers() -> str:
    versions = [version(package) for package in ("pillow", "pydicom", "python-gdcm", "numpy", "scipy")]
    return " ".join([code_hash("data/imaging", "data/privacy"), *versions])


def _settled(found: os.stat_result) -> bool:
    return time.time_ns() - found.st_ctime_ns > _SETTLED_NS


def _read(place: _Place) -> tuple[bytes | None, str]:
    try:
        if place.member:
            archive = _archive(place.path, place.stamp)
            if archive.getinfo(place.member).file_size > MAX_BYTES:
                return None, f"has more than {MAX_BYTES:,} bytes"
            return archive.read(place.member), ""
        with open(place.path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        return (data, "") if len(data) <= MAX_BYTES else (None, f"has more than {MAX_BYTES:,} bytes")
    except KeyError:
        return None, MISSING
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        return None, f"cannot be read ({getattr(error, 'strerror', None) or error})"


@lru_cache(maxsize=4)
def _archive(path: str, _stamp: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _clip(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")
