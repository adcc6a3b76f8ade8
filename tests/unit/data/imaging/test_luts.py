from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.pixels import apply_color_lut

from radloop.data.imaging import ImageError, inspect, to_rgb
from tests.unit.data.imaging.dicoms import make, shipped

PLACES = np.arange(16, dtype=np.uint8).reshape(4, 4)


def palette(
    tables: list[list[int]], first: int, bits: int, kind: str = "<u2", segmented: str = ""
) -> dict[str, Any]:
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        num_entries = 16 if segmented else len(table)
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [num_entries, first, bits]
        elements[f"{segmented}{colour}PaletteColorLookupTableData"] = np.array(table, kind).tobytes()
    return elements


def test_the_shipped_palette_image_is_as_pydicom_colours_it() -> None:
    header = dcmread(DicomBytesIO(shipped("examples_palette.dcm")))
    expected = apply_color_lut(header.pixel_array, header) >> 8
    assert (np.asarray(to_rgb(shipped("examples_palette.dcm"))) == expected).all()


@pytest.mark.parametrize(
    ("bits", "kind", "scale"), [(8, "u1", 1), (8, "<u2", 1), (16, "<u2", 1), (16, "<u2", 257)]
)
def test_entries_of_eight_bits_in_bytes_or_words_and_of_sixteen(bits: int, kind: str, scale: int) -> None:
    tables = [[(17 * n) % 256 * scale for n in range(start, start + 6)] for start in (1, 5, 9)]
    found = np.asarray(to_rgb(make(PLACES, **palette(tables, 4, bits, kind))))
    for place in range(16):
        entry = min(max(place - 4, 0), 5)
        assert found[place // 4, place % 4].tolist() == [table[entry] // scale for table in tables]


def test_segments_are_written_out_as_by_pydicom() -> None:
    # 4 discrete, a ramp of 5, both again by reference, and the rest at one level
    red = [0, 4, 1000, 2000, 9000, 3, 1, 5, 60000, 2, 1, 0, 0, 1, 20, 512]
    elements = palette([red, red[::1], [0, 1, 65535, 1, 15, 0]], 0, 16, segmented="Segmented")
    data = make(PLACES, **elements)
    header = dcmread(DicomBytesIO(data))
    header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    found = np.asarray(to_rgb(data)).astype(int)
    assert found[0, 0].tolist() == [1000 >> 8, 1000 >> 8, 255]
    ramp = np.linspace(3, 60000, 6)[1:]
    assert found.reshape(16, 3)[4:9, 0].tolist() == [round(x) >> 8 for x in ramp]
    assert found.reshape(16, 3)[9:13, 0].tolist() == [1000 >> 8, 2000 >> 8, 9000 >> 8, 0]
    assert found[3, 3, 2] == 0


@given(st.lists(st.integers(0, 65535), max_size=40))
def test_no_segments_can_describe_more_than_the_entries(words: list[int]) -> None:
    inspect(make(PLACES, **palette([words] * 3, 0, 16, segmented="Segmented")))


def test_segments_in_a_circle_are_refused() -> None:
    elements = palette([[2, 3, 0, 0]] * 3, 0, 16, segmented="Segmented")
    with pytest.raises(ImageError, match="damaged segmented palette"):
        to_rgb(make(PLACES, **elements))
