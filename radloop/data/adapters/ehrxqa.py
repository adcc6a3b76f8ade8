"""EHRXQA: questions about health records and chest radiographs.

Source: Bae et al., "EHRXQA: A Multi-Modal Question Answering Dataset for Electronic Health Records with
Chest X-ray Images", NeurIPS Datasets and Benchmarks (2023); templates and build scripts at
github.com/baeseongsu/ehrxqa. Read are its question files, and plain tables of patient_id, study_id,
question and answer; both with the SQLite databases that the build scripts make.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from radloop.data.adapters import need_path, no_such_layout
from radloop.data.adapters._ehr_files import QUESTIONS, File, look, with_database
from radloop.data.ehr import Record, StudyImage
from radloop.data.ehr.times import CURRENT_TIME
from radloop.data.reading import (
    answer_type_of,
    as_object,
    clean_text,
    read_delimited,
    read_json,
    split_of,
)
from radloop.data.source import ROW, Images, Source, Unit, in_units

_LAYOUTS = (
    "either the folder with train.json, valid.json or test.json and the databases mimic_iv_cxr.db below it, "
    "or one file of questions (JSON or CSV) with the database beside it"
)
_LARGEST_NUMBER = 2**63 - 1

_NOT_CHOSEN = (
    "image: the question is about all studies that fit, or chooses them in a way that is not understood; "
    "only studies named by number are attached"
)
_STUDY_WORDS = re.compile(r"\bstud(y|ies)\b")
_TABLE_WORDS = re.compile(r"diagnos|procedure|prescri|\baged\b")
_NOBODY = re.compile(r"what (is the (intake method|cost) of|does)\b")
_YES_NO = re.compile(r"(^|, )(has_verb|has|is|are)\b")


class Ehrxqa:
    """Adapter of EHRXQA.

    Decisions:

    - `context` is the record of the one patient that a question is about, as known at the time of the
      study that it names, else at the constant time at which EHRXQA asks. What the answer is
      computed from need not fit in it.
    - Images are those of the studies that a question names by number or chooses by a condition ("the
      last study of 2104"), these in the order of their times. `query` is read for that, never executed;
      where a choice is of no known form, or the question asks about all of someone's studies, a note
      says so.
    - The answer of a list is one text, its items joined by commas: an item alone would be no right
      answer. An empty list is "none". 0 and 1 are "no" and "yes" where the template asks for that.
    - Validation questions are about patients of the training database, as published.
    """

    class Options(BaseModel):
        """Where images and databases are, and how much of a record belongs to a question."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        database: str | None = Field(
            None, description="SQLite file for all questions; by default those found below data.path"
        )
        images: str | None = Field(
            None, description="folder with files/p10/p.../s... of MIMIC-CXR-JPG; by default data.path"
        )
        context_tokens: int = Field(512, ge=0, description="most tokens of the record; 0 leaves it out")
        max_images: int = Field(2, ge=0, description="a question that names more images gets none")

    def open(self, path: str | None, options: Options) -> Source:
        """Find the question files and the database of each.

        Raises:
            DataError: No such source, no questions, or no usable database.
        """
        root = need_path(path, "ehrxqa", _LAYOUTS)
        folder = root if root.is_dir() else root.parent
        questions, databases = look(folder)
        if root.is_file():
            questions = [root] if root.suffix in QUESTIONS else []
        if not questions:
            raise no_such_layout(root, "ehrxqa", _LAYOUTS)
        if options.database:
            databases = {"": need_path(options.database, "ehrxqa", "the SQLite database")}
        images = need_path(options.images, "ehrxqa", "the images") if options.images else folder
        files = tuple(with_database(found, folder, databases) for found in questions)
        for database in {file.database for file in files}:
            Record(database)  # says now what is wrong with it
        return _Questions(files, images, options.context_tokens, options.max_images)


@dataclass(frozen=True)
class _Row:
    """A raw row with what it does not say itself."""

    file: File
    raw: Any


