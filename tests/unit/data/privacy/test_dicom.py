from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radloop.data.imaging import ImageError
from radloop.data.privacy import Pseudonyms, clean_dicom

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("dicomanonymizer")
from pydicom.data import get_testdata_file, get_testdata_files  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.uid import UID_dictionary  # noqa: E402

NAMES = Pseudonyms(b"a key of enough length")
IDENTIFYING = "Patient|Physician|Institution|Operator|Accession|StudyDate|BirthDate"


def shipped(name: str) -> bytes:
    return Path(str(get_testdata_file(name))).read_bytes()


def read(data: bytes) -> pydicom.FileDataset:
    return pydicom.dcmread(io.BytesIO(data))


def write(dataset: pydicom.FileDataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset)
    return buffer.getvalue()


def elements(dataset: Dataset) -> Iterator[pydicom.DataElement]:
    for element in dataset:
        yield element
        for item in element.value if element.VR == "SQ" and element.value else ():
            yield from elements(item)


def identifiers(dataset: Dataset) -> set[bytes]:
    """What must not be in the cleaned file: names, numbers, dates and UIDs, at any depth."""
    found: set[str] = set()
    for element in elements(dataset):
        values = str(element.value or "").split("\\") if element.VM <= 1 else map(str, element.value)
        if element.VR == "UI":
            if "Class" not in element.keyword:
                found |= {uid for uid in values if uid not in UID_dictionary and len(uid) > 3}
        elif element.VR == "PN":
            found |= {part for value in values for part in value.split("^") if len(part) > 3}
        elif element.VR in ("LO", "SH", "ST", "LT", "DA") and re.search(IDENTIFYING, element.keyword):
            found |= {value for value in values if len(value) > 3}
    return {value.encode("utf-8", "surrogateescape") for value in found}


def planted() -> pydicom.FileDataset:
    """A CT slice with the patient's name wherever a scanner may put it."""
    dataset = read(shipped("CT_small.dcm"))
    dataset.preamble = b"SECRETNAME".ljust(128, b"\0")
    dataset.file_meta.SourceApplicationEntityTitle = "SECRETNAME"
    dataset.PatientName, dataset.PatientID = "SecretName^Ann", "SECRETNAME7"
    dataset.AccessionNumber = "SECRETNAME8"
    dataset.SoftwareVersions = "V1 of secretname"
    dataset.InstitutionName = "SECRETNAME hospital"
    dataset.EvaluatorName, dataset.SetupImageComment = "SECRETNAME", "SECRETNAME"  # not in the table
    dataset.PersonAddress = "SECRETNAME street"
    dataset.ContentCreatorName = "SECRETNAME"
    dataset.add_new(0x60000022, "LO", "SECRETNAME")  # overlay description: not in the profile's table
    dataset.add_new(0x60024000, "LT", "SECRETNAME")
    dataset.add_new(0x50003000, "OW", b"SECRETNAME")
    dataset.add_new(0x00400FFE, "LO", "SECRETNAME")  # no such attribute, yet
    dataset.add_new(0x00091001, "LO", "SECRETNAME")
    dataset.private_block(0x0011, "SECRETNAME Inc", create=True).add_new(1, "LO", "SECRETNAME")
    inner = Dataset()
    inner.PatientName, inner.PatientID = "SECRETNAME^X", "SECRETNAME9"
    inner.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
    inner.ReferencedSOPClassUID = dataset.SOPClassUID
    inner.private_block(0x0011, "SECRETNAME Inc", create=True).add_new(1, "LO", "SECRETNAME")
    outer = Dataset()
    outer.ReferencedPatientPhotoSequence = [inner]
    outer.StudyDate, outer.PerformingPhysicianName = "19510314", "SECRETNAME"
    dataset.SourceImageSequence = [inner]
    dataset.DerivationCodeSequence = [outer]
    dataset.VerifyingObserverSequence = [outer]
    return dataset


@pytest.mark.parametrize(
    "path", [path for path in get_testdata_files() if Path(path).is_file()], ids=lambda path: Path(path).name
)
def test_no_identifier_of_any_shipped_file_is_left_and_its_pixels_are(path: str) -> None:
    data = Path(path).read_bytes()
    try:
        cleaned, removed = clean_dicom(data, NAMES)
    except ImageError:
        assert b"DICM" not in data[128:132] or not read(data).get("SOPInstanceUID")
        return
    before, after = read(data), read(cleaned)
    assert before.get("PixelData", b"").startswith(after.get("PixelData", b""))
    assert after.file_meta.TransferSyntaxUID == before.file_meta.TransferSyntaxUID
    rest = cleaned.replace(after.PixelData, b"") if "PixelData" in after else cleaned
    assert [value for value in identifiers(before) if value in rest] == []
    assert sum(removed.values()) >= 1
    assert clean_dicom(data, NAMES) == (cleaned, removed)


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_RLE.dcm",
        "JPEG2000.dcm",
        "SC_rgb_rle_16bit_2frame.dcm",
        "examples_palette.dcm",
        "examples_overlay.dcm",
        "image_dfl.dcm",
        "MR_small_padded.dcm",
    ],
)
def test_a_cleaned_file_decodes_to_the_same_pixels(name: str) -> None:
    data = shipped(name)
    after = read(clean_dicom(data, NAMES)[0])
    np.testing.assert_array_equal(after.pixel_array, read(data).pixel_array)
    for keyword in ("RescaleSlope", "WindowCenter", "PhotometricInterpretation", "PixelSpacing", "Modality"):
        assert after.get(keyword) == read(data).get(keyword)


