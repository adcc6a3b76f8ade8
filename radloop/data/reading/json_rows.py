"""JSON arrays and JSON lines of any length, one row at a time."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

from radloop.data.reading.files import lines_of, open_text
from radloop.data.reading.text import clip, some
from radloop.errors import DataError

_CHUNK = 1 << 20  # characters
_LARGEST_ROW = 64 << 20  # characters: no row of text is longer; a missing bracket makes one that is
_PEEKED = 100  # rows that are looked at for the needed keys
_SPACE = " \t\r\n"


def read_json(path: Path, needed: Collection[str] = ()) -> Iterator[Any]:
    """Yield the rows of a JSON array; single rows may be anything.

    Args:
        path: UTF-8 with or without a byte order mark; may end in .gz.
        needed: Keys of which each must occur in one of the first 100 rows.

    Raises:
        DataError: Not readable, not UTF-8, not JSON, no array, empty, or without the needed keys.
    """
    rows = (row for _, row in _checked(path, read_json_parts(path)))
    return with_keys(path, rows, needed)


def read_json_parts(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (key, row) of a JSON object of arrays, such as {"train": [...], "test": [...]}.

    An array at the top has the key "". A value that is no array is yielded as it is.

    Raises:
        DataError: As `read_json`.
    """
    with open_text(path) as file:
        yield from _Reader(path, file).parts()


def read_json_lines(path: Path, needed: Collection[str] = ()) -> Iterator[Any]:
    """Yield the rows of a file with one JSON value a line; a line that is none is yielded as its text.

    Damaged characters become U+FFFD, which validation reports.

    Raises:
        DataError: Not readable, empty, a line of more than 64 Mi characters, or without the needed keys
            in its first 100 rows.
    """

    def rows() -> Iterator[Any]:
        with open_text(path, errors="replace") as file:
            for line in lines_of(path, file, _LARGEST_ROW):
                if line.strip():
                    try:
                        yield json.loads(line)
                    except (ValueError, RecursionError):
                        yield line.rstrip("\r\n")

    return with_keys(path, rows(), needed)


def _checked(path: Path, parts: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for key, row in parts:
        if key:
            raise DataError(
                f"{path}: holds one JSON object with the key {key!r}; needed is an array of objects, "
                "[{...}, {...}]"
            )
        yield key, row


def with_keys(path: Path, rows: Iterator[Any], needed: Collection[str]) -> Iterator[Any]:
    """Yield the rows, once it is clear that each needed key occurs in one of the first 100.

    Raises:
        DataError: No row, or none with a needed key.
    """
    first = []
    for row in rows:
        first.append(row)
        if len(first) == _PEEKED:
            break
    if not first:
        raise DataError(f"{path}: holds no row; there is nothing to learn from")
    found = {key for row in first if isinstance(row, dict) for key in row}
    if missing := [key for key in needed if key not in found]:
        raise DataError(
            f"{path}: no row has the keys {some(missing)}; found: {some(sorted(map(str, found))) or 'none'}; "
            f"needed: {some(needed)}. Is this another data set, or a converted copy?"
        )
    yield from first
    yield from rows


class _Reader:
    """Decodes one value after the other from a buffer that is filled as needed."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file = path, file
        self.text, self.at, self.done = "", 0, False
        self.passed = 0  # lines before the buffer
        self.decoder = json.JSONDecoder()

    def parts(self) -> Iterator[tuple[str, Any]]:
        start = self._peek()
        if start == "[":
            yield from (("", row) for row in self._array())
        elif start == "{":
            yield from self._object()
        else:
            value = self._value()
            raise DataError(
                f"{self.path}: holds a JSON {type(value).__name__}; needed is an array of objects"
            )
        if extra := self._peek():
            raise self._fault(f"{extra!r} after the end")

    def _array(self) -> Iterator[Any]:
        self.at += 1
        if self._peek() == "]":
            self.at += 1
            return
        while True:
            yield self._value()
            if self._next("a comma or ]", ",", "]") == "]":
                return

    def _object(self) -> Iterator[tuple[str, Any]]:
        self.at += 1
        if self._peek() == "}":
            self.at += 1
            return
        while True:
            key = self._value()
            if not isinstance(key, str):
                raise self._fault(f"{clip(key)} in place of a key")
            self._next("a colon", ":")
            if self._peek() == "[":
                yield from ((key, row) for row in self._array())
            else:
                yield key, self._value()
            if self._next("a comma or }", ",", "}") == "}":
                return

    def _value(self) -> Any:
        if not self._peek():
            raise self._fault("the file ends too early")
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                # A number at the end of the buffer may go on in the next chunk: 1.5, then e10.
                if self.done or self.text[end : end + 1] not in ("", ".", "e", "E"):
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                if self.done or len(self.text) - self.at > _LARGEST_ROW:
                    self.at = error.pos
                    raise self._fault(error.msg) from None
            except (RecursionError, ValueError) as error:  # nested too deep; thousands of digits
                raise DataError(f"{self.path}: is no usable JSON: {clip(str(error))}") from None
            self._fill()

    def _next(self, words: str, *allowed: str) -> str:
        found = self._peek()
        if found not in allowed:
            raise self._fault(f"{found!r} in place of {words}" if found else "the file ends too early")
        self.at += 1
        return found

    def _peek(self) -> str:
        """Return the next character that is no space, "" at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in _SPACE:
                    return self.text[self.at]
                self.at += 1
            if self.done:
                return ""
            self._fill()

    def _fill(self) -> None:
        # The more is held, the more is read: a long row is decoded a few times, not thousands.
        chunk = self.file.read(max(_CHUNK, len(self.text) - self.at))
        self.done = not chunk
        self.passed += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :] + chunk, 0

    def _fault(self, words: str) -> DataError:
        line = self.passed + self.text.count("\n", 0, self.at) + 1
        return DataError(f"{self.path}: is not JSON: {words} in line {line:,}; was it copied completely?")
