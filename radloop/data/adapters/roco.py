"""ROCO and ROCOv2: figures of open-access articles with captions and UMLS concepts.

Source: Pelka et al., "Radiology Objects in COntext (ROCO): A Multimodal Image Dataset", LABELS 2018;
Rückert et al., "ROCOv2", Scientific Data 11:688 (2024). Three layouts are read: the tab separated files
of ROCO, the CSV files of ROCOv2, and the parquet columns image / image_id / caption, with or without
cui, of the copies and subsets on the Hugging Face hub.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from radloop.data.adapters import need_path, no_such_layout
from radloop.data.adapters._hub import ParquetSource
from radloop.data.reading import (
    ParquetFolder,
    as_object,
    clean_text,
    encoded_image,
    file_name,
    read_delimited,
    some,
    split_of,
)
from radloop.data.reading.text import SURPLUS
from radloop.data.source import Images, Source, Unit, in_units
from radloop.errors import ConfigError, DataError

_LAYOUTS = (
    "data/<split>/radiology/captions.txt (ROCO), train_captions.csv, valid_captions.csv, test_captions.csv "
    "(ROCOv2), or the hub's data/*.parquet with image, image_id and caption"
)
_SUBSETS = ("radiology", "non-radiology")
_V1_SPLITS = ("train", "validation", "test")
_V2_FILES = ("train_captions.csv", "valid_captions.csv", "test_captions.csv")


class Roco:
    """Adapter of ROCO, ROCOv2 and subsets of them; the layout is recognised by itself.

    Decisions: the fixed instruction is the question and the caption its answer; CUIs are the labels.
    Captions and concepts are joined by id, whatever their order. An id that has concepts and no
    caption becomes a sample without an answer.
    """

    class Options(BaseModel):
        """What to read, and what to ask about each image."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        subset: Literal["radiology", "non-radiology", "both"] = Field(
            "radiology", description="of ROCO's first version, which also has figures of other kinds"
        )
        question: str = Field(
            "You are an expert radiographer. Describe accurately what you see in this image.",
            min_length=1,
            description="instruction that each caption answers",
        )

    def open(self, path: str | None, options: Options) -> Source:
        """Recognise one of the layouts.

        Raises:
            DataError: No such source, or none of the layouts.
            ConfigError: Another subset than the copy has.
        """
        folder = need_path(path, "roco", _LAYOUTS)
        files = {
            subset: [
                f"{base}{split}/{subset}/captions.txt"
                for base in ("data/", "")
                for split in _V1_SPLITS
                if (folder / base / split / subset / "captions.txt").exists()
            ]
            for subset in _SUBSETS
        }
        if any(files.values()):
            return _V1(folder, tuple(_chosen(folder, files, options.subset)), options.question)
        source = _without_subsets(folder, options.question)
        if options.subset != "radiology":
            raise ConfigError(
                f"data.options.subset: got {options.subset!r}, but only ROCO's first version has figures of "
                f"other kinds, and {folder} is another; leave the option out"
            )
        return source


def _without_subsets(folder: Path, question: str) -> Source:
    if files := tuple(file for file in _V2_FILES if (folder / file).exists()):
        return _V2(folder, files, question)
    if folder.is_dir() and next(folder.rglob("*.parquet"), None):
        return _Hub(ParquetFolder(folder, ("image", "image_id", "caption"), ("cui",)), question)
    raise no_such_layout(folder, "roco", _LAYOUTS)


def _chosen(folder: Path, files: dict[str, list[str]], subset: str) -> list[str]:
    chosen = [file for name in _SUBSETS if subset in (name, "both") for file in files[name]]
    if not chosen:
        there = some([file for names in files.values() for file in names])
        raise DataError(f"{folder}: has no captions of the subset {subset!r}; found: {there}")
    return chosen


@dataclass(frozen=True)
class _Release(Source):
    """Captions and concepts in files of their own."""

    folder: Path
    files: tuple[str, ...]  # those of the captions
    question: str

    def units(self) -> Iterator[Unit]:
        for file in self.files:
            yield from in_units(file, self._joined(file))

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        notes: list[str] = []
        row = as_object(row, notes)
        name = file_name(row.get("image"), "image", notes)
        key = images.file(self.folder / row.get("root", ""), name) if name else ""
        yield _sample(row, row.get("split", ""), key, self.question, notes)

    def _joined(self, file: str) -> Iterator[dict[str | None, Any]]:
        raise NotImplementedError


