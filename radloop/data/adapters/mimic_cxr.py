"""MIMIC-CXR and MIMIC-CXR-JPG: 227,835 chest radiograph studies, 377,110 images, with their reports.

Source: Johnson et al., "MIMIC-CXR, a de-identified publicly available database of chest radiographs with
free-text reports", Scientific Data 6:317 (2019); "MIMIC-CXR-JPG", arXiv:1901.07042.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from radloop.data.adapters import need_path, no_such_layout
from radloop.data.adapters._report import report_columns
from radloop.data.imaging import ImageError, dicom_tags
from radloop.data.reading import clean_text, clip, find_inside, read_delimited, read_inside, some
from radloop.data.reports import ReportOptions, sections
from radloop.data.source import Images, Source, Unit, in_units, left_out, signature
from radloop.errors import DataError

_LAYOUTS = "the folder of MIMIC-CXR or MIMIC-CXR-JPG: files/p10/p10000032/s50414267/*.jpg or *.dcm"
_METADATA = "metadata"
_KEYS = ("subject_id", "study_id")
_NEEDED = {_METADATA: (*_KEYS, "dicom_id", "ViewPosition"), "split": (*_KEYS, "dicom_id", "split")}
_SPLITS = {"validate": "validation"}
_UNCERTAIN = {-1.0: " (uncertain)", 1.0: ""}
_LARGEST_REPORT = 1 << 20  # bytes; published ones have less than 10,000


class MimicCxr:
    """Adapter of both releases: reports and DICOM files are in one, JPEG files in the other.

    Decisions: one sample a study, with all its images, frontal ones first. An image that is there as
    .dcm and .jpg is taken as .jpg. A study without report, image or wanted section is left out and
    counted, as is usual in the field. The CSV files beside the tree are used where they are: views from the
    metadata (else from the DICOM files), the official split, and labels. Of the labels, positive ones
    are taken by name, uncertain ones as "Edema (uncertain)"; negative ones and those not mentioned are not.
    """

    class Options(ReportOptions):
        """What of a report is learned, and from which images."""

        reports: str | None = Field(
            None,
            description="folder of the unpacked mimic-cxr-reports.zip, if it is not the one of the images",
        )
        views: Literal["all", "frontal", "lateral"] = Field("all", description="which images are given")
        labels: Literal["chexpert", "negbio"] = Field("chexpert", description="which labeller's CSV is read")

    def open(self, path: str | None, options: Options) -> Source:
        """Recognise the tree.

        Raises:
            DataError: No such folder, or no image or no report in it.
        """
        images = _tree(path)
        reports = _tree(options.reports) if options.reports else images
        beside = images.parent if images.name == "files" else images
        tables = {kind: _table(beside, kind) for kind in (_METADATA, "split", options.labels)}
        source = _Studies(images, reports, tuple((k, p) for k, p in tables.items() if p), options)
        if not any(study["images"] for _, study in source.walk()):
            raise DataError(f"{images}: holds no .jpg or .dcm file; mimic_cxr needs {_LAYOUTS}")
        if not any(study["report"] for _, study in source.walk()):
            raise DataError(
                f"{reports}: holds no report (p10/p10000032/s50414267.txt); unpack mimic-cxr-reports.zip of "
                "MIMIC-CXR into it, or name its folder as data.options.reports"
            )
        return source


@dataclass(frozen=True)
class _Studies(Source):
    images: Path
    reports: Path
    tables: tuple[tuple[str, Path], ...]
    options: MimicCxr.Options

    def walk(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (p10, study) in the order of the tree, one patient's folder in memory at a time."""
        for group in _names("p[0-9]{2}", self.images, self.reports):
            for patient in _names("p[0-9]+", self.images / group, self.reports / group):
                place = f"{group}/{patient}"
                reports = {name[:-4] for name in _names(r"s[0-9]+\.txt", self.reports / place)}
                for study in sorted(reports.union(_names("s[0-9]+", self.images / place))):
                    images, others = _files(self.images / place / study)
                    yield (
                        group,
                        {
                            "patient": patient[1:],
                            "study": study[1:],
                            "report": f"{place}/{study}.txt" if study in reports else "",
                            "images": [f"{place}/{study}/{name}" for name in images],
                            "notes": [f"images: {some(others, 3)} in the folder, not read"] if others else [],
                        },
                    )

    def units(self) -> Iterator[Unit]:
        with closing(_Tables(self.tables)) as tables:
            for group, studies in groupby(self.walk(), key=lambda pair: pair[0]):
                rows = (self._signed(tables.complete(study)) for _, study in studies)
                yield from in_units(group, rows, first=0)
            yield from in_units(_METADATA, tables.elsewhere(), first=0)

    def _signed(self, study: dict[str, Any]) -> dict[str, Any]:
        """Add the signatures of the files that `rows` reads: the report, DICOM files of unknown view."""
        images = [
            (name, view, _signature(self.images / name) if view is None and name.endswith(".dcm") else None)
            for name, view in study["images"]
        ]
        signed = _signature(self.reports / study["report"]) if study["report"] else None
        return study | {"images": images, "signature": signed}

    def rows(self, unit: Unit) -> Iterator[Any]:
        for row in unit.rows:
            images = [
                (name, _view_of(self.images, name) if signed else view)
                for name, view, signed in row["images"]
            ]
            text, fault = _text(self.reports, row["report"]) if row["report"] else ("", "")
            yield row | {"images": images, "text": text, "fault": fault}

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        notes = list(row["notes"])
        shown = [(name, clean_text(view or "", "view", []).upper()) for name, view in row["images"]]
        wanted = self.options.views
        kept = [pair for pair in shown if wanted in ("all", _projection(pair[1]))]
        if not row["report"]:
            return left_out("study has no report" if shown else "study has neither report nor image")
        if not kept:
            return left_out(f"study has no {wanted} image" if shown else "study has no image")
        kept = sorted(kept, key=lambda pair: (_projection(pair[1]) != "frontal", pair[0]))
        report = report_columns(self.options, sections(row["text"]))
        if row["fault"]:
            notes.append(f"report: {row['fault']}")
        elif not report["answers"]:
            return left_out(self.options.lacking)
        shared = {"study": row["study"], "patient": row["patient"]}
        return [
            {
                "id": f"mimic_cxr-{row['study']}",
                "dataset": "mimic_cxr",
                "namespace": "mimic",
                "split": _split(row["splits"], notes),
                **shared,
                "image_ids": [
                    images.file(self.images, name, modality="XR", body_part="CHEST", view=view, **shared)
                    for name, view in kept[: self.options.max_images]
                ],
                **report,
                "labels": _labels(row["labels"], notes),
                "notes": notes,
            }
        ]


