"""Phantoms as Open-i: the release's XML files, the CSV files on Kaggle, and R2Gen's annotation.json.

A phantom is one frontal radiograph, so each study has one image; R2Gen itself kept studies of two.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from radloop.data.phantoms import report
from radloop.data.phantoms.formats._cohort import Cohort, Study
from radloop.data.reports import sections

_INDICATION, _COMPARISON = "XXXX-year-old with chest pain", "None."
_VIEW = "Xray Chest PA"
_HEADINGS = {"pacemaker": "Implanted Medical Device", "nodules": "Nodule"}
_REPORTS = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")
_KEYS = {"train": "train", "validation": "val", "test": "test"}
_XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
   <meta type="rr"/>
   <uId id="CXR{number}"/>
   <pmcId id="{number}"/>
   <docSource>CXR</docSource>
   <title>Indiana University Chest X-ray Collection</title>
   <MedlineCitation Owner="Indiana University" Status="supplied by publisher">
      <Article PubModel="Electronic">
         <ArticleTitle>Indiana University Chest X-ray Collection</ArticleTitle>
         <Abstract>
            <AbstractText Label="COMPARISON">{comparison}</AbstractText>
            <AbstractText Label="INDICATION">{indication}</AbstractText>
            <AbstractText Label="FINDINGS">{findings}</AbstractText>
            <AbstractText Label="IMPRESSION">{impression}</AbstractText>
         </Abstract>
      </Article>
   </MedlineCitation>
   <MeSH>
{major}
   </MeSH>
   <parentImage id="{image}">
      <figureId>F1</figureId>
      <caption>{view}</caption>
      <panel type="single">
         <url>/hadoop/storage/radiology/extract/{image}.jpg</url>
      </panel>
   </parentImage>
</eCitation>
"""


def _xml(folder: Path, cohort: Cohort) -> None:
    for name in ("ecgen-radiology", "NLMCXR_png"):
        (folder / name).mkdir()
    for study, found in _studies(cohort):
        number, image = study.number + 1, f"CXR{study.number + 1}_1_{_accession(study)}-1001"
        text = _XML.format(
            number=number,
            image=image,
            view=_VIEW,
            # Trailing white space as published.
            major="\n".join(f"      <major>{escape(code)} </major>" for code in _mesh(study)),
            indication=escape(_INDICATION),
            comparison=escape(_COMPARISON),
            findings=escape(found["findings"]),
            impression=escape(found["impression"]),
        )
        (folder / "ecgen-radiology" / f"{number}.xml").write_text(text, encoding="utf-8")
        (folder / "NLMCXR_png" / f"{image}.png").write_bytes(study.phantom.png())


def _kaggle(folder: Path, cohort: Cohort) -> None:
    pictures = folder / "images" / "images_normalized"
    pictures.mkdir(parents=True)
    reports: list[Sequence[Any]] = []
    projections: list[Sequence[Any]] = []
    for study, found in _studies(cohort):
        uid, name = study.number + 1, f"{study.number + 1}_{_accession(study)}-1001.dcm.png"
        mesh = _mesh(study)
        problems = dict.fromkeys(code.split("/")[0] for code in mesh)
        reports.append((uid, ";".join(mesh), ";".join(problems), f"{_VIEW} ", _INDICATION, _COMPARISON,
                        found["findings"], found["impression"]))  # fmt: skip
        projections.append((uid, name, "Frontal"))
        (pictures / name).write_bytes(study.phantom.png())
    _table(folder / "indiana_reports.csv", _REPORTS, reports)
    _table(folder / "indiana_projections.csv", ("uid", "filename", "projection"), projections)


def _r2gen(folder: Path, cohort: Cohort) -> None:
    items: dict[str, list[dict[str, Any]]] = {key: [] for key in _KEYS.values()}
    for study, found in _studies(cohort):
        name, key = f"CXR{study.number + 1}_{_accession(study)}", _KEYS[study.split]
        item = {"id": name, "report": found["findings"], "image_path": [f"{name}/0.png"], "split": key}
        items[key].append(item)
        (folder / "images" / name).mkdir(parents=True)
        (folder / "images" / name / "0.png").write_bytes(study.phantom.png())
    (folder / "annotation.json").write_text(json.dumps(items), encoding="utf-8")


LAYOUTS = {"xml": _xml, "kaggle": _kaggle, "r2gen": _r2gen}


def _studies(cohort: Cohort) -> Iterator[tuple[Study, dict[str, str]]]:
    return ((study, sections(report(study.phantom))) for study in cohort.studies())


def _accession(study: Study) -> str:
    return f"IM-{study.number + 1:04d}"


def _mesh(study: Study) -> list[str]:
    codes = []
    for name, present in study.phantom.findings.items():
        qualifiers = [present.values[key] for key in ("zone", "side") if key in present.values]
        codes.append("/".join([_HEADINGS.get(name, name.title()), *qualifiers]))
    return codes or ["normal"]


def _table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
