"""DICOM without what names the patient: the Basic Application Level Confidentiality Profile.

Which attribute is removed, emptied, replaced or re-numbered is the table of `dicom-anonymizer` (PS3.15
table E.1-1 of 2026c). The library itself applies it to the outermost data set only and draws random
UIDs; here it is applied at every depth, and UIDs and patient names follow from the key, so that a file
comes out the same whenever and wherever it is cleaned.

Dates and times are removed, as the profile without its options demands: nothing in radloop learns from
them, and shifted ones would still tell the intervals between a patient's visits.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

from radloop.data.imaging import ImageError
from radloop.data.privacy.pseudonyms import Pseudonyms

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset, FileDataset
    from pydicom.uid import UID

METHOD = "PS3.15 2026c Basic Application Level Confidentiality Profile"
PROFILE = ("113100", "DCM", "Basic Application Confidentiality Profile")  # PS3.16, CID 7050
MIN_NAME_LENGTH = 4  # letters: a shorter part of a name also occurs in innocent words

_TABLE = "dicomfields_2026c"
# PS3.15, table E.1-1a. Where the profile leaves a choice, the one that no reader can trip over.
_ACTIONS = {
    "delete": "remove",
    "empty": "empty",
    "delete_or_empty": "empty",
    "replace": "dummy",
    "empty_or_replace": "dummy",
    "delete_or_replace": "dummy",
    "delete_or_empty_or_replace": "dummy",
    "replace_UID": "uid",
    "delete_or_empty_or_replace_UID": "keep",  # sequences of references; cleaned inside
}
# Retired and future attributes that the table does not list, by what their type can hold.
_RISKY_VRS = {"PN", "DA", "DT", "TM", "AE", "AS", "LT", "ST", "UT", "UR", "UC", "UN"}
_TEXT_VRS = {"LO", "SH"}
_SEARCHED = ("PatientName", "OtherPatientNames", "PatientID", "OtherPatientIDs", "AccessionNumber")
_CURVES, _OVERLAYS = 0x5000, 0x6000


def clean_dicom(data: bytes, pseudonyms: Pseudonyms) -> tuple[bytes, Counter[str]]:
    """Remove what identifies the patient from a DICOM file, but for what is drawn into the pixels.

    Pixel data stays as it is, bit for bit, with what is burnt in, with overlays that old equipment
    put into the unused high bits, and with comments that compressed frames may hold (see
    `is_compressed`). What follows the last pixel goes. Curves and separate overlays go. Kept short texts
    that hold the patient's name or number go, too.

    Args:
        data: A DICOM file (PS3.10) with one instance.
        pseudonyms: Make the new PatientID, PatientName, AccessionNumber and UIDs; the same old
            value gets the same new one in all files.

    Returns:
        The new file, the same for the same key and file, and how many attributes that had a value
        were removed or replaced, by keyword; "private" and "unknown" count those without.

    Raises:
        ImageError: Not DICOM, damaged, a directory of files, or without SOPInstanceUID. The
            message quotes nothing from the file.

    Source: DICOM PS3.15, annex E.
    """
    _silence_pydicom()
    import pydicom

    if data[128:132] != b"DICM":
        raise ImageError("this is no DICOM file: the mark DICM at byte 128 is missing")
    try:
        file = pydicom.dcmread(io.BytesIO(data))
        _require_instance(file)
        removed = _clean(file, pseudonyms, _names(file))
        _mark(file)
        _cut_behind_pixels(file)
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    except ImageError:
        raise
    except Exception as error:  # damaged bytes raise anything, and its message may quote the patient
        raise ImageError(
            f"this DICOM file is damaged and was not de-identified ({type(error).__name__}); export it anew"
        ) from None
    return buffer.getvalue(), removed


def is_compressed(data: bytes) -> bool:
    """Whether a cleaned file holds its frames as JPEG or the like: with headers and comments of their own."""
    import pydicom

    file = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=["SOPClassUID"])
    return bool(file.file_meta.TransferSyntaxUID.is_compressed)


def _silence_pydicom() -> None:
    """Its warnings quote the values they complain of, and ZenML stores what is logged."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module="pydicom")


def _require_instance(file: FileDataset) -> None:
    from pydicom.uid import MediaStorageDirectoryStorage

    if file.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise ImageError("this is a DICOMDIR, a directory of files: give the files themselves, without it")
    if not file.get("SOPInstanceUID"):
        raise ImageError("this DICOM file has no SOPInstanceUID, so that it cannot be told from others")


@cache
def _rules() -> dict[int, str]:
    from dicomanonymizer.simpledicomanonymizer import initialize_actions

    table = initialize_actions(_TABLE)
    return {tag[0] << 16 | tag[1]: _ACTIONS[rule.__name__] for tag, rule in table.items() if len(tag) == 2}


