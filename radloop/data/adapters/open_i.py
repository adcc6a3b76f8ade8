"""Open-i, the Indiana University chest X-ray collection: 3,955 reports, 7,470 images.

Source: Demner-Fushman et al., "Preparing a collection of radiology examinations for distribution and
retrieval", JAMIA 23(2):304 (2016). Three layouts are read: the release's XML files, the pair of CSV files on
Kaggle, and the `annotation.json` of R2Gen (Chen et al., EMNLP 2020).
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from radloop.data.adapters import need_path, no_such_layout
from radloop.data.adapters._report import report_columns
from radloop.data.reading import (
    as_object,
    clean_text,
    clip,
    file_name,
    read_delimited,
    read_inside,
    read_json_parts,
)
from radloop.data.reports import HEADERS, ReportOptions
from radloop.data.source import Images, Source, Unit, in_units, left_out, signature
from radloop.errors import ConfigError, DataError

XML_FOLDER = "ecgen-radiology"
REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
ANNOTATION = "annotation.json"
_LAYOUTS = (
    f"one of: '{XML_FOLDER}' with the images in 'NLMCXR_png'; '{REPORTS}' and '{PROJECTIONS}' with "
    f"'images/images_normalized'; R2Gen's '{ANNOTATION}' with 'images'"
)
_XML_IMAGES = ("NLMCXR_png", "images", "png", ".")
_KAGGLE_IMAGES = ("images/images_normalized", "images_normalized", "images")
_SECTIONS = ("findings", "impression", "indication", "comparison")
_NEEDED = ("uid", "MeSH", *_SECTIONS)
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_PEEKED = 100
_LARGEST_XML = 16 << 20  # bytes; published ones have less than 20,000
_FAULTS = ("row:", "xml:", "filename:", "image_path:")  # notes that tell why something is missing
_NOTHING = (None, "")


class OpenI:
    """Adapter of Open-i, also known as IU X-Ray; the layout is recognised by itself.

    Decisions: one sample a study, with all its images, frontal ones first where the layout tells.
    Labels are the main headings of the manual MeSH codes ("Cardiomegaly/borderline" is
    "Cardiomegaly"), which are also Kaggle's "Problems". "XXXX" stands for what was removed to protect
    patients, and stays. Only R2Gen has a split; where an item and the list that it is in disagree, the
    item counts.
    A study without image or wanted section is left out and counted.
    """

    class Options(ReportOptions):
        """What of a report is learned; R2Gen has the one text that its `annotation.json` gives."""

    def open(self, path: str | None, options: Options) -> Source:
        """Recognise one of the three layouts.

        Raises:
            ConfigError: The options ask for sections that the layout does not have.
            DataError: No such source, none of the layouts, or one without its images.
        """
        folder = need_path(path, "open_i", _LAYOUTS)
        if (folder / REPORTS).exists() and (folder / PROJECTIONS).exists():
            return _Kaggle(folder, _images(folder, _KAGGLE_IMAGES, "*.png"), options)
        if (folder / ANNOTATION).exists():
            if options.target == "impression" or options.context:
                raise ConfigError(
                    f"data.options: {folder / ANNOTATION} has one text a study, without sections; leave out "
                    "'context' and set 'target' to 'findings' or 'both', or use the XML or Kaggle layout"
                )
            # The text is R2Gen's: findings in its own files, both sections in some of its descendants.
            whole = options.model_copy(update={"target": "findings"})
            return _R2Gen(folder, _images(folder, ("images",), "*"), whole)
        for reports in (folder / XML_FOLDER, folder / "NLMCXR_reports" / XML_FOLDER):
            if reports.is_dir() and next(reports.glob("*.xml"), None):
                return _Xml(reports, _images(folder, _XML_IMAGES, "*.png"), options)
        raise no_such_layout(folder, "open_i", _LAYOUTS)


@dataclass
class _Study:
    """One study as a layout tells it: images as (file name, view), and texts by section."""

    number: str
    images: list[tuple[str, str]]
    texts: dict[str, Any]
    notes: list[str]
    mesh: Any = ""
    split: str = ""


@dataclass(frozen=True)
class _Layout(Source):
    folder: Path
    images: Path
    options: OpenI.Options

    def sample(self, study: _Study, images: Images) -> list[dict[str, Any]]:
        """Make the sample of a study; what is there but cannot be used is left for validation to report."""
        notes = study.notes.copy()
        found = {name: text for name in _SECTIONS if (text := _plain(study.texts.get(name), name, notes))}
        report = report_columns(self.options, found)
        if not any(note.startswith(_FAULTS) for note in study.notes):
            if not study.images:
                return left_out("study has no image")
            told = any(study.texts.get(name) not in _NOTHING for name in self.options.wanted)
            if not report["answers"] and not told:
                return left_out(self.options.lacking)
        frontal_first = sorted(study.images, key=lambda image: image[1] != "FRONTAL")
        about = {"modality": "XR", "body_part": "CHEST", "study": study.number}
        return [
            {
                "id": f"open_i-{study.number}" if study.number else "",
                "dataset": "open_i",
                "split": study.split,
                "study": study.number,
                "image_ids": [
                    images.file(self.images, name, view=view, **about)
                    for name, view in frontal_first[: self.options.max_images]
                ],
                **report,
                "labels": _labels(study.mesh),
                "notes": notes,
            }
        ]


@dataclass(frozen=True)
class _Xml(_Layout):
    def units(self) -> Iterator[Unit]:
        files = sorted(self.folder.glob("*.xml"), key=lambda path: (len(path.name), path.name))
        # A link to nowhere is left for `rows` to find.
        rows = ((path.name, signature(path) if path.exists() else None) for path in files)
        yield from in_units(self.folder.name, rows, first=0)

    def rows(self, unit: Unit) -> Iterator[Any]:
        for name, _ in unit.rows:
            yield {"name": name} | _parsed(self.folder, name)

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        name = clean_text(row["name"], "name", [])
        notes = [f"xml: {name} {row['fault']}"] if row["fault"] else []
        number = clean_text(row["uid"], "uId", []).removeprefix("CXR") or name.removesuffix(".xml")
        named = [(f"{image}.png", "") for image in row["images"]]
        return self.sample(_Study(number, named, row["sections"], notes, ";".join(row["mesh"])), images)


@dataclass(frozen=True)
class _Kaggle(_Layout):
    def units(self) -> Iterator[Unit]:
        """Yield rows of (report, projections), then the uids of projections without report."""
        projections: dict[str, list[tuple[Any, Any]]] = {}  # 7,466 in all
        for row in read_delimited(self.folder / PROJECTIONS, ("uid", "filename", "projection")):
            pair = (row.get("filename"), row.get("projection"))
            projections.setdefault(_uid(row), []).append(pair)
        alone = dict.fromkeys(projections)

        def rows() -> Iterator[tuple[dict[str | None, Any], list[tuple[Any, Any]]]]:
            for row in read_delimited(self.folder / REPORTS, _NEEDED):
                alone.pop(_uid(row), None)
                yield row, projections.get(_uid(row), [])

        yield from in_units(REPORTS, rows())
        yield from in_units(PROJECTIONS, alone, first=0)

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        if isinstance(row, str):
            return left_out("study has no report")
        notes: list[str] = []
        report, projections = as_object(row[0], notes), row[1]
        number = clean_text(report.get("uid"), "uid", notes)
        named = [
            (text, clean_text(view or "", "projection", []).upper())
            for name, view in projections
            if (text := file_name(name, "filename", notes))
        ]
        return self.sample(_Study(number, named, report, notes, report.get("MeSH")), images)


@dataclass(frozen=True)
class _R2Gen(_Layout):
    def units(self) -> Iterator[Unit]:
        """Yield rows of (key, item)."""
        path = self.folder / ANNOTATION
        items = read_json_parts(path)
        first = list(islice(items, _PEEKED))
        if not any(isinstance(item, dict) and "report" in item for _, item in first):
            raise DataError(
                f"{path}: no item has the key 'report'; needed is R2Gen's form, "
                '{"train": [{"id", "report", "image_path", "split"}, ...], "val": [...], "test": [...]}'
            )
        return in_units(ANNOTATION, chain(first, items))

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        notes: list[str] = []
        part, item = row[0], as_object(row[1], notes)
        name = clean_text(item.get("id"), "id", notes)
        match = re.match(r"CXR(\d+)_", name)
        paths = item.get("image_path")
        named = [
            (text, "")
            for path in (paths if isinstance(paths, list) else [paths])
            if (text := file_name(path, "image_path", notes))
        ]
        texts = {"findings": item.get("report")}
        split = _split(part, item.get("split"), notes)
        return self.sample(_Study(match[1] if match else name, named, texts, notes, split=split), images)


def _plain(value: Any, column: str, notes: list[str]) -> str:
    if value in _NOTHING:  # usual, and no defect
        return ""
    if isinstance(value, str) and (plain := html.unescape(value)) != value:
        notes.append(f"{column}: HTML entities unescaped")
        value = plain
    return clean_text(value, column, notes)


def _labels(mesh: Any) -> list[str]:
    headings = (code.split("/")[0].strip() for code in clean_text(mesh, "MeSH", []).split(";"))
    return list(dict.fromkeys(heading for heading in headings if heading))


def _split(part: str, own: Any, notes: list[str]) -> str:
    name = clean_text(own or "", "split", []).lower()
    listed = _SPLITS.get(part.strip().lower(), "")
    split = _SPLITS.get(name, name) or listed
    if not listed:
        notes.append(
            f"split: the key {clip(part)} is unknown" + (f", the item says {clip(name)}" if name else "")
        )
    elif split != listed:
        notes.append(f"split: the item says {clip(name)}, but is listed under {clip(part)}")
    return split


def _images(folder: Path, candidates: Iterable[str], pattern: str) -> Path:
    """Return the first of the folders that holds images; without any, the one where they belong.

    The reports can be checked without the images, which validation then reports as missing.
    """
    found = (folder / name for name in candidates if next((folder / name).glob(pattern), None))
    return next(found, folder / next(iter(candidates)))


def _uid(row: dict[str | None, Any]) -> str:
    return str(row.get("uid", "")).strip()


def _parsed(folder: Path, name: str) -> dict[str, Any]:
    """Return what a report file holds, with a "fault" where it cannot be read."""
    from xml.etree.ElementTree import ParseError

    from defusedxml import ElementTree

    found: dict[str, Any] = {"uid": "", "sections": {}, "mesh": [], "images": [], "fault": ""}
    data, fault = read_inside(folder, name, _LARGEST_XML)
    if fault:
        return found | {"fault": fault}
    try:
        root = ElementTree.fromstring(data)
    except (ParseError, ValueError, LookupError) as error:  # ValueError: also entities
        return found | {"fault": f"cannot be read ({type(error).__name__}: {clip(str(error))})"}
    for element in root.iter():
        text = " ".join((element.text or "").split())
        if element.tag == "uId":
            found["uid"] = element.get("id", "")
        elif element.tag == "AbstractText" and text:
            label = element.get("Label", "").strip().lower()
            found["sections"][HEADERS.get(label, label)] = text
        elif element.tag == "major" and text:
            found["mesh"].append(text)
        elif element.tag == "parentImage" and element.get("id", "").strip():
            found["images"].append(element.get("id"))
    return found
