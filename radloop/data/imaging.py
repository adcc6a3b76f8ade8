"""Any encoded image to 8-bit RGB, and what is wrong with those that cannot be."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from radloop.data.corpus import Corpus
from radloop.errors import DataError

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP")
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
MAX_PIXELS = 64_000_000  # about 8,000 x 8,000: beyond any radiograph, below what fills a laptop's memory
_BLANK_RANGE = 2  # grey levels; a blank image is not quite constant after JPEG
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF 6.0, section 8
_HEX_DIGITS = 32

Result = TypeVar("Result")


class ImageError(DataError):
    """These bytes are no image that can be used; the message says why."""


@dataclass(frozen=True)
class ImageFacts:
    """What validation needs to know of an image; with an `error` the other fields may be empty.

    Attributes:
        width: Pixels, after the EXIF orientation.
        height: Pixels, after the EXIF orientation.
        mode: Pillow's mode as encoded, such as "L" or "I;16".
        format: One of `FORMATS`.
        frames: Images in the file; only the first is used.
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


def to_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to 8-bit RGB, upright by its EXIF orientation.

    Transparency is laid over black. Deep images (16 or 32 bits, floats) are stretched so that
    their 0.1 to 99.9 percentiles span 0 to 255: a plain conversion would saturate them. Of a file
    with several frames the first is taken.

    Args:
        data: A PNG, JPEG, TIFF or WebP file.
        max_pixels: Larger images are refused before they are decoded.

    Raises:
        ImageError: Empty, not one of the formats, truncated, damaged or too large.
    """
    return _decode(data, max_pixels)[1]


def resize(image: Image.Image, longest: int) -> Image.Image:
    """Scale down so that the longest side has `longest` pixels; smaller images stay as they are."""
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def to_png(image: Image.Image) -> bytes:
    """Encode losslessly."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def inspect(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Decode an image and describe it; never raises for what is in `data`."""
    try:
        facts, rgb = _decode(data, max_pixels)
    except ImageError as error:
        return ImageFacts(error=error.message)
    blank = all(high - low <= _BLANK_RANGE for low, high in rgb.getextrema())  # type: ignore[misc]
    return ImageFacts(rgb.width, rgb.height, *facts, blank=blank, pixel_hash=pixel_hash(rgb))


def pixel_hash(image: Image.Image) -> str:
    """Hash size and pixels of an RGB image."""
    digest = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=_HEX_DIGITS // 2)
    digest.update(image.tobytes())
    return digest.hexdigest()


def map_images(corpus: Corpus, work: Callable[[bytes | None], Result]) -> Iterator[tuple[str, Result]]:
    """Yield (image id, `work(encoded file)`) in the corpus' order, on all cores.

    Pillow releases the interpreter lock while it decodes, so threads do. No more than a few dozen
    files are held in memory.
    """
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[tuple[str, bytes | None]] = []
        for item in corpus.image_bytes():
            waiting.append(item)
            if len(waiting) >= 8 * workers:
                yield from _map_chunk(pool, waiting, work)
                waiting = []
        yield from _map_chunk(pool, waiting, work)


def _map_chunk(
    pool: ThreadPoolExecutor, items: list[tuple[str, bytes | None]], work: Callable[[bytes | None], Result]
) -> Iterator[tuple[str, Result]]:
    results = pool.map(work, [data for _, data in items])
    yield from zip([image_id for image_id, _ in items], results, strict=True)


def _decode(data: bytes, max_pixels: int) -> tuple[tuple[str, str, int], Image.Image]:
    if not data:
        raise ImageError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(f"is none of {', '.join(FORMATS)}; it starts with {data[:12]!r}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"has more than {max_pixels:,} pixels") from None
    except Exception as error:  # decoders raise anything on hostile bytes
        raise _damaged(error) from None
    if image.width * image.height > max_pixels:
        raise ImageError(f"is {image.width} x {image.height}: more than {max_pixels:,} pixels")
    try:
        facts = image.mode, image.format or "", int(getattr(image, "n_frames", 1))
        image.load()
        # Pillow inverts white-is-zero TIFFs of 8 bits, but not deep ones.
        inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        return facts, _eight_bit_rgb(ImageOps.exif_transpose(image), inverted)
    except ImageError:
        raise
    except Exception as error:  # as above
        raise _damaged(error) from None


def _damaged(error: Exception) -> ImageError:
    return ImageError(f"cannot be decoded: {error or type(error).__name__}")


def _eight_bit_rgb(image: Image.Image, inverted: bool) -> Image.Image:
    if image.mode in DEEP_MODES:
        levels = _stretched(image)
        return Image.fromarray(255 - levels if inverted else levels).convert("RGB")
    if image.mode not in MODES:
        raise ImageError(f"has the pixel mode {image.mode!r}; known: {', '.join(MODES + DEEP_MODES)}")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")


def _stretched(image: Image.Image) -> np.ndarray:
    values = np.asarray(image, dtype=np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise ImageError("holds no finite pixel value")
    low, high = np.percentile(values[finite], (0.1, 99.9))
    if high <= low:  # a few bright pixels on a constant ground
        low, high = values[finite].min(), values[finite].max()
    scaled = (np.where(finite, values, low) - low) / max(high - low, np.finfo(np.float64).tiny)
    levels: np.ndarray = np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)
    return levels
