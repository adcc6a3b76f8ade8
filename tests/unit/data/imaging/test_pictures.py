from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from radloop.data.imaging import MAX_FRAMES, ImageError, examine, inspect, resize, to_rgb


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(height: int = 24, width: int = 32) -> np.ndarray:
    return np.linspace(0, 255, height * width).reshape(height, width).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        (mode, format)
        for mode, formats in {
            "1": "PNG TIFF",
            "L": "PNG JPEG TIFF WEBP",
            "LA": "PNG TIFF",
            "P": "PNG TIFF",
            "RGB": "PNG JPEG TIFF WEBP",
            "RGBA": "PNG TIFF WEBP",
            "CMYK": "JPEG TIFF",
            "YCbCr": "JPEG",
        }.items()
        for format in formats.split()
    ],
)
def test_any_mode_becomes_rgb_that_looks_the_same(mode: str, format: str) -> None:
    grey = Image.fromarray(gradient())
    image = grey.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else grey.convert(mode)
    rgb = to_rgb(encode(image, format))
    assert (rgb.mode, rgb.size) == ("RGB", (32, 24))
    expected = np.asarray(image.convert("L"), dtype=float)
    assert np.abs(np.asarray(rgb.convert("L"), dtype=float) - expected).mean() < 4


@pytest.mark.parametrize("offset", [0, 1000, 40000])
def test_sixteen_bits_are_stretched_not_saturated(offset: int) -> None:
    deep = gradient().astype(np.uint16) * 16 + offset
    for data in (encode(Image.fromarray(deep)), encode(Image.fromarray(deep), "TIFF")):
        assert np.abs(np.asarray(to_rgb(data))[:, :, 0].astype(int) - gradient()).max() <= 3


def test_deep_white_is_zero_tiff_is_inverted() -> None:
    deep = gradient().astype(np.uint16) * 200
    data = encode(Image.fromarray(deep), "TIFF", tiffinfo={262: 0})
    assert np.abs(np.asarray(to_rgb(data))[:, :, 0].astype(int) - (255 - gradient())).max() <= 3


def test_a_few_hot_pixels_do_not_darken_a_deep_image() -> None:
    deep = gradient(100, 100).astype(np.uint16)
    deep[0, :3] = 65535
    assert np.asarray(to_rgb(encode(Image.fromarray(deep)))).mean() > 100


def test_floats_with_nan_and_bright_points_on_a_constant_ground() -> None:
    values = np.zeros((100, 100), dtype=np.float32)
    values[0, 0], values[5, 5] = np.nan, 7.5
    pixels = np.asarray(to_rgb(encode(Image.fromarray(values), "TIFF")))
    assert (pixels[0, 0, 0], pixels[5, 5, 0], pixels[9, 9, 0]) == (0, 255, 0)


def test_transparency_lies_over_black() -> None:
    image = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    image.putpixel((1, 0), (200, 100, 50, 255))
    rgb = to_rgb(encode(image))
    assert (rgb.getpixel((0, 0)), rgb.getpixel((1, 0))) == ((0, 0, 0), (200, 100, 50))


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (20, 10))
    image.paste((255, 255, 255), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[274] = 6  # to be turned 90 degrees clockwise
    rgb = to_rgb(encode(image, "JPEG", exif=exif))
    assert rgb.size == (10, 20)
    assert rgb.getpixel((5, 2))[0] > 200  # type: ignore[index]
    assert rgb.getpixel((5, 17))[0] < 50  # type: ignore[index]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"just a text file that somebody renamed\n", "none of PNG"),
        (encode(Image.fromarray(gradient()), "GIF"), "none of PNG"),
        (encode(Image.fromarray(gradient(200, 200)), "JPEG")[:-900], "truncated"),
        (encode(Image.fromarray(gradient(200, 200)))[:-100], "cannot be decoded"),
    ],
)
def test_unusable_bytes_are_refused_with_the_reason(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        to_rgb(data)
    facts = inspect(data)
    assert words in facts.error
    assert facts.pixel_hash == ""


def test_decompression_bombs_are_refused_before_decoding() -> None:
    data = encode(Image.new("1", (9000, 9000)))
    assert len(data) < 20_000
    with pytest.raises(ImageError, match="9000 x 9000"):
        to_rgb(data)
    assert to_rgb(data, max_pixels=100_000_000).size == (9000, 9000)


@given(st.binary(max_size=300), st.sampled_from(["PNG", "JPEG", "TIFF", "WEBP"]), st.integers(0, 400))
def test_damaged_bytes_never_raise_anything_else(noise: bytes, format: str, at: int) -> None:
    data = encode(Image.fromarray(gradient()), format)
    inspect(data[:at] + noise + data[at + len(noise) :])


def test_same_pixels_have_the_same_hash_whatever_the_file() -> None:
    grey = Image.fromarray(gradient())
    hashes = {
        inspect(data).pixel_hash
        for data in (encode(grey), encode(grey.convert("RGB"), "TIFF"), encode(grey, "WEBP", lossless=True))
    }
    assert len(hashes) == 1
    other = gradient()
    other[3, 3] ^= 1
    assert inspect(encode(Image.fromarray(other))).pixel_hash not in hashes
    assert inspect(encode(Image.fromarray(gradient(32, 24)))).pixel_hash not in hashes


@pytest.mark.parametrize(("spread", "blank"), [(0, True), (2, True), (9, False)])
def test_blank_images(spread: int, blank: bool) -> None:
    pixels = np.full((20, 20), 100, dtype=np.uint8)
    pixels[0, 0] += spread
    assert inspect(encode(Image.fromarray(pixels))).blank is blank


def test_inspect_counts_frames_and_keeps_mode_and_format() -> None:
    pages = [Image.fromarray(gradient()) for _ in range(3)]
    facts = inspect(encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert (facts.frames, facts.mode, facts.format, facts.width, facts.height) == (3, "L", "TIFF", 32, 24)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 50))
