"""Parquet files of the Hugging Face hub, and the columns that VQA data sets share there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from radloop.data.reading import ParquetFolder, answer_type_of, clean_text, encoded_image
from radloop.data.source import ROW, Images, Source, Unit

HUB_COLUMNS = ("image", "question", "answer")


class ParquetSource(Source):
    """Base of sources that read parquet files."""

    parquet: ParquetFolder

    def units(self) -> Iterator[Unit]:
        return self.parquet.units()

    def rows(self, unit: Unit) -> Iterator[Any]:
        return self.parquet.rows(unit)


@dataclass(frozen=True)
class HubQuestions(ParquetSource):
    """English questions of one data set in parquet files with `HUB_COLUMNS`.

    Attributes:
        dataset: Name of the data set.
        parquet: Its files.
    """

    dataset: str
    parquet: ParquetFolder

    def rows(self, unit: Unit) -> Iterator[Any]:
        # The hub's copies have no id: file and row make one.
        for row in super().rows(unit):
            yield row | {"id": f"{unit.file.removesuffix('.parquet')}-{ROW}", "file": unit.file}

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        notes: list[str] = []
        data, name = encoded_image(row["image"])
        question = clean_text(row["question"], "question", notes)
        answer = clean_text(row["answer"], "answer", notes)
        yield {
            "id": f"{self.dataset}-{row['id']}",
            "dataset": self.dataset,
            "split": row["split"],
            "image_ids": [images.inline(data, name or row["file"])],
            "task": "vqa",
            "question": question,
            "answers": [answer] if answer else [],
            "answer_type": answer_type_of(answer),
            "language": "en",
            "notes": notes,
        }
