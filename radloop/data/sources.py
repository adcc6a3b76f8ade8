"""What adapters share: reading files of uncertain quality without losing track of what was mended."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from radloop.errors import DataError

_MISSING = {"", "null", "nan"}
_CLOSED = {"yes", "no"}


def read_json_rows(path: Path, needed: Collection[str]) -> list[Any]:
    """Read a JSON array of objects; single rows may still be anything.

    Args:
        path: The file, UTF-8 with or without a byte order mark.
        needed: Keys of which each must occur in at least one row.

    Raises:
        DataError: Not readable, not UTF-8, not JSON, no array, empty, or without the needed keys.
    """
    rows = _parse(path)
    if isinstance(rows, dict):
        raise DataError(
            f"{path}: holds one JSON object with the keys {_some(rows)}; needed is an array of objects, "
            f"[{{...}}, {{...}}], with the keys {_some(needed)}"
        )
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds a JSON {type(rows).__name__}; needed is an array of objects")
    if not rows:
        raise DataError(f"{path}: holds an empty array; there is nothing to learn from")
    found = {key for row in rows if isinstance(row, dict) for key in row}
    if missing := [key for key in needed if key not in found]:
        raise DataError(
            f"{path}: no row has the keys {_some(missing)}; found: {_some(sorted(found)) or 'none'}; "
            f"needed: {_some(needed)}. Is this another data set, or a converted copy?"
        )
    return rows


def clean_text(value: Any, column: str, notes: list[str]) -> str:
    """Return the text of a field, "" for a missing one; what had to be mended goes to `notes`.

    Numbers become text; white space is tidied; "NULL" and NaN count as missing; booleans, lists and
    objects are no text and count as missing.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        notes.append(f"{column}: {'null' if value is None else value} counts as missing")
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        notes.append(f"{column}: {type(value).__name__} {_clip(value)} is no text, counts as missing")
        return ""
    if not isinstance(value, str):
        notes.append(f"{column}: {type(value).__name__} {value} kept as '{value}'")
        return str(value)
    whole = value.encode("utf-8", "replace").decode()
    if whole != value:
        notes.append(f"{column}: half of a surrogate pair replaced by '?'")
    text = re.sub(r"[\s\x00-\x1f\x7f]+", " ", whole).strip()
    if text.lower() in _MISSING:
        notes.append(f"{column}: {_clip(value)} counts as missing")
        return ""
    if text != whole:
        notes.append(f"{column}: white space tidied")
    return text


def answer_type_of(answer: str) -> str:
    """Infer "closed" for yes and no, "open" for all else, as VQA data sets without the field need."""
    return "closed" if answer.strip(" .").lower() in _CLOSED else "open"


class ImageTable:
    """Collects the image rows of a corpus: each content once, whatever its names."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._id_of_path: dict[Path, str] = {}
        self._known: set[str] = set()

    def add_file(self, root: Path, name: str, notes: list[str], **columns: str) -> str:
        """Add the file `name` below `root` and return its image id.

        Names come from data: absolute ones, ones with ".." and links that lead out of `root` are
        not followed. Such an image, like one that is not there, gets the id "missing:NAME".
        """
        path = _inside(root, name, notes)
        if path is None:
            return self._add(f"missing:{name}", name=name, **columns)
        if path not in self._id_of_path:
            try:
                with path.open("rb") as file:
                    self._id_of_path[path] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                notes.append(f"image: {_clip(name)} cannot be read ({error.strerror})")
                return self._add(f"missing:{name}", name=name, **columns)
        return self._add(self._id_of_path[path], name=name, uri=str(path), **columns)

    def add_bytes(self, data: bytes | None, name: str, **columns: str) -> str:
        """Add an encoded file and return its image id; None stands for a missing one."""
        if data is None:
            return self._add(f"missing:{name}", name=name, **columns)
        return self._add(hashlib.sha256(data).hexdigest(), name=name, bytes=data, **columns)

    def _add(self, image_id: str, **columns: Any) -> str:
        if image_id not in self._known:
            self._known.add(image_id)
            self.rows.append({"id": image_id, **columns})
        return image_id


def _inside(root: Path, name: str, notes: list[str]) -> Path | None:
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root.resolve()):
            notes.append(f"image: {_clip(name)} leads out of '{root.name}', not followed")
            return None
        return path if name and path.is_file() else None
    except (OSError, ValueError, RuntimeError) as error:  # name too long, null byte, loop of links
        notes.append(f"image: {_clip(name)} is no file name ({error.__class__.__name__})")
        return None


def _parse(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not content.strip():
        raise DataError(f"{path}: is empty; copy it again from its source")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 (byte {content[error.start]:#04x} at offset {error.start:,}); "
            "save it as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: is not JSON: {error.msg} in line {error.lineno}, column {error.colno}; "
            "was it copied completely?"
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deep; an integer of thousands of digits
        raise DataError(f"{path}: is no usable JSON: {_clip(str(error))}") from None


def _clip(value: Any, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def _some(names: Collection[str], most: int = 20) -> str:
    listed = ", ".join(list(map(str, names))[:most])
    return listed + (f" and {len(names) - most} more" if len(names) > most else "")