class _Tables:
    """The release's CSV files, which are too long for a dictionary, by patient.

    SQLite keeps them in a nameless file that ends with the connection.
    """

    def __init__(self, tables: Iterable[tuple[str, Path]]) -> None:
        self._has_metadata = False
        self._base = sqlite3.connect("", check_same_thread=False)
        self._base.execute("CREATE TABLE facts (kind TEXT, patient TEXT, study TEXT, image TEXT, value TEXT)")
        self._base.execute("CREATE TABLE seen (patient TEXT, study TEXT)")
        for kind, path in tables:
            self._has_metadata |= kind == _METADATA
            self._base.executemany("INSERT INTO facts VALUES (?, ?, ?, ?, ?)", _facts(kind, path))
        self._base.execute("CREATE INDEX by_study ON facts (study, patient)")

    def close(self) -> None:
        self._base.close()

    def complete(self, study: dict[str, Any]) -> dict[str, Any]:
        """Add views, splits and labels to a study of the tree."""
        key = (study["patient"], study["study"])
        self._base.execute("INSERT INTO seen VALUES (?, ?)", key)
        views: dict[str, str] = {}
        splits: dict[str, str] = {}
        labels: dict[str, str] = {}
        query = "SELECT kind, image, value FROM facts WHERE patient = ? AND study = ?"
        for kind, image, value in self._base.execute(query, key):
            if kind == _METADATA:
                views[image] = value
            elif kind == "split":
                splits[image] = value
            else:
                labels = json.loads(value)
        stems = {Path(name).stem: name for name in study["images"]}
        notes = list(study["notes"])
        if self._has_metadata:
            if unlisted := stems.keys() - views.keys():
                notes.append(f"images: {some(sorted(unlisted), 3)} not in the metadata")
            if absent := views.keys() - stems.keys():
                notes.append(f"images: {some(sorted(absent), 3)} of the metadata not in the folder")
        return study | {
            "images": [(name, views.get(stem)) for stem, name in stems.items()],
            "splits": sorted({splits[stem] for stem in stems if stem in splits}),
            "labels": labels,
            "notes": notes,
        }

    def elsewhere(self) -> Iterator[dict[str, Any]]:
        """Yield the studies of the metadata that the tree does not have, as in a part of the release."""
        query = f"SELECT patient, study FROM facts WHERE kind = '{_METADATA}' EXCEPT SELECT * FROM seen"  # noqa: S608
        for patient, study in self._base.execute(query):
            yield {"patient": patient, "study": study, "report": "", "images": [], "notes": []}


