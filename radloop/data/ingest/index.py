"""What earlier ingests of this project have seen: so that a later one reads only what is new.

A SQLite file in the project's state folder, for its owner only. It may be deleted at any time; it holds
no pixels, but the texts of samples as they are. Ingests that de-identify do not use it.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

from radloop import workspace
from radloop.errors import DataError

logger = logging.getLogger(__name__)
KnownImage = tuple[str, str, dict[str, Any]]  # key, stamp, facts
_VERSION = 2
_KEPT_DAYS = 60
_SCHEMA = """
CREATE TABLE IF NOT EXISTS images (key TEXT PRIMARY KEY, stamp TEXT, facts TEXT, used INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS units (key BLOB PRIMARY KEY, last BLOB, row_keys BLOB, part BLOB, used INTEGER);
CREATE INDEX IF NOT EXISTS units_by_last ON units (last);
"""
_DAY = "CAST(julianday('now') AS INTEGER)"


class Index:
    """The index, open for writing by one ingest; others meanwhile read it, or go without.

    Attributes:
        path: The file, None where there is none: then nothing is known and nothing is kept.
    """

    def __init__(self, path: Path | None, connection: sqlite3.Connection | None) -> None:
        self.path = path
        self._connection = connection
        self._used: list[bytes] = []

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Self]:
        """Open the project's index; a damaged one is made anew, a locked one is left alone."""
        path = workspace.home() / "ingest" / f"index-{_VERSION}.sqlite"
        connection = _connect(path)
        index = cls(path if connection else None, connection)
        try:
            yield index
        finally:
            index._close()

    def has_unit(self, key: bytes) -> bool:
        """Tell whether an earlier ingest has read this unit."""
        found = False
        if self._connection is not None:
            with _forgiving(self):
                query = "SELECT 1 FROM units WHERE key = ?"
                found = self._connection.execute(query, (key,)).fetchone() is not None
                if found:
                    self._used.append(key)
        return found

    def unit(self, key: bytes) -> bytes:
        """Return what an earlier ingest made of a unit that it has.

        Raises:
            DataError: The index was damaged since `has_unit` was asked.
        """
        try:
            # A connection that a failed write has closed may still be read anew.
            connection = self._connection or sqlite3.connect(self.path or "", timeout=5)
            part: bytes = connection.execute("SELECT part FROM units WHERE key = ?", (key,)).fetchone()[0]
            return part
        except (sqlite3.Error, TypeError) as error:
            raise DataError(
                f"{self.path}: was damaged while in use ({error}); delete it and start again"
            ) from None

    def unit_that_ends(self, row_key: bytes) -> tuple[list[bytes], bytes] | None:
        """Return the row keys and the part of the newest unit with this last row.

        Units are cut behind rows of certain contents: a unit with rows added or changed still ends
        with the same one.
        """
        found = None
        if self._connection is not None:
            with _forgiving(self):
                query = "SELECT row_keys, part FROM units WHERE last = ? ORDER BY rowid DESC LIMIT 1"
                found = self._connection.execute(query, (row_key,)).fetchone()
        if found is None:
            return None
        row_keys, part = found
        width = len(row_key)
        return [row_keys[start : start + width] for start in range(0, len(row_keys), width)], part

    def keep_unit(self, key: bytes, row_keys: list[bytes], part: bytes) -> None:
        """Remember what this unit gave, and which rows it had."""
        if self._connection is not None:
            with _forgiving(self):
                self._connection.execute(
                    f"INSERT OR REPLACE INTO units VALUES (?, ?, ?, ?, {_DAY})",  # noqa: S608
                    (key, row_keys[-1], b"".join(row_keys), part),
                )

    def keep_images(self, images: Iterable[KnownImage]) -> None:
        """Remember what these image files hold."""
        if self._connection is not None:
            rows = [(key, stamp, _to_json(facts)) for key, stamp, facts in images]
            with _forgiving(self):
                self._connection.executemany(
                    f"INSERT OR REPLACE INTO images VALUES (?, ?, ?, {_DAY})",  # noqa: S608
                    rows,
                )
                self._connection.commit()

    def _close(self) -> None:
        if self._connection is None:
            return
        with _forgiving(self):
            query = f"UPDATE units SET used = {_DAY} WHERE key = ? AND used < {_DAY}"  # noqa: S608
            self._connection.executemany(query, ((key,) for key in self._used))
            for table in ("images", "units"):
                self._connection.execute(
                    f"DELETE FROM {table} WHERE used < {_DAY} - ?",  # noqa: S608
                    (_KEPT_DAYS,),
                )
            self._connection.commit()
        if self._connection is not None:
            self._connection.close()


def find_images(path: Path, stamps: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return the facts of those images whose stamp is the same as when they were last read.

    Args:
        path: Of the index.
        stamps: Image key to what changes with its content.
    """
    keys = list(stamps)
    found: dict[str, dict[str, Any]] = {}
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            for start in range(0, len(keys), 500):
                some = keys[start : start + 500]
                marks = ", ".join("?" * len(some))
                query = f"SELECT key, stamp, facts FROM images WHERE key IN ({marks})"  # noqa: S608
                for key, stamp, facts in connection.execute(query, some):
                    if stamp == stamps[key]:
                        found[key] = _from_json(facts)
    except sqlite3.Error:  # without the index all is read again, which is only slower
        return {}
    return found


def _connect(path: Path) -> sqlite3.Connection | None:
    for attempt in ("as it is", "anew"):
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.chmod(0o700)
            if attempt == "anew":
                for file in path.parent.glob(f"{path.name}*"):
                    file.unlink()
            # SQLite gives its -wal and -shm the mode of the file.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            path.chmod(0o600)
            connection = sqlite3.connect(path, timeout=5)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")  # it can be made again
            connection.execute("PRAGMA cache_size = -8000")  # 8 MB
            connection.executescript(_SCHEMA)
            return connection
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                return None
        except OSError:
            return None
    return None


@contextmanager
def _forgiving(index: Index) -> Iterator[None]:
    """An index that cannot be used (full disk, locked, damaged) costs time, not the ingest."""
    try:
        yield
    except sqlite3.Error as error:
        logger.warning("the index of earlier ingests is not used: %s", error)
        if index._connection is not None:
            index._connection.close()
        index._connection = None


def _to_json(facts: dict[str, Any]) -> str:
    return json.dumps(facts | {"perceptual_hash": (facts["perceptual_hash"] or b"").hex()})


def _from_json(text: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(text)
    return facts | {"perceptual_hash": bytes.fromhex(facts["perceptual_hash"]) or None}
