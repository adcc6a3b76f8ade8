"""The corpus: images and samples in two Arrow tables, and the fingerprint of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.feather as feather

from radloop.errors import DataError

IMAGES = pa.schema(
    [
        ("id", pa.string()),  # sha256 of the file's bytes; "missing:NAME" where there is no file
        ("name", pa.string()),  # as the source calls it
        ("bytes", pa.binary()),  # the encoded file, where the source has no file of its own
        ("uri", pa.string()),  # absolute path, where it has
        ("modality", pa.string()),
        ("body_part", pa.string()),
        ("view", pa.string()),
        ("study", pa.string()),
        ("patient", pa.string()),  # pseudonym
    ]
)
SAMPLES = pa.schema(
    [
        ("id", pa.string()),
        ("dataset", pa.string()),
        ("split", pa.string()),  # the published one: train, validation, test, or "" for none
        ("group", pa.string()),  # what must not be torn apart by a split: image, study or patient
        ("image_ids", pa.list_(pa.string())),
        ("task", pa.string()),  # vqa, report, caption, ehr
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),  # the first is the reference
        ("answer_type", pa.string()),  # open, closed
        ("question_type", pa.string()),
        ("language", pa.string()),
        ("context", pa.string()),
        ("source", pa.string()),  # file and row, for messages: "trainset.json row 17"
        ("notes", pa.list_(pa.string())),  # what the adapter had to mend, "answer: int 5 kept as '5'"
    ]
)
_SHOWN_ROWS = 50
_NOT_CONTENT = {"bytes", "uri", "name", "source", "notes"}


@dataclass(frozen=True)
class Corpus:
    """Images and samples of one or more data sets; an image used by 22 questions is kept once.

    Attributes:
        images: Table of schema `IMAGES`, one row per distinct image content.
        samples: Table of schema `SAMPLES`.
        fingerprint: 16 hexadecimal digits over the content of both tables. Paths, file names and
            the order in which a folder was listed do not enter it.
    """

    images: pa.Table
    samples: pa.Table
    fingerprint: str

    @classmethod
    def of(cls, images: list[dict[str, Any]], samples: list[dict[str, Any]]) -> Self:
        """Build a corpus from rows; missing columns become empty, unknown ones are an error."""
        image_table = _table(images, IMAGES)
        sample_table = _table(samples, SAMPLES)
        return cls(image_table, sample_table, fingerprint(image_table, sample_table))

    def save(self, folder: Path) -> None:
        feather.write_feather(self.images, folder / "images.arrow", compression="uncompressed")
        feather.write_feather(self.samples, folder / "samples.arrow", compression="uncompressed")
        (folder / "corpus.json").write_text(json.dumps({"fingerprint": self.fingerprint}))

    @classmethod
    def load(cls, folder: Path) -> Self:
        images = feather.read_table(folder / "images.arrow", memory_map=True)
        samples = feather.read_table(folder / "samples.arrow", memory_map=True)
        return cls(images, samples, json.loads((folder / "corpus.json").read_text())["fingerprint"])

    def views(self) -> dict[str, str | bytes]:
        from radloop import html

        rows = self.samples.slice(0, _SHOWN_ROWS).to_pylist()
        table = html.table(
            ["sample", "question", "answer", "question type", "published split", "source"],
            [
                [
                    row["id"],
                    row["question"],
                    "; ".join(row["answers"]),
                    row["question_type"],
                    row["split"],
                    row["source"],
                ]
                for row in rows
            ],
        )
        counts = html.table(["what", "value"], [[name, value] for name, value in self.facts().items()])
        title = f"The first {len(rows)} of {self.samples.num_rows:,} samples"
        return {
            "corpus.html": html.page("Corpus", html.section("Counts", counts), html.section(title, table))
        }

    def facts(self) -> dict[str, str | int | float]:
        return {
            "fingerprint": self.fingerprint,
            "images": self.images.num_rows,
            "samples": self.samples.num_rows,
            "datasets": ", ".join(sorted(set(self.samples["dataset"].to_pylist()))),
        }

    def image_bytes(self) -> Iterator[tuple[str, bytes | None]]:
        """Yield (image id, encoded file) row by row; None where the file cannot be read."""
        for batch in self.images.select(["id", "bytes", "uri"]).to_batches(max_chunksize=64):
            for row in batch.to_pylist():
                yield row["id"], row["bytes"] or _read(row["uri"], row["id"])


def fingerprint(images: pa.Table, samples: pa.Table) -> str:
    """Hash the content of both tables, independent of row order and of where files lie."""
    digest = hashlib.sha256()
    for table in (images, samples):
        columns = [name for name in table.column_names if name not in _NOT_CONTENT]
        rows = (json.dumps(row, sort_keys=True) for row in table.select(columns).to_pylist())
        for line in sorted(rows):
            digest.update(line.encode())
            digest.update(b"\n")
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _read(uri: str | None, image_id: str) -> bytes | None:
    try:
        data = Path(uri).read_bytes() if uri else None
    except OSError:
        return None
    is_hash = len(image_id) == hashlib.sha256().digest_size * 2
    if data is not None and is_hash and hashlib.sha256(data).hexdigest() != image_id:
        raise DataError(
            f"{uri}: has changed since it was read in; start the run again when nothing writes to it"
        )
    return data


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise ValueError(f"unknown columns {sorted(unknown)}; known: {schema.names}")
    empty: dict[str, Any] = {
        field.name: [] if pa.types.is_list(field.type) else None if field.name in ("bytes", "uri") else ""
        for field in schema
    }
    return pa.Table.from_pylist([empty | row for row in rows], schema=schema)
