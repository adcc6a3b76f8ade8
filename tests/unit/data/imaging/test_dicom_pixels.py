from __future__ import annotations

import io
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
    RTStructureSetStorage,
)

from radloop.data.imaging import MAX_BYTES, MAX_FRAMES, MAX_PIXELS, ImageError, inspect, to_rgb
from radloop.data.imaging.dicom import read_header
from radloop.data.imaging.dicom_pixels import KEYWORDS, decode, read_layout
from radloop.data.imaging.limits import Request
from tests.unit.data.imaging.dicoms import dataset, encode, make, shipped

BARS = {
    5: (255, 0, 0),
    15: (255, 128, 128),
    25: (0, 255, 0),
    35: (128, 255, 128),
    45: (0, 0, 255),
    55: (128, 128, 255),
    65: (0, 0, 0),
    75: (64, 64, 64),
    85: (192, 192, 192),
    95: (255, 255, 255),
}
"""Row to colour of the test picture SC_rgb, as pydicom's own tests give them."""


def rgb(name: str, **options: Any) -> np.ndarray:
    return np.asarray(to_rgb(shipped(name), **options)).astype(int)


def noise(dtype: str, shape: tuple[int, ...] = (20, 30), low: int | None = None) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.random.default_rng(0).integers(info.min if low is None else low, info.max, shape, dtype)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("SC_rgb_rle.dcm", 0),
        ("SC_rgb_rle_16bit.dcm", 0),
        ("SC_rgb_rle_32bit.dcm", 0),
        ("SC_rgb_jpeg_gdcm.dcm", 0),
        ("SC_rgb_gdcm_KY.dcm", 0),
        ("SC_rgb_jls_lossy_line.dcm", 10),
        ("SC_rgb_jls_lossy_sample.dcm", 10),
        ("SC_rgb_dcmtk_+eb+cr.dcm", 3),
        ("SC_rgb_dcmtk_+eb+cy+n1.dcm", 5),
        ("SC_rgb_dcmtk_+eb+cy+n2.dcm", 5),
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", 5),
        ("SC_rgb_dcmtk_+eb+cy+s2.dcm", 5),
        ("SC_rgb_dcmtk_+eb+cy+s4.dcm", 5),
        ("SC_rgb_jpeg_dcmtk.dcm", 5),
        ("SC_rgb_jpeg_lossy_gdcm.dcm", 5),
        ("SC_ybr_full_422_uncompressed.dcm", 5),
    ],
)
def test_the_same_colours_come_out_of_each_transfer_syntax(name: str, loss: int) -> None:
    found = rgb(name)
    for row, colour in BARS.items():
        assert np.abs(found[row, 50] - colour).max() <= loss, row


@pytest.mark.parametrize("bits", ["", "_16bit", "_32bit"])
def test_the_second_frame_is_the_first_one_inverted(bits: str) -> None:
    name = f"SC_rgb_rle{bits}_2frame.dcm"
    assert (rgb(name, frame=1) == 255 - rgb(name, frame=0)).all()
    with pytest.raises(ImageError, match="no frame 7 of 2; allowed: 0 to 1"):
        rgb(name, frame=7)


def test_jpeg_is_the_same_compressed_and_not() -> None:
    assert (rgb("SC_rgb_jpeg_dcmd.dcm") == rgb("SC_rgb_jpeg.dcm")).all()
    assert (rgb("SC_ybr_full_422_uncompressed.dcm") == rgb("SC_rgb_dcmtk_+eb+cy+n2.dcm")).all()


@pytest.mark.parametrize(
    "twin",
    [
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_expb.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_padded.dcm",
    ],
)
def test_the_same_slice_in_other_transfer_syntaxes(twin: str) -> None:
    assert inspect(shipped(twin)) == inspect(shipped("MR_small.dcm"))