@dataclass(frozen=True)
class _Questions(Source):
    files: tuple[File, ...]
    images: Path
    context_tokens: int
    max_images: int

    def units(self) -> Iterator[Unit]:
        for file in self.files:
            if file.path.suffix == ".csv":
                rows: Iterator[Any] = read_delimited(file.path, ("question", "answer"))
            else:
                rows = read_json(file.path, ("question",))
            yield from in_units(file.name, rows)

    def rows(self, unit: Unit) -> Iterator[Any]:
        file = next(file for file in self.files if file.name == unit.file)
        return (_Row(file, raw) for raw in unit.rows)

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        notes: list[str] = []
        unnoted: list[str] = []  # fields whose absence or type does not matter
        file, fields = row.file, as_object(row.raw, notes)
        record = file.record()
        split = clean_text(fields.get("split"), "split", unnoted)
        number = clean_text(fields.get("id", ROW), "id", unnoted)
        tag = clean_text(fields.get("q_tag"), "q_tag", unnoted) or clean_text(
            fields.get("template"), "template", unnoted
        )
        question = clean_text(fields.get("question"), "question", notes)
        answers = _answers(fields, bool(_YES_NO.search(tag)), notes)
        studies = _studies(fields, record, notes)
        shown = {study: record.images_of(study) for study in studies}
        patients = _patients(fields, shown, notes)
        patient = str(patients[0]) if len(patients) == 1 else ""
        yield {
            "id": f"ehrxqa-{file.split or file.path.stem}-{number}" if number else "",
            "dataset": "ehrxqa",
            "split": (split_of(Path(split)) or split) if split else file.split,
            "namespace": "mimic",
            "patient": patient,
            "study": str(studies[0]) if len(studies) == 1 else "",
            "image_ids": self._attach(shown, images, notes),
            "task": "ehr",
            "question": question,
            "answers": answers,
            "answer_type": answer_type_of(answers[0]) if answers else "",
            "question_type": scope(tag, bool(patients or studies)) if tag else "",
            "language": "en",
            "context": self._context(record, patients, shown, question, notes),
            "notes": notes,
        }

    def _attach(self, shown: dict[int, list[StudyImage]], images: Images, notes: list[str]) -> list[str]:
        found = [(study, image) for study, listed in shown.items() for image in listed if image.image]
        if len({study for study, _ in found}) < len(shown):
            notes.append("image: TB_CXR has none of the study")
        if len(found) > self.max_images:
            notes.append(
                f"image: {len(found)} are named, more than max_images {self.max_images}; none is used"
            )
            return []
        return [
            images.file(
                self.images,
                f"files/p{str(image.patient)[:2]}/p{image.patient}/s{study}/{image.image}.jpg",
                body_part="CHEST",
                view=image.view,
                study=str(study),
                patient=str(image.patient),
            )
            for study, image in found
        ]

    def _context(
        self,
        record: Record,
        patients: list[int],
        shown: dict[int, list[StudyImage]],
        question: str,
        notes: list[str],
    ) -> str:
        if not self.context_tokens or len(patients) != 1:
            return ""
        times = [image.time for listed in shown.values() for image in listed]
        if shown and (not times or None in times):
            notes.append("context: left empty, since the time of the study is not known")
            return ""
        until = max((time for time in times if time), default=CURRENT_TIME)
        text = record.context(patients[0], until, budget=self.context_tokens, question=question)
        if not text:
            notes.append("context: the patient is not in the database, or context_tokens is too small")
        if unreadable := record.unreadable_times(patients[0]):
            notes.append(f"context: left out are {unreadable} rows whose time cannot be read")
        return text


def scope(tag: str, single: bool) -> str:
    """Return what a question is asked of: "image, single patient", "image + table, group", "table, none"...

    Args:
        tag: The question's template, `q_tag`.
        single: Whether it names a patient or study.
    """
    modality = "table"
    if _STUDY_WORDS.search(tag):
        modality = "image + table" if _TABLE_WORDS.search(tag) else "image"
    return f"{modality}, {'single patient' if single else 'none' if _NOBODY.match(tag) else 'group'}"


def _answers(fields: dict[str, Any], yes_no: bool, notes: list[str]) -> list[str]:
    value = fields.get("answer")
    if "answer" not in fields and "_gold_program" in fields:
        notes.append("answer: missing in this pre-release file; EHRXQA's generate_answer.py computes it")
        return []
    if not isinstance(value, list):
        text = clean_text(value, "answer", notes)
        return [text] if text else []
    items = [item for item in value if item is not None]
    if not items:
        notes.append("answer: an empty list, the record holds none; read as 'none'")
        return ["none"]
    if yes_no and items in ([0], [1]):
        return [("no", "yes")[int(items[0])]]
    texts = [clean_text(item, "answer", [] if isinstance(item, (int, float)) else notes) for item in items]
    if not all(texts):
        notes.append("answer: an item of the list is no text and no number")
    joined = ", ".join(filter(None, texts))
    return [joined] if joined else []


def _patients(fields: dict[str, Any], shown: dict[int, list[StudyImage]], notes: list[str]) -> list[int]:
    named = _numbers(fields, "patient_id") or _numbers(fields, "subject_id")
    imaged = {image.patient for listed in shown.values() for image in listed}
    if named and imaged - set(named):
        notes.append("patient: the study is another patient's")
    return named or sorted(imaged)


def _studies(fields: dict[str, Any], record: Record, notes: list[str]) -> list[int]:
    named, query = _numbers(fields, "study_id"), fields.get("query")
    if not isinstance(query, str) or "func_vqa" not in query.lower():
        return named
    chosen = record.chosen_by(query)
    if chosen is None:
        notes.append(_NOT_CHOSEN)
    if not chosen or set(chosen) <= set(named):
        return named
    return list(dict.fromkeys([*chosen, *named]))


def _numbers(fields: dict[str, Any], name: str) -> list[int]:
    """Patients or studies that a row names: in a column, in `value`, or else in its query."""
    value = fields.get("value")
    values = fields | value if isinstance(value, dict) else fields
    keys = sorted(key for key in values if isinstance(key, str) and re.fullmatch(rf"{name}\d*", key))
    found = [number for key in keys for number in _as_numbers(values[key])]
    query = fields.get("query")
    if not found and isinstance(query, str):
        found = [number for text in re.findall(rf"\b{name} = (\d+)\b", query) for number in _as_numbers(text)]
    return list(dict.fromkeys(found))


def _as_numbers(value: Any) -> list[int]:
    if isinstance(value, list):
        return [number for one in value for number in _as_numbers(one)]
    text = clean_text(value, "", []).removesuffix(".0")  # as pandas writes columns with gaps
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > _LARGEST_NUMBER:
        return []
    return [int(text)]
