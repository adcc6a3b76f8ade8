"""Keyed pseudonyms: the same patient gets the same one, and nobody without the key can tell which.

A plain hash would not do: whoever has a list of all record numbers could hash them all and look
the patient up. With a key (HMAC) that takes the key as well.
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
import stat
import tempfile
import uuid
from pathlib import Path
from typing import NoReturn

from radloop import workspace
from radloop.errors import ConfigError

VARIABLE = "RADLOOP_PSEUDONYM_KEY"
KEY_FILE = "pseudonym.key"
MIN_KEY_LENGTH = 16  # characters or bytes
LENGTH = 16  # base32 characters, 80 bits: fits each DICOM string, and a million patients collide never


class Pseudonyms:
    """Makes pseudonyms from one key; the key shows in no representation and cannot be pickled.

    Args:
        key: At least 16 bytes, secret; see `load_key`.

    Raises:
        ConfigError: The key is too short.
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        _require_length(len(key), "the pseudonym key")
        self._key = key

    def of(self, kind: str, value: str) -> str:
        """The pseudonym of an identifier: 16 characters of A-Z and 2-7; that of "" is "".

        Args:
            kind: What is named, such as "patient" or "study". The same value as another kind gets
                another pseudonym.
            value: The identifier. Spaces around it do not count, as in DICOM.
        """
        value = value.strip()
        return base64.b32encode(self._digest(kind, value)).decode()[:LENGTH] if value else ""

    def uid(self, uid: str) -> str:
        """The DICOM UID that replaces another; that of "" is "".

        Returns:
            "2.25." and a UUID as a decimal number, at most 44 characters.

        Source: DICOM PS3.5, section B.2 (UUID derived UIDs).
        """
        uid = uid.strip(" \0")
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', uid)[:16], version=4).int}" if uid else ""

    def _digest(self, kind: str, value: str) -> bytes:
        # The length keeps ("a", "b:c") and ("a:b", "c") apart. An error of a stricter encoding would
        # print the value.
        message = f"{len(kind)}:{kind}:{value}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, message, "sha256")

    def __repr__(self) -> str:
        return "Pseudonyms(key hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("Pseudonyms hold a secret key and are not pickled; make them anew with load_key()")


def load_key() -> bytes:
    """The project's key: RADLOOP_PSEUDONYM_KEY, or else the key file, which the first call makes.

    Processes that call this at the same time get the same key.

    Raises:
        ConfigError: The key is too short, or other users may read its file, or the file cannot be
            read or made.
    """
    if (given := os.environ.get(VARIABLE)) is not None:
        _require_length(len(given), f"the environment variable {VARIABLE}")
        return given.encode("utf-8", "surrogateescape")
    file = workspace.home() / KEY_FILE
    try:
        if not file.exists():
            _make(file)
        return _read(file)
    except OSError as error:
        raise ConfigError(
            f"{file}: the key of the pseudonyms cannot be read or made ({error.strerror}); "
            f"mend that, or give the key in {VARIABLE}"
        ) from None


def _make(file: Path) -> None:
    """Put a new key in place, whole or not at all, unless another process was faster."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # O_EXCL, mode 0600
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_hex(32) + "\n")
            stream.flush()
            os.fsync(stream.fileno())  # a key that is lost in a power cut orphans all its pseudonyms
        os.link(draft, file)
    except FileExistsError:
        pass
    finally:
        os.unlink(draft)


def _read(file: Path) -> bytes:
    with file.open("rb") as stream:
        if os.name == "posix" and stat.S_IMODE(os.fstat(stream.fileno()).st_mode) & 0o077:
            raise ConfigError(
                f"{file}: other users may read the key of the pseudonyms; run: chmod 600 '{file}'"
            )
        key = stream.read().strip()
    _require_length(len(key), str(file))
    return key


def _require_length(length: int, place: str) -> None:
    if length < MIN_KEY_LENGTH:
        raise ConfigError(
            f"{place} has {length} characters; a key needs at least {MIN_KEY_LENGTH}, for example from: "
            "python -c 'import secrets; print(secrets.token_hex(32))'"
        )
