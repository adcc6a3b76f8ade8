"""From what the workers found to the two tables of a corpus, batch by batch.

Three passes: rows to samples that name their images by key; each distinct image looked at once;
then the keys in the samples are replaced by content hashes, and the fingerprint is taken.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import sqlite3
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from radloop.data.corpus import IMAGES, SAMPLES, Corpus, Fingerprint, image_digest
from radloop.data.ingest.cleaning import Cleaner
from radloop.data.ingest.engines import Engine
from radloop.data.ingest.index import Index
from radloop.data.ingest.work import PART, Part, look_at, read_unit
from radloop.data.source import ROW, ImageRef, Source, Unit
from radloop.data.storage import TableWriter, scratch_folder
from radloop.errors import DataError
from radloop.source import code_hash

_IMAGES_PER_TASK = 32
_SCHEMA = """
CREATE TABLE refs (number INTEGER PRIMARY KEY, key TEXT UNIQUE, ref TEXT, id TEXT);
CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE described (digest BLOB PRIMARY KEY) WITHOUT ROWID;
"""


@dataclass
class Touched:
    """How much of the sources an ingest had to read.

    Attributes:
        rows, images: In all, images that are the same counted once.
        new_rows, new_images: Those that had to be read; pictures inside rows, as in parquet, always are.
    """

    rows: int = 0
    new_rows: int = 0
    images: int = 0
    new_images: int = 0

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows ({self.new_rows:,} new or changed), "
            f"{self.images:,} images ({self.new_images:,} read)"
        )


def assemble(
    sources: list[Source], engine: Engine, index: Index, *, deidentify: bool
) -> tuple[Corpus, Touched]:
    """Read all sources into one corpus.

    Raises:
        DataError: A source cannot be read, or the disk is full.
    """
    folder = scratch_folder()
    try:
        with _Assembly(folder, engine, index, Cleaner.load() if deidentify else None) as assembly:
            for source in sources:
                assembly.read(source)
            assembly.look()
            assembly.join()
    except (OSError, pa.ArrowException, sqlite3.OperationalError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "full" in str(error).lower():
            raise DataError(
                f"{folder}: the disk is full; free some space, or name another folder in RADLOOP_HOME"
            ) from None
        raise
    return Corpus.load(folder), assembly.touched


class _Assembly:
    def __init__(self, folder: Path, engine: Engine, index: Index, cleaner: Cleaner | None) -> None:
        self.folder, self.engine, self.index, self.cleaner = folder, engine, index, cleaner
        self.touched = Touched()
        self.left_out: Counter[str] = Counter()
        self.removed: Counter[str] = Counter()
        self.fingerprint = Fingerprint()
        self.notebook = sqlite3.connect(folder / "notebook.sqlite")  # which key is which image
        self.notebook.execute("PRAGMA synchronous = OFF")
        self.notebook.execute("PRAGMA journal_mode = OFF")
        self.notebook.execute("PRAGMA cache_size = -16000")
        self.notebook.executescript(_SCHEMA)
        self.parts = TableWriter(folder / "parts.arrow", PART)
        self.images = TableWriter(folder / "images.arrow", IMAGES)

    def __enter__(self) -> _Assembly:
        return self

    def __exit__(self, *error: object) -> None:
        self.parts.close()
        self.images.close()
        self.notebook.close()
        for name in ("parts.arrow", "notebook.sqlite"):
            (self.folder / name).unlink(missing_ok=True)

    def read(self, source: Source) -> None:
        """First pass."""
        units = _Units(source, self.index, self.cleaner)
        for file, first, part in units.parts(self.engine):
            self.touched.rows += part.num_rows
            self.left_out.update(reason for _, reason in part.left_out)
            self.removed += part.removed
            self.parts.write(_placed(part.samples, file, first))
            self._note(part.refs)
            self._add_images(part.images)
            self.touched.new_images += len(part.images)
        self.touched.new_rows += units.new_rows

    def look(self) -> None:
        """Second pass."""
        tasks = ((refs, self.index.path, self.cleaner) for refs in self._unknown())
        for look in self.engine.map(look_at, tasks):
            self.touched.new_images += look.num_read
            self.removed += look.removed
            self.index.keep_images(look.fresh)
            self._add_images(look.images)

    def join(self) -> None:
        """Third pass."""
        self.parts.close()
        self.images.close()
        with TableWriter(self.folder / "samples.arrow", SAMPLES) as samples:
            for batch in _batches(self.folder / "parts.arrow"):
                digests = batch["digest"].to_pylist()
                keys = batch["image_ids"].to_pylist()
                known = self._ids({key for some in keys for key in some})
                ids = [[known[key] for key in some] for some in keys]
                for digest, some in zip(digests, ids, strict=True):
                    self.fingerprint.add_sample(digest, some)
                column = SAMPLES.get_field_index("image_ids")
                table = pa.Table.from_batches([batch]).drop_columns(["digest"])
                samples.write(
                    table.set_column(column, SAMPLES.field(column), pa.array(ids, SAMPLES.field(column).type))
                )
        Corpus.write_facts(
            self.folder, self.fingerprint.hexdigest(), self.touched.rows, self.left_out, self.removed
        )

    def _note(self, refs: list[ImageRef]) -> None:
        rows = [(ref.key, json.dumps([ref.root, ref.name, ref.columns])) for ref in refs]
        self.notebook.executemany("INSERT OR IGNORE INTO refs (key, ref) VALUES (?, ?)", rows)

    def _unknown(self) -> Iterator[list[ImageRef]]:
        """Yield the images that have no id yet, a task at a time."""
        last = 0
        while rows := self.notebook.execute(
            "SELECT number, key, ref FROM refs WHERE number > ? AND id IS NULL ORDER BY number LIMIT ?",
            (last, _IMAGES_PER_TASK),
        ).fetchall():
            last = rows[-1][0]
            parsed = [(key, *json.loads(ref)) for _, key, ref in rows]
            yield [ImageRef(key, root, name, None, columns) for key, root, name, columns in parsed]

    def _add_images(self, rows: Iterable[dict[str, Any]]) -> None:
        """Keep each image content once, and which key it had."""
        new = []
        for row in rows:
            key = row.pop("key")
            self.notebook.execute(
                "INSERT INTO refs (key, id) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET id = excluded.id",
                (key, row["id"]),
            )
            if self.notebook.execute("INSERT OR IGNORE INTO ids VALUES (?)", (row["id"],)).rowcount:
                new.append(row)
                self.touched.images += 1
            # Two rows may describe one picture differently: which comes first must not matter.
            digest = image_digest(row)
            if self.notebook.execute("INSERT OR IGNORE INTO described VALUES (?)", (digest,)).rowcount:
                self.fingerprint.add_image(digest)
        if new:
            self.images.write(pa.Table.from_pylist(new, schema=IMAGES))

    def _ids(self, keys: set[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        wanted = iter(keys)
        while some := list(itertools.islice(wanted, 500)):
            marks = ", ".join("?" * len(some))
            query = f"SELECT key, id FROM refs WHERE key IN ({marks})"  # noqa: S608
            found |= dict(self.notebook.execute(query, some).fetchall())
        return found


@dataclass
class _Asked:
    """A unit on its way: where it is, its keys in the index, and what of it is known from before.

    Attributes:
        rows: Key of each of its rows.
        known: Whether the whole unit is in the index.
        old: What an earlier unit with the same last row gave, as far as its rows are still there.
        new: The rows that have to be read, as numbers within the unit; None for all.
    """

    file: str
    first: int
    key: bytes
    rows: list[bytes]
    known: bool = False
    old: Part | None = None
    new: list[int] | None = None


class _Units:
    """The units of a source; units and rows that an earlier ingest has read come from the index."""

    def __init__(self, source: Source, index: Index, cleaner: Cleaner | None) -> None:
        self.source, self.index, self.cleaner = source, index, cleaner
        self.new_rows = 0
        maker = f"{type(source).__module__} {source!r} {code_hash('data')}"
        self._maker = maker.encode("utf-8", "replace")

    def parts(self, engine: Engine) -> Iterator[tuple[str, int, Part]]:
        """Yield file and number of the first row of each unit with what it gave, in the source's order."""
        # The engine asks for tasks ahead of its results, and known units are no tasks: both wait here.
        waiting: deque[_Asked] = deque()

        def tasks() -> Iterator[tuple[Source, Unit, Cleaner | None]]:
            for unit in self.source.units():
                asked = self._ask(unit)
                waiting.append(asked)
                if not asked.known:
                    rows = unit.rows if asked.new is None else tuple(unit.rows[row] for row in asked.new)
                    yield self.source, Unit(unit.file, unit.first, rows), self.cleaner

        def known_parts() -> Iterator[tuple[str, int, Part]]:
            while waiting and waiting[0].known:
                asked = waiting.popleft()
                yield asked.file, asked.first, Part.from_bytes(self.index.unit(asked.key))

        for part in engine.map(read_unit, tasks()):
            yield from known_parts()
            asked = waiting.popleft()
            self.new_rows += part.num_rows
            if asked.old is not None and asked.new is not None:
                part = asked.old.joined(part.placed(asked.new))
            # Pictures inside the rows would fill the index, and raw names of images have no place in it.
            if not part.images and not self.cleaner:
                self.index.keep_unit(asked.key, asked.rows, part.to_bytes())
            yield asked.file, asked.first, part
        yield from known_parts()

    def _ask(self, unit: Unit) -> _Asked:
        """Find out what of the unit an earlier ingest has read."""
        if self.cleaner:
            return _Asked(self.cleaner.clean_file(unit.file), unit.first, b"", [])
        place = self._maker + repr((unit.file, unit.first == 0)).encode("utf-8", "replace")
        rows = [
            hashlib.sha256(place + repr(row).encode("utf-8", "replace")).digest()[:16] for row in unit.rows
        ]
        asked = _Asked(unit.file, unit.first, hashlib.sha256(place + b"".join(rows)).digest(), rows)
        asked.known = self.index.has_unit(asked.key)
        if not asked.known and (found := self.index.unit_that_ends(rows[-1])):
            self._reuse(asked, *found)
        return asked

    def _reuse(self, asked: _Asked, old_rows: list[bytes], old: bytes) -> None:
        """Take over what an earlier unit gave for rows that are in this one, too."""
        offsets = {key: number for number, key in enumerate(asked.rows)}
        if len(offsets) < len(asked.rows):  # equal rows: not worth telling them apart
            return
        where = [offsets.pop(key, -1) for key in old_rows]  # of equal old rows one stays
        taken = set(where)
        asked.new = [number for number in range(len(asked.rows)) if number not in taken]
        asked.old = Part.from_bytes(old).placed(where)
        asked.old.num_rows = len(taken - {-1})


def _placed(samples: pa.Table, file: str, first: int) -> pa.Table:
    """Fill in where the rows of a unit are, now that it is known how many lie before them."""
    rows = pc.add(samples["row"], first) if first else pa.array([0] * samples.num_rows, pa.int64())
    at = SAMPLES.get_field_index("row")
    samples = samples.set_column(at, SAMPLES.field(at), rows)
    at = SAMPLES.get_field_index("file")
    samples = samples.set_column(at, SAMPLES.field(at), pa.array([file] * samples.num_rows, pa.string()))
    if not pc.any(pc.match_substring(samples["id"], ROW)).as_py():
        return samples
    ids = [
        name.replace(ROW, str(row))
        for name, row in zip(samples["id"].to_pylist(), rows.to_pylist(), strict=True)
    ]
    at = SAMPLES.get_field_index("id")
    return samples.set_column(at, SAMPLES.field(at), pa.array(ids, pa.string()))


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    # Not memory-mapped: pages that are read once would count as memory of this process.
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