def test_a_name_is_found_wherever_a_scanner_puts_it() -> None:
    cleaned, removed = clean_dicom(write(planted()), NAMES)
    assert b"SECRETNAME" not in cleaned.upper()
    assert b"19510314" not in cleaned
    assert cleaned[:132] == bytes(128) + b"DICM"
    after = read(cleaned)
    assert not [each for each in after if each.is_private or each.tag.group & 0xFF00 in (0x5000, 0x6000)]
    for keyword in ("PatientName", "PatientID", "SoftwareVersions", "OverlayDescription", "unknown"):
        assert removed[keyword] >= 1
    assert removed["private"] >= 4
    assert not [kind for kind in removed if "SECRET" in kind.upper()]


def test_references_between_files_stay_whole() -> None:
    after = read(clean_dicom(write(planted()), NAMES)[0])
    assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID
    reference = after.SourceImageSequence[0]
    assert reference.ReferencedSOPInstanceUID == after.SOPInstanceUID
    assert reference.ReferencedSOPClassUID == after.SOPClassUID == read(shipped("CT_small.dcm")).SOPClassUID
    slices = [Path(path).read_bytes() for path in get_testdata_files() if "CT2/17" in path]
    assert len(slices) > 1
    before, cleaned = map(read, slices), [read(clean_dicom(data, NAMES)[0]) for data in slices]
    assert len({file.StudyInstanceUID for file in before}) == len({file.StudyInstanceUID for file in cleaned})
    assert len({file.SOPInstanceUID for file in cleaned}) == len(slices)


def test_names_and_numbers_become_the_pseudonyms_of_the_key() -> None:
    data = write(planted())
    after = read(clean_dicom(data, NAMES)[0])
    assert after.PatientID == after.PatientName == NAMES.of("patient", "SECRETNAME7")
    assert after.AccessionNumber == NAMES.of("accession", "SECRETNAME8")
    assert after.StudyInstanceUID == NAMES.uid(planted().StudyInstanceUID)
    assert (after.StudyDate, after.StudyTime, after.get("PatientAge")) == ("", "", None)
    other = read(clean_dicom(data, Pseudonyms(b"another key of enough length"))[0])
    assert other.PatientID != after.PatientID
    assert other.StudyInstanceUID != after.StudyInstanceUID


def test_a_name_without_a_number_gets_a_pseudonym_of_its_own_and_none_stays_none() -> None:
    dataset = planted()
    dataset.PatientID = ""
    after = read(clean_dicom(write(dataset), NAMES)[0])
    assert (after.PatientID, after.PatientName) == ("", NAMES.of("name", "SecretName^Ann"))
    dataset.PatientName = ""
    cleaned, removed = clean_dicom(write(dataset), NAMES)
    assert read(cleaned).PatientName == ""
    assert removed["PatientID"] == 1  # that of the reference


def test_the_file_states_what_was_done() -> None:
    after = read(clean_dicom(shipped("CT_small.dcm"), NAMES)[0])
    assert after.PatientIdentityRemoved == "YES"
    assert "Basic Application Level Confidentiality Profile" in after.DeidentificationMethod
    assert after.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert after.LongitudinalTemporalInformationModified == "REMOVED"
    for element in elements(after):
        assert element.VR != "LO" or len(str(element.value)) <= 64


@pytest.mark.parametrize("name", ["meta_missing_tsyntax.dcm", "no_meta_group_length.dcm"])
def test_a_faulty_head_is_mended(name: str) -> None:
    dataset = read(shipped(name))
    dataset.SOPInstanceUID, dataset.SOPClassUID = "1.2.3", "1.2.840.10008.5.1.4.1.1.2"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, implicit_vr=True, little_endian=True)
    after = read(clean_dicom(buffer.getvalue(), NAMES)[0])
    assert after.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2"
    assert after.SOPInstanceUID == NAMES.uid("1.2.3")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no DICOM file: the mark DICM"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "no DICOM file: the mark DICM"),
        (bytes(128) + b"DICM", "no SOPInstanceUID"),
        (shipped("DICOMDIR"), "is a DICOMDIR, .*: give the files themselves"),
        (shipped("CT_small.dcm")[:300], "damaged|no SOPInstanceUID"),
    ],
)
def test_what_cannot_be_cleaned_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        clean_dicom(data, NAMES)


@settings(max_examples=80)
@given(st.data())
def test_damaged_bytes_are_refused_or_cleaned_but_never_quoted(data: st.DataObject) -> None:
    whole = bytearray(DAMAGE)
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(132, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(132, len(whole)))
    message = ""
    try:
        clean_dicom(bytes(whole[:cut]), NAMES)
    except ImageError as error:
        message = error.message
    assert "SECRETNAME" not in message.upper()


def small() -> bytes:
    dataset = planted()
    del dataset.PixelData
    return write(dataset)


DAMAGE = small()


def test_an_error_that_quotes_the_patient_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("SECRETNAME is too long")

    monkeypatch.setattr(pydicom, "dcmwrite", fail)
    with pytest.raises(ImageError, match=r"damaged and was not de-identified \(ValueError\)") as error:
        clean_dicom(DAMAGE, NAMES)
    assert "SECRETNAME" not in str(error.value)
    assert error.value.__suppress_context__


def test_nothing_of_the_file_reaches_log_or_warnings(caplog: pytest.LogCaptureFixture) -> None:
    dataset = read(shipped("CT_small.dcm"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.PatientBirthDate = "Secretname"
        dataset.add_new(0x00080050, "SH", "secretname far too long for this type")
        data = write(dataset)
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cleaned, _ = clean_dicom(data, NAMES)
    assert b"secretname" not in cleaned.lower()
    assert "secretname" not in (caplog.text + "".join(str(entry.message) for entry in caught)).lower()
