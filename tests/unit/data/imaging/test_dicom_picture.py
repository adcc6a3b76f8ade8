"""Grey levels held against the formulae of PS3.3, written out pixel by pixel and slowly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.sequence import Sequence

from radloop.data.imaging import WINDOWS, ImageError, inspect, to_rgb
from tests.unit.data.imaging.dicoms import dataset, encode, item, lut_item, make, shipped


def grey(data: bytes, **options: Any) -> np.ndarray:
    rgb = np.asarray(to_rgb(data, **options))
    assert (rgb[..., 0] == rgb[..., 1]).all()
    assert (rgb[..., 0] == rgb[..., 2]).all()
    return rgb[..., 0].astype(int)


def windowed(x: float, centre: float, width: float, function: str = "LINEAR") -> float:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2 with an output of 0 to 255."""
    if function == "SIGMOID":
        return 127.5 * (1 + math.tanh(2 * (x - centre) / width))  # the same, without overflow
    if function == "LINEAR_EXACT":
        if x <= centre - width / 2:
            return 0
        return 255 if x > centre + width / 2 else ((x - centre) / width + 0.5) * 255
    if x <= centre - 0.5 - (width - 1) / 2:
        return 0
    if x > centre - 0.5 + (width - 1) / 2:
        return 255
    return ((x - (centre - 0.5)) / (width - 1) + 0.5) * 255


def expected(values: np.ndarray, *window: Any) -> np.ndarray:
    return np.array([[windowed(float(x), *window) for x in row] for row in values])


def assert_near(levels: np.ndarray, exact: np.ndarray) -> None:
    """Rounded to the nearest grey level; a tie may go either way."""
    assert levels.shape == exact.shape
    assert np.abs(levels - exact).max() <= 0.5 + 1e-6


