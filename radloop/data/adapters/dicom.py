"""A team's own DICOM files, as a PACS exports them, and a table with the questions or reports about them.

Rows name an image by its path, or by the identifiers that DICOM and the hospital's systems use:

    data:
      adapter: dicom
      path: export
      options:
        table: questions.csv
        by: study
        columns: {study: accession_no, question: q, answer: a}
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from radloop.data.adapters import need_path, no_such_layout
from radloop.data.adapters._dicom_tree import Found, Index, Tags, has_dicom, read_tags, spread, why_unnamed
from radloop.data.adapters.table import ColumnOptions, check_columns, relative_name
from radloop.data.imaging import WINDOWS, ImageError
from radloop.data.imaging.windows import parse_window
from radloop.data.reading import as_object, clean_text
from radloop.data.reading.tables import SUFFIXES, kind_of, read_rows
from radloop.data.source import ROW, Images, Source, Unit, in_units, left_out
from radloop.errors import DataError

_LAYOUTS = f"a folder of DICOM files, and a table that names them ({', '.join(SUFFIXES)}; data.options.table)"
_UNNAMED = "files that no row names"


class Dicom:
    """Adapter of DICOM files in folders of any depth, recognised by their content.

    Decisions: what the table says of patient, study, modality, body part and view goes before what the
    DICOM headers say, which fill the rest; only a study that was found by its accession number gets its
    StudyInstanceUID. The images of a study come in the order of series and instance number; of more than
    `max_images`, evenly spread ones are taken, as the first ones of a volume show little. An identifier
    that several patients share gives no image, for validation to find. Of several files of a patient with
    the same SOPInstanceUID the first by path is taken. Files that no row names are counted, by what they are.
    """

    class Options(ColumnOptions):
        """Which column is what, how rows name images, and how those are looked at."""

        table: str = Field("questions.csv", description="its path, relative to the folder of DICOM files")
        by: Literal["file", "instance", "study"] = Field(
            "file",
            description="what names the images: a path or SOPInstanceUID in the column of `image`, or a "
            "StudyInstanceUID or accession number in that of `study`",
        )
        frames: Literal["first", "middle", "all"] = Field(
            "middle", description="which frames of a file with several, such as a cine loop or tomosynthesis"
        )
        window: str = Field(
            "",
            description=f"'': the file's own; centre/width such as 40/400; or, for CT, {', '.join(WINDOWS)}",
        )
        max_images: int = Field(8, ge=1, description="of one sample, frames counted singly")

        @field_validator("window")
        @classmethod
        def _a_window(cls, window: str) -> str:
            try:
                parse_window(window)
            except ImageError as error:
                raise ValueError(error.message) from None
            return window

    def open(self, path: str | None, options: Options) -> Source:
        """Check the table, and that there is a DICOM file.

        Raises:
            DataError: No such folder, no table in it or none with the columns, no DICOM file.
        """
        folder = need_path(path, "dicom", _LAYOUTS)
        if not folder.is_dir():
            raise no_such_layout(folder, "dicom", _LAYOUTS)
        table = Path(os.path.normpath(folder / options.table))
        if not table.is_file():
            raise DataError(
                f"{table}: no such table; dicom needs one with a question, an answer and the {options.by} of "
                f"each row: name it in data.options.table, relative to {folder}"
            )
        if kind_of(table) not in SUFFIXES:
            raise DataError(
                f"{table}: is a file of another kind; dicom needs a table ({', '.join(SUFFIXES)})"
            )
        check_columns(table, options, ("answer", "study" if options.by == "study" else "image"))
        if not has_dicom(folder):
            raise DataError(f"{folder}: holds no DICOM file; dicom needs {_LAYOUTS}")
        return _Rows(folder, table, options)


@dataclass(frozen=True)
class _Rows(Source):
    root: Path
    table: Path
    options: Dicom.Options

    def units(self) -> Iterator[Unit]:
        with Index(self.root, self.table, headers=self.options.by != "file") as index:
            rows = (self._joined(row, index) for row in read_rows(self.table))
            yield from in_units(self.table.name, rows)
            yield from (replace(unit, first=0) for unit in in_units(_UNNAMED, index.unnamed()))

    def _joined(self, row: Any, index: Index) -> tuple[Any, list[Found], list[str], list[str]]:
        """Return the row, its images, identifiers of images that are not there, and notes."""
        notes: list[str] = []
        named = as_object(row, [])
        if self.options.by == "study":
            study = clean_text(named.get(self.options.column("study")), "study", notes)
            found, more = index.study(study, self.options.max_images) if study else ([], [])
            return row, found, [study] if study and not found else [], [*notes, *more]
        shown: list[Found] = []
        absent: list[str] = []
        for value in self.options.values(named, "image") or [None]:
            if self.options.by == "file":
                if name := relative_name(value, self.root, notes):
                    shown.append(index.file(name, notes))
            elif uid := clean_text(value, "image", notes):
                image = index.instance(uid, notes)
                shown += [image] if image else []
                absent += [] if image else [uid]
        return row, shown, absent, notes

    def rows(self, unit: Unit) -> Iterator[Any]:
        if not unit.first:
            yield from (fault or why_unnamed(self.root / path) for path, _, fault in unit.rows)
            return
        tags = cache(lambda path: read_tags(self.root / path)[0])  # a file's questions are close together
        for row, shown, absent, notes in unit.rows:
            images = [(image.path, tags(image.path) if image.tags is None else image.tags) for image in shown]
            yield f"{unit.file}-{ROW}", row, images, absent, notes

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        if isinstance(row, str):
            return left_out(row)
        place, row, shown, absent, notes = row
        notes = list(notes)
        row = as_object(row, notes)
        sample = self.options.sample(row, notes)
        stated = self.options.of_images(row)
        keys = [images.inline(None, name, **stated) for name in absent]
        for path, tags, frame in self._views(shown, notes):
            columns = {name: said or getattr(tags, name) for name, said in stated.items()}
            if self.options.by == "study":
                columns["study"] = tags.study or stated["study"]
            window = self._window(tags)
            keys.append(images.file(self.root, path, frame=frame, window=window, **columns))
        patients = list(dict.fromkeys(tags.patient for _, tags in shown if tags.patient))
        if len(patients) > 1:
            notes.append(f"patient: the images are of {len(patients)} patients")
        studies = [tags.study for _, tags in shown if tags.study]
        by_study = self.options.by == "study" and studies
        return [
            sample
            | {
                "id": f"dicom-{sample['id'] or place}",
                "dataset": "dicom",
                "patient": sample["patient"] or next(iter(patients), ""),
                "study": studies[0] if by_study else sample["study"] or next(iter(studies), ""),
                "image_ids": keys,
            }
        ]

    def _views(self, shown: list[tuple[str, Tags]], notes: list[str]) -> Iterator[tuple[str, Tags, int]]:
        """Yield the frames that are taken."""
        views = [(path, tags, frame) for path, tags in shown for frame in self._frames(tags)]
        if len(views) > self.options.max_images:
            notes.append(f"images: {self.options.max_images} of {len(views)} are taken")
        yield from (views[place] for place in spread(len(views), self.options.max_images))

    def _frames(self, tags: Tags) -> Iterable[int]:
        if self.options.frames == "all":
            return range(tags.frames)
        return [tags.frames // 2 if self.options.frames == "middle" else 0]

    def _window(self, tags: Tags) -> str:
        """A window in Hounsfield units suits CT; the other images of a mixed export keep their own."""
        window = self.options.window
        return window if tags.modality == "CT" or window not in WINDOWS else ""
