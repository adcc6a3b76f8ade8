"""VQA-RAD: 2,248 questions of clinicians about 314 radiology images.

Source: Lau et al., "A dataset of clinically generated visual questions and answers about radiology
images", Scientific Data 5:180251 (2018). Read are the original release in each of its three files, the
variant with 1,267 more questions that came with MEVF (Nguyen et al., MICCAI 2019), and the parquet
columns image / question / answer of copies on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
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
    read_workbook,
    read_xml_rows,
    some,
)
from radloop.data.source import Images, Source, Unit, in_units
from radloop.errors import DataError

RELEASE_FILE = "VQA_RAD Dataset Public.json"
RELEASE_IMAGES = "VQA_RAD Image Folder"
MEVF_SPLITS = {"trainset.json": "train", "testset.json": "test"}
# The workbook's names for the columns of the other two files.
WORKBOOK_COLUMNS = {
    "QID_unique": "qid",
    "QID_para": "phrase_type",
    "QID_linked": "qid_linked_id",
    "IMAGEID_case": "image_case_url",
    "IMAGEID": "image_name",
    "IMAGEORGAN": "image_organ",
    "EVALUATION": "evaluation",
    "QUESTION": "question",
    "Q_REPHASE": "question_rephrase",
    "Q_RELATION": "question_relation",
    "Q_FRAMED": "question_frame",
    "Q_TYPE": "question_type",
    "ANSWER": "answer",
    "A_TYPE": "answer_type",
}
_LAYOUTS = (
    f"'{RELEASE_FILE}' (or .xlsx, .xml) with '{RELEASE_IMAGES}' beside it, mevf_data_RAD/trainset.json and "
    "testset.json, or the hub's data/*.parquet"
)
_RELEASE_KEYS = ("qid", "phrase_type", "image_name", "question", "answer")
_WORKBOOK_KEYS = ("QID_unique", "QID_para", "IMAGEID", "QUESTION", "ANSWER")
# VQA-Med 2019 has been published under the same file names, but without organs.
_MEVF_KEYS = (*_RELEASE_KEYS, "image_organ")

_SPLITS = {"freeform": "train", "para": "train", "test_freeform": "test", "test_para": "test"}
_BODY_PARTS = {"ABD": "ABDOMEN"}
_QUESTION_TYPES = {
    "ABN": "abnormality",
    "ATTRIB": "attribute",
    "ATRIB": "attribute",
    "COLOR": "color",
    "COUNT": "count",
    "MODALITY": "modality",
    "ORGAN": "organ",
    "OTHER": "other",
    "PLANE": "plane",
    "POS": "position",
    "PRES": "presence",
    "PRSE": "presence",
    "SIZE": "size",
}


class VqaRad:
    """Adapter of VQA-RAD.

    Decisions: the split comes from `phrase_type` ("test_" prefix), of MEVF from the file; a question with
    several types ("POS, PRES") counts under the first. MEVF numbers its questions anew, so its ids are
    others than the release's.
    """

    class Options(BaseModel):
        """Which of several layouts in one folder."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        layout: Literal["auto", "json", "xlsx", "xml", "mevf", "hub"] = Field(
            "auto", description="auto: the first one that is there, in this order"
        )

    def open(self, path: str | None, options: Options) -> Source:
        """Recognise a release folder or a folder of parquet files.

        Raises:
            DataError: No such source, none of the layouts, or not the one that the options name.
        """
        folder = need_path(path, "vqa_rad", _LAYOUTS)
        if not folder.is_dir():
            raise no_such_layout(folder, "vqa_rad", _LAYOUTS)
        for layout in ("json", "xlsx", "xml", "mevf", "hub"):
            if options.layout in ("auto", layout) and (source := _source(folder, layout)):
                return source
        if options.layout == "auto":
            raise no_such_layout(folder, "vqa_rad", _LAYOUTS)
        raise no_such_layout(folder, f"vqa_rad with layout: {options.layout}", _LAYOUTS)


