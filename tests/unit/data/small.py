"""Small corpora, made by hand."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from radloop.data.corpus import image_id
from radloop.data.imaging import to_png
from radloop.data.ingest.facts import examine
from radloop.data.phantoms.phantom import Stream, make_phantom


def noise(seed: int, size: int = 128) -> bytes:
    """A PNG that looks like no other seed's."""
    return to_png(Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size), dtype=np.uint8)))


@cache
def phantom(index: int, form: str = "PNG", size: int = 128) -> bytes:
    """A phantom radiograph, in another encoding or of another size."""
    image = Image.fromarray(make_phantom(Stream.TRAIN, 0, index, 128).pixels).resize((size, size))
    buffer = io.BytesIO()
    image.save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
    return buffer.getvalue()


def image(name: str, data: bytes | None, **columns: Any) -> dict[str, Any]:
    """A row of the images table as ingest would write it; without data, the file is missing."""
    frame, window = columns.get("frame", 0), columns.get("window", "")
    plain = {"name": name, "frame": frame, "window": window}
    if data is None:
        return plain | {"id": f"missing:{name}", "error": "the file is missing"} | columns
    facts = _examined(data, frame, window)
    return plain | facts | {"id": image_id(data, frame, window), "bytes": data} | columns


@cache
def _examined(data: bytes, frame: int, window: str) -> dict[str, Any]:
    return examine(data, frame, window)


def sample(number: int, *images: dict[str, Any], **columns: Any) -> dict[str, Any]:
    """A row of the samples table that holds no defect."""
    return {
        "id": f"s{number}",
        "dataset": "rad",
        "split": "train",
        "image_ids": [row["id"] for row in images],
        "task": "vqa",
        "question": f"Is finding {number} to be seen?",
        "answers": ["yes"],
        "answer_type": "closed",
        "language": "en",
        "file": "rows.json",
        "row": number,
    } | columns
