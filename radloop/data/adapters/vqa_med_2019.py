"""VQA-Med 2019: 15,292 questions about modality, plane, organ and abnormality of 4,200 images.

Source: Ben Abacha et al., "VQA-Med: Overview of the medical visual question answering task at ImageCLEF
2019", CLEF Working Notes (2019). Read are the text files of the release, and the JSON files into which the
training and validation questions were put for MEVF.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from radloop.data.adapters import need_path, no_such_layout
from radloop.data.reading import (
    answer_type_of,
    as_object,
    clean_text,
    file_name,
    read_delimited,
    read_json,
    with_keys,
)
from radloop.data.source import ROW, Images, Source, Unit, in_units
from radloop.errors import DataError

REFERENCE_ANSWERS = "VQAMed2019_Test_Questions_w_Ref_Answers.txt"
BARE_QUESTIONS = "VQAMed2019_Test_Questions.txt"
BY_CATEGORY = "QAPairsByCategory"
CATEGORIES = ("Modality", "Plane", "Organ", "Abnormality")
IMAGE_FOLDERS = {"train": "Train_images", "validation": "Val_images", "test": "VQAMed2019_Test_Images"}
SUFFIXES = {"train": "train", "validation": "val"}
MEVF_SPLITS = {"trainset.json": "train", "testset.json": "validation"}
_LAYOUTS = (
    f"text files of the release (All_QA_Pairs_train.txt, {BY_CATEGORY}/C1_Modality_train.txt and so on, "
    f"{REFERENCE_ANSWERS}), or trainset.json and testset.json"
)
_QUESTIONS: tuple[str, ...] = ("image", "question")
_QUESTIONS_ANSWERED = ("image", "question", "answer")
_QUESTIONS_OF_TEST = ("image", "category", "question", "answer")
_MEVF_KEYS = ("qid", "image_name", "question", "answer")
_QUESTION_TYPES = {"abn": "abnormality"}


class VqaMed2019:
    """Adapter of VQA-Med 2019.

    Decisions: "#" separates answers that are equally right, and what stands in brackets may be left out,
    as the release says of its test set; "(iatrogenic) pneumoperitoneum" is also right without the bracket.
    The first answer, brackets and all, is the reference. Test questions without answers are read only where
    those with answers are not. The training questions by category are preferred to the file of them all,
    which does not tell the category. The JSON files give what the text files lack: "testset" of MEVF
    holds the validation questions.
    """

    class Options(BaseModel):
        """Which of two layouts in one folder."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        layout: Literal["auto", "text", "mevf"] = Field(
            "auto", description="auto: each split from its text files, from JSON where it has none"
        )

    def open(self, path: str | None, options: Options) -> Source:
        """Find the files of the layout in a folder and those below it.

        Raises:
            DataError: No such source, none of the files, or JSON files of VQA-RAD.
        """
        folder = need_path(path, "vqa_med_2019", _LAYOUTS)
        if not folder.is_dir():
            raise no_such_layout(folder, "vqa_med_2019", _LAYOUTS)
        tables = _text_tables(folder) if options.layout != "mevf" else []
        if options.layout != "text":
            found = {table.split for table in tables}
            tables += [table for table in _mevf_tables(folder) if table.split not in found]
        if not tables:
            raise no_such_layout(folder, f"vqa_med_2019 with layout: {options.layout}", _LAYOUTS)
        return _VqaMed2019(folder, tuple(tables))


@dataclass(frozen=True)
class _Table:
    file: str  # relative to the source's folder
    split: str
    columns: tuple[str, ...]  # of a text file; () for JSON
    category: str
    images: Path


