"""Phantoms as VQA-Med 2019: the text files of the release, and the JSON files made from them for MEVF."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from radloop.data.adapters.vqa_med_2019 import (
    BARE_QUESTIONS,
    BY_CATEGORY,
    CATEGORIES,
    IMAGE_FOLDERS,
    MEVF_SPLITS,
    REFERENCE_ANSWERS,
    SUFFIXES,
)
from radloop.data.phantoms.formats._cohort import Cohort, Study
from radloop.data.phantoms.formats._files import jpeg
from radloop.data.phantoms.language import questions

_ROOTS = {
    "train": "ImageClef-2019-VQA-Med-Training",
    "validation": "ImageClef-2019-VQA-Med-Validation",
    "test": "VQAMed2019Test",
}
_MEVF_TYPES = {"Modality": "MODALITY", "Plane": "PLANE", "Organ": "ORGAN", "Abnormality": "ABN"}


def _text(folder: Path, cohort: Cohort) -> None:
    for split, name in _ROOTS.items():
        _images(folder / name / IMAGE_FOLDERS[split], cohort, split)
    for split, suffix in SUFFIXES.items():
        root = folder / _ROOTS[split]
        (root / BY_CATEGORY).mkdir()
        rows = list(_rows(cohort, split))
        _lines(root / f"All_QA_Pairs_{suffix}.txt", ((image, *qa) for image, _, *qa in rows))
        for number, category in enumerate(CATEGORIES, 1):
            chosen = ((image, *qa) for image, of, *qa in rows if of == category)
            _lines(root / BY_CATEGORY / f"C{number}_{category}_{suffix}.txt", chosen)
    test = list(_rows(cohort, "test"))
    _lines(folder / _ROOTS["test"] / BARE_QUESTIONS, ((image, asked) for image, _, asked, _ in test))
    _lines(
        folder / _ROOTS["test"] / REFERENCE_ANSWERS,
        ((image, category.lower(), *qa) for image, category, *qa in test),
    )


def _mevf(folder: Path, cohort: Cohort) -> None:
    place = folder / "data_RAD"
    for name, split in MEVF_SPLITS.items():
        _images(place / "images", cohort, split)
        rows = [
            {
                "qid": qid,
                "image_name": f"{image}.jpg",
                "answer": answer,
                "answer_type": "CLOSED" if answer in ("yes", "no") else "OPEN",
                "question_type": _MEVF_TYPES[category],
                "question": asked,
                "phrase_type": "freeform",
            }
            for qid, (image, category, asked, answer) in enumerate(_rows(cohort, split), 1)
        ]
        (place / name).write_text(json.dumps(rows), encoding="utf-8")


LAYOUTS = {"text": _text, "mevf": _mevf}


def _rows(cohort: Cohort, split: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield (image, category, question, answer), in lower case as published.

    Other than the release, one image has several questions on what is abnormal: the phantom's own.
    """
    # In the test set alone, as published: several right answers, and what may be left out.
    organ, plane = ("lung, mediastinum, pleura#heart and great vessels", "pa (posteroanterior)")
    if split != "test":
        organ, plane = ("lung, mediastinum, pleura", "pa")
    for study in cohort.studies():
        if study.split == split:
            image = _name(study)
            yield image, "Modality", "what modality is shown?", "xr - plain film"
            yield image, "Plane", "in which plane is the x-ray displayed?", plane
            yield image, "Organ", "what organ system is shown in this x-ray?", organ
            for asked in questions(study.phantom):
                yield image, "Abnormality", asked.text.lower(), asked.answer


def _lines(path: Path, rows: Iterator[tuple[str, ...]]) -> None:
    path.write_text("".join("|".join(row) + "\n" for row in rows), encoding="utf-8")


def _name(study: Study) -> str:
    return f"synpic{10_000 + study.number}"


def _images(folder: Path, cohort: Cohort, split: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for study in cohort.studies():
        if study.split == split:
            (folder / f"{_name(study)}.jpg").write_bytes(jpeg(study.phantom))
