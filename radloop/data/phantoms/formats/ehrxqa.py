"""Phantoms as EHRXQA: its question files, databases and images, and as a plain table of questions.

Records follow from the findings: a patient with an effusion has the diagnosis, a raised NT-proBNP and
furosemide. As published, validation questions are about patients of the training database.
"""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

from radloop.data.phantoms.formats._cohort import Cohort, Study
from radloop.data.phantoms.formats._ehr_patients import fill_labels, fill_patient
from radloop.data.phantoms.formats._ehr_questions import rows_of
from radloop.data.phantoms.formats._ehr_tables import Tables
from radloop.data.phantoms.formats._files import jpeg

_FILES = {"train": "train", "validation": "valid", "test": "test"}
_DATABASES = {"train": ("train", "validation"), "test": ("test",)}
_YES_NO = ("is ", "has ", "given ")  # how questions begin that the database answers by 0 or 1


def _release(folder: Path, cohort: Cohort) -> None:
    def write(path: Path, rows: list[dict[str, Any]], studies: Sequence[Study]) -> None:
        path.with_suffix(".json").write_text(json.dumps(rows, indent=4))

    _write(folder, cohort, write)


def _table(folder: Path, cohort: Cohort) -> None:
    """A line for each question about one patient or one numbered study: patient, study, question, answer."""

    def write(path: Path, rows: list[dict[str, Any]], studies: Sequence[Study]) -> None:
        patients = {study.study_id: study.patient_id for study in studies}
        with path.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["patient_id", "study_id", "question", "answer"])
            for row in rows:
                if row["q_tag"].startswith("given the ["):
                    continue  # there is no column for a study's time
                study = row["value"].get("study_id", "")
                if patient := row["value"].get("patient_id") or patients.get(study):
                    writer.writerow([patient, study, row["question"], _in_words(row)])

    _write(folder, cohort, write)


def _write(
    folder: Path, cohort: Cohort, write: Callable[[Path, list[dict[str, Any]], Sequence[Study]], None]
) -> None:
    studies = list(cohort.studies())
    for study in studies:
        patient = f"p{study.patient_id}"
        place = folder / "files" / patient[:3] / patient / f"s{study.study_id}"
        place.mkdir(parents=True)
        (place / f"{study.dicom_id}.jpg").write_bytes(jpeg(study.phantom))
    questions = folder / "dataset" / "mimic_iv_cxr"
    questions.mkdir(parents=True)
    for name, splits in _DATABASES.items():
        path = folder / "database" / "mimic_iv_cxr" / name / "mimic_iv_cxr.db"
        _database(path, [study for study in studies if study.split in splits])
        with closing(sqlite3.connect(path)) as database:
            for split in splits:
                own = [study for study in studies if study.split == split]
                if own:
                    write(questions / _FILES[split], list(rows_of(own, _FILES[split], database)), own)


def _database(path: Path, studies: list[Study]) -> None:
    tables = Tables()
    fill_labels(tables)
    for _, own in groupby(studies, key=lambda study: study.patient_id):
        fill_patient(tables, list(own))
    tables.write(path)


def _in_words(row: dict[str, Any]) -> str:
    if row["answer"] in ([0], [1]) and row["question"].startswith(_YES_NO):
        return ("no", "yes")[row["answer"][0]]
    return ", ".join(map(str, row["answer"])) or "none"


LAYOUTS = {"release": _release, "table": _table}
