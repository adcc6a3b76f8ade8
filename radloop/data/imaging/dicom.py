"""DICOM files: how one is recognised, read within limits, and what its header says."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from radloop.data.imaging.limits import MAX_BYTES, ImageError, reason

if TYPE_CHECKING:
    from pydicom import Dataset

_PREAMBLE = 128
_FIRST_GROUPS = (0x0002, 0x0008)
_FIRST_VRS = (b"UL", b"OB", b"UI", b"CS", b"DA", b"TM", b"SH", b"LO", b"AE")
_MAX_FIRST_ELEMENT, _MAX_FIRST_LENGTH = 0x0100, 1024
_IGNORED = ("ignore", None, Warning, re.compile("pydicom"), 0)
_DEFLATED = "1.2.840.10008.1.2.1.99"


@dataclass(frozen=True)
class DicomTags:
    """What the header says of patient, study and view; "" for what it does not say.

    Several values of one element are joined by a backslash, as in the file.
    """

    patient_id: str = ""
    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    modality: str = ""
    body_part: str = ""
    view: str = ""
    study_date: str = ""
    study_time: str = ""
    burned_in: str = ""
    num_frames: str = ""


_KEYWORDS = {
    "patient_id": "PatientID",
    "study_uid": "StudyInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "sop_uid": "SOPInstanceUID",
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "view": "ViewPosition",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "burned_in": "BurnedInAnnotation",
    "num_frames": "NumberOfFrames",
}


def dicom_tags(source: bytes | str | Path) -> DicomTags:
    """Read the header, and nothing of the pixels.

    Args:
        source: A DICOM file or its path.

    Raises:
        ImageError: It is no DICOM file, or its header cannot be read.
        OSError: There is no such file.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as stream:
        if not is_dicom(stream.read(_PREAMBLE + 4)):
            raise ImageError("is no DICOM file")
        try:
            header = read_header(stream, tuple(_KEYWORDS.values()), MAX_BYTES, pixels=False)
        except ImageError:
            raise
        except Exception as error:  # pydicom raises anything on hostile bytes
            raise ImageError(f"its DICOM header cannot be read: {reason(error)}") from None
        return DicomTags(**{name: text(header, keyword) for name, keyword in _KEYWORDS.items()})


def is_dicom(start: bytes) -> bool:
    """Tell by the first 132 bytes: the mark after the preamble, or a plausible first element."""
    if start[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
        return True
    return len(start) >= 8 and any(_is_element(start, order) for order in "<>")


def _is_element(start: bytes, order: str) -> bool:
    group, element = struct.unpack_from(f"{order}HH", start)
    if group not in _FIRST_GROUPS or element > _MAX_FIRST_ELEMENT:
        return False
    if start[4:6] in _FIRST_VRS:
        return True
    (length,) = struct.unpack_from("<L", start, 4)  # an implicit VR: little endian only, and of even length
    return bool(order == "<" and length <= _MAX_FIRST_LENGTH and length % 2 == 0)


def read_header(
    stream: BinaryIO, keywords: tuple[str, ...], max_bytes: int, *, pixels: bool = True
) -> Dataset:
    """Parse the elements of those keywords; `file_meta` has the transfer syntax if the file names one.

    Raises:
        ImageError: A deflated file inflates to more than `max_bytes`.
        Exception: Anything else that pydicom raises on damaged bytes.
    """
    from pydicom import dcmread
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import _at_pixel_data, read_dataset
    from pydicom.tag import Tag

    _quieten()
    stream.seek(0)
    stream.seek(_PREAMBLE + 4 if stream.read(_PREAMBLE + 4).endswith(b"DICM") else 0)
    # pydicom would inflate without a limit, so the file's meta information is looked at first.
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if text(meta, "TransferSyntaxUID") != _DEFLATED:
        stream.seek(0)
        return dcmread(stream, force=True, stop_before_pixels=not pixels, specific_tags=[*keywords])
    inflated = io.BytesIO(_inflate(stream.read(max_bytes + 1), max_bytes))
    header = read_dataset(
        inflated,
        False,
        True,
        stop_when=None if pixels else _at_pixel_data,
        specific_tags=[Tag(keyword) for keyword in keywords],
    )
    header.file_meta = FileMetaDataset(meta)
    return header


def _inflate(data: bytes, max_bytes: int) -> bytes:
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, max_bytes + 1)
    if len(inflated) > max_bytes:
        raise ImageError(f"inflates to more than {max_bytes:,} bytes")
    return inflated


def _quieten() -> None:
    """What pydicom finds odd is said by `ImageError` or does not matter; the console is the user's."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    if _IGNORED not in warnings.filters:  # others may have put the filters back since
        warnings.filterwarnings("ignore", module="pydicom")


def value(header: Dataset, keyword: str) -> Any:
    """Return an element's value, or None if it is absent, empty or not of its type."""
    try:
        found = header.get(keyword)
    except Exception:  # pydicom converts values when they are asked for, and raises anything then
        return None
    return None if found == "" else found


def numbers(header: Dataset, keyword: str) -> list[float]:
    """Return those of an element's values that are finite numbers."""
    found = []
    for part in text(header, keyword).split("\\"):
        with contextlib.suppress(ValueError):
            found.append(float(part))
    return [number for number in found if math.isfinite(number)]


def number(header: Dataset, keyword: str) -> float | None:
    """Return the first of them, if there is one."""
    return next(iter(numbers(header, keyword)), None)


def text(header: Dataset, keyword: str) -> str:
    """Return an element's value as a string without padding; "" as `value` gives None."""
    found = value(header, keyword)
    if found is None:
        return ""
    parts = [found] if isinstance(found, str | bytes) or not hasattr(found, "__iter__") else found
    return "\\".join(str(part).strip(" \0") for part in parts)