class _V1(_Release):
    def _joined(self, file: str) -> Iterator[dict[str | None, Any]]:
        place = self.folder / file.removesuffix("/captions.txt")
        concepts = _v1_concepts(place / "cuis.txt")
        names = _v1_image_names(place)
        # Each caption begins with a space: the separator is a tab and a space.
        captions = (
            row | {"caption": str(row.get("caption", "")).removeprefix(" ")}
            for row in read_delimited(
                place / "captions.txt", delimiter="\t", header=("image_id", "caption"), quoted=False
            )
        )
        split = split_of(Path(file).parent)
        root = str((place / "images").relative_to(self.folder))
        for row in _join(captions, concepts):
            image = names.get(row["image_id"], f"{row['image_id']}.jpg")
            yield row | {"split": split, "root": root, "image": image}


class _V2(_Release):
    def _joined(self, file: str) -> Iterator[dict[str | None, Any]]:
        split = file.removesuffix("_captions.csv")
        captions = (
            {"image_id": row.pop("ID", ""), "caption": row.pop("Caption", ""), **row}
            for row in read_delimited(self.folder / file, ("ID", "Caption"))
        )
        path = self.folder / f"{split}_concepts.csv"
        rows = read_delimited(path, ("ID", "CUIs")) if path.exists() else ()
        concepts = _by_id((row["ID"], row.get("CUIs", "").split(";")) for row in rows)
        root, folder = _v2_images(self.folder, split)
        for row in _join(captions, concepts):
            image = f"{folder}{row['image_id']}.jpg"
            yield row | {"split": split_of(Path(split)), "root": root, "image": image}


@dataclass(frozen=True)
class _Hub(ParquetSource):
    parquet: ParquetFolder
    question: str

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        notes: list[str] = []
        data, name = encoded_image(row["image"])
        key = images.inline(data, name or file_name(row["image_id"], "image_id", []))
        yield _sample(row, row["split"], key, self.question, notes)


def _sample(row: dict[str, Any], split: str, image: str, question: str, notes: list[str]) -> dict[str, Any]:
    image_id = clean_text(row.get("image_id"), "image_id", notes)
    caption = clean_text(row.get("caption"), "caption", notes)
    cuis = row.get("cui") or []
    labels = [clean_text(cui, "cui", notes) for cui in (cuis if isinstance(cuis, list) else [cuis])]
    return {
        "id": f"roco-{image_id}" if image_id else "",
        "dataset": "roco",
        "split": split,
        "image_ids": [image] if image else [],
        "task": "caption",
        "question": question,
        "answers": [caption] if caption else [],
        "answer_type": "open",
        "question_type": "caption",
        "language": "en",
        "labels": [label for label in dict.fromkeys(labels) if label],
        "notes": notes,
    }


def _join(
    captions: Iterable[dict[str | None, Any]], concepts: dict[str, list[str]]
) -> Iterator[dict[str | None, Any]]:
    seen = set()
    for row in captions:
        seen.add(row["image_id"])
        yield row | {"cui": concepts.get(row["image_id"], [])}
    for image_id, cuis in concepts.items():
        if image_id not in seen:
            yield {"image_id": image_id, "caption": None, "cui": cuis}


def _by_id(rows: Iterable[tuple[str, list[str]]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for image_id, cuis in rows:
        found.setdefault(image_id, []).extend(cui for cui in cuis if cui)
    return found


def _v1_concepts(path: Path) -> dict[str, list[str]]:
    """Return CUIs by id; the file has one column for each, and an empty one before them."""
    if not path.exists():
        return {}
    rows = read_delimited(path, delimiter="\t", header=("image_id", "first"), quoted=False)
    return _by_id((row["image_id"], [row.get("first", ""), *row.get(SURPLUS, [])]) for row in rows)


def _v1_image_names(place: Path) -> dict[str, str]:
    """Return file names by id where the images have those of PubMed Central, as fetched by ROCO's script."""
    path = place / "licences.txt"
    if not path.exists() or next((place / "images").glob("ROCO_*"), None):
        return {}
    return {
        row["ROCO_ID"]: row["PMC_ID"]
        for row in read_delimited(path, ("ROCO_ID", "PMC_ID"))
        if row.get("PMC_ID")
    }


def _v2_images(folder: Path, split: str) -> tuple[str, str]:
    """Return (folder or archive, what precedes the names in it) of a split's images."""
    for name in (split, f"{split}_images/{split}", f"{split}_images"):
        if (folder / name).is_dir():
            return name, ""
    archive = folder / f"{split}_images.zip"
    if not archive.exists():
        return split, ""
    try:
        with zipfile.ZipFile(archive) as opened:
            first = next((name for name in opened.namelist() if name.endswith(".jpg")), "")
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{archive}: cannot be read ({error}); copy it again from its source") from None
    parent = str(PurePosixPath(first).parent)
    return archive.name, "" if parent == "." else f"{parent}/"
