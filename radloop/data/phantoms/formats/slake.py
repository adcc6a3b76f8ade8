"""Phantoms as SLAKE: the release, BoKelvin's copy of it, and the English parquet copy of the hub.

Chinese rows are a few fixed questions, so that both languages occur as in the release.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from radloop.data.phantoms import questions
from radloop.data.phantoms.formats._cohort import Cohort, Study
from radloop.data.phantoms.formats._files import jpeg, write_hub_shards

_TYPES = {"presence": "Abnormality", "side": "Position", "zone": "Position", "location": "Position",
          "count": "Quantity", "open": "Abnormality"}  # fmt: skip
_PUBLISHED = {"train": "train.json", "validation": "validate.json", "test": "test.json"}
_HUB_SHARDS = {"train": 2, "validation": 1, "test": 1}
_HUB_SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("question", pa.string()),
        ("answer", pa.string()),
    ]
)


def _original(folder: Path, cohort: Cohort) -> None:
    for study in cohort.studies():
        place = folder / "imgs" / _folder(study)
        place.mkdir(parents=True)
        (place / "source.jpg").write_bytes(jpeg(study.phantom))
    _annotations(folder, cohort, _PUBLISHED)


def _bokelvin(folder: Path, cohort: Cohort) -> None:
    with zipfile.ZipFile(folder / "imgs.zip", "w") as archive:
        for study in cohort.studies():
            archive.writestr(f"imgs/{_folder(study)}/source.jpg", jpeg(study.phantom))
    _annotations(folder, cohort, _PUBLISHED | {"validation": "validation.json"})


def _hub(folder: Path, cohort: Cohort) -> None:
    for split, shards in _HUB_SHARDS.items():
        rows = [
            {
                "image": {"bytes": jpeg(study.phantom), "path": "source.jpg"},
                "question": row["question"],
                "answer": row["answer"],
            }
            for study in cohort.studies()
            if study.split == split
            for row in _rows(study)
            if row["q_lang"] == "en"
        ]
        write_hub_shards(folder, split, rows, _HUB_SCHEMA, shards)


LAYOUTS = {"original": _original, "bokelvin": _bokelvin, "hub": _hub}


def _annotations(folder: Path, cohort: Cohort, names: dict[str, str]) -> None:
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in names}
    for study in cohort.studies():
        for row in _rows(study):
            rows[study.split].append(row)
    number = 0
    for split, name in names.items():
        for row in rows[split]:
            row["qid"] = number
            number += 1
        (folder / name).write_text(json.dumps(rows[split], ensure_ascii=False), encoding="utf-8")


def _rows(study: Study) -> Iterator[dict[str, Any]]:
    asked = [(q.text, q.answer.capitalize(), "en", q.answer_type, _TYPES[q.type])
             for q in questions(study.phantom)]  # fmt: skip
    asked += [("What modality is used to take this image?", "X-Ray", "en", "open", "Modality"),
              ("这张图片使用了什么成像方式?", "X光", "zh", "open", "Modality"),
              ("图中有胸部吗?", "有", "zh", "closed", "Organ")]  # fmt: skip
    for question, answer, language, answer_type, content_type in asked:
        yield {
            "img_id": study.number + 1,
            "img_name": f"{_folder(study)}/source.jpg",
            "question": question,
            "answer": answer,
            "q_lang": language,
            "location": "Lung",
            "modality": "X-Ray",
            "answer_type": answer_type.upper(),
            "base_type": "vqa",
            "content_type": content_type,
            "triple": ["vhead", "_", "_"],
        }


def _folder(study: Study) -> str:
    return f"xmlab{study.number + 1}"
