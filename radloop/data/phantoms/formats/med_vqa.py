"""Phantoms as MedVQA on the Hugging Face hub; it has no validation split: those phantoms are in train."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from radloop.data.phantoms.formats._cohort import Cohort
from radloop.data.phantoms.formats._files import jpeg, write_hub_shards
from radloop.data.phantoms.language import questions

_SCHEMA = pa.schema(
    [
        ("ids", pa.string()),
        ("image_names", pa.string()),
        ("images", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("questions", pa.string()),
        ("answers", pa.string()),
    ]
)


def _hub(folder: Path, cohort: Cohort) -> None:
    for split in ("train", "test"):
        write_hub_shards(folder, split, list(_rows(cohort, split)), _SCHEMA)


LAYOUTS = {"hub": _hub}


def _rows(cohort: Cohort, split: str) -> Iterator[dict[str, Any]]:
    number = 0
    for study in cohort.studies():
        if (study.split == "test") != (split == "test"):
            continue
        encoded = jpeg(study.phantom)
        name = study.phantom.name + (".jpg" if study.number % 2 else "")  # as published: not on all
        for asked in questions(study.phantom):
            yield {
                "ids": str(number),
                "image_names": name,
                "images": {"bytes": encoded, "path": None},
                "questions": asked.text,
                "answers": asked.answer,
            }
            number += 1
