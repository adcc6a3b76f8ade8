from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from radloop.data.phantoms import Stream, make_phantom
from radloop.data.privacy import has_burnt_in_text

LINES = ["SMITH^JOHN 1951-03-14", "MRN 00412345", "DOE, JANE F", "03/14/2019 10:22", "ID: 4711-X"]
LINES += ["Portable 14:32", "Müller, Anna", "GENERAL HOSPITAL"]
CORNERS = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5)]
SIZES = (96, 160, 256, 512)


@cache
def phantoms(size: int) -> list[np.ndarray]:
    return [make_phantom(Stream.TEST, 5, index, size).pixels for index in range(8 if size > 256 else 16)]


def drawn(
    pixels: np.ndarray, text: str, points: int, level: int, corner: tuple[float, float]
) -> tuple[np.ndarray, bool]:
    """The picture with a text, and whether that can be read: inside, on a darker or lighter ground."""
    font = ImageFont.load_default(size=points)
    right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text, font=font)[2:]
    free = (pixels.shape[1] - right - 4, pixels.shape[0] - bottom - 4)
    place = (2 + round(corner[0] * free[0]), 2 + round(corner[1] * free[1]))
    ink = Image.new("L", pixels.shape[::-1])
    ImageDraw.Draw(ink).text(place, text, fill=255, font=font)
    mask = np.asarray(ink)
    strength = mask.astype(float) / 255
    result = np.round(pixels * (1 - strength) + level * strength).astype(np.uint8)
    contrast = np.abs(result.astype(int) - pixels)[mask > 200]
    return result, min(free) >= 0 and contrast.size > 0 and float((contrast >= 40).mean()) >= 0.85


def hit_rate(pictures: list[np.ndarray], points: tuple[int, ...]) -> float:
    """Share of readable texts that are flagged, over places, grey levels and letters of so many pixels."""
    cases = [
        drawn(picture, LINES[(number + size) % len(LINES)], size, level, CORNERS[(number + level) % 5])
        for size in points
        for level in (0, 128, 200, 255)
        for number, picture in enumerate(pictures)
    ]
    readable = [picture for picture, can_be_read in cases if can_be_read]
    assert len(readable) >= 10
    return sum(map(has_burnt_in_text, readable)) / len(readable)


@pytest.mark.parametrize("size", SIZES)
def test_phantoms_are_not_flagged_with_or_without_a_side_marker(size: int) -> None:
    for picture in phantoms(size):
        assert not has_burnt_in_text(picture)
        for marker, corner in (("L", CORNERS[0]), ("R", CORNERS[1])):
            marked, _ = drawn(picture, marker, max(10, size // 16), 255, corner)
            assert not has_burnt_in_text(marked)


@pytest.mark.parametrize(
    ("size", "points", "at_least"),
    [
        (96, (8,), 0.6),
        (160, (10, 12, 16), 0.95),
        (256, (10, 12, 16, 24), 0.95),
        (512, (8, 12, 16, 24, 32, 48), 0.95),
    ],
)
def test_texts_drawn_into_phantoms_are_flagged(size: int, points: tuple[int, ...], at_least: float) -> None:
    assert hit_rate(phantoms(size), points) >= at_least


def test_real_pictures(real_data: Callable[[str], Path]) -> None:
    """Each picture of VQA-RAD has its source written at the edge; none has text in its middle."""
    files = sorted((real_data("vqa_rad") / "VQA_RAD Image Folder").glob("*.jpg"))[::11]
    pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    middles = [
        picture[
            picture.shape[0] // 6 : -picture.shape[0] // 6, picture.shape[1] // 6 : -picture.shape[1] // 6
        ]
        for picture in pictures
    ]
    assert np.mean([has_burnt_in_text(picture) for picture in pictures]) >= 0.97
    assert np.mean([has_burnt_in_text(middle) for middle in middles]) <= 0.05
    assert hit_rate([middle[:, :, 0] for middle in middles], (20,)) >= 0.9


def test_colour_is_read_in_any_channel() -> None:
    ground = phantoms(256)[0]
    text, _ = drawn(ground, "SMITH^JOHN 1951", 16, 255, CORNERS[2])
    for channel in range(3):
        colour = np.stack([ground] * 3, axis=2)
        colour[:, :, channel] = text
        assert has_burnt_in_text(colour)


def test_three_letters_are_no_row_and_four_are() -> None:
    ground = np.full((256, 256), 20, np.uint8)
    assert not has_burnt_in_text(drawn(ground, "LAT", 20, 255, CORNERS[0])[0])
    assert has_burnt_in_text(drawn(ground, "HOUS", 20, 255, CORNERS[0])[0])
    scattered = ground
    for corner in CORNERS:
        scattered, _ = drawn(scattered, "R", 20, 255, corner)
    assert not has_burnt_in_text(scattered)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (6, 6), (7, 2000, 3), (3, 3, 3), (1, 5000), (3000, 1)])
@pytest.mark.parametrize("level", [0, 255])
def test_odd_shapes_and_blank_pictures_are_not_flagged(shape: tuple[int, ...], level: int) -> None:
    assert has_burnt_in_text(np.full(shape, level, np.uint8)) is False


def test_noise_is_neither_flagged_nor_slow() -> None:
    rng = np.random.default_rng(0)
    for spread in (5, 20, 60):
        noise = np.clip(rng.normal(128, spread, (512, 512)), 0, 255).astype(np.uint8)
        start = time.process_time()
        assert not has_burnt_in_text(noise)
        assert time.process_time() - start < 0.5


def test_text_is_found_below_more_texture_than_can_be_compared() -> None:
    ground = np.full((900, 900), 10, np.uint8)
    for y in range(4, 800, 14):
        for x in range(4 + y % 3, 890, 26):
            ground[y : y + 7, x : x + 2] = 90
    assert not has_burnt_in_text(ground)
    assert has_burnt_in_text(drawn(ground, "SMITH^JOHN 1951-03-14", 16, 255, CORNERS[3])[0])


def test_large_radiographs_are_read_in_good_time() -> None:
    ground = np.asarray(Image.fromarray(phantoms(512)[0]).resize((3000, 2500)))
    text, _ = drawn(ground, "SMITH^JOHN 1951-03-14", 60, 255, CORNERS[3])
    start = time.process_time()
    assert has_burnt_in_text(text)
    assert not has_burnt_in_text(ground)
    assert time.process_time() - start < 1.5
