"""What training and evaluation read: accepted samples with split and prompt, and RGB images."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather
from PIL import Image

from radloop import html
from radloop.data.corpus import SAMPLES
from radloop.data.imaging import pixel_hash, resize, to_png
from radloop.data.splits import SPLITS

PREPARED_IMAGES = pa.schema(
    [
        ("id", pa.string()),
        ("png", pa.binary()),  # 8-bit RGB
        ("width", pa.int32()),  # pixels
        ("height", pa.int32()),
        ("pixels", pa.string()),  # `pixel_hash`: the same picture in another file, or after another run
    ]
)
HELD_OUT = "held out"  # published as test, lies on images of the clean train or validation split
PREPARED_SAMPLES = pa.schema(
    [
        *SAMPLES,  # split: the one in force
        ("group", pa.string()),  # what no split tears apart: image, study or patient
        ("keys", pa.list_(pa.string())),  # what tells the group again: pictures by their pixels, people
        ("prompt", pa.string()),
        ("published_test", pa.bool_()),  # to be scored as such, beside the split in force
    ]
)
_CARDS_PER_SPLIT = 6
_CARD_PIXELS = 256
_CARD_LENGTH = 400  # characters of a prompt or an answer: a health record can have 20,000


@dataclass(frozen=True)
class PreparedData:
    """Model input.

    Attributes:
        images: Table of schema `PREPARED_IMAGES`.
        samples: Table of schema `PREPARED_SAMPLES`.
        fingerprint: The corpus' fingerprint.
    """

    images: pa.Table
    samples: pa.Table
    fingerprint: str

    @cached_property
    def indices(self) -> dict[str, list[str]]:
        """Split to sample ids: what a later run needs to use the very same split."""
        return {name: self.split(name)["id"].to_pylist() for name in SPLITS}

    def image(self, image_id: str) -> Image.Image:
        """Decode one image; an unknown id is a KeyError."""
        data = self.images["png"][self._row_of_image[image_id]].as_py()
        return Image.open(io.BytesIO(data), formats=["PNG"]).convert("RGB")

    def size(self, image_id: str) -> tuple[int, int]:
        """Return an image's width and height in pixels; an unknown id is a KeyError."""
        row = self._row_of_image[image_id]
        return self.images["width"][row].as_py(), self.images["height"][row].as_py()

    def pixel_hash(self, image_id: str) -> str:
        """Return what tells an image's content again; an unknown id is a KeyError."""
        found: str = self.images["pixels"][self._row_of_image[image_id]].as_py()
        return found

    def split(self, name: str) -> pa.Table:
        """Return the samples of one split, in the corpus' order."""
        return self.samples.filter(pc.equal(self.samples["split"], name))

    def split_of_keys(self) -> dict[str, str]:
        """Return the split of each picture, patient and study, by `key_hash`.

        Sample ids would not do: they may come from the order of rows, and change with de-identification.
        """
        columns = (self.samples["keys"].to_pylist(), self.samples["split"].to_pylist())
        found: dict[str, str] = {}
        for keys, split in zip(*columns, strict=True):
            for key in map(key_hash, keys or ()) if split in SPLITS else ():
                # A published split may tear a picture apart; then train has seen it.
                found[key] = split if found.get(key, split) == split else "train"
        return found

    def asked(self) -> pa.Table:
        """Return what is asked in an evaluation: the test split, and what is scored beside it."""
        return self.samples.filter(
            pc.or_kleene(pc.equal(self.samples["split"], "test"), self.samples["published_test"])
        )

    @cached_property
    def _row_of_image(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.images["id"].to_pylist())}

    def save(self, folder: Path) -> None:
        feather.write_feather(self.images, folder / "images.arrow", compression="uncompressed")
        feather.write_feather(self.samples, folder / "samples.arrow", compression="uncompressed")
        (folder / "indices.json").write_text(json.dumps(self.indices))
        (folder / "prepared.json").write_text(json.dumps({"fingerprint": self.fingerprint}))

    @classmethod
    def load(cls, folder: Path) -> Self:
        images = feather.read_table(folder / "images.arrow", memory_map=True)
        samples = feather.read_table(folder / "samples.arrow", memory_map=True)
        return cls(images, samples, json.loads((folder / "prepared.json").read_text())["fingerprint"])

    def views(self) -> dict[str, str | bytes]:
        tables = {name: self.split(name) for name in (*SPLITS, HELD_OUT)}
        counts = [
            [name, table.num_rows, len(_used_images(table)), pc.count_distinct(table["group"]).as_py()]
            for name, table in tables.items()
            if name in SPLITS or table.num_rows
        ]
        sections = [
            html.section("Splits", html.table(["split", "samples", "images", "groups"], counts)),
            *(self._examples(name, table) for name, table in tables.items() if table.num_rows),
            html.note(
                f"Pictures are 8-bit RGB as the model's processor gets them. Corpus {self.fingerprint}."
            ),
        ]
        return {"prepared.html": html.page("Prepared data", *sections)}

    def counts(self) -> dict[str, int]:
        """Return the number of samples in each split, and of those that are held out, if any are."""
        counts = {name: len(ids) for name, ids in self.indices.items()}
        held_out = self.split(HELD_OUT).num_rows
        return counts | ({HELD_OUT: held_out} if held_out else {})

    def facts(self) -> dict[str, str | int | float]:
        return {**self.counts(), "images": self.images.num_rows, "fingerprint": self.fingerprint}

    def _examples(self, name: str, table: pa.Table) -> str:
        step = max(1, table.num_rows // _CARDS_PER_SPLIT)
        rows = table.take(list(range(0, table.num_rows, step))[:_CARDS_PER_SPLIT]).to_pylist()
        cards = [
            (self._thumbnail(row["image_ids"]), "\n".join(map(_clip, (row["prompt"], *row["answers"][:1]))))
            for row in rows
        ]
        return html.section(f"Examples of {name}", html.grid(cards))

    def _thumbnail(self, image_ids: list[str]) -> bytes | None:
        return to_png(resize(self.image(image_ids[0]), _CARD_PIXELS)) if image_ids else None


def prepared_image(image_id: str, picture: Image.Image) -> dict[str, Any]:
    """Return the row of `PREPARED_IMAGES` of an RGB image."""
    return {
        "id": image_id,
        "png": to_png(picture),
        "width": picture.width,
        "height": picture.height,
        "pixels": pixel_hash(picture),
    }


def _clip(text: str) -> str:
    return text if len(text) <= _CARD_LENGTH else f"{text[: _CARD_LENGTH - 3]}..."


def key_hash(key: str) -> str:
    """Hash a key of a sample: a registry must not list patients."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:32]


def _used_images(samples: pa.Table) -> set[str]:
    return {image_id for ids in samples["image_ids"].to_pylist() for image_id in ids}
