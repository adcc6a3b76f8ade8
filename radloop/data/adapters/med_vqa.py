"""MedVQA: 794 questions about radiographs, as agupte/MedVQA on the Hugging Face hub.

Source: the card of that repository, which names the columns ids, image_names, images, questions and
answers (635 rows to train, 159 to test), but neither a paper nor a licence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from radloop.data.adapters import need_path, no_such_layout
from radloop.data.adapters._hub import ParquetSource
from radloop.data.reading import (
    ParquetFolder,
    answer_type_of,
    clean_text,
    encoded_image,
    file_name,
    parse_answers,
)
from radloop.data.source import Images, Source

_LAYOUTS = "the hub's data/*.parquet with the columns ids, image_names, images, questions, answers"


class MedVqa:
    """Adapter of MedVQA.

    Decisions: a row is one question, in spite of the columns' plural; an id counts within its split, since
    nothing says that it is unique beyond.
    """

    class Options(BaseModel):
        """None: the data set is complete as published."""

        model_config = ConfigDict(frozen=True, extra="forbid")

    def open(self, path: str | None, options: Options) -> Source:
        """Recognise a folder of parquet files.

        Raises:
            DataError: No such source, or no parquet file in it.
        """
        folder = need_path(path, "med_vqa", _LAYOUTS)
        if folder.is_dir() and next(folder.rglob("*.parquet"), None):
            return _Hub(ParquetFolder(folder, ("questions", "answers", "images"), ("ids", "image_names")))
        raise no_such_layout(folder, "med_vqa", _LAYOUTS)


@dataclass(frozen=True)
class _Hub(ParquetSource):
    parquet: ParquetFolder

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        notes: list[str] = []
        data, path = encoded_image(row["images"])
        # Only for messages: the bytes are in the row, and some names lack their extension.
        name = file_name(row.get("image_names"), "image_names", notes) or path
        number = clean_text(row.get("ids"), "ids", [])
        answers = parse_answers(row["answers"], notes)
        yield {
            "id": "-".join(part for part in ("med_vqa", row["split"], number) if part) if number else "",
            "dataset": "med_vqa",
            "split": row["split"],
            "image_ids": [images.inline(data, name or number)],
            "task": "vqa",
            "question": clean_text(row["questions"], "questions", notes),
            "answers": answers,
            "answer_type": answer_type_of(answers[0] if answers else ""),
            "language": "en",
            "notes": notes,
        }
