"""What a competent user of `datasets` and Pillow does to the same end, with `map`."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, Value, load_dataset
from PIL import Image as Pillow

from benchmarks._measure import checksum

Row = dict[str, Any]
_PICTURE = {"image": Image(), "content": Value("string"), "pixels": Value("string")}


def main(way: str, adapter: str, path: str, workers: int, longest: int) -> dict[str, Any]:
    """Prepare `path` by `way`: each row, each distinct image, or that with radloop's further checks."""
    start = time.monotonic()
    rows = load(adapter, Path(path)).cast_column("image", Image(decode=False))
    prepare = _each_row if way == "rows" else _distinct
    pictures, num_samples = prepare(rows, workers, longest, "checks" in way)
    seconds = time.monotonic() - start
    of_content = dict(zip(pictures["content"], pictures["pixels"], strict=True))
    return {
        "seconds": seconds,
        "samples": num_samples,
        "images": len(of_content),
        "pixels": checksum(of_content.values()),
    }


def _each_row(rows: Dataset, workers: int, longest: int, checks: bool) -> tuple[Dataset, int]:
    def prepare(row: Row) -> Row:
        return _texts(row) | _picture(row, longest, checks)

    done = rows.map(prepare, num_proc=workers, features=Features(rows.features | _features(checks)))
    return done, len(done)


def _distinct(rows: Dataset, workers: int, longest: int, checks: bool) -> tuple[Dataset, int]:
    def key(row: Row) -> Row:
        data = row["image"]["bytes"]
        return _texts(row) | {"key": hashlib.sha256(data).hexdigest() if data else row["image"]["path"]}

    def picture(row: Row) -> Row:
        return _picture(row, longest, checks)

    texts = rows.map(key, num_proc=workers, remove_columns=["image"])
    first: dict[str, int] = {}
    for number, name in enumerate(texts["key"]):
        first.setdefault(name, number)
    few = rows.select(list(first.values())).select_columns(["image"])
    return few.map(picture, num_proc=workers, features=Features(_features(checks))), len(texts)


def _texts(row: Row) -> Row:
    return {name: row[name].strip().lower() for name in ("question", "answer") if name in row}


def _picture(row: Row, longest: int, checks: bool) -> Row:
    data = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
    image = Pillow.open(io.BytesIO(data)).convert("RGB")
    found: Row = {
        "content": hashlib.sha256(data).hexdigest(),
        "pixels": _pixel_hash(image),
    }
    if checks:
        from radloop.data.imaging.hashing import perceptual_hash
        from radloop.data.privacy import has_burnt_in_text

        found["look"] = perceptual_hash(image)
        found["burnt_in_text"] = has_burnt_in_text(np.asarray(image))
    image.thumbnail((longest, longest), Pillow.Resampling.LANCZOS)
    return found | {"image": image}


def _pixel_hash(image: Pillow.Image) -> str:
    digest = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest()


def _features(checks: bool) -> dict[str, Any]:
    return _PICTURE | ({"look": Value("binary"), "burnt_in_text": Value("bool")} if checks else {})


def load(adapter: str, path: Path) -> Dataset:
    """Return rows with image (a path, or an encoded file), question and answer."""
    if files := sorted(map(str, path.rglob("*.parquet"))):
        return load_dataset("parquet", data_files=files, split="train")
    # Not load_dataset("json"), which refuses columns of mixed types, as VQA-RAD's answers are.
    return Dataset.from_generator(_READERS[adapter], gen_kwargs={"folder": str(path)})


def _vqa_rad(folder: str) -> Iterator[Row]:
    for row in json.loads((Path(folder) / "VQA_RAD Dataset Public.json").read_text()):
        image = f"{folder}/VQA_RAD Image Folder/{row['image_name']}"
        yield {"image": image, "question": row["question"], "answer": str(row["answer"])}


def _slake(folder: str) -> Iterator[Row]:
    for row in json.loads((Path(folder) / "train.json").read_text()):
        image = f"{folder}/imgs/{row['img_name']}"
        yield {"image": image, "question": row["question"], "answer": row["answer"]}


def _roco(folder: str) -> Iterator[Row]:
    place = Path(folder) / "data" / "train" / "radiology"
    with (place / "captions.txt").open(newline="") as file:
        for image_id, caption in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield {"image": f"{place}/images/{image_id}.jpg", "question": "Describe.", "answer": caption}


_READERS = {"vqa_rad": _vqa_rad, "slake": _slake, "roco": _roco}

if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
