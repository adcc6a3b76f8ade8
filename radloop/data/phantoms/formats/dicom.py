"""Phantoms as a PACS exports them: folders of DICOM files without names that say anything, and a CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from radloop.data.phantoms import questions
from radloop.data.phantoms.formats._cohort import Cohort, Study
from radloop.data.phantoms.formats._files import encoded, radiograph


def _csv(folder: Path, cohort: Cohort) -> None:
    rows = [row for study in cohort.studies() for row in _rows(folder, study)]
    with (folder / "questions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


LAYOUTS = {"csv": _csv}


def _rows(folder: Path, study: Study) -> Iterator[dict[str, str]]:
    """Write the study's image, and yield its questions, which name it in each way that DICOM knows."""
    image = radiograph(study)
    image.PatientName = f"Phantom^Number {study.patient_id}"
    image.AccessionNumber = f"A{study.study_id}"
    path = f"DICOM/PA{study.patient_id}/ST{study.number:06d}/SE000000/IM000000"
    (folder / path).parent.mkdir(parents=True)
    (folder / path).write_bytes(encoded(image))
    for number, question in enumerate(questions(study.phantom)):
        yield {
            "id": f"{study.study_id}-{number}",
            "image": path,
            "instance": image.SOPInstanceUID,
            "study": image.StudyInstanceUID,
            "accession": image.AccessionNumber,
            "question": question.text,
            "answer": question.answer,
            "question_type": question.type,
            "split": study.split,
        }
