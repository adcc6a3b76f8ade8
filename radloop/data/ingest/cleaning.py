"""De-identification on the way into the corpus: no identifier of a patient goes past ingest."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Self

from PIL import Image

from radloop.data.adapters import REGISTRY
from radloop.data.imaging import dicom_tags, is_dicom, to_png, to_rgb
from radloop.data.privacy import (
    MARK,
    KnownIds,
    Pseudonyms,
    clean_dicom,
    is_code,
    is_compressed,
    load_key,
    scrub,
)
from radloop.data.source import ROW
from radloop.errors import DataError

UNCLEAN = "cannot be read, and so not be cleaned of identifiers"
UNREAD = "cannot be read; an ingest without data.deidentify says why"  # with the file's name
_TEXTS = ("question", "context", "question_type")
_LISTS = ("answers", "labels")
_CODES = ("modality", "body_part", "view")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z]{2})?", re.IGNORECASE)
_ALLOWED = {
    "dataset": {*REGISTRY, ""},
    "split": {"train", "validation", "test", ""},
    "task": {"vqa", "report", "caption", "ehr", ""},
    "answer_type": {"open", "closed", ""},
}
_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".dcm",
             ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".xlsx", ".xml"}  # fmt: skip


@dataclass(frozen=True)
class Cleaner:
    """Takes identifiers out of samples and images. Holds no key: each process loads its own.

    Attributes:
        fingerprint: Tells one key from another, and nothing about it.
    """

    fingerprint: str

    @classmethod
    def load(cls) -> Self:
        """Return the cleaner of this project's key.

        Raises:
            ConfigError: There is no usable key.
        """
        return cls(_fingerprint(Pseudonyms(load_key())))

    def clean_sample(self, sample: dict[str, Any], removed: Counter[str]) -> dict[str, Any]:
        """Return the sample with pseudonyms, and texts without identifiers; count what went."""
        names = self._pseudonyms()
        kinds = [kind for kind in ("patient", "study") if sample[kind]]
        known = KnownIds([(kind, sample[kind], names.of(kind, sample[kind])) for kind in kinds])
        cleaned = _with_allowed_values(sample, removed)
        for column in _TEXTS:
            cleaned[column] = _scrubbed(sample[column], known, removed)
        for column in _LISTS:
            cleaned[column] = [_scrubbed(text, known, removed) for text in sample[column]]
        cleaned["notes"] = [_mended(note) for note in sample["notes"]]
        for column, kind in (("patient", "patient"), ("study", "study"), ("id", "sample")):
            cleaned[column] = names.of(kind, sample[column])
            removed[f"{kind} id"] += bool(sample[column])
        if ROW in sample["id"]:  # without which all rows of a table would be the same sample
            cleaned["id"] += f"-{ROW}"
        return cleaned

    def clean_file(self, name: str) -> str:
        """Return what stands for a file's name in the corpus and in reports; always the same.

        The name may say whom the file is about, also that of a table.
        """
        return self._named("file", name)

    def clean_image(
        self, data: bytes | None, columns: dict[str, Any], removed: Counter[str]
    ) -> tuple[bytes | None, dict[str, Any]]:
        """Return the encoded image without metadata, and its columns with pseudonyms."""
        names = self._pseudonyms()
        cleaned = columns | {
            "name": self._named("file", columns["name"]),
            "patient": names.of("patient", columns["patient"]),
            "study": names.of("study", columns["study"]),
        }
        for column in _CODES:
            if not is_code(columns[column]):
                cleaned[column] = MARK
                removed[f"{column}: not a known word"] += 1
        if data is None:
            return None, cleaned
        try:
            if is_dicom(data):
                data, counts = clean_dicom(data, names)
                removed.update({f"DICOM {keyword}": count for keyword, count in counts.items()})
                if not _holds_more(data):
                    return data, cleaned
            else:
                removed["metadata of a picture"] += 1
            return _pixels_alone(data, cleaned)
        except Exception:  # decoders raise anything; what cannot be read cannot be cleaned
            return None, cleaned | {"error": UNCLEAN}

    def _pseudonyms(self) -> Pseudonyms:
        names = _load()
        if _fingerprint(names) != self.fingerprint:  # of an earlier ingest of this process, maybe
            _load.cache_clear()
            names = _load()
        if _fingerprint(names) != self.fingerprint:
            raise DataError(
                "a worker has another pseudonym key than the process that started it; set "
                "RADLOOP_PSEUDONYM_KEY to the same value on all machines"
            )
        return names

    def _named(self, kind: str, name: str) -> str:
        suffix = PurePosixPath(name).suffix.lower()  # files may be named by a UID, or by a person
        return self._pseudonyms().of(kind, name) + (suffix if suffix in _SUFFIXES else "")


def _with_allowed_values(sample: dict[str, Any], removed: Counter[str]) -> dict[str, Any]:
    """Replace what a column of few values cannot hold.

    Not by nothing: a sample whose split is unknown would pass validation as one without a split.
    """
    cleaned = dict(sample)
    for column, allowed in _ALLOWED.items():
        if sample[column] not in allowed:
            cleaned[column] = MARK
            removed[f"{column}: not a known word"] += 1
    if sample["language"] and not _LANGUAGE.fullmatch(sample["language"]):
        cleaned["language"] = MARK
        removed["language: not a known word"] += 1
    return cleaned


def _mended(note: str) -> str:
    """Keep the column's name of a note; what follows quotes the value."""
    column, colon, _ = note.partition(":")
    return f"{column if colon and column.isidentifier() else 'value'}: was mended"


def _scrubbed(text: str, known: KnownIds, removed: Counter[str]) -> str:
    clean, counts = scrub(known.replace(text, removed))
    removed.update({f"text: {kind}": count for kind, count in counts.items()})
    return clean


def _holds_more(data: bytes) -> bool:
    """Whether a cleaned DICOM file still holds more than the chosen frame's pixels.

    Compressed frames have headers and comments of their own; and a file with several frames would go
    on with each of its rows.
    """
    return is_compressed(data) or dicom_tags(data).num_frames not in ("", "0", "1")


def _pixels_alone(data: bytes, columns: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Encode what is seen anew, losslessly: metadata hide in too many places to be looked for.

    The pixels are the 8-bit ones that `to_rgb` gives of the original, so hashes stay the same.
    """
    logging.getLogger("PIL").setLevel(logging.INFO)  # below that it quotes metadata
    picture = to_rgb(data, frame=columns["frame"], window=columns["window"])
    red, green, blue = (band.tobytes() for band in picture.split())
    bare = Image.frombytes("L", picture.size, red) if red == green == blue else picture
    bare.info.clear()
    return to_png(bare), columns | {"frame": 0, "window": ""}


@lru_cache(maxsize=1)
def _load() -> Pseudonyms:
    return Pseudonyms(load_key())


def _fingerprint(names: Pseudonyms) -> str:
    return names.of("key", "fingerprint")
