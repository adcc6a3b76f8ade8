"""Phantoms as MIMIC-CXR: the tree of the JPG release with the reports unpacked into it, and the DICOM one."""

from __future__ import annotations

import csv
import gzip
import io
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from radloop.data.phantoms import report
from radloop.data.phantoms.formats._cohort import Cohort, Study
from radloop.data.phantoms.formats._files import encoded, radiograph
from radloop.data.reports import sections

_LABELS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture",
           "Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia",
           "Pneumothorax", "Support Devices")  # fmt: skip
_OF_FINDING = {"cardiomegaly": "Cardiomegaly", "pneumothorax": "Pneumothorax",
               "consolidation": "Consolidation", "pleural effusion": "Pleural Effusion",
               "pacemaker": "Support Devices", "nodules": "Lung Lesion"}  # fmt: skip
_METADATA = ("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition",
             "Rows", "Columns", "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning",
             "ViewCodeSequence_CodeMeaning", "PatientOrientationCodeSequence_CodeMeaning")  # fmt: skip
_SPLITS = {"validation": "validate"}
_LINE = 79  # characters


def _jpg(folder: Path, cohort: Cohort) -> None:
    """Write the tree and the CSV files of MIMIC-CXR-JPG 2.0.0."""
    studies = list(_tree(folder, cohort, ".jpg", _jpeg))
    tables: dict[str, tuple[Sequence[str], Iterable[Sequence[Any]]]] = {
        "metadata": (_METADATA, map(_metadata, studies)),
        "split": (("dicom_id", "study_id", "subject_id", "split"), map(_split, studies)),
        "chexpert": (("subject_id", "study_id", *_LABELS), map(_labels, studies)),
        "negbio": (("subject_id", "study_id", *_LABELS), map(_labels, studies)),
    }
    for name, (header, rows) in tables.items():
        _table(folder / f"mimic-cxr-2.0.0-{name}.csv.gz", header, rows)


def _dcm(folder: Path, cohort: Cohort) -> None:
    """Write the tree and the lists of MIMIC-CXR 2.0.0, which has no other table."""
    studies = list(_tree(folder, cohort, ".dcm", _dicom))
    images = ((s.patient_id, s.study_id, s.dicom_id, f"{_place(s)}/{s.dicom_id}.dcm") for s in studies)
    _table(folder / "cxr-record-list.csv.gz", ("subject_id", "study_id", "dicom_id", "path"), images)
    reports = ((s.patient_id, s.study_id, f"{_place(s)}.txt") for s in studies)
    _table(folder / "cxr-study-list.csv.gz", ("subject_id", "study_id", "path"), reports)


LAYOUTS = {"jpg": _jpg, "dcm": _dcm}


def _tree(folder: Path, cohort: Cohort, ending: str, encode: Callable[[Study], bytes]) -> Iterable[Study]:
    for study in cohort.studies():
        place = folder / _place(study)
        place.mkdir(parents=True)
        (place / f"{study.dicom_id}{ending}").write_bytes(encode(study))
        place.with_suffix(".txt").write_text(_report(study), encoding="utf-8")
        yield study


def _place(study: Study) -> str:
    return f"files/p{str(study.patient_id)[:2]}/p{study.patient_id}/s{study.study_id}"


def _report(study: Study) -> str:
    found = sections(report(study.phantom))
    # Some radiologists conclude; MIMIC-CXR has 1,802 such reports.
    last = "CONCLUSION" if study.number % 5 == 4 else "IMPRESSION"
    paragraphs = [
        " EXAMINATION:  CHEST (PORTABLE PA)",
        f" INDICATION:  ___ year old {'woman' if study.sex == 'F' else 'man'}  // ?infiltrate",
        " TECHNIQUE:  Chest PA",
        " COMPARISON:  ___",
        f" FINDINGS: \n \n{_wrapped(found['findings'])}",
        f" {last}: \n \n{_wrapped(found['impression'])}",
    ]
    return " " * 33 + "FINAL REPORT\n" + "\n \n".join(paragraphs) + "\n"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _LINE, initial_indent=" ", subsequent_indent=" ")


def _metadata(study: Study) -> Sequence[Any]:
    rows, columns = study.phantom.pixels.shape
    date, time = study.time.strftime("%Y%m%d"), study.time.strftime("%H%M%S.000")
    return (study.dicom_id, study.patient_id, study.study_id, "CHEST (PORTABLE PA)", "PA", rows, columns,
            date, time, "CHEST (PORTABLE PA)", "postero-anterior", "Erect")  # fmt: skip


def _split(study: Study) -> Sequence[Any]:
    return study.dicom_id, study.study_id, study.patient_id, _SPLITS.get(study.split, study.split)


def _labels(study: Study) -> Sequence[Any]:
    present = {_OF_FINDING[name] for name in study.phantom.findings} or {"No Finding"}
    spoken = {*_OF_FINDING.values()}  # the reports mention each finding, if only to deny it
    cells = dict.fromkeys(spoken, "0.0") | dict.fromkeys(present, "1.0")
    return (study.patient_id, study.study_id, *(cells.get(name, "") for name in _LABELS))


def _table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def _jpeg(study: Study) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(study.phantom.pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _dicom(study: Study) -> bytes:
    image = radiograph(study)
    image.PerformedProcedureStepDescription = "CHEST (PORTABLE PA)"
    return encoded(image)