@pytest.mark.parametrize("twin", ["rtdose_expb.dcm", "rtdose_rle.dcm", "rtdose_1frame.dcm"])
def test_the_same_dose_in_other_transfer_syntaxes(twin: str) -> None:
    assert (rgb(twin) == rgb("rtdose.dcm")).all()


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("JPGExtended.dcm", {(420, 140): 244, (230, 120): 95}),
        ("JPEG-lossy.dcm", {(420, 140): 244, (230, 120): 95}),
        ("MR_small.dcm", {(0, 31): 422, (31, 2): 322, (-1, -1): 862}),
        ("image_dfl.dcm", {(300, 255): 138, (300, 256): 65, (300, 260): 35}),
        ("liver_1frame.dcm", {(155, 180): 0, (155, 181): 1, (254, 304): 1, (254, 305): 0}),
        ("liver_expb_1frame.dcm", {(155, 180): 0, (155, 181): 1, (254, 304): 1, (254, 305): 0}),
    ],
)
def test_stored_values_are_those_of_pydicoms_own_tests(name: str, pixels: dict[tuple[int, int], int]) -> None:
    for place, stored in pixels.items():
        # A step between two integers shows the value itself.
        for threshold, level in ((stored - 0.5, 255), (stored + 0.5, 0)):
            assert rgb(name, window=f"{threshold + 0.5}/1")[place][0] == level, (place, threshold)


def encapsulated(header: Dataset, codestream: bytes, syntax: str) -> bytes:
    header.PixelData = encapsulate([codestream])
    header["PixelData"].VR = "OB"
    header["PixelData"].is_undefined_length = True
    return encode(header, syntax)


def rle(header: Dataset) -> bytes:
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.compress(RLELossless, encoding_plugin="pydicom")
    return encode(header, RLELossless)


def jpeg_2000(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG2000", irreversible=False, no_jp2=True)
    return buffer.getvalue()


def jpeg_lossless(pixels: np.ndarray) -> bytes:
    """Encode by ITU T.81 annex H, selection value 1, with codes of 5 bits for all categories."""
    precision = pixels.itemsize * 8
    values = pixels.astype(np.int64) % 2**precision
    predicted = np.roll(values, 1, axis=1)
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 1 << (precision - 1)
    bits = []
    for difference in ((values - predicted + 2**15) % 2**16 - 2**15).ravel().tolist():
        size = 16 if difference == -(2**15) else abs(difference).bit_length()
        bits.append(f"{size:05b}")
        if 0 < size < 16:
            bits.append(f"{difference if difference > 0 else difference + 2**size - 1:0{size}b}")
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    scan = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\0")
    rows, columns = pixels.shape
    frame = struct.pack(">HBHHB3B", 11, precision, rows, columns, 1, 1, 0x11, 0)
    table = struct.pack(">HB16B", 36, 0, *(0, 0, 0, 0, 17), *(0,) * 11) + bytes(range(17))
    start = struct.pack(">HB2B3B", 8, 1, 1, 0, 1, 0, 0)
    return b"\xff\xd8\xff\xc3" + frame + b"\xff\xc4" + table + b"\xff\xda" + start + scan + b"\xff\xd9"


def stored(data: bytes) -> np.ndarray:
    header = read_header(io.BytesIO(data), KEYWORDS, MAX_BYTES)
    layout = read_layout(header, Request(0, MAX_PIXELS, MAX_BYTES))
    return decode(header, layout, 0)[0]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_rle_gives_back_every_value(dtype: str) -> None:
    assert (stored(rle(dataset(noise(dtype)))) == noise(dtype)).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1])
def test_lossless_jpeg_gives_back_every_value(syntax: str, dtype: str) -> None:
    data = encapsulated(dataset(noise(dtype)), jpeg_lossless(noise(dtype)), syntax)
    assert (stored(data) == noise(dtype)).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_lossless_jpeg_2000_gives_back_every_value(dtype: str) -> None:
    data = encapsulated(dataset(noise(dtype)), jpeg_2000(noise(dtype)), JPEG2000Lossless)
    assert (stored(data) == noise(dtype)).all()


