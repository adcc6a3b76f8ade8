"""The stored values of one DICOM frame, whatever its transfer syntax."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from radloop.data.imaging.codec import decode_apart
from radloop.data.imaging.dicom import number, text, value
from radloop.data.imaging.limits import ImageError, Request

if TYPE_CHECKING:
    from pydicom import Dataset

_FLOATS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
_DATA = ("PixelData", *_FLOATS)
KEYWORDS = (
    *("SOPClassUID", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PlanarConfiguration", "PixelRepresentation", "BitsAllocated", "BitsStored", "HighBit"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", *_DATA),
)
_NATIVE = ("1.2.840.10008.1.2", *(f"1.2.840.10008.1.2.{part}" for part in ("1", "1.99", "2")))
_ENCAPSULATED = tuple(
    f"1.2.840.10008.1.2.{part}"
    for part in ("4.50", "4.51", "4.57", "4.70", "4.80", "4.81", "4.90", "4.91", "5")
)
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_MAX_NAME = 100  # in messages; damaged files hold longer ones
_JPEG_8_BIT = "1.2.840.10008.1.2.4.50"
_JPEG_12_BIT = "1.2.840.10008.1.2.4.51"
_JPEG_LOSSLESS = "1.2.840.10008.1.2.4.57"


@dataclass(frozen=True)
class Layout:
    """How the pixels lie in the file; see DICOM PS3.3 C.7.6.3. All are known to be usable."""

    keyword: str
    rows: int
    columns: int
    frames: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: int
    planar: int
    photometric: str

    @property
    def mode(self) -> str:
        """Pillow's nearest mode."""
        if self.photometric == "PALETTE COLOR":
            return "P"
        if self.samples > 1:
            return "RGB"
        if self.keyword in _FLOATS:
            return "F"
        return {1: "1", 8: "L", 16: "I;16"}.get(self.bits_allocated, "I")

    def options(self, frames: int) -> dict[str, Any]:
        """The layout of `frames` frames in pydicom's words."""
        return {
            "rows": self.rows,
            "columns": self.columns,
            "number_of_frames": frames,
            "samples_per_pixel": self.samples,
            "bits_allocated": self.bits_allocated,
            "bits_stored": self.bits_stored,
            "pixel_representation": self.signed,
            "planar_configuration": self.planar,
            "photometric_interpretation": self.photometric,
            "pixel_keyword": self.keyword,
        }


def read_layout(header: Dataset, request: Request) -> Layout:
    """Read the layout and hold it against the limits, before anything is decoded.

    Raises:
        ImageError: There are no pixels, too many, an impossible layout, or not that frame.
    """
    keyword = next((name for name in _DATA if name in header), None)
    if keyword is None:
        raise ImageError(_without_pixels(header))
    allocated = _FLOATS.get(keyword) or _count(header, "BitsAllocated")
    stored = allocated if keyword in _FLOATS else min(_count(header, "BitsStored", allocated), allocated)
    high_bit = number(header, "HighBit")
    layout = Layout(
        keyword=keyword,
        rows=_count(header, "Rows"),
        columns=_count(header, "Columns"),
        frames=_count(header, "NumberOfFrames", 1),
        samples=_count(header, "SamplesPerPixel", 1),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=int(high_bit) if high_bit is not None and stored <= high_bit < allocated else stored - 1,
        signed=int(number(header, "PixelRepresentation") == 1),
        planar=int(number(header, "PlanarConfiguration") == 1),
        photometric=text(header, "PhotometricInterpretation")[:_MAX_NAME].upper() or "MONOCHROME2",
    )
    request.check_size(layout.columns, layout.rows)
    request.check_frame(layout.frames)
    frame_bytes = layout.rows * layout.columns * layout.samples * allocated // 8
    if frame_bytes > request.max_bytes:
        raise ImageError(f"has {frame_bytes:,} bytes a frame: more than {request.max_bytes:,}")
    if layout.samples not in (1, 3):
        raise ImageError(f"has {layout.samples} samples per pixel; known: 1, 3")
    if allocated != 1 and (allocated % 8 or allocated > 64):
        raise ImageError(f"has {allocated} bits allocated; known: 1, 8, 16, 32, 64")
    return layout