def _facts(kind: str, path: Path) -> Iterator[tuple[str, str, str, str, str]]:
    for row in read_delimited(path, _NEEDED.get(kind, _KEYS)):
        patient, study = (str(row.get(key, "")).strip().removesuffix(".0") for key in _KEYS)
        if kind in _NEEDED:
            value = row.get(_NEEDED[kind][-1], "")
        else:
            value = json.dumps(
                {name: cell for name, cell in row.items() if name and name not in _KEYS and cell}
            )
        yield kind, patient, study, str(row.get("dicom_id", "")).strip(), value


def _tree(path: str | None) -> Path:
    folder = need_path(path, "mimic_cxr", _LAYOUTS)
    for root in (folder / "files", folder):
        if root.is_dir() and _names("p[0-9]{2}", root):
            return root
    raise no_such_layout(folder, "mimic_cxr", _LAYOUTS)


def _table(folder: Path, kind: str) -> Path | None:
    found = [*folder.glob(f"mimic-cxr-*-{kind}.csv"), *folder.glob(f"mimic-cxr-*-{kind}.csv.gz")]
    return min(found, default=None)


def _names(pattern: str, *folders: Path) -> list[str]:
    return sorted({name for folder in folders for name in _listed(folder) if re.fullmatch(pattern, name)})


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None


def _files(folder: Path) -> tuple[list[str], list[str]]:
    """Return the image files of a study, and what else lies there."""
    images: dict[str, str] = {}
    others = []
    for name in _listed(folder):  # in order: .dcm comes before .jpg, which replaces it
        stem, ending = os.path.splitext(name)
        if name.startswith((".", "index.html")):  # left by file managers and wget
            continue
        if ending in (".dcm", ".jpg") and name.isprintable():
            images[stem] = name
        else:
            others.append(clip(name))
    return list(images.values()), others


def _signature(path: Path) -> tuple[int, int] | None:
    try:
        return signature(path)
    except OSError:  # a link to nowhere
        return None


def _text(root: Path, name: str) -> tuple[str, str]:
    """Return a report, or what is wrong with it; damaged characters become U+FFFD for validation."""
    data, fault = read_inside(root, name, _LARGEST_REPORT)
    text = data.decode("utf-8-sig", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text, fault or ("" if text.strip() else "is empty")


def _view_of(root: Path, name: str) -> str:
    place, _ = find_inside(root, name)
    try:
        return dicom_tags(place).view if place else ""
    except (ImageError, OSError):  # decoding will say what is wrong
        return ""


def _projection(view: str) -> str:
    if view.startswith(("AP", "PA")):  # also "AP LLD", a frontal view of a patient who lies on the side
        return "frontal"
    return "lateral" if "LATERAL" in view or view in ("LL", "RL") else "other"


def _split(splits: list[str], notes: list[str]) -> str:
    if len(splits) > 1:
        notes.append(f"split: the first of {', '.join(splits)}")
    name = clean_text(splits[0], "split", notes).lower() if splits else ""
    return _SPLITS.get(name, name)


def _labels(cells: dict[str, str], notes: list[str]) -> list[str]:
    labels = []
    for name, cell in cells.items():
        try:
            value = float(cell)
        except ValueError:
            notes.append(f"labels: {name} is {clip(cell)}, not 1, 0 or -1")
            continue
        if value in _UNCERTAIN:
            labels.append(name + _UNCERTAIN[value])
    return labels
