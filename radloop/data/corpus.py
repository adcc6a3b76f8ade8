"""The corpus: images and samples in two Arrow tables, and the fingerprint of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather

from radloop.data.storage import TableWriter
from radloop.errors import DataError

IMAGES = pa.schema(
    [
        ("id", pa.string()),  # sha256 of the file's bytes; "missing:NAME" where there is no file
        ("name", pa.string()),  # as the source calls it
        ("bytes", pa.binary()),  # the encoded file, where the source has no file of its own
        ("uri", pa.string()),  # absolute path, where it has
        ("frame", pa.int32()),  # of a file with several, from 0
        ("window", pa.string()),  # of a DICOM file: "" for its own, a name, or "centre/width"
        ("modality", pa.string()),
        ("body_part", pa.string()),
        ("view", pa.string()),
        ("study", pa.string()),
        ("patient", pa.string()),  # pseudonym
        # What decoding showed; empty where it failed.
        ("width", pa.int32()),  # pixels, upright
        ("height", pa.int32()),
        ("mode", pa.string()),  # Pillow's, as encoded
        ("format", pa.string()),  # PNG, JPEG, ... or DICOM
        ("frames", pa.int32()),
        ("blank", pa.bool_()),
        ("pixel_hash", pa.string()),  # same for same 8-bit RGB pixels
        ("perceptual_hash", pa.binary()),  # close for pictures that look the same
        ("burnt_in_text", pa.bool_()),  # letters in the picture, or a DICOM tag that says so
        ("error", pa.string()),  # why there are no pixels, or ""
    ]
)
SAMPLES = pa.schema(
    [
        ("id", pa.string()),
        ("dataset", pa.string()),
        ("split", pa.string()),  # the published one: train, validation, test, or "" for none
        ("patient", pa.string()),  # pseudonym
        ("study", pa.string()),
        ("image_ids", pa.list_(pa.string())),
        ("namespace", pa.string()),  # whose numbers patient and study are; "" for the data set's own
        ("task", pa.string()),  # vqa, report, caption, ehr
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),  # the first is the reference
        ("answer_type", pa.string()),  # open, closed
        ("question_type", pa.string()),
        ("language", pa.string()),  # ISO 639-1
        ("context", pa.string()),  # text that belongs to the question, such as a health record
        ("labels", pa.list_(pa.string())),  # findings or concepts that the data set gives
        ("file", pa.string()),  # for messages, relative to the source
        ("row", pa.int64()),  # from 1; 0 where the file is no table
        ("notes", pa.list_(pa.string())),  # what the adapter had to mend, "answer: int 5 kept as text"
    ]
)
_SHOWN_ROWS = 50
_IMAGE_CONTENT = ("id", "modality", "body_part", "view", "study", "patient")


@dataclass(frozen=True)
class Corpus:
    """Images and samples of one or more data sets; an image used by 22 questions is kept once.

    Attributes:
        images: Table of schema `IMAGES`, one row per distinct image content.
        samples: Table of schema `SAMPLES`.
        fingerprint: 16 hexadecimal digits over the content of both tables. Paths, file names and
            the order of rows do not enter it.
        rows: Raw rows of the sources.
        left_out: Rows that the sources' options exclude, by reason.
        removed: Identifiers that de-identification took out, by kind.
    """

    images: pa.Table
    samples: pa.Table
    fingerprint: str
    rows: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, images: list[dict[str, Any]], samples: list[dict[str, Any]]) -> Self:
        """Build a small corpus from rows; missing columns become empty, unknown ones are an error."""
        fingerprint = Fingerprint()
        for image in images:
            fingerprint.add_image(image_digest(image))
        for sample in samples:
            content = {name: value for name, value in sample.items() if name not in NOT_CONTENT}
            fingerprint.add_sample(sample_digest(content), sample.get("image_ids", []))
        tables = _table(images, IMAGES), _table(samples, SAMPLES)
        return cls(*tables, fingerprint.hexdigest(), len(samples))

    def save(self, folder: Path) -> None:
        for name, table in (("images", self.images), ("samples", self.samples)):
            with TableWriter(folder / f"{name}.arrow", table.schema) as writer:
                writer.write(table)
        self.write_facts(folder, self.fingerprint, self.rows, self.left_out, self.removed)

    @staticmethod
    def write_facts(
        folder: Path, fingerprint: str, rows: int, left_out: dict[str, int], removed: dict[str, int]
    ) -> None:
        """Complete a folder that holds the two tables."""
        facts = {"fingerprint": fingerprint, "rows": rows, "left_out": left_out, "removed": removed}
        (folder / "corpus.json").write_text(json.dumps(facts))

    @classmethod
    def load(cls, folder: Path) -> Self:
        images = feather.read_table(folder / "images.arrow", memory_map=True)
        samples = feather.read_table(folder / "samples.arrow", memory_map=True)
        return cls(images, samples, **json.loads((folder / "corpus.json").read_text()))

    def views(self) -> dict[str, str | bytes]:
        from radloop import html

        rows = self.samples.slice(0, _SHOWN_ROWS).to_pylist()
        table = html.table(
            ["sample", "question", "answer", "question type", "published split", "where"],
            [
                [
                    row["id"],
                    row["question"],
                    "; ".join(row["answers"]),
                    row["question_type"],
                    row["split"],
                    where(row["file"], row["row"]),
                ]
                for row in rows
            ],
        )
        counts = [[name, value] for name, value in self.facts().items()]
        counts += [[f"left out: {reason}", count] for reason, count in self.left_out.items()]
        counts += [[f"identifiers removed: {kind}", count] for kind, count in self.removed.items()]
        title = f"The first {len(rows)} of {self.samples.num_rows:,} samples"
        facts = html.section("Counts", html.table(["what", "value"], counts))
        return {"corpus.html": html.page("Corpus", facts, html.section(title, table))}

    def facts(self) -> dict[str, str | int | float]:
        return {
            "fingerprint": self.fingerprint,
            "rows": self.rows,
            "images": self.images.num_rows,
            "samples": self.samples.num_rows,
            "datasets": ", ".join(sorted(filter(None, pc.unique(self.samples["dataset"]).to_pylist()))),
            "left_out": sum(self.left_out.values()),
        }

    def encoded_images(self) -> Iterator[EncodedImage]:
        """Yield the images row by row, their files read one after the other.

        Raises:
            DataError: A file holds something else than when it was read in.
        """
        columns = ["id", "bytes", "uri", "frame", "window"]
        for batch in self.images.select(columns).to_batches(max_chunksize=64):
            for row in batch.to_pylist():
                data = row["bytes"] or _read(row["uri"], row)
                yield EncodedImage(row["id"], data, row["frame"] or 0, row["window"] or "")


@dataclass(frozen=True)
class EncodedImage:
    """An image as a file has it; `data` is None where there is none."""

    id: str
    data: bytes | None
    frame: int
    window: str


class Fingerprint:
    """Hash of a corpus' content that does not depend on the order of its rows, nor who read them.

    Each row is hashed by itself, and the hashes are added modulo 2**256, so that it needs no memory
    and workers' parts can come in any order.
    """

    def __init__(self) -> None:
        self.sums = [0, 0]
        self.counts = [0, 0]

    def add_image(self, digest: bytes) -> None:
        """Add an image by its `image_digest`."""
        self._add(0, digest)

    def add_sample(self, digest: bytes, image_ids: list[str]) -> None:
        """Add a sample by its `sample_digest` and the ids of its images."""
        self._add(1, hashlib.sha256(digest + json.dumps(image_ids).encode()).digest())

    def hexdigest(self) -> str:
        """16 hexadecimal digits."""
        return hashlib.sha256(json.dumps([self.sums, self.counts]).encode()).hexdigest()[:16]

    def _add(self, kind: int, digest: bytes) -> None:
        self.sums[kind] = (self.sums[kind] + int.from_bytes(digest, "big")) % 2**256
        self.counts[kind] += 1


def image_digest(image: dict[str, Any]) -> bytes:
    """Hash a row of `IMAGES`; what decoding showed, and where the file lies, does not count."""
    text = json.dumps([image.get(name) or "" for name in _IMAGE_CONTENT])
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


NOT_CONTENT = {"image_ids", "file", "row", "notes"}


def sample_digest(content: dict[str, Any]) -> bytes:
    """Hash what a sample says; empty columns count as absent ones."""
    filled = {name: value for name, value in content.items() if value}
    return hashlib.sha256(json.dumps(filled, sort_keys=True).encode()).digest()


def where(file: str, row: int) -> str:
    """Return the place of a sample in its source, for messages."""
    return f"{file} row {row}" if row else file


def _read(uri: str | None, row: dict[str, Any]) -> bytes | None:
    try:
        data = Path(uri).read_bytes() if uri else None
    except OSError:
        return None
    if data is not None and image_id(data, row["frame"] or 0, row["window"] or "") != row["id"]:
        raise DataError(
            f"{uri}: has changed since it was read in; start the run again when nothing writes to it"
        )
    return data


def image_id(data: bytes, frame: int = 0, window: str = "") -> str:
    """Hash an encoded image; another frame or window of the same file is another picture."""
    digest = hashlib.sha256(data).hexdigest()
    if frame or window:
        return hashlib.sha256(f"{digest} {frame} {window}".encode()).hexdigest()
    return digest


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise ValueError(f"unknown columns {sorted(unknown)}; known: {schema.names}")
    return pa.Table.from_pylist([empty_row(schema) | row for row in rows], schema=schema)


def empty_row(schema: pa.Schema) -> dict[str, Any]:
    """Return the value that stands for nothing in each column."""
    return {
        column.name: []
        if pa.types.is_list(column.type)
        else ""
        if pa.types.is_string(column.type) and column.name != "uri"
        else None
        for column in schema
    }