@pytest.mark.parametrize("signed", [False, True])
def test_bits_beyond_those_stored_are_masked(signed: bool) -> None:
    clean = noise("int16" if signed else "uint16") >> 4
    junk = (clean & 0x0FFF) | (noise("uint16", low=1) & 0xF000).astype(clean.dtype)
    facts = inspect(make(clean))
    assert inspect(make(junk, BitsStored=12, HighBit=11)).pixel_hash == facts.pixel_hash
    left = ((clean & 0x0FFF) << 4) | (noise("uint16") & 0x000F).astype(clean.dtype)
    assert inspect(make(left, BitsStored=12, HighBit=15)).pixel_hash == facts.pixel_hash
    assert inspect(rle(dataset(junk, BitsStored=12, HighBit=11))).pixel_hash == facts.pixel_hash


def test_bits_of_a_segmentation_may_start_within_a_byte() -> None:
    frames = np.random.default_rng(1).integers(0, 2, (3, 5, 5), dtype=np.uint8)
    packed = np.packbits(frames.ravel(), bitorder="little").tobytes()
    data = make(
        frames,
        BitsAllocated=1,
        BitsStored=1,
        HighBit=0,
        NumberOfFrames=3,
        PixelData=packed + b"\0" * (len(packed) % 2),
    )
    assert inspect(data).mode == "1"
    for number in range(3):
        assert (np.asarray(to_rgb(data, frame=number))[..., 0] == frames[number] * 255).all()


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize(("dtype", "bits"), [("uint8", 8), ("uint16", 16), ("uint16", 12)])
def test_colours_are_rounded_to_eight_bits_in_either_plane_order(planar: int, dtype: str, bits: int) -> None:
    colours = noise(dtype, (6, 7, 3)) >> (np.iinfo(dtype).bits - bits)
    header = dataset(colours, BitsStored=bits, HighBit=bits - 1, PlanarConfiguration=planar)
    header.PixelData = (colours.transpose(2, 0, 1) if planar else colours).tobytes()
    exact = colours * (255 / (2**bits - 1))
    assert np.abs(np.asarray(to_rgb(encode(header))) - exact).max() <= 0.5


def test_a_file_without_preamble_and_meta_is_read_by_its_encoding() -> None:
    whole = dataset(noise("int16"), RescaleIntercept=-1024, RescaleSlope=1)
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        data = encode(whole, syntax)
        assert inspect(after_meta(data)) == inspect(data)
    assert inspect(shipped("ExplVR_BigEndNoMeta.dcm")).error.endswith("'RT Ion Plan Storage'")


def test_what_holds_no_image_says_what_it_is() -> None:
    assert inspect(shipped("test-SR.dcm")).error.endswith(
        "no image; its SOP class is 'Comprehensive SR Storage'"
    )
    pdf = dataset(noise("uint8"), SOPClassUID=EncapsulatedPDFStorage, PixelData=None, Rows=None)
    assert "'Encapsulated PDF Storage'" in inspect(encode(pdf)).error
    rt = dataset(noise("uint8"), SOPClassUID=RTStructureSetStorage, PixelData=None, Rows=None)
    assert "'RT Structure Set Storage'" in inspect(encode(rt)).error


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"Rows": 9000, "Columns": 9000}, "is 9000 x 9000: more than 64,000,000 pixels"),
        ({"NumberOfFrames": MAX_FRAMES + 1}, "more than 10,000 frames"),
        ({"NumberOfFrames": 9}, "is truncated: it holds 600 of 5,400 bytes"),
        ({"SamplesPerPixel": 4}, "4 samples per pixel; known: 1, 3"),
        ({"BitsAllocated": 12}, "12 bits allocated; known"),
        ({"BitsAllocated": None}, "without BitsAllocated"),
        ({"Rows": None}, "without Rows"),
        ({"PixelData": b""}, "empty or damaged pixel data"),
        ({"PhotometricInterpretation": "HSV"}, "HSV"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "descriptor None"),
    ],
)
def test_an_impossible_layout_is_refused_before_decoding(elements: dict[str, Any], words: str) -> None:
    with pytest.raises(ImageError) as caught:
        to_rgb(make(noise("uint8"), **elements))
    assert words in caught.value.message


