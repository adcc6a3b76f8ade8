"""PNG, JPEG, TIFF and WebP."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from radloop.data.imaging.limits import MAX_FRAMES, ImageError, Picture, Request
from radloop.data.imaging.windows import Window, between, span, to_levels

PICTURE_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP")
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF 6.0, section 8


def read_picture(data: bytes, request: Request, window: Window | None) -> Picture:
    """Decode one frame; `window` is applied to deep images only.

    Raises:
        ImageError: Not one of the formats, too large, or without that frame.
        Exception: Anything else that a decoder raises on damaged bytes.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=PICTURE_FORMATS)
    except UnidentifiedImageError:
        known = ", ".join((*PICTURE_FORMATS, "DICOM"))
        raise ImageError(f"is none of {known}; it starts with {data[:12]!r}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"has more than {request.max_pixels:,} pixels") from None
    request.check_size(*image.size)
    mode, frames = image.mode, _count_frames(image)
    request.check_frame(frames)
    if frames > 1:
        image.seek(request.frame)
        request.check_size(*image.size)
    image.load()
    # Pillow inverts white-is-zero TIFFs of 8 bits, but not deep ones.
    inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    rgb = _eight_bit_rgb(ImageOps.exif_transpose(image), inverted, window)
    return Picture(rgb, mode, image.format or "", frames)


def _count_frames(image: Image.Image) -> int:
    """Other formats say it in their header; a TIFF of a few bytes a page can be walked for hours."""
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1))
    for frame in range(1, MAX_FRAMES + 1):
        try:
            image.seek(frame)
        except EOFError:
            image.seek(0)
            return frame
    return MAX_FRAMES + 1


def _eight_bit_rgb(image: Image.Image, inverted: bool, window: Window | None) -> Image.Image:
    if image.mode in DEEP_MODES:
        levels = _deep_levels(image, window)
        return Image.fromarray(255 - levels if inverted else levels).convert("RGB")
    if image.mode not in MODES:
        raise ImageError(f"has the pixel mode {image.mode!r}; known: {', '.join(MODES + DEEP_MODES)}")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")


def _deep_levels(image: Image.Image, window: Window | None) -> np.ndarray:
    if window and window.unit:
        raise ImageError(f"is no CT in DICOM, so its values are not in {window.unit}; give centre/width")
    values = np.asarray(image)
    finite = np.isfinite(values)
    if not finite.any():
        raise ImageError("holds no finite pixel value")
    known = values if finite.all() else values[finite]
    window = window or between(*span(known))
    return to_levels(values if known is values else np.where(finite, values, known.min()), window)