def _source(folder: Path, layout: str) -> Source | None:
    if layout == "hub":
        has_parquet = next(folder.rglob("*.parquet"), None)
        return HubQuestions("vqa_rad", ParquetFolder(folder, HUB_COLUMNS)) if has_parquet else None
    if layout == "mevf":
        for place in (folder, folder / "mevf_data_RAD", folder / "data_RAD"):
            if files := tuple(name for name in MEVF_SPLITS if (place / name).exists()):
                return _Release(place, files, _image_folder(place, place.parent))
        return None
    file = Path(RELEASE_FILE).with_suffix(f".{layout}").name
    return _Release(folder, (file,), _image_folder(folder)) if (folder / file).exists() else None


def _image_folder(*places: Path) -> Path:
    folders = [place / name for place in places for name in (RELEASE_IMAGES, "images")]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise DataError(
        f"{places[0]}: its images are in none of {some(folders)}; copy the folder '{RELEASE_IMAGES}' there"
    )


@dataclass(frozen=True)
class _Release(Source):
    folder: Path
    files: tuple[str, ...]
    images: Path

    def units(self) -> Iterator[Unit]:
        for file in self.files:
            yield from in_units(file, _read(self.folder / file))

    def rows(self, unit: Unit) -> Iterator[Any]:
        return ((unit.file, row) for row in unit.rows)

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        notes: list[str] = []
        file, fields = row
        fields = as_object(fields, notes)
        phrase_type = clean_text(fields.get("phrase_type"), "phrase_type", notes)
        name = file_name(fields.get("image_name"), "image_name", notes)
        unnoted: list[str] = []  # optional columns, and qid, whose type does not matter
        organ = clean_text(fields.get("image_organ"), "image_organ", unnoted).upper()
        case = clean_text(fields.get("image_case_url"), "image_case_url", unnoted).rpartition("id=")[2]
        qid = clean_text(fields.get("qid"), "qid", unnoted)
        question = clean_text(fields.get("question"), "question", notes)
        answer = clean_text(fields.get("answer"), "answer", notes)
        image_ids = []
        if name:
            body_part = _BODY_PARTS.get(organ, organ)
            image_ids = [images.file(self.images, name, body_part=body_part, study=case)]
        yield {
            "id": f"vqa_rad-{'mevf-' if file in MEVF_SPLITS else ''}{qid}" if qid else "",
            "dataset": "vqa_rad",
            "split": MEVF_SPLITS.get(file) or _SPLITS.get(phrase_type.lower(), phrase_type),
            "study": case,
            "image_ids": image_ids,
            "task": "vqa",
            "question": question,
            "answers": [answer] if answer else [],
            "answer_type": answer_type(fields.get("answer_type"), answer, notes),
            "question_type": _question_type(fields.get("question_type"), notes),
            "language": "en",
            "notes": notes,
        }


def _read(path: Path) -> Iterator[Any]:
    if path.suffix == ".xml":
        return read_xml_rows(path, _RELEASE_KEYS)
    if path.suffix == ".xlsx":
        return (_from_workbook(row) for row in read_workbook(path, _WORKBOOK_KEYS))
    return read_json(path, _MEVF_KEYS if path.name in MEVF_SPLITS else _RELEASE_KEYS)


def _from_workbook(row: dict[str | None, Any]) -> dict[str | None, Any]:
    """Rename the columns, and cut the address of an image on the web to the name of its file."""
    named = {WORKBOOK_COLUMNS.get(name, name) if name else name: value for name, value in row.items()}
    address = named.get("image_name")
    if isinstance(address, str) and "://" in address:
        named["image_name"] = address.rpartition("/")[2]
    return named


def _question_type(value: Any, notes: list[str]) -> str:
    labels = [label.strip().upper() for label in clean_text(value, "question_type", []).split(",")]
    types = list(dict.fromkeys(_QUESTION_TYPES.get(label, label.lower()) for label in labels))
    if len(types) > 1:
        notes.append(f"question_type: the first of {', '.join(types)}")
    return types[0]