def decode(header: Dataset, layout: Layout, frame: int) -> tuple[np.ndarray, str]:
    """Decode one frame.

    Returns:
        Stored values of shape (rows, columns) or (rows, columns, 3), sign and unused bits put right,
        and their photometric interpretation: YBR is RGB by now.

    Raises:
        ImageError: The transfer syntax is unknown, or the data is cut off or damaged.
        Exception: Anything else that pydicom or Pillow raise on damaged bytes.
    """
    from pydicom.encaps import get_frame, parse_fragments

    syntax = _transfer_syntax(header)
    data = value(header, layout.keyword)
    if not isinstance(data, bytes):
        raise ImageError("has empty or damaged pixel data")
    if not syntax.is_encapsulated:
        return _native(data, syntax, layout, frame, str(header[layout.keyword].VR))
    fragments, _ = parse_fragments(data)
    if fragments < layout.frames:
        raise ImageError(f"says that it has {layout.frames} frames, but holds {fragments} encoded fragments")
    tables = (value(header, "ExtendedOffsetTable"), value(header, "ExtendedOffsetTableLengths"))
    offsets = (tables[0], tables[1]) if all(isinstance(table, bytes) for table in tables) else None
    encoded = get_frame(data, frame, number_of_frames=layout.frames, extended_offsets=offsets)
    return _encoded(encoded, syntax, layout)


def _native(data: bytes, syntax: Any, layout: Layout, frame: int, vr: str) -> tuple[np.ndarray, str]:
    from pydicom.pixels.decoders.base import get_decoder

    samples = 2 if layout.photometric == "YBR_FULL_422" else layout.samples
    needed = math.ceil(layout.rows * layout.columns * samples * layout.frames * layout.bits_allocated / 8)
    if len(data) < needed:
        raise ImageError(f"is truncated: it holds {len(data):,} of {needed:,} bytes of pixel data")
    options = layout.options(layout.frames) | {"pixel_vr": vr, "correct_unused_bits": False}
    stored, facts = get_decoder(syntax).as_array(data, index=frame, **options)
    if layout.bits_allocated > layout.bits_stored and layout.keyword not in _FLOATS:
        # Up to the top and down again: overlays and other strays fall out, and the sign spreads.
        stored = stored << (layout.bits_allocated - 1 - layout.high_bit)
        stored = stored >> (layout.bits_allocated - layout.bits_stored)
    return stored, str(facts["photometric_interpretation"])


def _encoded(encoded: bytes, syntax: str, layout: Layout) -> tuple[np.ndarray, str]:
    options = layout.options(1)
    eight_bits = syntax == _JPEG_8_BIT or (syntax == _JPEG_12_BIT and layout.bits_stored == 8)
    if eight_bits or syntax in _JPEG_2000:
        from pydicom.encaps import encapsulate
        from pydicom.pixels.decoders.base import get_decoder

        _check_codestream(encoded, layout)
        try:
            stored, facts = get_decoder(syntax).as_array(
                encapsulate([encoded], has_bot=False), index=0, decoding_plugin="pillow", **options
            )
            return stored, str(facts["photometric_interpretation"])
        except RuntimeError:
            if eight_bits:
                raise
    # GDCM reads 12 bits as well, if it is not told that JPEG Extended holds them.
    return decode_apart(encoded, _JPEG_LOSSLESS if syntax == _JPEG_12_BIT else syntax, options)


def _check_codestream(encoded: bytes, layout: Layout) -> None:
    """Refuse a small header around a huge image."""
    width, height = Image.open(io.BytesIO(encoded), formats=("JPEG", "JPEG2000")).size
    if (width, height) != (layout.columns, layout.rows):
        raise ImageError(
            f"is {layout.columns} x {layout.rows} by its header, but its encoded data is {width} x {height}"
        )


def _transfer_syntax(header: Dataset) -> Any:
    from pydicom import uid

    stated = text(_meta(header), "TransferSyntaxUID")
    if not stated:
        implicit, little = header.original_encoding
        if header["PixelData"].is_undefined_length:
            raise ImageError("has encoded pixel data and names no transfer syntax")
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        return uid.ImplicitVRLittleEndian if implicit else explicit
    syntax = uid.UID(stated)
    if stated not in (*_NATIVE, *_ENCAPSULATED):
        raise ImageError(f"has the transfer syntax {syntax.name[:_MAX_NAME]!r}, which cannot be decoded")
    return syntax


def _meta(header: Dataset) -> Dataset:
    from pydicom import Dataset

    return getattr(header, "file_meta", Dataset())


def _count(header: Dataset, keyword: str, default: int | None = None) -> int:
    found = number(header, keyword)
    if found is not None and found >= 1:
        return int(found)
    if default is None:
        raise ImageError(f"is a DICOM image without {keyword}")
    return default


def _without_pixels(header: Dataset) -> str:
    from pydicom.uid import UID

    stated = text(header, "SOPClassUID") or text(_meta(header), "MediaStorageSOPClassUID")
    kind = f"its SOP class is {UID(stated).name[:_MAX_NAME]!r}" if stated else "it names no SOP class"
    if "Image" in kind or number(header, "Rows") is not None:
        return f"is DICOM, but its pixel data is missing or cut off; {kind}"
    return f"is DICOM, but no image; {kind}"
