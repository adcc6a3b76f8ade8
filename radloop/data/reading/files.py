"""Opening files, packed or not, with messages for people, and never more than was asked for."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO

from radloop.errors import DataError

_CHUNK = 1 << 20  # bytes


@contextmanager
def open_text(path: Path, errors: str = "strict") -> Iterator[TextIO]:
    """Open a UTF-8 file, with or without a byte order mark; a name that ends in .gz is unpacked.

    Args:
        path: The file.
        errors: "strict", or "replace" where rows with damaged characters are to be reported one by one.

    Raises:
        DataError: Also while the file is read: not readable, empty, not UTF-8, a damaged archive, a pipe.
    """
    refuse_pipe(path)
    try:
        if path.stat().st_size == 0 and path.is_file():
            raise DataError(f"{path}: is empty; copy it again from its source")
        with (
            _open_bytes(path) as raw,
            io.TextIOWrapper(raw, "utf-8-sig", errors=errors, newline="") as text,
        ):
            yield text
    except UnicodeDecodeError as error:
        found = error.object[error.start]
        raise DataError(
            f"{path}: is not UTF-8 (byte {found:#04x} in line {_line_that_is_not_utf8(path):,}); "
            "save it as UTF-8"
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: is a damaged archive ({error}); copy it again from its source") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def lines_of(path: Path, file: TextIO, largest: int) -> Iterator[str]:
    """Yield the lines with their ends, none of more than `largest` characters.

    Raises:
        DataError: A longer line; without a limit, it or a packed one would fill the memory.
    """
    number = 0
    while line := file.readline(largest + 1):
        number += 1
        if len(line) > largest:
            raise DataError(
                f"{path}: line {number:,} has more than {largest:,} characters; "
                "is it another kind of file, or are its line ends missing?"
            )
        yield line


def refuse_pipe(path: Path) -> None:
    """Raise DataError for a pipe, a socket or a device: opening one may wait forever."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # what opens it says what is wrong
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise DataError(f"{path}: is a pipe, a socket or a device; name a file")


def find_inside(root: Path, name: str) -> tuple[Path | None, str]:
    """Return where the file `name` below `root` really is, or None and the reason why it is not read.

    Neither "..", nor an absolute name, nor a link is followed out of `root`.
    """
    try:
        place = Path(os.path.realpath(root / name))
        if not place.is_relative_to(os.path.realpath(root)):
            return None, f"leads out of '{root.name}', not followed"
        if not stat.S_ISREG(place.stat().st_mode):
            return None, "is no file"
    except FileNotFoundError:
        return None, "is missing"
    except (OSError, ValueError) as error:  # name too long, null byte, loop of links
        return None, _reason(error)
    return place, ""


def read_inside(root: Path, name: str, limit: int) -> tuple[bytes, str]:
    """Return the content of the file `name` below `root`, or b"" and the reason why it is not read.

    Args:
        root: Folder that is not left, as in `find_inside`.
        name: Relative path; any text.
        limit: Bytes; a larger file is not read.
    """
    place, reason = find_inside(root, name)
    if place is None:
        return b"", reason
    try:
        with place.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        return b"", _reason(error)
    return (data, "") if len(data) <= limit else (b"", f"has more than {limit:,} bytes")


def _reason(error: OSError | ValueError) -> str:
    return f"cannot be read ({getattr(error, 'strerror', None) or error})"


def _open_bytes(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _line_that_is_not_utf8(path: Path) -> int:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line = 1
    with _open_bytes(path) as file:
        while chunk := file.read(_CHUNK):
            try:
                line += decoder.decode(chunk).count("\n")
            except UnicodeDecodeError as error:
                return line + error.object[: error.start].count(b"\n")
    return line
