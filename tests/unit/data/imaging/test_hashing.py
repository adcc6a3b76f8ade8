from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from radloop.data.imaging.hashing import HASH_BYTES, SIDE, perceptual_hash


def waves(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    levels = 127 + 60 * np.sin(9 * x + 3 * y) + 60 * np.cos(14 * y * x)
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def small(image: Image.Image) -> np.ndarray:
    return np.frombuffer(perceptual_hash(image), np.uint8).astype(int)


def test_the_hash_is_a_picture_that_spans_all_grey_values() -> None:
    assert len(perceptual_hash(waves(200, 300))) == HASH_BYTES == SIDE**2
    assert (small(waves(200, 300)).min(), small(waves(200, 300)).max()) == (0, 255)
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (100, 1)))
    picture = small(ramp).reshape(SIDE, SIDE)
    assert (np.diff(picture, axis=1) >= 0).all()
    assert np.abs(picture - picture[0]).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (3, 2), (17, 17), (63, 65), (3000, 40)])
def test_any_size_has_a_hash(size: tuple[int, int]) -> None:
    assert len(perceptual_hash(waves(*size))) == HASH_BYTES


def test_size_brightness_and_linear_contrast_hardly_change_the_hash() -> None:
    reference = small(waves(640, 512))
    for other in (
        waves(160, 128),
        waves(1280, 1024),
        waves(640, 512).point([i // 2 + 40 for i in range(256)] * 3),
    ):
        assert np.abs(small(other) - reference).max() <= 6


def test_a_blank_image_has_a_hash_of_zeros() -> None:
    noise = np.random.default_rng(0).integers(100, 103, (80, 90), dtype=np.uint8)
    for blank in (Image.new("RGB", (50, 60), (9, 9, 9)), Image.fromarray(noise)):
        assert perceptual_hash(blank) == bytes(HASH_BYTES)
    assert perceptual_hash(waves(50, 50)) != bytes(HASH_BYTES)


def test_another_process_gives_the_same_hash() -> None:
    code = (
        "import numpy as np; from PIL import Image; from radloop.data.imaging.hashing import perceptual_hash;"
        "levels = (np.arange(150 * 170) * 7919 % 251).reshape(150, 170).astype(np.uint8);"
        "print(perceptual_hash(Image.fromarray(levels)).hex())"
    )
    levels = (np.arange(150 * 170) * 7919 % 251).reshape(150, 170).astype(np.uint8)
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == perceptual_hash(Image.fromarray(levels)).hex()


def test_a_megapixel_takes_milliseconds() -> None:
    image = waves(1000, 1000)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        perceptual_hash(image)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.01
