"""Look-up tables of DICOM: modality, VOI and palette."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from radloop.data.imaging.dicom import value
from radloop.data.imaging.limits import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

_COLOURS = ("Red", "Green", "Blue")
PALETTE_KEYWORDS = tuple(
    f"{prefix}{colour}PaletteColorLookupTable{part}"
    for colour in _COLOURS
    for prefix, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
)
_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2


@dataclass(frozen=True)
class Lut:
    """A table over consecutive values; beyond its ends the first and the last entry hold.

    Attributes:
        first: The value that the first entry belongs to.
        entries: Shape (n,), unsigned.
        top: The highest entry that its bits allow.

    Source: DICOM PS3.3 C.11.1.1 and C.11.2.1.1.
    """

    first: int
    entries: np.ndarray
    top: int

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return the entry of each value, as float64."""
        places = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        return self.entries[places.astype(np.intp)].astype(np.float64)


def read_lut(item: Dataset, header: Dataset) -> Lut:
    """Read an item of a modality or VOI LUT sequence.

    Raises:
        ImageError: It has no entries.
    """
    num_entries, first, bits = _descriptor(value(item, "LUTDescriptor"))
    entries = _unsigned(value(item, "LUTData"), num_entries, header)[:num_entries]
    if not len(entries):
        raise ImageError("has a look-up table without entries")
    # Some tables hold more than the bits they declare.
    return Lut(first, entries, (1 << max(bits, int(entries.max()).bit_length(), 1)) - 1)


def colours(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Look up the colours of a palette image.

    Args:
        stored: Integers of shape (rows, columns).
        header: With descriptor and plain or segmented data of the three tables.

    Returns:
        Shape (rows, columns, 3), uint8.

    Raises:
        ImageError: A table is missing or damaged.

    Source: DICOM PS3.3 C.7.6.3.1.5, C.7.6.3.1.6 and C.7.9.2.
    """
    planes = []
    for colour in _COLOURS:
        num_entries, first, bits = _descriptor(value(header, f"{colour}PaletteColorLookupTableDescriptor"))
        table = _palette(header, colour, num_entries, bits)
        # Some files declare 16 bits and hold 8.
        table = (table >> 8 if table.max() > 255 else table).astype(np.uint8)
        planes.append(table[np.clip(stored.astype(np.int64) - first, 0, len(table) - 1)])
    return np.stack(planes, axis=-1)


def _palette(header: Dataset, colour: str, num_entries: int, bits: int) -> np.ndarray:
    plain = value(header, f"{colour}PaletteColorLookupTableData")
    if plain is not None:
        table = _unsigned(plain, num_entries, header)[:num_entries]
    else:
        segments = value(header, f"Segmented{colour}PaletteColorLookupTableData") or b""
        words = np.frombuffer(segments, _order(header) + ("u1" if bits == 8 else "u2"))
        table = _expand(words.astype(words.dtype.newbyteorder("<")), num_entries)
    if not len(table):
        raise ImageError(f"has no {colour.lower()} palette")
    return table


def _descriptor(found: Any) -> tuple[int, int, int]:
    """Number of entries, first value and bits of an entry; 0 entries stand for 65,536."""
    if found is None or isinstance(found, str | bytes) or len(found) != 3:
        raise ImageError(f"has a look-up table with the descriptor {found}; it takes 3 numbers")
    num_entries, first, bits = (int(number) for number in found)
    return num_entries % 65536 or 65536, first, min(bits, 16)


def _order(header: Dataset) -> str:
    return "<" if header.original_encoding[1] is not False else ">"


def _unsigned(data: Any, num_entries: int, header: Dataset) -> np.ndarray:
    """Table data as the file has it: words, bytes, or numbers that pydicom has converted."""
    if isinstance(data, bytes):
        return np.frombuffer(data, _order(header) + ("u2" if len(data) >= 2 * num_entries else "u1"))
    return np.atleast_1d(np.array([] if data is None else data, dtype=np.int64)).astype(np.uint16)


def _expand(words: np.ndarray, num_entries: int) -> np.ndarray:
    """Write out discrete, linear and indirect segments.

    Each segment adds an entry or is refused, and no more than `num_entries` are made: a table of a
    few bytes must not describe billions.
    """
    parts = [np.zeros(1)]  # a linear segment starts from the entry before
    made, at, resume, left = 0, 0, -1, 0
    while made < num_entries and at + 2 < len(words):
        code, length = int(words[at]), int(words[at + 1])
        if length == 0 or code > _INDIRECT or (code == _INDIRECT and left):
            raise ImageError("has a damaged segmented palette")
        if code == _INDIRECT:
            pointer = words[at + 2 : at + 2 + 4 // words.itemsize]
            resume, left = at + 2 + len(pointer), length
            at = int.from_bytes(pointer.tobytes(), "little") // words.itemsize
            continue
        if code == _DISCRETE:
            parts.append(words[at + 2 : at + 2 + length].astype(np.float64))
            at += 2 + length
        else:
            parts.append(np.linspace(parts[-1][-1], float(words[at + 2]), length + 1)[1:])
            at += 3
        made += len(parts[-1])
        if left:
            left -= 1
            at = at if left else resume
    return np.rint(np.concatenate(parts)[1 : 1 + num_entries]).astype(np.uint16)
