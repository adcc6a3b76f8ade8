"""A team's own table: any CSV, TSV, JSON, JSON lines, Excel or parquet file with image paths or images.

A few lines of the config say which of its columns is what:

    data:
      adapter: table
      path: chest_questions.csv
      options:
        columns: {image: picture_file, question: q, answer: a, patient: mrn, split: fold}
        images: pictures
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from radloop.data.adapters import need_path, no_such_layout
from radloop.data.reading import (
    ParquetFolder,
    answer_type_of,
    as_object,
    clean_text,
    columns_of,
    encoded_image,
    file_name,
    parse_answers,
    some,
    split_of,
)
from radloop.data.reading.tables import SUFFIXES, kind_of, read_rows
from radloop.data.source import ROW, Images, Source, Unit, in_units
from radloop.errors import DataError

_LAYOUTS = f"a table ({', '.join((*SUFFIXES, '.parquet'))}), or a folder of such tables"
_OF_SAMPLES = ("patient", "study", "answer_type", "question_type", "context")
_OF_IMAGES = ("modality", "body_part", "view", "study", "patient")
TARGETS = tuple(
    dict.fromkeys(
        ("image", "question", "answer", "labels", "id", "split", "language", *_OF_SAMPLES, *_OF_IMAGES)
    )
)
_Several = Literal["image", "answer", "labels"]
_PEEKED = 1000  # rows that are looked at for column names


class ColumnOptions(BaseModel):
    """Which column of a team's own table is what, and what no column says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: dict[str, str] = Field(
        default_factory=dict, description=f"target: column of the file; targets: {', '.join(TARGETS)}"
    )
    separators: dict[_Several, str] = Field(
        default_factory=dict, description="target: what separates several values in one text, such as ';'"
    )
    task: Literal["vqa", "report", "caption", "ehr"] = Field("vqa", description="what the rows are")
    question: str = Field("", description="for rows without a question of their own, as of reports")
    language: str = Field("en", description="ISO 639-1, for rows without one")

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: dict[str, str]) -> dict[str, str]:
        unknown = [name for name in columns if name not in TARGETS]
        if faults := [f"unknown target {name!r}{_nearest(name, TARGETS)}" for name in unknown]:
            raise ValueError(f"{'; '.join(faults)}; known: {', '.join(TARGETS)}")
        return columns

    @field_validator("separators")
    @classmethod
    def _not_empty(cls, separators: dict[str, str]) -> dict[str, str]:
        if empty := [name for name, text in separators.items() if not text]:
            raise ValueError(f"the separator of {', '.join(empty)} is empty; name a text such as ';'")
        return separators

    def column(self, target: str) -> str:
        """Return the column of the file that is this one of `TARGETS`."""
        return self.columns.get(target, target)

    def values(self, row: dict[str, Any], target: _Several) -> list[Any]:
        """Return the values of a field that may hold several, as they are."""
        value = row.get(self.column(target))
        separator = self.separators.get(target)
        if isinstance(value, str) and separator:
            return [part.strip() for part in value.split(separator) if part.strip()]
        return value if isinstance(value, list) else [] if value is None else [value]

    def sample(self, row: dict[str, Any], notes: list[str]) -> dict[str, Any]:
        """Return all columns of a sample but its data set and images; its id is "" if no column has it."""
        column = self.column("question")
        given = self.question and row.get(column) in (None, "")
        question = self.question if given else clean_text(row.get(column), "question", notes)
        answers = parse_answers(self.values(row, "answer") or None, notes)
        labels = [clean_text(label, "labels", notes) for label in self.values(row, "labels")]
        inferred = answer_type_of(answers[0]) if answers and self.task == "vqa" else "open"
        texts = {name: self._text(row, name) for name in ("id", "split", "language", *_OF_SAMPLES)}
        return texts | {
            "split": split_of(Path(texts["split"])) or texts["split"],
            "task": self.task,
            "question": question,
            "answers": answers,
            "answer_type": texts["answer_type"].lower() or inferred,
            "language": texts["language"] or self.language,
            "labels": [label for label in labels if label],
            "notes": notes,
        }

    def of_images(self, row: dict[str, Any]) -> dict[str, str]:
        """Return what the row says of each of its images."""
        return {name: self._text(row, name) for name in _OF_IMAGES}

    def _text(self, row: dict[str, Any], target: str) -> str:
        return clean_text(row.get(self.column(target)), target, [])


