"""What is done with decoded images."""

from __future__ import annotations

import hashlib
import io

from PIL import Image

_HEX_DIGITS = 32


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


def pixel_hash(image: Image.Image) -> str:
    """Hash size and pixels of an RGB image."""
    digest = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=_HEX_DIGITS // 2)
    digest.update(image.tobytes())
    return digest.hexdigest()
