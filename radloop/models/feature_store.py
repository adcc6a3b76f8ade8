"""Image features on disk, by what is in the image.

A store is a folder for one way of computing features:

    settings.json  what they depend on; its date is when the store was last opened, and whoever has it
                   open holds a shared lock on it
    N.data         entries, one behind the other: a JSON header, and the tensors as they are in memory
    N.index        for each entry a record of fixed length: pixel hash, place, checksum

Each process appends to files of its own and reads those of all, so that readers need no lock and a
killed writer costs others nothing. Writers take turns, all stores of a folder together, because each
measures what is left of their size. Files are never changed, only extended and deleted as a whole. An
entry is found when its record is complete, and used when its checksum is right, which is computed again
only when the file has changed: whatever else is in the files is as if it were not there. A store can be
deleted at any time, also while it is in use.
"""

from __future__ import annotations

import fcntl
import json
import logging
import mmap
import os
import shutil
import struct
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import IO, Any

import torch

from radloop.models.family import Features

logger = logging.getLogger(__name__)
_SETTINGS = "settings.json"
_MAKING, _DELETED = "making-", "deleted-"  # names of folders that are not stores yet, or no longer
_RECORD = struct.Struct("<16sQQII")  # pixel hash, offset, length, CRC-32 of the entry, CRC-32 of these four
_PLACE = struct.Struct("<IQQI")  # number of the file, offset, length, CRC-32: half the memory of a tuple
_ALIGNMENT = 64  # bytes; of tensors, as torch aligns its own


class FeatureStore:
    """A store, open for reading and adding. Not for use by several threads at once.

    A fault of the disk (full, read-only, gone) ends the adding with one log line, and nothing else.
    """

    def __init__(self, folder: Path, settings: str, max_bytes: int) -> None:
        """Open the store, made if it does not exist.

        Args:
            folder: Of the store; its neighbours are taken for stores as well.
            settings: What the features depend on, to be read by people.
            max_bytes: That all stores together may have, whoever writes them. Before that is exceeded,
                those that nobody has open are deleted, the one that was not opened for longest first. Half
                of the disk space that would be free without any stores is left free in any case.

        Raises:
            OSError: The folder cannot be written.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._adding = True
        self._own: tuple[FileIO, FileIO] | None = None
        self._parts: dict[Path, _Part] = {}
        self._places: dict[bytes, bytes] = {}
        # Places whose checksum was right, to the time of the file's last change when it was.
        self._right: dict[bytes, int] = {}
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _turn(folder.parent):
            for left in _subfolders(folder.parent):  # by processes that were killed
                if left.name.startswith((_MAKING, _DELETED)):
                    with suppress(OSError):
                        _remove(left)
            self._lock = _open(folder, settings.encode())
            self._make_room(0)

    def get(self, pixel_hashes: Iterable[str]) -> dict[str, Features]:
        """Return the features that there are; on the CPU, mapped from disk without a copy."""
        wanted = list(pixel_hashes)
        if not all(bytes.fromhex(name) in self._places for name in wanted):
            self._read_indices()
        found = {name: self._features(bytes.fromhex(name)) for name in wanted}
        return {name: features for name, features in found.items() if features is not None}

    def add(self, pixel_hash: str, features: Features) -> None:
        """Keep the features of an image for others and for later."""
        if not self._adding:
            return
        try:
            entry = _pack(features)
            with _turn(self._folder.parent):
                self._adding = self._make_room(len(entry) + _RECORD.size)
                if self._adding:
                    self._append(bytes.fromhex(pixel_hash), entry)
            if not self._adding:
                logger.warning(
                    "features of further images are computed anew each time: %s has all of its share of the "
                    "disk; RADLOOP_FEATURES_GB and the free space decide it",
                    self._folder.parent,
                )
        except OSError as error:
            self._adding = False
            logger.warning(
                "features of further images are computed anew each time: %s: %s",
                self._folder,
                error.strerror,
            )

    def _read_indices(self) -> None:
        """Take note of what has been added since, by this process and others."""
        for index in sorted(self._folder.glob("*.index")):
            with suppress(OSError):
                part = self._parts.setdefault(index, _Part(len(self._parts)))
                num_new = (index.stat().st_size - part.bytes_read) // _RECORD.size
                if num_new > 0:
                    with index.open("rb") as stream:
                        stream.seek(part.bytes_read)
                        records = stream.read(num_new * _RECORD.size)
                    part.bytes_read += len(records)
                    self._note(part, records)

    def _note(self, part: _Part, records: bytes) -> None:
        for start in range(0, len(records) - _RECORD.size + 1, _RECORD.size):
            pixel_hash, *place, checksum = _RECORD.unpack_from(records, start)
            if zlib.crc32(records[start : start + _RECORD.size - 4]) == checksum:
                self._places[pixel_hash] = _PLACE.pack(part.number, *place)

    def _features(self, pixel_hash: bytes) -> Features | None:
        """Return an entry if it is there and undamaged."""
        if pixel_hash not in self._places:
            return None
        place = self._places[pixel_hash]
        number, offset, length, checksum = _PLACE.unpack(place)
        with suppress(OSError, ValueError):  # deleted, or cut short
            file = list(self._parts)[number].with_suffix(".data")
            changed = file.stat().st_mtime_ns
            entry = _map(file, offset, length)
            if self._right.get(place) == changed or zlib.crc32(entry.numpy().data) == checksum:
                self._right[place] = changed
                return _unpack(entry)
        del self._places[pixel_hash]
        return None

    def _append(self, pixel_hash: bytes, entry: bytes) -> None:
        if self._own is None:
            self._own = _new_files(self._folder)
        data, index = self._own
        offset = data.tell()
        try:
            _write(data, entry)
            place = (pixel_hash, offset, len(entry), zlib.crc32(entry))
            record = _RECORD.pack(*place, 0)[:-4]
            _write(index, record + zlib.crc32(record).to_bytes(4, "little"))
        except OSError:
            with suppress(OSError):
                data.truncate(offset)  # of no use to anybody, and perhaps the last free space
            raise

    def _make_room(self, num_bytes: int) -> bool:
        """Say whether so much may be added, after deleting other stores if it would be too much."""
        stores = sorted(map(_measured, _subfolders(self._folder.parent)))
        used = sum(size for _, _, size in stores)
        for _, store, size in stores:
            if used + num_bytes <= self._limit(used):
                break
            if store != self._folder and _delete(store):
                used -= size
        return used + num_bytes <= self._limit(used)

    def _limit(self, used: int) -> int:
        return min(self._max_bytes, (used + shutil.disk_usage(self._folder).free) // 2)


@dataclass
class _Part:
    """What one process has written, and how much of its index is known."""

    number: int
    bytes_read: int = 0


def _open(folder: Path, settings: bytes) -> IO[bytes]:
    """Mark the store as in use, for as long as the result is open; to be called in turn.

    It is made if it does not exist, and made anew if its settings are others, as of one that somebody has
    renamed.
    """
    file = folder / _SETTINGS
    if folder.is_dir() and not (file.is_file() and file.read_bytes() == settings):
        _remove(folder)
    if not folder.exists():
        scratch = Path(tempfile.mkdtemp(prefix=_MAKING, dir=folder.parent))
        (scratch / _SETTINGS).write_bytes(settings)
        scratch.rename(folder)
    lock = file.open("rb")
    fcntl.flock(lock, fcntl.LOCK_SH)
    os.utime(file)
    return lock


@contextmanager
def _turn(parent: Path) -> Iterator[None]:
    """Let no other process add to the stores of `parent` in this block."""
    handle = os.open(parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _delete(store: Path) -> bool:
    """Delete a store that nobody has open, or a folder that is none; to be called in turn.

    Returns:
        Whether it is gone.
    """
    with suppress(OSError):
        if not (store / _SETTINGS).exists():
            return _remove(store)
        with (store / _SETTINGS).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _remove(store)
    return False


def _remove(store: Path) -> bool:
    gone = store.with_name(f"{_DELETED}{uuid.uuid4().hex}")
    store.rename(gone)  # at once, so that nobody who reads it finds half of it
    shutil.rmtree(gone, ignore_errors=True)
    return not gone.exists()


def _subfolders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir()]


def _measured(store: Path) -> tuple[float, Path, int]:
    """Return when a store was last opened, the store, and its bytes."""
    opened, size = 0.0, 0
    with suppress(OSError):  # somebody deletes it
        for file in store.iterdir():
            found = file.stat()
            size += found.st_size
            opened = found.st_mtime if file.name == _SETTINGS else opened
    return opened, store, size


def _new_files(folder: Path) -> tuple[FileIO, FileIO]:
    """Make this process's files, which come after all others by name: what was added later counts."""
    handle, name = tempfile.mkstemp(".data", f"{time.time_ns()}-", folder)
    return FileIO(handle, "wb"), FileIO(Path(name).with_suffix(".index"), "xb")


