"""Tables and folders on disk that are on their way to an artifact."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, Self

import pyarrow as pa

from radloop import workspace

_BATCH_ROWS = 16_384
_BATCH_BYTES = 32 << 20
_LOCK = "in-use"
_locks: dict[Path, IO[str]] = {}  # held until the process ends, whatever ends it


class TableWriter:
    """Writes an Arrow file in batches of a size that suits reading: small tables are gathered first."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, schema)
        self._held: list[pa.Table] = []
        self._rows = self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        for start in range(0, table.num_rows, _BATCH_ROWS):
            piece = table.slice(start, _BATCH_ROWS)
            self._held.append(piece)
            self._rows += piece.num_rows
            self._bytes += piece.get_total_buffer_size()
            if self._rows >= _BATCH_ROWS or self._bytes >= _BATCH_BYTES:
                self._flush()

    def close(self) -> None:
        """Finish the file; safe to call twice."""
        if not self._file.closed:
            self._flush()
            self._writer.close()
            self._file.close()

    def _flush(self) -> None:
        if self._held:
            table = pa.concat_tables(self._held).combine_chunks()
            self._writer.write_table(table, max_chunksize=_BATCH_ROWS)
            self._held, self._rows, self._bytes = [], 0, 0


def scratch_folder() -> Path:
    """Return a new folder for what is on its way; it goes with the process, or with a later one."""
    parent = workspace.home() / "ingest" / "scratch"
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in parent.iterdir():
        if _abandoned(old):
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="new-", dir=parent))
    lock = (folder / _LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    ready = parent / folder.name.removeprefix("new-")
    folder.rename(ready)  # only now that it is locked may others look at it
    _locks[ready] = lock
    return ready


def discard(folder: Path) -> None:
    """Remove a scratch folder before the process ends."""
    shutil.rmtree(folder, ignore_errors=True)
    if lock := _locks.pop(folder, None):
        lock.close()


def _abandoned(folder: Path) -> bool:
    """Tell whether the process that made the folder has ended, on this machine or another."""
    try:
        with (folder / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return not folder.name.startswith("new-")
    except OSError:  # somebody holds it, or it is gone already
        return False


def _discard_all(owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not take them away from its parent
        for folder in list(_locks):
            discard(folder)


atexit.register(_discard_all, os.getpid())
