"""The front: recognise an image by its content, decode it, describe it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from radloop.data.imaging.dicom import is_dicom
from radloop.data.imaging.dicom_picture import read_dicom
from radloop.data.imaging.limits import MAX_BYTES, MAX_PIXELS, ImageError, Picture, Request, reason
from radloop.data.imaging.pictures import PICTURE_FORMATS, read_picture
from radloop.data.imaging.transform import pixel_hash
from radloop.data.imaging.windows import parse_window

FORMATS = (*PICTURE_FORMATS, "DICOM")
_BLANK_RANGE = 2  # grey levels; a blank image is not quite constant after JPEG


@dataclass(frozen=True)
class ImageFacts:
    """What validation needs to know of an image; with an `error` the other fields may be empty.

    Attributes:
        width: Pixels, after the EXIF orientation.
        height: Pixels, after the EXIF orientation.
        mode: Pillow's mode as encoded, such as "L" or "I;16"; for DICOM the nearest one.
        format: One of `FORMATS`.
        frames: Images in the file; only one is used.
        blank: All pixels are within 2 of 256 grey levels.
        pixel_hash: Same for same 8-bit RGB pixels, whatever the file format.
        error: Why the image cannot be read, or "".
    """

    width: int | None = None
    height: int | None = None
    mode: str = ""
    format: str = ""
    frames: int | None = None
    blank: bool | None = None
    pixel_hash: str = ""
    error: str = ""


def to_rgb(
    data: bytes,
    *,
    frame: int = 0,
    window: str = "",
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Image.Image:
    """Decode an image to 8-bit RGB, upright by its EXIF orientation.

    Transparency is laid over black. Grey DICOM goes through its modality and VOI transformations
    (PS3.3 C.11.1 and C.11.2); MONOCHROME1 is inverted and padding is black. Without a window, deep
    images (16 or 32 bits, floats) and DICOM are stretched so that their 0.1 to 99.9 percentiles
    span 0 to 255: a plain conversion would saturate them.

    Args:
        data: A PNG, JPEG, TIFF, WebP or DICOM file.
        frame: Which one of a file with several, from 0.
        window: "" for the file's own, a name of `WINDOWS` for CT, or centre/width such as "40/400"
            in the unit of the pixel values. Colour and 8-bit pictures stay as they are.
        max_pixels: Larger images are refused before they are decoded.
        max_bytes: Larger files are refused, and those that inflate to more.

    Raises:
        ImageError: Empty, not one of the formats, truncated, damaged, too large, or without that
            frame or window.
    """
    return _decode(data, window, Request(frame, max_pixels, max_bytes)).rgb


def inspect(
    data: bytes,
    *,
    frame: int = 0,
    window: str = "",
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> ImageFacts:
    """Decode an image as `to_rgb` does and describe it; never raises for what is in `data`."""
    return examine(data, frame=frame, window=window, max_pixels=max_pixels, max_bytes=max_bytes)[0]


def examine(
    data: bytes,
    *,
    frame: int = 0,
    window: str = "",
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> tuple[ImageFacts, Image.Image | None]:
    """As `inspect`, and the pixels, for who needs both; None for an image that cannot be read."""
    try:
        rgb, mode, format, frames = _decode(data, window, Request(frame, max_pixels, max_bytes))
    except ImageError as error:
        return ImageFacts(error=error.message), None
    blank = all(high - low <= _BLANK_RANGE for low, high in rgb.getextrema())  # type: ignore[misc]
    return ImageFacts(rgb.width, rgb.height, mode, format, frames, blank, pixel_hash(rgb)), rgb


def _decode(data: bytes, window: str, request: Request) -> Picture:
    chosen = parse_window(window)
    if not data:
        raise ImageError("the file is empty")
    if len(data) > request.max_bytes:
        raise ImageError(f"has {len(data):,} bytes: more than {request.max_bytes:,}")
    try:
        with np.errstate(all="ignore"):  # absurd values saturate
            return (read_dicom if is_dicom(data) else read_picture)(data, request, chosen)
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything on hostile bytes
        raise ImageError(f"cannot be decoded: {reason(error)}") from None
