"""VQA-RAD: 2,248 questions of clinicians about 314 radiology images.

Source: Lau et al., "A dataset of clinically generated visual questions and answers about radiology
images", Scientific Data 5:180251 (2018). Two layouts are read: the original release, and the parquet
columns image / question / answer of its copies on the Hugging Face hub.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict

from radloop.data.adapters import local_folder
from radloop.data.corpus import Corpus
from radloop.data.sources import ImageTable, answer_type_of, clean_text, read_json_rows
from radloop.errors import DataError

RELEASE_FILE = "VQA_RAD Dataset Public.json"
RELEASE_IMAGES = "VQA_RAD Image Folder"
_LAYOUTS = f"either '{RELEASE_FILE}' with '{RELEASE_IMAGES}' beside it, or the hub's data/*.parquet"
_RELEASE_KEYS = ("qid", "phrase_type", "image_name", "question", "answer")
_HUB_COLUMNS = ("image", "question", "answer")

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
    """Adapter of VQA-RAD; the layout is recognised by itself.

    Decisions: the split comes from `phrase_type` ("test_" prefix); a question with several types
    ("POS, PRES") counts under the first; the image is the group, because questions share it.
    """

    class Options(BaseModel):
        """None: both layouts are complete as published."""

        model_config = ConfigDict(frozen=True, extra="forbid")

    def read(self, path: str | None, options: Options) -> Corpus:
        """Read a release folder, a folder of parquet files, or a hub id.

        Raises:
            DataError: No such source, or none of the two layouts.
        """
        if not path:
            raise DataError(f"data.path: is missing; vqa_rad needs a folder with {_LAYOUTS}; or a hub id")
        folder = local_folder(path)
        if folder is None:
            if Path(path).expanduser().exists():
                raise DataError(f"{path}: is a file; name the folder with {_LAYOUTS}")
            if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", path):
                raise DataError(f"{path}: no such folder; vqa_rad needs {_LAYOUTS}")
            return _read_parquet(path, None)
        if (folder / RELEASE_FILE).exists():
            return _read_release(folder)
        if next(folder.glob("**/*.parquet"), None):
            return _read_parquet(path, folder)
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{path}: holds {found}; vqa_rad needs {_LAYOUTS}")


def _read_release(folder: Path) -> Corpus:
    image_folder = folder / RELEASE_IMAGES
    if not image_folder.is_dir():
        raise DataError(f"{folder}: has no folder '{RELEASE_IMAGES}'; copy it beside '{RELEASE_FILE}'")
    images = ImageTable()
    samples = []
    for number, row in enumerate(read_json_rows(folder / RELEASE_FILE, _RELEASE_KEYS)):
        samples.append(_release_sample(number, row, image_folder, images))
    return Corpus.of(images.rows, samples)


def _release_sample(number: int, row: Any, image_folder: Path, images: ImageTable) -> dict[str, Any]:
    notes: list[str] = []
    source = f"{RELEASE_FILE} row {number + 1}"
    if not isinstance(row, dict):
        notes.append(f"row: is {type(row).__name__}, not an object")
        row = {}
    question = clean_text(row.get("question"), "question", notes)
    answer = clean_text(row.get("answer"), "answer", notes)
    phrase_type = clean_text(row.get("phrase_type"), "phrase_type", notes)
    name = clean_text(row.get("image_name"), "image_name", notes)
    unnoted: list[str] = []  # optional columns, and qid, whose type does not matter
    organ = clean_text(row.get("image_organ"), "image_organ", unnoted).upper()
    case = clean_text(row.get("image_case_url"), "image_case_url", unnoted)
    qid = clean_text(row.get("qid"), "qid", unnoted)
    image_id = ""
    if name:
        image_id = images.add_file(
            image_folder,
            name,
            notes,
            body_part=_BODY_PARTS.get(organ, organ),
            study=case.rpartition("id=")[2],
        )
    return {
        "id": f"vqa_rad-{qid}" if qid else "",
        "dataset": "vqa_rad",
        "split": _SPLITS.get(phrase_type.lower(), phrase_type),
        "group": image_id,
        "image_ids": [image_id] if image_id else [],
        "task": "vqa",
        "question": question,
        "answers": [answer] if answer else [],
        "answer_type": _answer_type(row.get("answer_type"), answer, notes),
        "question_type": _question_type(row.get("question_type"), notes),
        "language": "en",
        "source": source,
        "notes": notes,
    }


def _answer_type(value: Any, answer: str, notes: list[str]) -> str:
    mended: list[str] = []
    if text := clean_text(value, "answer_type", mended).lower():
        notes += mended
        return text
    notes.append("answer_type: missing, inferred from the answer")
    return answer_type_of(answer)


def _question_type(value: Any, notes: list[str]) -> str:
    labels = [label.strip().upper() for label in clean_text(value, "question_type", []).split(",")]
    types = list(dict.fromkeys(_QUESTION_TYPES.get(label, label.lower()) for label in labels))
    if len(types) > 1:
        notes.append(f"question_type: the first of {', '.join(types)}")
    return types[0]


def _read_parquet(path: str, folder: Path | None) -> Corpus:
    images = ImageTable()
    samples = []
    for split, number, row in _parquet_rows(path, folder):
        notes: list[str] = []
        source = f"{split} row {number + 1}"
        data, name = _encoded(row["image"])
        image_id = images.add_bytes(data, name or source)
        question = clean_text(row["question"], "question", notes)
        answer = clean_text(row["answer"], "answer", notes)
        samples.append(
            {
                "id": f"vqa_rad-{split}-{number}",
                "dataset": "vqa_rad",
                "split": split,
                "group": image_id,
                "image_ids": [image_id],
                "task": "vqa",
                "question": question,
                "answers": [answer] if answer else [],
                "answer_type": answer_type_of(answer),
                "language": "en",
                "source": source,
                "notes": notes,
            }
        )
    return Corpus.of(images.rows, samples)


def _parquet_rows(path: str, folder: Path | None) -> Iterator[tuple[str, int, dict[str, Any]]]:
    import datasets  # a second of import that the other layout does not need

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else even a local folder is reported to a server
    try:
        if folder:  # streamed: no second copy of the images in a cache
            splits = datasets.load_dataset("parquet", data_dir=str(folder), streaming=True)
        else:
            splits = datasets.load_dataset(path)
        for split, rows in splits.items():
            columns = rows.column_names or []
            if missing := [name for name in _HUB_COLUMNS if name not in columns]:
                raise DataError(
                    f"{path}: split {split!r} lacks the columns {', '.join(missing)}; found: "
                    f"{', '.join(columns)}; needed: {', '.join(_HUB_COLUMNS)}"
                )
            rows = rows.select_columns(list(_HUB_COLUMNS))
            if isinstance((rows.features or {}).get("image"), datasets.Image):
                rows = rows.cast_column("image", datasets.Image(decode=False))
            for number, row in enumerate(rows):
                yield str(split), number, row
    except DataError:
        raise
    except Exception as error:  # the library raises its own, pyarrow's, the hub's and the network's errors
        reason = " ".join(str(error).split())[:300]
        if folder:
            raise DataError(f"{path}: its parquet files cannot be read: {reason}") from None
        raise DataError(
            f"{path}: is no folder here, and the Hugging Face hub did not give it ({reason}); check the "
            "name and the network, or give a local folder"
        ) from None


def _encoded(value: Any) -> tuple[bytes | None, str]:
    """Return (encoded file, name) of an image cell: bytes, {"bytes", "path"} or a decoded image."""
    if isinstance(value, dict):
        data, name = value.get("bytes"), value.get("path")
        return data if isinstance(data, bytes) else None, name if isinstance(name, str) else ""
    if isinstance(value, Image.Image):
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        return buffer.getvalue(), ""
    return value if isinstance(value, bytes) else None, ""
