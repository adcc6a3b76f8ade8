"""Phantoms as a team's own table, in columns that need no mapping: CSV, JSON lines or parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from radloop.data.phantoms import questions
from radloop.data.phantoms.formats._cohort import Cohort


def _csv(folder: Path, cohort: Cohort) -> None:
    rows = list(_rows(folder, cohort))
    with (folder / "questions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _jsonl(folder: Path, cohort: Cohort) -> None:
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as file:
        for row in _rows(folder, cohort):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _parquet(folder: Path, cohort: Cohort) -> None:
    pq.write_table(pa.Table.from_pylist(list(_rows(folder, cohort))), folder / "questions.parquet")


LAYOUTS = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}


def _rows(folder: Path, cohort: Cohort) -> Iterator[dict[str, Any]]:
    (folder / "images").mkdir()
    for study in cohort.studies():
        image = f"images/{study.phantom.name}.png"
        (folder / image).write_bytes(study.phantom.png())
        for number, question in enumerate(questions(study.phantom)):
            yield {
                "id": f"{study.study_id}-{number}",
                "image": image,
                "question": question.text,
                "answer": question.answer,
                "question_type": question.type,
                "split": study.split,
                "patient": str(study.patient_id),
                "study": str(study.study_id),
                "modality": "XR",
                "body_part": "CHEST",
                "view": "PA",
            }
