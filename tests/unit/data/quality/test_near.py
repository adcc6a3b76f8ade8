from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from radloop.data.imaging.hashing import HASH_BYTES, SIDE, perceptual_hash
from radloop.data.phantoms.phantom import Stream, make_phantom
from radloop.data.quality.near import near_duplicates, near_groups, same_picture

Change = Callable[[Image.Image], Image.Image]


def jpeg(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


def scaled(factor: float) -> Change:
    return lambda image: image.resize((round(image.width * factor), round(image.height * factor)))


def levels(curve: Callable[[float], float]) -> Change:
    table = [round(255 * min(max(curve(level / 255), 0), 1)) for level in range(256)]
    return lambda image: image.point(table * 3)


def cropped(share: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        x, y = round(share * image.width), round(share * image.height)
        return image.crop((x, y, image.width - x, image.height - y))

    return change


def bordered(share: float) -> Change:
    return lambda image: ImageOps.expand(image, max(1, round(share * max(image.size))))


def labelled(image: Image.Image) -> Image.Image:
    copy = image.copy()
    size = max(copy.size)
    ImageDraw.Draw(copy).text((0.85 * copy.width, 0.05 * copy.height), "R", (255,) * 3, font_size=0.08 * size)
    return copy


def with_arrow(image: Image.Image) -> Image.Image:
    copy = image.copy()
    draw = ImageDraw.Draw(copy)
    width, height = copy.size
    tip = 0.4 * width, 0.55 * height
    draw.line((0.25 * width, 0.7 * height, *tip), (255,) * 3, max(2, max(copy.size) // 100))
    draw.polygon([tip, (tip[0] - 0.05 * width, tip[1]), (tip[0], tip[1] + 0.05 * height)], (255,) * 3)
    return copy


def noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 5, (image.height, image.width, 1))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


# The least share of copies that is found: of phantoms at 384 pixels, of real images. The samples are small,
# so the floors lie somewhat below what was measured.
CHANGES: dict[str, tuple[Change, float, float]] = {
    "JPEG of quality 30": (jpeg(30), 0.95, 0.9),
    "JPEG of quality 95": (jpeg(95), 0.95, 0.95),
    "quarter size": (scaled(0.25), 0.95, 0.7),
    "double size": (scaled(2), 0.95, 0.9),
    "darker": (levels(lambda level: 0.7 * level), 0.95, 0.95),
    "less contrast": (levels(lambda level: 0.5 + 0.7 * (level - 0.5)), 0.95, 0.95),
    "gamma 0.8": (levels(lambda level: level**0.8), 0.95, 0.6),
    "cropped by 1 %": (cropped(0.01), 0.95, 0.7),
    "cropped by 3 %": (cropped(0.03), 0.5, 0.2),
    "border of 1 %": (bordered(0.01), 0.95, 0.7),
    "border of 2 %": (bordered(0.02), 0.8, 0.3),
    "marker": (labelled, 0.95, 0.9),
    "arrow": (with_arrow, 0.95, 0.9),
    "blurred": (lambda image: image.filter(ImageFilter.GaussianBlur(0.003 * max(image.size))), 0.95, 0.9),
    "noise": (noisy, 0.95, 0.95),
}


def hashes(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.frombuffer(perceptual_hash(image), np.uint8) for image in images])


def phantom(index: int, size: int) -> Image.Image:
    return Image.fromarray(make_phantom(Stream.TRAIN, 0, index, size).pixels).convert("RGB")


@pytest.fixture(scope="module")
def phantoms() -> list[Image.Image]:
    return [phantom(index, 384) for index in range(8)]


@pytest.fixture(scope="module")
def real(real_data: Callable[[str], Path]) -> list[Image.Image]:
    """Every second image of VQA-RAD, at half its size, which is what takes the time."""
    paths = sorted((real_data("vqa_rad") / "VQA_RAD Image Folder").glob("*.jpg"))[::2]
    images = []
    for path in paths:
        image = Image.open(path)
        image.draft("RGB", (image.width // 2, image.height // 2))
        images.append(image.convert("RGB"))
    return images


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_copy_of_a_phantom_is_found(name: str, phantoms: list[Image.Image]) -> None:
    change, share, _ = CHANGES[name]
    assert found(phantoms, change) >= share


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_copy_of_a_real_image_is_found(name: str, real: list[Image.Image]) -> None:
    change, _, share = CHANGES[name]
    assert found(real[::8], change) >= share


def found(images: list[Image.Image], change: Change) -> float:
    pairs = near_duplicates(hashes([*images, *map(change, images)]))
    assert ((pairs[:, 1] - pairs[:, 0]) == len(images)).all(), "different pictures were paired"
    return len(pairs) / len(images)


def test_phantoms_of_different_patients_are_no_duplicates() -> None:
    assert near_duplicates(hashes([phantom(index, 96) for index in range(200)])).tolist() == []


def test_no_two_images_of_vqa_rad_are_duplicates(
    real: list[Image.Image],
) -> None:
    small = hashes(real)
    assert near_duplicates(small).tolist() == []
    first, second = np.triu_indices(len(small), 1)
    first, second = first[::3], second[::3]  # all take too long for a unit test
    assert not same_picture(small[first], small[second]).any()


def test_a_mirrored_image_is_no_duplicate(phantoms: list[Image.Image]) -> None:
    assert found(phantoms, ImageOps.mirror) == 0


def test_blank_images_and_images_with_a_spot_each_are_no_duplicates() -> None:
    glow = np.tile(np.linspace(0, 8, 200).astype(np.uint8)[:, None, None], (1, 200, 3))
    spots = [Image.fromarray(glow) for _ in range(5)]
    for k, spot in enumerate(spots):
        ImageDraw.Draw(spot).rectangle((80 + 10 * k, 70, 86 + 10 * k, 76), fill=(255, 255, 255))
    blank = [Image.new("RGB", (100, 100), (level,) * 3) for level in (0, 0, 90, 91, 255)]
    assert near_duplicates(hashes(spots + blank)).tolist() == []


def test_a_faint_common_glow_is_too_little_to_call_two_pictures_the_same() -> None:
    glow = np.tile(np.linspace(0, 8, SIDE).round().astype(np.uint8)[:, None], (1, SIDE))
    one, other = glow.copy(), glow.copy()
    one[5, 5] = other[11, 12] = 255
    assert not same_picture(one.reshape(1, -1), other.reshape(1, -1)).any()


def test_copies_of_copies_become_one_group(phantoms: list[Image.Image]) -> None:
    changes = [change for name, (change, _, _) in CHANGES.items() if "3 %" not in name]
    images = [change(image) for image in phantoms[:3] for change in changes]
    images.insert(4, phantom(77, 384))
    groups = near_groups(pa.array([perceptual_hash(image) for image in images]))
    expected = [patient for patient in range(3) for _ in changes]
    expected.insert(4, -1)
    assert groups.tolist() == expected


def test_groups_are_the_same_in_a_slice_of_a_longer_array(phantoms: list[Image.Image]) -> None:
    images = [phantoms[0], phantoms[1], phantoms[0], phantoms[1], phantoms[2]]
    array = pa.array([perceptual_hash(image) for image in images], pa.binary())
    assert near_groups(array[1:]).tolist() == [0, -1, 0, -1]
    assert near_groups(array[5:]).tolist() == []
    with pytest.raises(pa.ArrowInvalid):
        near_groups(pa.array([b"short", b"short"]))


@pytest.mark.parametrize("count", [0, 1])
def test_none_or_one_image_has_no_duplicate(count: int) -> None:
    assert near_duplicates(np.ones((count, HASH_BYTES), np.uint8)).shape == (0, 2)


def test_another_shape_or_type_is_refused() -> None:
    for wrong in (np.ones((3, 32), np.uint8), np.ones((3, HASH_BYTES))):
        with pytest.raises(ValueError, match="needed is uint8 of"):
            near_duplicates(wrong)


def test_a_hundred_thousand_images_take_seconds_and_every_planted_copy_is_found() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (100_000, HASH_BYTES), np.uint8)
    small[-1000:] = (small[:1000] + rng.integers(-2, 3, (1000, HASH_BYTES))).clip(0, 255)
    start = time.perf_counter()
    pairs = near_duplicates(small)
    assert time.perf_counter() - start < 30  # seconds; 3 on one core, and a busy machine is no defect
    assert pairs.tolist() == [[k, 99_000 + k] for k in range(1000)]


def test_a_hundred_thousand_identical_images_are_one_group_in_seconds() -> None:
    small = np.tile(np.arange(HASH_BYTES, dtype=np.uint16).astype(np.uint8), (100_000, 1))
    start = time.perf_counter()
    pairs = near_duplicates(small)
    assert time.perf_counter() - start < 20  # as above
    assert (pairs == np.stack([np.zeros(99_999, int), np.arange(1, 100_000)], axis=1)).all()