def _text_tables(folder: Path) -> list[_Table]:
    tables = []
    for split, suffix in SUFFIXES.items():
        of_category = {
            file: category
            for number, category in enumerate(CATEGORIES, 1)
            for file in _files(folder, f"C{number}_{category}_{suffix}.txt")
        }
        of_all = dict.fromkeys(_files(folder, f"All_QA_Pairs_{suffix}.txt"), "")
        complete = len(of_category) >= len(CATEGORIES) or not of_all
        for file, category in (of_category if complete else of_all).items():
            place = folder / file
            place = place.parent.parent if place.parent.name == BY_CATEGORY else place.parent
            images = _image_folder(place, split)
            tables.append(_Table(file, split, _QUESTIONS_ANSWERED, category.lower(), images))
    answered = _files(folder, REFERENCE_ANSWERS)
    columns = _QUESTIONS_OF_TEST if answered else _QUESTIONS
    for file in answered or _files(folder, BARE_QUESTIONS):
        images = _image_folder((folder / file).parent, "test")
        tables.append(_Table(file, "test", columns, "", images))
    return tables


def _mevf_tables(folder: Path) -> list[_Table]:
    tables = []
    for name, split in MEVF_SPLITS.items():
        for file in _files(folder, name):
            first = next(read_json(folder / file, _MEVF_KEYS))
            if isinstance(first, dict) and "image_organ" in first:
                raise DataError(
                    f"{folder / file}: has the key image_organ, so it is VQA-RAD as MEVF has it; "
                    "use adapter: vqa_rad"
                )
            tables.append(_Table(file, split, (), "", _image_folder((folder / file).parent, split)))
    return tables


def _files(folder: Path, name: str) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(name))


def _image_folder(place: Path, split: str) -> Path:
    """Return where the images of a split are; they are fetched on their own, and may be absent."""
    name = IMAGE_FOLDERS[split]
    # The test images' archive holds a folder of its own name; some programs unpack it into another.
    candidates = (place / name / name, place / name, place / "images")
    return next((found for found in candidates if found.is_dir()), place / name)


@dataclass(frozen=True)
class _VqaMed2019(Source):
    folder: Path
    tables: tuple[_Table, ...]

    def units(self) -> Iterator[Unit]:
        for table in self.tables:
            path = self.folder / table.file
            if table.columns:
                rows = read_delimited(path, header=table.columns, delimiter="|", quoted=False)
                yield from in_units(table.file, with_keys(path, rows, table.columns))
            else:
                yield from in_units(table.file, read_json(path, _MEVF_KEYS))

    def rows(self, unit: Unit) -> Iterator[Any]:
        table = next(table for table in self.tables if table.file == unit.file)
        return ((table, row) for row in unit.rows)

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        notes: list[str] = []
        table, fields = row
        fields = as_object(fields, notes)
        if table.columns:  # the text files have no ids
            number = f"{Path(table.file).stem}-{ROW}"
            name = clean_text(fields.get("image"), "image", notes)
            category = table.category or clean_text(fields.get("category"), "category", []).lower()
        else:
            qid = clean_text(fields.get("qid"), "qid", [])
            number = f"{table.split}-{qid}" if qid else ""  # both files count from 1
            name = file_name(fields.get("image_name"), "image_name", notes)
            category = clean_text(fields.get("question_type"), "question_type", []).lower()
        if name and not re.search(r"\.(jpe?g|png)$", name, re.IGNORECASE):
            name += ".jpg"
        answers = _alternatives(clean_text(fields.get("answer"), "answer", notes))
        yield {
            "id": f"vqa_med_2019-{number}" if number else "",
            "dataset": "vqa_med_2019",
            "split": table.split,
            "image_ids": [images.file(table.images, name)] if name else [],
            "task": "vqa",
            "question": clean_text(fields.get("question"), "question", notes),
            "answers": answers,
            "answer_type": answer_type_of(answers[0] if answers else ""),
            "question_type": _QUESTION_TYPES.get(category, category),
            "language": "en",
            "notes": notes,
        }


def _alternatives(answer: str) -> list[str]:
    """Return the answers that "#" separates, each as it is and without what its brackets hold."""
    texts = [" ".join(text.split()) for text in answer.split("#")]
    both = [form for text in texts for form in (text, _without_brackets(text))]
    return list(dict.fromkeys(form for form in both if form))


def _without_brackets(text: str) -> str:
    depth, kept = 0, []
    for part in re.split(r"([()])", text):
        depth += (part == "(") - (part == ")")
        if depth < 0:
            return text
        if depth == 0 and part != ")":
            kept.append(part)
    return text if depth else " ".join("".join(kept).split())