HU = np.arange(-1024, 3076, 10, dtype=np.int16).reshape(10, 41)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(40, 400), (-600, 1500), (300.5, 77.5), (40, 2), (40, 1)])
def test_the_files_window_follows_its_function(function: str, centre: float, width: float) -> None:
    data = make(HU, WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
    assert_near(grey(data), expected(HU, centre, width, function))


@settings(max_examples=30)
@given(
    st.sampled_from(["uint8", "int8", "uint16", "int16", "uint32", "int32"]),
    st.floats(-50, 50).filter(lambda slope: abs(slope) > 0.01),
    st.floats(-3000, 3000),
    st.floats(-5000, 5000),
    st.floats(1, 20000),
    st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    st.integers(0, 2**32),
)
def test_rescale_window_and_inversion_are_those_of_the_formulae(
    dtype: str, slope: float, intercept: float, centre: float, width: float, photometric: str, seed: int
) -> None:
    slope, intercept, centre, width = (float(f"{x:.5g}") for x in (slope, intercept, centre, width))
    info = np.iinfo(dtype)
    stored = np.random.default_rng(seed).integers(info.min, info.max, (5, 7), dtype, endpoint=True)
    data = make(
        stored,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        WindowCenter=centre,
        WindowWidth=width,
        PhotometricInterpretation=photometric,
    )
    exact = expected(stored.astype(np.float64) * slope + intercept, centre, width)
    assert_near(grey(data), 255 - exact if photometric == "MONOCHROME1" else exact)


@pytest.mark.parametrize("name", ["CT_small.dcm", "J2K_pixelrep_mismatch.dcm", "693_J2KI.dcm"])
@pytest.mark.parametrize("window", [*WINDOWS, "40/400"])
def test_windows_of_real_ct_are_in_hounsfield_units(name: str, window: str) -> None:
    from pydicom import dcmread
    from pydicom.filebase import DicomBytesIO

    header = dcmread(DicomBytesIO(shipped(name)))
    hounsfield = (header.pixel_array * header.RescaleSlope + header.RescaleIntercept)[::16, ::16]
    padding = (header.pixel_array == header.get("PixelPaddingValue"))[::16, ::16]
    exact = expected(hounsfield, *WINDOWS.get(window, (40, 400)))
    assert_near(grey(shipped(name), window=window)[::16, ::16], np.where(padding, 0, exact))


def test_the_files_first_window_is_taken_and_another_can_be_asked_for() -> None:
    data = make(HU, WindowCenter=[40, -600], WindowWidth=[400, 1500])
    assert_near(grey(data), expected(HU, 40, 400))
    assert_near(grey(data, window="lung"), expected(HU, -600, 1500))
    assert_near(grey(data, window="-100.5/300"), expected(HU, -100.5, 300))
    assert (
        grey(shipped("examples_overlay.dcm"), window="450/790") == grey(shipped("examples_overlay.dcm"))
    ).all()


@pytest.mark.parametrize("width", [0, -5, None])
def test_without_a_usable_window_percentiles_are_stretched(width: int | None) -> None:
    stored = np.linspace(-900, 2000, 60 * 50).round().astype(np.int16).reshape(60, 50)
    stored[0, 0] = 32767  # one hot pixel must not darken all others
    window = {} if width is None else {"WindowCenter": 40, "WindowWidth": width}
    low, high = np.percentile(stored.astype(float), (0.1, 99.9))
    exact = ((stored - low) / (high - low)).clip(0, 1) * 255
    assert_near(grey(make(stored, RescaleSlope=2, RescaleIntercept=-1024, **window)), exact)
    negative = grey(make(stored, RescaleSlope=-2, RescaleIntercept=50, **window))
    assert_near(negative, 255 - exact)


def test_monochrome1_is_inverted_whatever_the_window() -> None:
    for elements in ({}, {"WindowCenter": 40, "WindowWidth": 400}):
        plain = grey(make(HU, **elements))
        assert (grey(make(HU, PhotometricInterpretation="MONOCHROME1", **elements)) == 255 - plain).all()


def test_a_modality_lut_comes_before_the_window() -> None:
    entries = [int(1000 * math.sqrt(n)) for n in range(100)]
    stored = np.arange(-10, 130, dtype=np.int16).reshape(10, 14)
    data = make(stored, ModalityLUTSequence=lut_item(5, 16, entries), WindowCenter=5000, WindowWidth=6000)
    looked_up = np.array([[entries[min(max(x - 5, 0), 99)] for x in row] for row in stored.tolist()])
    assert_near(grey(data), expected(looked_up, 5000, 6000))


@pytest.mark.parametrize(("bits", "packed"), [(12, False), (16, False), (8, False), (8, True)])
def test_a_voi_lut_is_preferred_to_the_window_and_spans_its_bits(bits: int, packed: bool) -> None:
    entries = [round((2**bits - 1) * (n / 60) ** 2) for n in range(61)]
    voi = lut_item(-20, bits, entries)
    if packed:
        voi[0].add_new(0x00283006, "OW", bytes(entries) + b"\0")
    stored = np.arange(-50, 70, dtype=np.int16).reshape(10, 12)
    data = make(stored, VOILUTSequence=voi, RescaleIntercept=3, RescaleSlope=1, WindowCenter=0, WindowWidth=9)
    looked_up = np.array([[entries[min(max(x + 3 + 20, 0), 60)] for x in row] for row in stored.tolist()])
    assert_near(grey(data), looked_up * 255 / (2**bits - 1))
    assert_near(grey(data, window="3/40"), expected(stored + 3, 3, 40))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count_for_the_stretch(photometric: str) -> None:
    stored = np.linspace(0, 1000, 400).round().astype(np.int16).reshape(20, 20)
    padded = stored.copy()
    padded[:5] = -2000
    padded[5] = -1990
    low, high = np.percentile(stored[6:].astype(float), (0.1, 99.9))
    exact = ((stored[6:] - low) / (high - low)).clip(0, 1) * 255
    levels = grey(
        make(
            padded,
            PixelPaddingValue=-2000,
            PixelPaddingRangeLimit=-1980,
            PhotometricInterpretation=photometric,
        )
    )
    assert (levels[:6] == 0).all()
    assert_near(levels[6:], 255 - exact if photometric == "MONOCHROME1" else exact)


def test_padding_of_signed_pixels_may_be_given_as_unsigned() -> None:
    header = dataset(
        np.array([[-2000, 0], [500, 1000]], dtype=np.int16), WindowCenter=-1000, WindowWidth=4000
    )
    header.add_new(0x00280120, "US", 65536 - 2000)
    assert grey(encode(header))[0, 0] == 0
    assert grey(encode(header))[0, 1] > 0


def test_an_image_of_padding_only_is_black() -> None:
    assert not grey(make(np.full((4, 4), 7, dtype=np.uint16), PixelPaddingValue=7)).any()


def test_floats_that_are_no_numbers_are_black() -> None:
    for dtype in (np.float32, np.float64):
        values = np.linspace(-1, 1, 100, dtype=dtype).reshape(10, 10)
        values[0, :3] = np.nan, np.inf, -np.inf
        levels = grey(make(values, WindowCenter=0, WindowWidth=2, VOILUTFunction="LINEAR_EXACT"))
        assert (levels[0, :3] == 0).all()
        assert_near(levels[1:], expected(values[1:], 0, 2, "LINEAR_EXACT"))
        assert inspect(make(values)).mode == "F"


def test_fractional_values_with_a_width_below_one_are_not_refused() -> None:
    stored = np.arange(100, dtype=np.uint16).reshape(10, 10)
    data = make(stored, RescaleSlope="0.005", RescaleIntercept=0, WindowCenter="0.25", WindowWidth="0.5")
    assert_near(grey(data), expected(stored * 0.005, 0.25, 0.5, "LINEAR_EXACT"))


@pytest.mark.parametrize("level", [-32768, 0, 1234])
def test_a_constant_image_stays_constant(level: int) -> None:
    facts = inspect(make(np.full((8, 8), level, dtype=np.int16)))
    assert (facts.blank, facts.error) == (True, "")


def test_enhanced_frames_have_windows_and_rescales_of_their_own() -> None:
    stored = np.stack([HU, HU, HU])
    frames = [
        item(
            FrameVOILUTSequence=item(WindowCenter=centre, WindowWidth=200),
            PixelValueTransformationSequence=item(RescaleSlope=slope, RescaleIntercept=5),
        )[0]
        for centre, slope in ((0, 1), (500, 1), (500, 3))
    ]
    data = make(stored, PerFrameFunctionalGroupsSequence=Sequence(frames))
    for frame, (centre, slope) in enumerate(((0, 1), (500, 1), (500, 3))):
        assert_near(grey(data, frame=frame), expected(HU.astype(float) * slope + 5, centre, 200))
    shared = item(FrameVOILUTSequence=item(WindowCenter=70, WindowWidth=300))
    assert_near(grey(make(stored, SharedFunctionalGroupsSequence=shared), frame=2), expected(HU, 70, 300))


@pytest.mark.parametrize("window", ["lungs", "40", "40/", "40/0", "40/-1", "nan/3", "1/2/3", "LUNG"])
def test_an_unknown_window_is_refused_with_the_known_ones(window: str) -> None:
    with pytest.raises(ImageError, match=r"bone, brain, lung, mediastinum, or centre/width") as caught:
        to_rgb(make(HU), window=window)
    assert repr(window) in caught.value.message
    assert inspect(make(HU), window=window).error == caught.value.message


def test_named_windows_are_for_hounsfield_units_only() -> None:
    with pytest.raises(ImageError, match="modality 'MR'"):
        to_rgb(make(HU, Modality="MR"), window="lung")
    assert_near(grey(make(HU, Modality="PT", RescaleType="HU"), window="lung"), expected(HU, -600, 1500))
    assert_near(grey(make(HU, Modality="MR"), window="-600/1500"), expected(HU, -600, 1500))


def test_absurd_numbers_saturate() -> None:
    data = make(
        HU, RescaleSlope="1e300", RescaleIntercept="-1e300", WindowCenter="1e300", WindowWidth="1e-300"
    )
    assert set(np.unique(grey(data))) <= {0, 255}


def test_wide_integers_are_windowed_block_by_block() -> None:
    stored = np.random.default_rng(0).integers(-(2**31), 2**31 - 1, (1100, 1000), dtype=np.int32)
    levels = grey(make(stored, WindowCenter=1000, WindowWidth=2**31))
    exact = ((stored - 999.5) / (2**31 - 1) + 0.5).clip(0, 1) * 255
    assert_near(levels, exact)
