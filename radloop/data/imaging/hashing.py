"""A small picture of an image, by which near-duplicates are found."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 18  # pixels; measured: fewer cannot tell look-alike chest radiographs from a cropped copy
HASH_BYTES = SIDE * SIDE
_GRID = 64  # pixels; the size at which all images are compared, whatever their own
_SCALE = 4096  # the filter is rounded to 1/4096: integer sums are the same on all machines
_BLANK_RANGE = 8  # grey levels


def perceptual_hash(image: Image.Image) -> bytes:
    """Shrink an image to a smooth, contrast-stretched grey picture of 18 x 18 pixels.

    It is a picture rather than the usual 64 or 256 sign bits, because radiographs of different patients
    share most of these bits. `radloop.data.quality.near` compares two such pictures, and undoes crops and
    grey curves first: that needs the smoothing (Gaussian in the frequencies), which leaves little
    that a shift by part of a pixel could alias.

    Args:
        image: 8-bit RGB or grey, of any size; the sides are scaled independently.

    Returns:
        `HASH_BYTES` grey values, row by row; all 0 for an image that shows less than 8 grey levels
        at this size. The same on all platforms for the same pixels.
    """
    grey = image.convert("L")
    filter = Image.Resampling.BOX if min(grey.size) >= _GRID else Image.Resampling.BILINEAR
    pixels = np.asarray(grey.resize((_GRID, _GRID), filter, reducing_gap=3.0), dtype=np.int64)
    small = _FILTER @ pixels @ _FILTER.T
    low, span = int(small.min()), int(small.max() - small.min())
    if span < _BLANK_RANGE * _SCALE**2:
        return bytes(HASH_BYTES)
    return ((510 * (small - low) + span) // (2 * span)).astype(np.uint8).tobytes()  # rounds to nearest


def _smoothing_filter() -> np.ndarray:
    """Integers, shape (SIDE, _GRID): the lowest cosine frequencies, damped, on a coarser grid."""
    frequency = np.arange(SIDE)[:, None]
    fine = np.cos(np.pi * frequency * (np.arange(_GRID) + 0.5) / _GRID)
    coarse = np.cos(np.pi * frequency * (np.arange(SIDE) + 0.5) / SIDE)
    damping = np.where(frequency == 0, 1, 2) * np.exp(-0.5 * (frequency / (SIDE / 2)) ** 2) / _GRID
    weights: np.ndarray = np.rint(_SCALE * (coarse.T @ (damping * fine))).astype(np.int64)
    return weights


_FILTER = _smoothing_filter()
