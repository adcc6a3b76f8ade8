"""De-identification on the way into the corpus: no identifier of a patient goes past ingest."""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Self

from PIL import Image

from radloop.data.imaging import PICTURE_FORMATS, dicom_tags, is_dicom, to_png, to_rgb
from radloop.data.privacy import Pseudonyms, clean_dicom, load_key, scrub
from radloop.errors import DataError

UNCLEAN = "cannot be read, and so not be cleaned of identifiers"
_TEXTS = ("question", "context")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".dcm"}
_HARMLESS = {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "gamma", "transparency", "adobe",
             "adobe_transform", "progressive", "progression", "compression", "interlace", "icc_profile",
             "srgb", "background", "loop", "duration", "timestamp", "aspect", "chromaticity"}  # fmt: skip


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
        cleaned = dict(sample)
        known = {sample[kind]: names.of(kind, sample[kind]) for kind in ("patient", "study") if sample[kind]}
        for column in _TEXTS:
            cleaned[column] = _scrubbed(sample[column], known, removed)
        cleaned["answers"] = [_scrubbed(answer, known, removed) for answer in sample["answers"]]
        cleaned["notes"] = [note.partition(":")[0] + ": was mended" for note in sample["notes"]]
        for column, kind in (("patient", "patient"), ("study", "study"), ("id", "sample")):
            cleaned[column] = names.of(kind, sample[column])
            removed[f"{kind} id"] += bool(sample[column])
        return cleaned

    def clean_file(self, file: str) -> str:
        """Return the name of a file that stands for one study, without what it may say about whom."""
        return self._named("file", file)

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
        if data is None:
            return None, cleaned
        try:
            if is_dicom(data):
                data, counts = clean_dicom(data, names)
                removed.update({f"DICOM {keyword}": count for keyword, count in counts.items()})
                return _chosen_frame(data, cleaned)
            return _without_metadata(data, removed), cleaned
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


def _scrubbed(text: str, known: dict[str, str], removed: Counter[str]) -> str:
    """Replace the sample's own patient and study, as questions on health records name them, and the rest."""
    for number, pseudonym in known.items():
        text, count = re.subn(rf"(?<!\w){re.escape(number)}(?!\w)", pseudonym, text)
        removed["text: patient or study"] += count
    clean, counts = scrub(text)
    removed.update({f"text: {kind}": count for kind, count in counts.items()})
    return clean


def _chosen_frame(data: bytes, columns: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Of a file with several frames keep the chosen one, lest each of its rows holds them all."""
    if dicom_tags(data).num_frames in ("", "0", "1"):
        return data, columns
    picture = to_rgb(data, frame=columns["frame"], window=columns["window"])
    return to_png(picture), columns | {"frame": 0, "window": ""}


def _without_metadata(data: bytes, removed: Counter[str]) -> bytes:
    """Return the file as it is if it holds pixels only; else its pixels alone, losslessly."""
    with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as image:
        beside = set(image.info) - _HARMLESS
        if not beside and not image.getexif() and not getattr(image, "tag_v2", None):
            return data
    removed["image metadata"] += 1
    return to_png(to_rgb(data))


@lru_cache(maxsize=1)
def _load() -> Pseudonyms:
    return Pseudonyms(load_key())


def _fingerprint(names: Pseudonyms) -> str:
    return names.of("key", "fingerprint")
