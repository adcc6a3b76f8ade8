"""Data sets of any size in published layouts, of phantoms blown up to the size of real images."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from radloop.data.adapters.vqa_rad import RELEASE_FILE, RELEASE_IMAGES
from radloop.data.phantoms import Phantom, Stream, caption, make_phantom, questions

SIDE = 700  # pixels, as the median of VQA-RAD
SAMPLES_PER_IMAGE = 7  # as VQA-RAD
_RENDERED = (96, 192, 288, 384)
_NOISE = 4.0  # grey levels; without it JPEGs would be half as large as real ones
_ROW_GROUP = 100  # as `push_to_hub` writes images
_TINY = 16  # pixels
_TINY_PER_FOLDER = 1000
Picture = tuple[Phantom, bytes]


def pictures(count: int) -> list[Picture]:
    """Return phantoms, and of each an RGB JPEG file of 700 x 700 pixels."""
    found = []
    for number in range(count):
        phantom = make_phantom(Stream.TRAIN, 0, number, _RENDERED[number % len(_RENDERED)])
        found.append((phantom, _jpeg(_enlarged(phantom.pixels, number))))
    return found


def vqa_rad(folder: Path, pictures: Sequence[Picture], per_image: int) -> None:
    """Write the release: one JSON file and a folder of images."""
    (folder / RELEASE_IMAGES).mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for number, (phantom, data) in enumerate(pictures):
        name = f"synpic{number}.jpg"
        (folder / RELEASE_IMAGES / name).write_bytes(data)
        for question, answer in _asked(phantom, per_image):
            row = {"qid": len(rows), "phrase_type": "freeform", "image_name": name, "image_organ": "CHEST"}
            rows.append(row | {"question": question, "answer": answer, "answer_type": "OPEN"})
    (folder / RELEASE_FILE).write_text(json.dumps(rows))


def slake(folder: Path, pictures: Sequence[Picture], per_image: int) -> None:
    """Write train.json and a folder an image."""
    rows: list[dict[str, Any]] = []
    for number, (phantom, data) in enumerate(pictures):
        name = f"xmlab{number}/source.jpg"
        path = folder / "imgs" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        for question, answer in _asked(phantom, per_image):
            row = {
                "qid": len(rows),
                "img_name": name,
                "q_lang": "en",
                "location": "Lung",
                "modality": "X-Ray",
            }
            rows.append(row | {"question": question, "answer": str(answer), "answer_type": "OPEN"})
    (folder / "train.json").write_text(json.dumps(rows))


def roco(folder: Path, pictures: Sequence[Picture], per_image: int) -> None:
    """Write captions, tab separated, and a folder of images; each image has one."""
    place = folder / "data" / "train" / "radiology"
    (place / "images").mkdir(parents=True)
    with (place / "captions.txt").open("w") as file:
        for number, (phantom, data) in enumerate(pictures):
            (place / "images" / f"ROCO_{number:05d}.jpg").write_bytes(data)
            file.write(f"ROCO_{number:05d}\t {caption(phantom)}\n")


def hub(folder: Path, pictures: Sequence[Picture], per_image: int) -> None:
    """Write VQA-RAD as the hub has it: a parquet file that repeats the image in each row."""
    (folder / "data").mkdir(parents=True)
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", picture), ("question", pa.string()), ("answer", pa.string())])
    info = {name: {"dtype": "string", "_type": "Value"} for name in ("question", "answer")}
    features = {"info": {"features": {"image": {"_type": "Image"}} | info}}
    schema = schema.with_metadata({"huggingface": json.dumps(features)})
    path = folder / "data" / "train-00000-of-00001.parquet"
    rows = (
        {"image": {"bytes": data, "path": None}, "question": question, "answer": str(answer)}
        for phantom, data in pictures
        for question, answer in _asked(phantom, per_image)
    )
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def table(folder: Path, num_rows: int) -> None:
    """Write a JSON-lines table of that many rows, 7 for each of as many tiny but distinct images."""
    tiny_images(folder, 0, num_rows)
    with (folder / "questions.jsonl").open("w") as file:
        file.writelines(table_rows(0, num_rows))


def tiny_images(folder: Path, first: int, count: int) -> None:
    """Write the images of those rows of the table."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, _TINY, _TINY), dtype=np.uint8)
    encoded = [_jpeg(Image.fromarray(each)) for each in pixels]
    for number in range(first // SAMPLES_PER_IMAGE, -(-(first + count) // SAMPLES_PER_IMAGE)):
        path = folder / _tiny_name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        # What follows the end of a JPEG file is ignored, but is another content.
        path.write_bytes(encoded[number % len(encoded)] + number.to_bytes(4, "big"))


def table_rows(first: int, count: int) -> Iterator[str]:
    """Yield lines of the table."""
    for number in range(first, first + count):
        image, which = divmod(number, SAMPLES_PER_IMAGE)
        row = {
            "id": f"q{number}",
            "image": _tiny_name(image),
            "question": f"Is there a nodule in zone {which} of the left lung? ",
            "answer": "Yes" if number % 3 else "no",
            "split": "train",
            "patient": f"p{image // 2}",
        }
        yield json.dumps(row) + "\n"


def _tiny_name(number: int) -> str:
    return f"images/{number // _TINY_PER_FOLDER:03d}/{number:06d}.jpg"


def _asked(phantom: Phantom, count: int) -> Iterator[tuple[str, str | int]]:
    """Yield questions with answers, over again with a number where there are too few; counts as numbers."""
    for number, asked in enumerate(islice(cycle(questions(phantom)), count)):
        yield f" {asked.text} ({number})", int(asked.answer) if asked.answer.isdecimal() else asked.answer


def _enlarged(pixels: np.ndarray, seed: int) -> Image.Image:
    large = Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(seed).normal(0, _NOISE, (SIDE, SIDE))
    return Image.fromarray(np.clip(np.asarray(large) + noise, 0, 255).astype(np.uint8)).convert("RGB")


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
