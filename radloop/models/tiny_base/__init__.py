"""The base model shipped with radloop: this folder holds its files, made by `python -m radloop.models.tiny`.

A stock LLaVA of 3 M parameters that can describe phantoms and answers nothing else well. It is
there so that the whole loop runs in minutes on a CPU; it knows nothing of real radiographs.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from radloop.errors import ModelError

RECORD = "SHA256"  # lines of "hash  name", as sha256sum writes and checks them
_HERE = Path(__file__).parent
_REMEDY = "install radloop again, or rebuild the base with `make tiny-base`"


@cache
def tiny_base_folder() -> Path:
    """Return the folder of the tiny base, once its files are what their hashes say.

    Raises:
        ModelError: A file is missing, another one than was built, or not one of the base's.
    """
    return verified(_HERE)


def verified(folder: Path) -> Path:
    """Return `folder` if its files, this module aside, are exactly those of its `SHA256` record.

    A file too many counts as a fault, because stock loading may act on it (an adapter, say).

    Raises:
        ModelError: See `tiny_base_folder`.
    """
    try:
        lines = (folder / RECORD).read_text().splitlines()
    except OSError as error:
        raise ModelError(
            f"tiny base: {folder / RECORD} cannot be read ({error.strerror}); {_REMEDY}"
        ) from None
    expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines if "  " in line)}
    if not expected:
        raise ModelError(f"tiny base: {folder / RECORD} lists no file; {_REMEDY}")
    found = hashes(folder)
    faults = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    faults += [f"{name} is not part of it" for name in sorted(found.keys() - expected.keys())]
    faults += [
        f"{name} has another hash"
        for name in sorted(expected)
        if found.get(name, expected[name]) != expected[name]
    ]
    if faults:
        raise ModelError(f"tiny base in {folder}: {'; '.join(faults)}; {_REMEDY}")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """File name to SHA-256, for the files of a base; Python's own and the record aside."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != RECORD and file.suffix not in (".py", ".pyc")
    }