def _write(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _map(file: Path, offset: int, length: int) -> torch.Tensor:
    """Return a piece of a file, uint8, shape (length,); a ValueError if the file is too short."""
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with file.open("rb") as stream:
        # As a private copy, which the system makes of pages that are written to, so of none.
        mapped = mmap.mmap(stream.fileno(), offset + length - start, access=mmap.ACCESS_COPY, offset=start)
    return torch.frombuffer(mapped, dtype=torch.uint8)[offset - start :]


def _pack(features: Features) -> bytes:
    """Return an entry: length of the header, header, tensors, each part padded."""
    header: dict[str, Any] = {}
    pieces: list[bytes] = []
    for name, tensor in features.items():
        piece = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        start = sum(map(len, pieces))
        dtype = str(tensor.dtype).removeprefix("torch.")
        header[name] = (dtype, tuple(tensor.shape), start, start + len(piece))
        pieces.append(_padded(piece))
    text = json.dumps(header).encode()
    return b"".join((_padded(len(text).to_bytes(4, "little") + text), *pieces))


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % _ALIGNMENT)


def _unpack(entry: torch.Tensor) -> Features:
    """Return the tensors of an entry, as views of it."""
    length = 4 + int.from_bytes(entry[:4].numpy().tobytes(), "little")
    header = json.loads(entry[4:length].numpy().tobytes())
    tensors = entry[length + -length % _ALIGNMENT :]
    return {
        name: tensors[start:stop].view(getattr(torch, dtype)).reshape(shape)
        for name, (dtype, shape, start, stop) in header.items()
    }
