"""Grey levels from pixel values: windows as DICOM defines them, and a stretch for what has none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from radloop.data.imaging.limits import ImageError

WINDOWS = {"bone": (400, 1800), "brain": (40, 80), "lung": (-600, 1500), "mediastinum": (50, 350)}
"""Name to centre and width in Hounsfield units. Source: Murphy and Baba, "Windowing (CT)", Radiopaedia."""

Curve = Callable[[np.ndarray], np.ndarray]

_PERCENTILES = (0.1, 99.9)
_TABLE_SIZE = 1 << 16
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Window:
    """A VOI window: maps values to grey levels between 0 and 1.

    Attributes:
        centre: In the unit of the values.
        width: In the unit of the values; 0 makes a step.
        function: LINEAR, LINEAR_EXACT or SIGMOID.
        unit: "HU" for a named window, else "": that of the values.

    Source: DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3.
    """

    centre: float
    width: float
    function: str = "LINEAR"
    unit: str = ""

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return grey levels from 0 to 1, float64, of the shape of `values`."""
        centre, width = self.centre, self.width
        if self.function == "SIGMOID" and width > 0:
            return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
        # Values in fractions, such as those of PET, come with widths below 1 that LINEAR does not allow.
        if self.function != "LINEAR_EXACT" and width >= 1:
            centre, width = centre - 0.5, width - 1
        if width <= 0:
            return np.asarray(values > centre, dtype=np.float64)
        return np.clip((values - centre) / width + 0.5, 0, 1)


def parse_window(text: str) -> Window | None:
    """Read a name of `WINDOWS` or "centre/width"; "" gives None.

    Raises:
        ImageError: It is neither.
    """
    if not text:
        return None
    if text in WINDOWS:
        centre, width = WINDOWS[text]
        return Window(centre, width, unit="HU")
    try:
        low, high = (float(part) for part in text.split("/"))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and high > 0):
        known = ", ".join(WINDOWS)
        raise ImageError(f"unknown window {text!r}; allowed: {known}, or centre/width such as 40/400")
    return Window(low, high)


def span(values: np.ndarray) -> tuple[float, float]:
    """Return the 0.1 and 99.9 percentiles of finite `values`, or their extremes if those are equal."""
    if (table := _offsets(values)) is not None:
        first, offsets = table
        low, high = first + _percentiles(np.bincount(offsets.ravel()))
    else:
        low, high = np.percentile(values.astype(np.float64), _PERCENTILES)
    if high <= low:  # a few bright pixels on a constant ground
        low, high = values.min(), values.max()
    return float(low), float(high)


def _percentiles(counts: np.ndarray) -> np.ndarray:
    """As `np.percentile` of the places in a histogram, without sorting millions of pixels."""
    up_to = np.cumsum(counts)
    ranks = np.array(_PERCENTILES) / 100 * (up_to[-1] - 1)
    below, above = (np.searchsorted(up_to, rank, side="right") for rank in (np.floor(ranks), np.ceil(ranks)))
    return below + (above - below) * (ranks - np.floor(ranks))


def between(low: float, high: float) -> Window:
    """Return the window that maps `low` to 0 and `high` to 1."""
    return Window((low + high) / 2, high - low, "LINEAR_EXACT")


def to_levels(stored: np.ndarray, curve: Curve) -> np.ndarray:
    """Return `curve` of each value, rounded to 0 to 255 (uint8).

    Args:
        stored: Integers or finite floats, any shape.
        curve: From float64 values to grey levels between 0 and 1.
    """
    if (table := _offsets(stored)) is None:
        wide, levels = stored.reshape(-1), np.empty(stored.size, dtype=np.uint8)
        for start in range(0, stored.size, _BLOCK):  # float64 of all pixels at once would take gigabytes
            part = slice(start, start + _BLOCK)
            levels[part] = _rounded(curve(wide[part].astype(np.float64)))
        return levels.reshape(stored.shape)
    # The curve of each possible value costs less than that of each pixel.
    first, offsets = table
    grey = _rounded(curve(first + np.arange(int(offsets.max()) + 1, dtype=np.float64)))
    return np.take(grey, offsets)


def _offsets(values: np.ndarray) -> tuple[int, np.ndarray] | None:
    """Return the lowest value and each one's distance from it, if they are integers of 16 bits or so."""
    if values.dtype.kind not in "iu":
        return None
    low, high = int(values.min()), int(values.max())
    if high - low >= _TABLE_SIZE:
        return None
    # Modulo 2**16, so that signed values become distances without a wider copy.
    return low, values.astype(np.uint16) - np.uint16(low % _TABLE_SIZE)


def _rounded(grey: np.ndarray) -> np.ndarray:
    levels: np.ndarray = np.rint(np.nan_to_num(grey) * 255).astype(np.uint8)
    return levels
