"""What a user of radloop does: ingest, then the image part of preprocess."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from benchmarks._measure import checksum
from radloop.config import DataConfig
from radloop.data.corpus import SAMPLES, Corpus, EncodedImage
from radloop.data.imaging import map_images, resize, to_rgb
from radloop.data.ingest import engines, ingest_and_count
from radloop.data.prepared import PREPARED_IMAGES, prepared_image
from radloop.data.storage import TableWriter


def main(adapter: str, path: str, workers: int, longest: int, out: str, pooled: bool) -> dict[str, Any]:
    """Ingest `path`; with `longest` pixels above 0, store pictures of that size and lower-case texts, too.

    With `pooled` the worker processes start at once, even for what one process does faster.
    """
    if pooled:
        engines._ALONE_S = 0
    start = time.monotonic()
    config = DataConfig.model_validate({"adapter": adapter, "path": path, "workers": workers})
    corpus, touched = ingest_and_count(config)
    ingested = time.monotonic()
    if longest:
        _store_images(corpus, longest, Path(out) / "images.arrow")
        _store_texts(corpus, Path(out) / "samples.arrow")
    seconds = time.monotonic() - start
    hashes = (text for batch in corpus.images["pixel_hash"].chunks for text in batch.to_pylist())
    return {
        "seconds": seconds,
        "ingest_seconds": ingested - start,
        "samples": corpus.samples.num_rows,
        "images": corpus.images.num_rows,
        "pixels": checksum(hashes),
        **{name: getattr(touched, name) for name in ("rows", "new_rows", "new_images")},
    }


def _store_images(corpus: Corpus, longest: int, path: Path) -> None:
    def work(image: EncodedImage) -> dict[str, Any]:
        return prepared_image(image.id, resize(to_rgb(image.data or b""), longest))

    with TableWriter(path, PREPARED_IMAGES) as writer:
        for _, row in map_images(corpus, work):
            writer.write(pa.Table.from_pylist([row], PREPARED_IMAGES))


def _store_texts(corpus: Corpus, path: Path) -> None:
    with TableWriter(path, SAMPLES) as writer:
        for batch in corpus.samples.to_batches():
            table = pa.Table.from_batches([batch])
            answers = batch["answers"]
            lower = pa.ListArray.from_arrays(answers.offsets, pc.utf8_lower(answers.values))
            for name, column in (("question", pc.utf8_lower(batch["question"])), ("answers", lower)):
                table = table.set_column(SAMPLES.get_field_index(name), SAMPLES.field(name), column)
            writer.write(table)


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
