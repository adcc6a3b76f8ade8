"""Opening text files, packed or not, with messages for people."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from radloop.errors import DataError


@contextmanager
def open_text(path: Path, errors: str = "strict") -> Iterator[TextIO]:
    """Open a UTF-8 file, with or without a byte order mark; a name that ends in .gz is unpacked.

    Args:
        path: The file.
        errors: "strict", or "replace" where rows with damaged characters are to be reported one by one.

    Raises:
        DataError: Also while the file is read: not readable, empty, not UTF-8, a damaged archive.
    """
    try:
        if path.stat().st_size == 0 and path.is_file():
            raise DataError(f"{path}: is empty; copy it again from its source")
        packed = path.suffix == ".gz"
        with (
            gzip.open(path, "rb") if packed else path.open("rb") as raw,
            io.TextIOWrapper(raw, "utf-8-sig", errors=errors, newline="") as text,  # type: ignore[arg-type]
        ):
            yield text
    except UnicodeDecodeError as error:
        found = error.object[error.start]
        raise DataError(f"{path}: is not UTF-8 (byte {found:#04x}); save it as UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: is a damaged archive ({error}); copy it again from its source") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
