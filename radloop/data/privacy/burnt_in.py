"""Text burnt into a picture: a flag for a person to look, not a reader of what is written.

Letters are thin strokes of one brightness. Thin bright (or dark) things are cut out of the picture by a
top-hat, at two scales; what looks like a letter is kept; and a row of letters of the same height, side by
side, is text. A single letter, such as the L or R of a side marker, is no row.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

SIDE = 1024  # pixels; larger pictures are shrunk by a whole factor to about that
MIN_LETTERS = 4  # in a row
_STROKE = 7  # pixels; wider things are no strokes at this scale
_MIN_CONTRAST = 28  # grey levels
_HEIGHTS = (5, 28)  # pixels of a letter
_MAX_CANDIDATES = 1200  # each is compared with each


def has_burnt_in_text(pixels: NDArray[np.uint8]) -> bool:
    """Whether a row of at least four letters or digits seems to be drawn into the picture.

    Args:
        pixels: 8-bit grey values or RGB, shape (H, W) or (H, W, 3).
    """
    # Channel by channel: `max(axis=2)` takes ten times as long.
    grey = pixels if pixels.ndim == 2 else functools.reduce(np.maximum, np.moveaxis(pixels, 2, 0))
    grey = _shrink(grey, max(1, round(max(grey.shape) / SIDE)))
    for scale in (1, 2):
        small = _shrink(grey, scale)
        if min(small.shape) < _HEIGHTS[0] + 2:
            break
        for picture in (small, 255 - small):
            if _longest_row(_letters(picture)) >= MIN_LETTERS:
                return True
    return False


def _shrink(grey: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    if step == 1:
        return grey
    height, width = (side // step * step for side in grey.shape)
    sums = np.zeros((height // step, width // step), np.uint32)
    for y in range(step):
        for x in range(step):
            sums += grey[y:height:step, x:width:step]
    return (sums // step**2).astype(np.uint8)


def _letters(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Boxes of what may be letters, shape (N, 5): top, bottom, left, right, brightness."""
    from scipy import ndimage

    hat = grey - _opened(grey)
    limit = max(_MIN_CONTRAST, 4 * int(np.median(hat[::4, ::4])))
    marked = hat > limit
    if np.count_nonzero(marked) < MIN_LETTERS * _HEIGHTS[0]:
        return np.empty((0, 5), np.float32)
    marks, count = ndimage.label(marked, np.ones((3, 3)))
    if count == 0:
        return np.empty((0, 5), np.float32)
    places = ndimage.find_objects(marks)
    box = np.array([(y.start, y.stop, x.start, x.stop) for y, x in places], np.float32)
    height, width = box[:, 1] - box[:, 0], box[:, 3] - box[:, 2]
    area = np.bincount(marks.ravel(), minlength=count + 1)[1:]
    fits = (height >= _HEIGHTS[0]) & (height <= _HEIGHTS[1]) & (width <= 2.5 * height)
    fits &= (area >= height) & (area <= 0.9 * height * np.maximum(width, 3))
    index = np.flatnonzero(fits)
    peak = np.array([grey[places[each]].max() for each in index], np.float32)
    brightest = np.argsort(-peak, kind="stable")[:_MAX_CANDIDATES]  # as written text mostly is
    return np.column_stack([box[index], peak])[brightest]


def _opened(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What remains of a picture without its thin bright parts; ten times as fast as `scipy.ndimage`."""
    wide = np.pad(grey, _STROKE - 1, mode="edge")
    for extreme in (np.minimum, np.maximum):
        for _ in range(2):
            wide = wide.T  # contiguous or not, each of the three steps is one pass over the bytes
            two = extreme(wide[:-1], wide[1:])
            four = extreme(two[:-2], two[2:])
            wide = extreme(four[:-3], four[3:])  # 7 rows: 4 and 4, one of them in both
    return wide


def _longest_row(letters: NDArray[np.float32]) -> int:
    """How many letters follow each other in one line, at most."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if len(letters) < MIN_LETTERS:
        return 0
    top, bottom, left, right, peak = letters.T[:, :, None]
    height = bottom - top
    tall = np.maximum(height, height.T)
    gap = left.T - right
    near = (gap >= -1) & (gap <= 0.8 * tall)
    near &= np.abs(bottom - bottom.T) <= np.maximum(1, 0.15 * tall)
    near &= np.abs(height - height.T) <= np.maximum(1, 0.35 * tall)
    near &= np.abs(peak - peak.T) <= 40
    rows, columns = np.nonzero(near)
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=near.shape)
    _, line = connected_components(links, directed=False)
    return int(np.bincount(line).max())
