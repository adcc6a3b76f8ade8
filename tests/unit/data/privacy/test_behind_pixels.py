"""What lies behind the pixels of a DICOM file goes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from radloop.data.privacy import Pseudonyms, clean_dicom
from radloop.data.privacy.dicom import is_compressed

pydicom = pytest.importorskip("pydicom")
from pydicom.data import get_testdata_file  # noqa: E402

NAMES = Pseudonyms(b"a key of some length")


def shipped(name: str) -> bytes:
    return Path(str(get_testdata_file(name, download=False))).read_bytes()


def test_bytes_behind_the_last_pixel_go_and_the_pixels_stay() -> None:
    dataset = pydicom.dcmread(io.BytesIO(shipped("CT_small.dcm")))
    pixels = dataset.PixelData
    dataset.PixelData = pixels + b"JaneSecretperson"
    dataset.add_new(0xFFFCFFFC, "OB", b"JaneSecretperson")
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    cleaned, _ = clean_dicom(buffer.getvalue(), NAMES)
    assert b"Secretperson" not in cleaned
    assert pydicom.dcmread(io.BytesIO(cleaned)).PixelData == pixels


def test_compressed_files_are_told_from_others() -> None:
    names = ("CT_small.dcm", "image_dfl.dcm", "JPEG2000.dcm", "MR_small_RLE.dcm")
    found = [is_compressed(clean_dicom(shipped(name), NAMES)[0]) for name in names]
    assert found == [False, False, True, True]