def _names(file: Dataset) -> set[str]:
    """What kept texts are searched for, in lower case: names and numbers of the patient, the institution."""
    values = [str(file.get(keyword) or "") for keyword in _SEARCHED]
    parts = re.split(r"[\^=\\\s]+", " ".join(values).lower())
    institution = str(file.get("InstitutionName") or "").lower()  # whole: its parts are common words
    return {part for part in [*parts, institution] if len(part) >= MIN_NAME_LENGTH}


def _clean(dataset: Dataset, pseudonyms: Pseudonyms, names: set[str]) -> Counter[str]:
    from pydicom.datadict import keyword_for_tag

    removed: Counter[str] = Counter()
    renamed = _renamed(dataset, pseudonyms)
    for tag in list(dataset.keys()):
        keyword = "private" if tag.is_private else keyword_for_tag(tag) or "unknown"
        try:
            element = dataset[tag]
        except Exception:  # what cannot be read cannot be judged
            del dataset[tag]
            removed[keyword] += 1
            continue
        had_value = not element.is_empty
        action = _action(element, keyword, names)
        if keyword in renamed:
            element.value = renamed[keyword]
        elif action == "uid":
            had_value = _renumber(element, pseudonyms)
        elif action != "keep":
            _take_out(dataset, element, action)
        else:
            had_value = False
            for item in element.value if element.VR == "SQ" and element.value else ():
                removed += _clean(item, pseudonyms, names)
        removed[keyword] += had_value
    return +removed


def _renamed(dataset: Dataset, pseudonyms: Pseudonyms) -> dict[str, str]:
    """The new values of the attributes that get pseudonyms; a name is that of the patient's number."""
    patient, name, accession = (
        str(dataset.get(keyword) or "") for keyword in ("PatientID", "PatientName", "AccessionNumber")
    )
    number = pseudonyms.of("patient", patient)
    return {
        "PatientID": number,
        "PatientName": (number or pseudonyms.of("name", name)) if name else "",
        "AccessionNumber": pseudonyms.of("accession", accession),
    }


def _action(element: DataElement, keyword: str, names: set[str]) -> str:
    """What the profile wants done: "remove", "empty", "dummy", "uid" or "keep"."""
    if keyword in ("private", "unknown") or element.tag.group & 0xFF00 in (_CURVES, _OVERLAYS):
        return "remove"
    action = _rules().get(int(element.tag), "keep")
    if action != "keep":
        return action
    if element.VR == "UI":
        return "uid"
    if element.VR in _RISKY_VRS:
        return "remove"
    text = str(element.value).lower() if element.VR in _TEXT_VRS else ""
    return "remove" if any(name in text for name in names) else "keep"


def _renumber(element: DataElement, pseudonyms: Pseudonyms) -> bool:
    """Replace UIDs that name something in the hospital; those that name a class or coding stay."""
    from pydicom.multival import MultiValue
    from pydicom.uid import UID

    if "Class" in element.keyword or "TransferSyntax" in element.keyword:
        return False
    old = list(element.value) if isinstance(element.value, MultiValue) else [element.value or ""]
    new = [str(uid) if UID(uid).type else pseudonyms.uid(str(uid)) for uid in old]
    element.value = new[0] if len(new) == 1 else new
    return new != old


def _take_out(dataset: Dataset, element: DataElement, action: str) -> None:
    from dicomanonymizer.simpledicomanonymizer import replace_element
    from pydicom import Dataset as Item

    if action == "dummy" and not element.is_empty:
        try:
            if element.VR == "SQ":
                element.value = [Item()]
            else:
                replace_element(element)
            return
        except NotImplementedError:  # a type for which the library has no dummy
            action = "remove"
    if action == "remove":
        del dataset[element.tag]
    else:
        element.clear()


def _mark(file: FileDataset) -> None:
    """State what was done, and leave nothing of the old file's head."""
    from pydicom.dataset import Dataset, FileMetaDataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = PROFILE
    file.PatientIdentityRemoved = "YES"
    file.DeidentificationMethod = METHOD
    file.DeidentificationMethodCodeSequence = [code]
    file.LongitudinalTemporalInformationModified = "REMOVED"

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = _transfer_syntax(file)
    meta.MediaStorageSOPClassUID = file.get("SOPClassUID") or file.file_meta.MediaStorageSOPClassUID
    meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
    file.file_meta, file.preamble = meta, bytes(128)


def _transfer_syntax(file: FileDataset) -> UID:
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if (given := file.file_meta.get("TransferSyntaxUID")) is not None:
        return UID(given)
    implicit, little = file.original_encoding  # as pydicom guessed it
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _cut_behind_pixels(file: FileDataset) -> None:
    """Uncompressed pixels have a length; what lies behind is padding, or anything."""
    from pydicom.pixels.utils import get_expected_length

    if "PixelData" not in file or file.file_meta.TransferSyntaxUID.is_compressed:
        return
    with contextlib.suppress(AttributeError, TypeError, ValueError):  # a size that nothing can decode, either
        length = get_expected_length(file)
        file["PixelData"].value = file.PixelData[: length + length % 2]