class Table:
    """Adapter of tables that no other adapter knows.

    Decisions: columns that already have one of the target names need no mapping. Without a column for
    the split, the names of several tables in one folder tell it. Without one for the id, file name and
    row number make it.
    """

    class Options(ColumnOptions):
        """Which column is what, and where the images lie."""

        images: str = Field(".", description="folder or zip archive of the images, relative to the table")

    def open(self, path: str | None, options: Options) -> Source:
        """Check that the file, or each table of a folder, has the columns that the options name.

        Raises:
            DataError: No such file, of an unknown kind, without a column, or no folder of images.
        """
        place = need_path(path, "table", _LAYOUTS)
        folder = place if place.is_dir() else place.parent
        kinds = (*SUFFIXES, ".parquet")
        found = sorted(place.iterdir()) if place.is_dir() else [place]
        files = tuple(file for file in found if kind_of(file) in kinds)
        if not files:
            raise no_such_layout(place, "table", _LAYOUTS)
        for file in files:
            check_columns(file, options, ("answer",) if options.task == "ehr" else ("answer", "image"))
        images = folder / options.images
        if not images.exists():
            raise DataError(
                f"{images}: no such folder of images; data.options.images is relative to {folder}"
            )
        return _Rows(files, images, place.is_dir(), options)


@dataclass(frozen=True)
class _Rows(Source):
    files: tuple[Path, ...]
    images: Path
    split_by_file: bool
    options: Table.Options

    def units(self) -> Iterator[Unit]:
        for file in self.files:
            if kind_of(file) == ".parquet":
                yield from self._parquet(file).units()
            else:
                yield from in_units(file.name, read_rows(file))

    def rows(self, unit: Unit) -> Iterator[Any]:
        rows = iter(unit.rows)
        file = next((file for file in self.files if file.name == unit.file), Path(unit.file))
        if kind_of(file) == ".parquet":
            no_split = {} if "split" in columns_of(file) else {"split": ""}
            rows = (row | no_split for row in self._parquet(file).rows(unit))
        split = split_of(Path(unit.file)) if self.split_by_file else ""
        for row in rows:
            yield f"{unit.file}-{ROW}", split, row

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        place, split, row = row
        notes: list[str] = []
        row = as_object(row, notes)
        sample = self.options.sample(row, notes)
        columns = self.options.of_images(row)
        named = [image for image in self.options.values(row, "image") if image not in (None, "")]
        keys = [self._image(image, place, images, columns, notes) for image in named]
        yield sample | {
            "id": f"table-{sample['id'] or place}",
            "dataset": "table",
            "split": sample["split"] or split,
            "image_ids": [key for key in keys if key],
        }

    def _parquet(self, file: Path) -> ParquetFolder:
        return ParquetFolder(file, (), tuple(dict.fromkeys(map(self.options.column, TARGETS))))

    def _image(
        self, value: Any, place: str, images: Images, columns: dict[str, str], notes: list[str]
    ) -> str:
        data, name = encoded_image(value)
        if data is not None:
            return images.inline(data, name or place.removesuffix(f"-{ROW}"), **columns)
        name = relative_name(name or value, self.images, notes)
        return images.file(self.images, name, **columns) if name else ""


def relative_name(value: Any, root: Path, notes: list[str]) -> str:
    """Return the name below `root` of an image that a table names; "" with a note where it is none."""
    name = file_name(value, "image", notes)
    if "\\" in name and "/" not in name:
        notes.append("image: backslashes read as slashes")
        name = name.replace("\\", "/")
    # Tables made by a script have whole paths: below the folder of images as good as relative ones.
    return name.removeprefix(f"{root}/")


def check_columns(file: Path, options: ColumnOptions, targets: Iterable[str]) -> None:
    """Check that the file has these targets, a question or a fixed one, and all columns of the options.

    Raises:
        DataError: It lacks one; the message names the nearest of those it has.
    """
    columns = _columns(file)
    needed = {target: options.column(target) for target in targets}
    if not options.question:
        needed["question"] = options.column("question")
    for target, column in (needed | options.columns).items():
        if column not in columns:
            hint = f"; a fixed one can be given in data.options.{target}" if target == "question" else ""
            raise DataError(
                f"{file}: has no column {column!r}, which data.options.columns.{target} needs"
                f"{_nearest(column, columns)}; found: {some(columns) or 'none'}{hint}"
            )


def _columns(file: Path) -> list[str]:
    if kind_of(file) == ".parquet":
        return list(columns_of(file))
    rows = islice(read_rows(file), _PEEKED)
    return list(dict.fromkeys(str(name) for row in rows if isinstance(row, dict) for name in row if name))


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; nearest: {close[0]}" if close else ""
