from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from radloop.data.imaging import DicomTags, ImageError, dicom_tags, is_dicom
from tests.unit.data.imaging.dicoms import dataset, encode, make, shipped

PIXELS = np.zeros((4, 4), dtype=np.uint8)
ELEMENTS = {
    "PatientID": "p10000032",
    "StudyInstanceUID": "1.2.3",
    "SeriesInstanceUID": "1.2.3.4",
    "SOPInstanceUID": "1.2.3.4.5",
    "Modality": "DX",
    "BodyPartExamined": "CHEST",
    "ViewPosition": "PA",
    "StudyDate": "21800506",
    "StudyTime": "213014.531",
    "BurnedInAnnotation": "NO",
    "NumberOfFrames": 1,
}
TAGS = DicomTags(
    patient_id="p10000032",
    study_uid="1.2.3",
    series_uid="1.2.3.4",
    sop_uid="1.2.3.4.5",
    modality="DX",
    body_part="CHEST",
    view="PA",
    study_date="21800506",
    study_time="213014.531",
    burned_in="NO",
    num_frames="1",
)


def test_tags_are_read_from_bytes_and_from_a_path(tmp_path: Path) -> None:
    data = make(PIXELS, **ELEMENTS)
    (tmp_path / "image").write_bytes(data)
    assert dicom_tags(data) == dicom_tags(tmp_path / "image") == dicom_tags(str(tmp_path / "image")) == TAGS


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_tags_are_read_in_any_encoding(syntax: str) -> None:
    assert dicom_tags(encode(dataset(PIXELS, **ELEMENTS), syntax)) == TAGS


def test_what_is_missing_or_broken_is_empty() -> None:
    assert dicom_tags(make(PIXELS, SOPInstanceUID="1.2")) == DicomTags(sop_uid="1.2", modality="CT")
    assert dicom_tags(shipped("badVR.dcm")).num_frames in ("", "1A")
    assert dicom_tags(shipped("test-SR.dcm")).modality == "SR"


def test_values_lose_padding_and_keep_their_alphabet() -> None:
    header = dataset(PIXELS, SpecificCharacterSet="ISO_IR 192", PatientID="  Jürgen-7 ", Modality="CT ")
    assert (dicom_tags(encode(header)).patient_id, dicom_tags(encode(header)).modality) == ("Jürgen-7", "CT")


def test_a_real_slice() -> None:
    tags = dicom_tags(shipped("CT_small.dcm"))
    assert (tags.patient_id, tags.modality, tags.study_date) == ("1CT1", "CT", "20040119")
    assert tags.study_uid == "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"


def test_the_pixels_need_not_be_there() -> None:
    data = shipped("CT_small.dcm")
    assert dicom_tags(data[: data.index(b"\xe0\x7f\x10\x00")]) == dicom_tags(data)


@pytest.mark.parametrize(
    "data", [b"", b"DICM", b"patient,study\n1,2\n" * 20, b"\x89PNG\r\n\x1a\n" + bytes(200)]
)
def test_other_files_are_no_dicom(data: bytes) -> None:
    assert not is_dicom(data)
    with pytest.raises(ImageError, match="is no DICOM file"):
        dicom_tags(data)


@given(st.text())
def test_text_is_never_taken_for_dicom(text: str) -> None:
    start = text.encode()[:132]
    printable = text.isprintable() or not text.replace("\n", "").strip()
    assert not (is_dicom(start) and printable and "DICM" not in text)


@given(st.binary(max_size=200), st.integers(0, 400))
def test_damaged_headers_raise_image_errors_only(noise: bytes, at: int) -> None:
    data = make(PIXELS, **ELEMENTS)
    with contextlib.suppress(ImageError):
        dicom_tags(data[:at] + noise + data[at + len(noise) :])


def test_nothing_is_said_on_the_console() -> None:
    program = """
import pathlib, sys
from pydicom.data import get_testdata_file
import radloop.data.imaging as imaging
for path in sorted(pathlib.Path(get_testdata_file("CT_small.dcm", download=False)).parent.glob("*.dcm")):
    imaging.inspect(path.read_bytes())
    try:
        imaging.dicom_tags(path)
    except imaging.ImageError:
        pass
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_module_is_light() -> None:
    program = (
        "import sys, radloop.data.imaging; "
        "print({'torch', 'pandas', 'pydicom', 'gdcm', 'matplotlib', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