def test_an_image_file_without_its_pixels_is_no_other_kind_of_file() -> None:
    data = shipped("CT_small.dcm")
    for end in (data.index(b"\x28\x00\x10\x00"), data.index(b"\xe0\x7f\x10\x00")):
        words = "pixel data is missing or cut off; its SOP class is 'CT Image Storage'"
        assert inspect(data[:end]).error.endswith(words)


def test_reasons_are_one_short_line() -> None:
    header = dataset(noise("uint8"), PixelData=None)
    header.SOPClassUID = "1.2." + "3" * 5000
    assert len(inspect(encode(header)).error) < 300
    broken = inspect(shipped("JPEG2000.dcm")[:3000]).error
    assert len(broken) < 300
    assert "\n" not in inspect(shipped("JPEG2000-embedded-sequence-delimiter.dcm")).error


def test_an_unknown_transfer_syntax_is_named() -> None:
    header = dcmread(DicomBytesIO(shipped("MR_small_jp2klossless.dcm")))
    assert "High-Throughput JPEG 2000" in inspect(encode(header, HTJ2KLossless)).error


def test_more_frames_than_encoded_fragments_are_refused() -> None:
    header = dcmread(DicomBytesIO(shipped("MR_small_RLE.dcm")))
    header.NumberOfFrames = 4
    assert "says that it has 4 frames, but holds 2" in inspect(encode(header, RLELossless)).error


def test_a_small_header_around_a_huge_codestream_is_refused() -> None:
    header = dcmread(DicomBytesIO(shipped("SC_rgb_jpeg_lossy_gdcm.dcm")))
    at = header.PixelData.index(b"\xff\xc0") + 5
    huge = header.PixelData[:at] + struct.pack(">HH", 12000, 12000) + header.PixelData[at + 4 :]
    header.PixelData = huge
    error = inspect(encode(header, header.file_meta.TransferSyntaxUID)).error
    assert error == "is 100 x 100 by its header, but its encoded data is 12000 x 12000"


def test_a_deflated_file_must_not_inflate_without_limit() -> None:
    data = encode(dataset(np.zeros((2000, 2000), np.uint16)), DeflatedExplicitVRLittleEndian)
    assert len(data) < 20_000
    assert to_rgb(data).size == (2000, 2000)
    tracemalloc.start()
    assert inspect(data, max_bytes=1_000_000).error == "inflates to more than 1,000,000 bytes"
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    meta = data[: -len(after_meta(data))]
    assert "cannot be decoded" in inspect(meta + b"\xff" * 100).error


def after_meta(data: bytes) -> bytes:
    """The data set without the preamble and the file's meta information."""
    (length,) = struct.unpack_from("<L", data, 140)
    return data[144 + length :]


def test_a_frame_of_too_many_bytes_is_refused_before_decoding() -> None:
    bomb = dataset(noise("uint8"), Rows=2000, Columns=2000, BitsAllocated=32, BitsStored=32)
    error = inspect(encapsulated(bomb, b"tiny", RLELossless), max_bytes=15_000_000).error
    assert error == "has 16,000,000 bytes a frame: more than 15,000,000"


def test_large_files_are_refused_unread() -> None:
    assert inspect(shipped("CT_small.dcm"), max_bytes=39_000).error == "has 39,206 bytes: more than 39,000"
    assert "more than 16,000 pixels" in inspect(shipped("CT_small.dcm"), max_pixels=16_000).error
