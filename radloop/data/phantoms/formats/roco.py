"""Phantoms as ROCO, ROCOv2, the hub's copy of ROCOv2, and the hub's chest subset."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from PIL import Image

from radloop.data.phantoms import caption
from radloop.data.phantoms.formats._cohort import Cohort, Study
from radloop.data.phantoms.formats._files import jpeg, write_hub_shards

# UMLS concept unique identifiers.
_RADIOGRAPH = "C1306645"
_CONCEPTS = {"pneumothorax": "C0032326", "pleural effusion": "C0032227", "cardiomegaly": "C0018800",
             "pacemaker": "C0030163", "consolidation": "C0521530", "nodules": "C0748164"}  # fmt: skip
_V2_NAMES = {"train": "train", "validation": "valid", "test": "test"}
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_HUB = pa.schema(
    [("image", _IMAGE), ("image_id", pa.string()), ("caption", pa.string()), ("cui", pa.list_(pa.string()))]
)
_CHEST = pa.schema([("image", pa.struct([("bytes", pa.binary())])), *list(_HUB)[1:3]])


def _v1(folder: Path, cohort: Cohort) -> None:
    for split, studies in _by_split(cohort).items():
        rows = [(_v1_id(s), _pmc_name(s), caption(s.phantom), _cuis(s), jpeg(s.phantom)) for s in studies]
        _v1_files(folder / "data" / split / "radiology", rows)
        number = 90_000 + sum(map(ord, split))
        name, text = f"PMC{number}_flow-g001.jpg", "Flow chart of the patients."
        _v1_files(folder / "data" / split / "non-radiology", [(f"ROCO_{number}", name, text, [], _drawing())])


def _v1_files(folder: Path, rows: Sequence[tuple[str, str, str, list[str], bytes]]) -> None:
    (folder / "images").mkdir(parents=True)
    texts: dict[str, list[str]] = {
        "captions": [],
        "cuis": [],
        "keywords": [],
        "licences": ["ROCO_ID,PMC_ID,CC"],
    }
    for roco_id, name, text, cuis, picture in rows:
        texts["captions"].append(f"{roco_id}\t {text}")
        texts["cuis"].append("\t".join([roco_id, "", *cuis]))
        texts["keywords"].append("\t".join([roco_id, "", *text.rstrip(".").lower().split()]))
        texts["licences"].append(f"{roco_id},{name},CC BY")
        (folder / "images" / name).write_bytes(picture)
    for file, lines in texts.items():
        (folder / f"{file}.txt").write_text("".join(f"{line}\n" for line in lines))


def _v2(folder: Path, cohort: Cohort) -> None:
    for split, studies in _by_split(cohort).items():
        name = _V2_NAMES[split]
        captions = [(_v2_id(study), caption(study.phantom)) for study in studies]
        _csv(folder / f"{name}_captions.csv", [("ID", "Caption"), *captions])
        concepts = [(_v2_id(study), ";".join(_cuis(study))) for study in studies]
        _csv(folder / f"{name}_concepts.csv", [("ID", "CUIs"), *concepts])
        with zipfile.ZipFile(folder / f"{name}_images.zip", "w") as archive:
            for study in studies:
                archive.writestr(f"{name}/{_v2_id(study)}.jpg", jpeg(study.phantom))


def _hub(folder: Path, cohort: Cohort) -> None:
    for split, studies in _by_split(cohort).items():
        rows = [
            {
                "image": {"bytes": jpeg(study.phantom), "path": f"{_v2_id(study)}.jpg"},
                "image_id": _v2_id(study),
                "caption": caption(study.phantom),
                "cui": _cuis(study),
            }
            for study in studies
        ]
        write_hub_shards(folder, split, rows, _HUB)


def _chest(folder: Path, cohort: Cohort) -> None:
    """Write train and test only, images as a struct of bytes alone: the subset has no third split."""
    for split, studies in _by_split(cohort).items():
        rows = [
            {
                "image": {"bytes": jpeg(study.phantom)},
                "image_id": _v1_id(study),
                "caption": caption(study.phantom),
            }
            for study in studies
        ]
        if split != "validation":
            write_hub_shards(folder, split, rows, _CHEST)


LAYOUTS = {"v1": _v1, "v2": _v2, "hub": _hub, "chest": _chest}


def _by_split(cohort: Cohort) -> dict[str, list[Study]]:
    found: dict[str, list[Study]] = {}
    for study in cohort.studies():
        found.setdefault(study.split, []).append(study)
    return found


def _v1_id(study: Study) -> str:
    return f"ROCO_{study.number + 1:05d}"


def _v2_id(study: Study) -> str:
    return f"ROCOv2_2023_{study.split.removesuffix('ation')}_{study.number + 1:06d}"


def _pmc_name(study: Study) -> str:
    return f"PMC{study.study_id % 10_000_000}_phantom-{study.number:04d}-g001.jpg"


def _cuis(study: Study) -> list[str]:
    return [_RADIOGRAPH, *(_CONCEPTS[name] for name in study.phantom.findings)]


def _csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _drawing() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()
