"""Damaged files: an image or an `ImageError`, soon, and no more memory than the limits allow."""

from __future__ import annotations

import random
import resource
import time

import pytest

from radloop.data.imaging import ImageError, codec, examine, to_rgb
from tests.unit.data.imaging.dicoms import shipped

NAMES = (
    "CT_small.dcm",
    "JPEG2000.dcm",
    "JPGExtended.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_jpeg_lossy_gdcm.dcm",
    "SC_rgb_rle_2frame.dcm",
    "image_dfl.dcm",
    "rtdose_rle.dcm",
    "test-SR.dcm",
)


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Cut off, or a few bytes overwritten, more of them near the start or near the end."""
    if dice.random() < 0.3:
        return data[: dice.randrange(len(data))]
    changed = bytearray(data)
    skew = dice.choice((0.2, 1, 5))
    for _ in range(dice.randint(1, 8)):
        changed[int(len(data) * dice.random() ** skew)] = dice.choice(
            (0, 1, 127, 128, 255, dice.randrange(256))
        )
    return bytes(changed)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_give_an_image_or_the_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "DECODE_SECONDS", 2.0)
    dice = random.Random(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(25):
        started = time.monotonic()
        facts, rgb = examine(damaged(shipped(name), dice))
        assert len(facts.error) > 10 if rgb is None else rgb.mode == "RGB"
        assert time.monotonic() - started < 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_lossy_gdcm.dcm"])
def test_a_file_that_is_cut_off_is_never_taken_for_whole(name: str) -> None:
    data = shipped(name)
    for kept in range(0, len(data) - 200, max(1, len(data) // 40)):
        with pytest.raises(ImageError):
            to_rgb(data[:kept])