def test_resize_keeps_the_shape_and_never_enlarges(width: int, height: int, longest: int) -> None:
    image = resize(Image.new("RGB", (width, height)), longest)
    assert max(image.size) == min(longest, max(width, height))
    assert min(image.size) >= 1
    scale = max(image.size) / max(width, height)
    assert abs(image.width - width * scale) <= 1
    assert abs(image.height - height * scale) <= 1


def test_examine_gives_facts_and_picture_of_one_decoding() -> None:
    data = encode(Image.fromarray(gradient()))
    facts, rgb = examine(data)
    assert facts == inspect(data)
    assert rgb is not None
    assert rgb.tobytes() == to_rgb(data).tobytes()
    assert examine(b"") == (inspect(b""), None)


def test_a_chosen_frame_of_a_tiff_is_read_and_one_beyond_is_refused() -> None:
    pages = [Image.new("L", (8, 8 + n), 40 * n) for n in range(3)]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    for number in range(3):
        rgb = to_rgb(data, frame=number)
        assert (rgb.size, rgb.getpixel((0, 0))) == ((8, 8 + number), (40 * number,) * 3)
    for number in (3, -1, 7):
        with pytest.raises(ImageError, match=f"no frame {number} of 3; allowed: 0 to 2"):
            to_rgb(data, frame=number)
    with pytest.raises(ImageError, match="no frame 1 of 1; allowed: 0 to 0"):
        to_rgb(encode(pages[0], "JPEG"), frame=1)


def test_a_later_page_that_is_too_large_is_refused() -> None:
    pages = [Image.new("1", (8, 8)), Image.new("1", (9000, 9000))]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert "9000 x 9000" in inspect(data, frame=1).error


def test_a_tiff_of_endless_pages_is_refused() -> None:
    entries = [
        (256, 3, 1, 4),
        (257, 3, 1, 4),
        (258, 3, 1, 8),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (279, 4, 1, 16),
    ]
    size = 2 + 12 * len(entries) + 4
    data = b"II*\0" + struct.pack("<L", 24) + bytes(16)
    for page in range(MAX_FRAMES + 2):
        directory = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
        data += struct.pack("<H", len(entries)) + directory + struct.pack("<L", 24 + (page + 1) * size)
    assert inspect(data).error == "has more than 10,000 frames"


def test_text_chunks_of_a_png_must_not_inflate_without_limit() -> None:
    plain = encode(Image.fromarray(gradient()))
    text = b"Comment\0\0" + zlib.compress(b"x" * 20_000_000, 9)
    chunk = struct.pack(">L", len(text)) + b"zTXt" + text + struct.pack(">L", zlib.crc32(b"zTXt" + text))
    assert "too large" in inspect(plain[:33] + chunk + plain[33:]).error


def test_a_window_is_for_deep_images_and_named_ones_are_for_dicom() -> None:
    deep = encode(Image.fromarray(np.arange(0, 3000, 5, dtype=np.uint16).reshape(20, 30)))
    levels = np.asarray(to_rgb(deep, window="1000.5/1001"))[..., 0].ravel()
    assert (levels[100], levels[150], levels[200], levels[400]) == (0, 64, 128, 255)
    with pytest.raises(ImageError, match="not in HU"):
        to_rgb(deep, window="lung")
    shallow = encode(Image.fromarray(gradient()))
    assert inspect(shallow, window="lung") == inspect(shallow)
    with pytest.raises(ImageError, match="unknown window 'lungs'"):
        to_rgb(shallow, window="lungs")


def test_files_of_too_many_bytes_are_refused() -> None:
    data = encode(Image.fromarray(gradient()))
    assert inspect(data, max_bytes=len(data)).error == ""
    assert (
        inspect(data, max_bytes=len(data) - 1).error
        == f"has {len(data):,} bytes: more than {len(data) - 1:,}"
    )
