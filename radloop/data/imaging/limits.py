"""What an image may cost, checked before it is paid for."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image

from radloop.errors import DataError

MAX_PIXELS = 64_000_000  # about 8,000 x 8,000: beyond any radiograph, below what fills a laptop's memory
MAX_BYTES = 1 << 29  # of a file, and of what a deflated one inflates to
MAX_FRAMES = 10_000  # beyond any cine loop or tomosynthesis


_MAX_REASON = 200


class ImageError(DataError):
    """These bytes are no image that can be used; the message says why."""


def reason(error: Exception | str) -> str:
    """Return a decoder's complaint as one short line."""
    return " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__


class Request(NamedTuple):
    """Which frame is wanted, and the limits.

    Attributes:
        frame: Number of the frame, from 0.
        max_pixels: Rows times columns of one frame.
        max_bytes: Of the file, before and after it is inflated.
    """

    frame: int
    max_pixels: int
    max_bytes: int

    def check_size(self, width: int, height: int) -> None:
        """Refuse a frame of too many pixels."""
        if width * height > self.max_pixels:
            raise ImageError(f"is {width} x {height}: more than {self.max_pixels:,} pixels")

    def check_frame(self, frames: int) -> None:
        """Refuse too many frames, and a frame that is not among them."""
        if frames > MAX_FRAMES:
            raise ImageError(f"has more than {MAX_FRAMES:,} frames")
        if not 0 <= self.frame < frames:
            raise ImageError(f"has no frame {self.frame} of {frames}; allowed: 0 to {frames - 1}")


class Picture(NamedTuple):
    """A decoded frame and how it was encoded; see `ImageFacts` for `mode`, `format` and `frames`."""

    rgb: Image.Image
    mode: str
    format: str
    frames: int
