"""Small random changes of images that change no answer about them."""

from __future__ import annotations

import zlib

import numpy as np
from PIL import Image, ImageEnhance

MAX_DEGREES = 5.0
MAX_CHANGE = 0.15  # of brightness and contrast, as a share


def augment(image: Image.Image, seed: int, epoch: int, image_id: str) -> Image.Image:
    """Turn an RGB image a little and vary its brightness and contrast; its size stays.

    It is never flipped: that would turn left into right, and the answers with it. The change is
    drawn from seed, epoch and id alone, so a step that is repeated sees the same picture.
    """
    drawn = np.random.default_rng([seed, epoch, zlib.crc32(image_id.encode())])
    angle, brightness, contrast = drawn.uniform(-1, 1, 3)
    turned = image.rotate(MAX_DEGREES * angle, Image.Resampling.BILINEAR)
    lit = ImageEnhance.Brightness(turned).enhance(1 + MAX_CHANGE * brightness)
    return ImageEnhance.Contrast(lit).enhance(1 + MAX_CHANGE * contrast)
