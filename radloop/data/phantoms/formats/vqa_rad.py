"""Phantoms as VQA-RAD: the three files of the release, the variant of MEVF, and the hub's parquet copy.

VQA-RAD has no validation split: those phantoms are in train.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa

from radloop.data.adapters.vqa_rad import MEVF_SPLITS, RELEASE_FILE, RELEASE_IMAGES, WORKBOOK_COLUMNS
from radloop.data.phantoms.formats._cohort import Cohort, Study
from radloop.data.phantoms.formats._files import jpeg, write_hub_shards
from radloop.data.phantoms.language import questions

_MEDPIX = "https://medpix.nlm.nih.gov"
_TYPES = {"presence": "PRES", "side": "POS", "zone": "POS", "location": "POS, PRES", "count": "COUNT",
          "open": "ABN"}  # fmt: skip
_MEVF_KEYS = ("qid", "image_name", "image_organ", "answer", "answer_type", "question_type", "question",
              "phrase_type")  # fmt: skip
_HUB_SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("question", pa.string()),
        ("answer", pa.string()),
    ]
)


def _json(folder: Path, cohort: Cohort) -> None:
    _images(folder / RELEASE_IMAGES, cohort)
    rows = list(_rows(cohort))
    for row in rows[:1]:
        row["qid"] = str(row["qid"])  # as published: the only one that is text
    (folder / RELEASE_FILE).write_text(json.dumps(rows, indent=3), encoding="utf-8")


def _xlsx(folder: Path, cohort: Cohort) -> None:
    from openpyxl import Workbook

    _images(folder / RELEASE_IMAGES, cohort)
    book = Workbook(write_only=True)
    sheet = book.create_sheet("VQA_RAD")
    sheet.append(list(WORKBOOK_COLUMNS))
    for row in _rows(cohort):
        row["image_name"] = f"{_MEDPIX}/images/full/{row['image_name']}"
        sheet.append([row[key] for key in WORKBOOK_COLUMNS.values()])
    book.save((folder / RELEASE_FILE).with_suffix(".xlsx"))


def _xml(folder: Path, cohort: Cohort) -> None:
    _images(folder / RELEASE_IMAGES, cohort)
    root = ElementTree.Element("questions")
    for row in _rows(cohort):
        question = ElementTree.SubElement(root, "question")
        for key in sorted(row):
            ElementTree.SubElement(question, key).text = str(row[key])
    ElementTree.indent(root, "   ")
    text = ElementTree.tostring(root, "unicode")
    path = (folder / RELEASE_FILE).with_suffix(".xml")
    path.write_text(f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n', encoding="utf-8")


def _mevf(folder: Path, cohort: Cohort) -> None:
    _images(folder / RELEASE_IMAGES, cohort)
    place = folder / "mevf_data_RAD"
    place.mkdir()
    for name, split in MEVF_SPLITS.items():
        rows = [
            {key: row[key] for key in _MEVF_KEYS}
            | {"qid": row["qid"] + 1, "phrase_type": row["phrase_type"].removeprefix("test_")}
            for row in _rows(cohort)
            if _is_test(row) == (split == "test")
        ]
        (place / name).write_text(json.dumps(rows, indent=2), encoding="utf-8")
    answers = list(dict.fromkeys(str(row["answer"]).lower() for row in _rows(cohort)))
    (place / "answer_all_list.json").write_text(json.dumps(answers, indent=4), encoding="utf-8")


def _hub(folder: Path, cohort: Cohort) -> None:
    encoded = {_name(study): jpeg(study.phantom) for study in cohort.studies()}
    for split in ("train", "test"):
        rows = [
            {
                "image": {"bytes": encoded[row["image_name"]], "path": None},
                "question": row["question"].lower(),
                "answer": str(row["answer"]).lower(),
            }
            for row in _rows(cohort)
            if _is_test(row) == (split == "test")
        ]
        write_hub_shards(folder, split, rows, _HUB_SCHEMA)


LAYOUTS = {"json": _json, "xlsx": _xlsx, "xml": _xml, "mevf": _mevf, "hub": _hub}


def _rows(cohort: Cohort) -> Iterator[dict[str, Any]]:
    """Yield the rows of the release, with what is odd about them: "Yes" and "yes", numbers, a space."""
    qid = 0
    for study in cohort.studies():
        case = uuid.uuid5(uuid.NAMESPACE_URL, str(study.study_id))
        for number, asked in enumerate(questions(study.phantom)):
            phrase_type = "para" if number % 3 == 2 else "freeform"
            answer = asked.answer.capitalize() if qid % 2 else asked.answer
            yield {
                "qid": qid,
                "phrase_type": f"test_{phrase_type}" if study.split == "test" else phrase_type,
                "qid_linked_id": str(uuid.uuid5(case, str(number - number % 3 // 2))),
                "image_case_url": f"{_MEDPIX}/case?id={case}",
                "image_name": _name(study),
                "image_organ": "CHEST",
                "evaluation": "evaluated",
                "question": asked.text,
                "question_rephrase": "NULL",
                "question_relation": "NULL",
                "question_frame": "NULL",
                "question_type": _TYPES[asked.type],
                "answer": int(answer) if answer.isdecimal() else answer,
                "answer_type": asked.answer_type.upper() + (" " if qid % 50 == 7 else ""),
            }
            qid += 1


def _is_test(row: dict[str, Any]) -> bool:
    return str(row["phrase_type"]).startswith("test_")


def _name(study: Study) -> str:
    return f"synpic{10_000 + study.number}.jpg"


def _images(folder: Path, cohort: Cohort) -> None:
    folder.mkdir()
    for study in cohort.studies():
        (folder / _name(study)).write_bytes(jpeg(study.phantom))
