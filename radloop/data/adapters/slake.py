"""SLAKE: 14,028 questions in English and Chinese about 642 CT, MR and radiographic images.

Source: Liu et al., "SLAKE: A Semantically-Labeled Knowledge-Enhanced Dataset for Medical Visual Question
Answering", ISBI 2021. Three layouts are read: the release (train.json, validate.json, test.json and
the folder imgs), its copy BoKelvin/SLAKE on the Hugging Face hub (validation.json, imgs.zip), and the
English parquet columns image / question / answer of mdwiratathya/SLAKE-vqa-english.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from radloop.data.adapters import need_path, no_such_layout
from radloop.data.adapters._hub import HUB_COLUMNS, HubQuestions
from radloop.data.reading import (
    ParquetFolder,
    answer_type,
    as_object,
    clean_text,
    file_name,
    read_json,
)
from radloop.data.source import Images, Source, Unit, in_units, left_out
from radloop.errors import ConfigError, DataError

_LAYOUTS = (
    "train.json, validate.json (or validation.json) and test.json with imgs or imgs.zip beside them, "
    "or the hub's data/*.parquet"
)
_FILES = {"train.json": "train", "validate.json": "validation", "validation.json": "validation",
          "test.json": "test"}  # fmt: skip
_KEYS = ("qid", "img_name", "question", "answer", "q_lang")
_MODALITIES = {"X-RAY": "XR", "MRI": "MR"}
_BODY_PARTS = {
    "LUNG": "CHEST",
    "CHEST_LUNG": "CHEST",
    "CHEST_HEART": "CHEST",
    "CHEST_MEDIASTINAL": "CHEST",
    "BRAIN_TISSUE": "BRAIN",
    "BRAIN_FACE": "BRAIN",
    "PELVIC CAVITY": "PELVIS",
}
_QUESTION_TYPES = {"kg": "knowledge", "quantity": "count"}
_CHINESE = re.compile(r"[\u3400-\u9fff]")


class Slake:
    """Adapter of SLAKE; the layout is recognised by itself.

    Decisions: one language at a time by default, since the two were split apart independently and
    share images between train and test. A list of organs ("Lung, Heart") stays one answer in the order
    of the release; metrics that compare words do not mind the order. The study is the image's folder.
    """

    class Options(BaseModel):
        """Which of the two languages."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        language: Literal["en", "zh", "both"] = Field(
            "en", description="en, zh, or both; with both, published splits share images"
        )

    def open(self, path: str | None, options: Options) -> Source:
        """Recognise the release, its renamed copy, or a folder of parquet files.

        Raises:
            DataError: No such source, or none of the layouts.
            ConfigError: Chinese is asked of the English copy.
        """
        folder = need_path(path, "slake", _LAYOUTS)
        files = tuple(name for name in _FILES if (folder / name).exists())
        if {"validate.json", "validation.json"} <= set(files):
            raise DataError(
                f"{folder}: holds validate.json and validation.json, two names of one file; remove one"
            )
        if files:
            packed = (folder / "imgs.zip").exists() and not (folder / "imgs").exists()
            return _Release(folder, files, packed, options.language)
        if folder.is_dir() and next(folder.rglob("*.parquet"), None):
            if options.language == "zh":
                raise ConfigError(
                    f"data.options.language: got 'zh', but the parquet copy {folder} is English only; "
                    "leave the option out, or use the release"
                )
            return HubQuestions("slake", ParquetFolder(folder, HUB_COLUMNS))
        raise no_such_layout(folder, "slake", _LAYOUTS)


@dataclass(frozen=True)
class _Release(Source):
    folder: Path
    files: tuple[str, ...]
    packed: bool  # images still in their archive
    language: str

    def units(self) -> Iterator[Unit]:
        for file in self.files:
            yield from in_units(file, read_json(self.folder / file, _KEYS))

    def rows(self, unit: Unit) -> Iterator[Any]:
        # The file says which split a row is of, the row does not.
        return ((_FILES[unit.file], row) for row in unit.rows)

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        split, row = row
        notes: list[str] = []
        row = as_object(row, notes)
        question = clean_text(row.get("question"), "question", notes)
        language = _language(row.get("q_lang"), question, notes)
        if self.language not in ("both", language):
            return left_out("question in another language than the option")
        answer = clean_text(row.get("answer"), "answer", notes)
        name = file_name(row.get("img_name"), "img_name", notes)
        study = PurePosixPath(name).parent.name
        unnoted: list[str] = []  # optional columns, and qid, whose type does not matter
        qid = clean_text(row.get("qid"), "qid", unnoted)
        content = clean_text(row.get("content_type"), "content_type", unnoted).lower()
        sample = {
            "id": f"slake-{qid}" if qid else "",
            "dataset": "slake",
            "split": split,
            "study": study,
            "image_ids": [self._image(name, study, row, images)] if name else [],
            "task": "vqa",
            "question": question,
            "answers": [answer] if answer else [],
            "answer_type": answer_type(row.get("answer_type"), answer, notes),
            "question_type": _QUESTION_TYPES.get(content, content),
            "language": language,
            "notes": notes,
        }
        return [sample]

    def _image(self, name: str, study: str, row: dict[str, Any], images: Images) -> str:
        modality = clean_text(row.get("modality"), "modality", []).upper()
        location = clean_text(row.get("location"), "location", []).upper()
        columns = {
            "modality": _MODALITIES.get(modality, modality),
            "body_part": _BODY_PARTS.get(location, location),
            "study": study,
        }
        if self.packed:
            return images.file(self.folder / "imgs.zip", f"imgs/{name}", **columns)
        return images.file(self.folder / "imgs", name, **columns)


def _language(value: Any, question: str, notes: list[str]) -> str:
    if language := clean_text(value, "q_lang", []).lower():
        return language
    notes.append("q_lang: missing, inferred from the question")
    return "zh" if _CHINESE.search(question) else "en"
