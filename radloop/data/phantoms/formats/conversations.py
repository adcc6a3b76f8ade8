"""Phantoms as conversations: LLaVA's JSON arrays, and ShareGPT's messages in JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from radloop.data.phantoms import questions
from radloop.data.phantoms.formats._cohort import Cohort, Study


def _llava(folder: Path, cohort: Cohort) -> None:
    rows: dict[str, list[dict[str, object]]] = {}
    for study, image in _images(folder, cohort):
        turns = []
        for number, question in enumerate(questions(study.phantom)):
            marker = "" if number else "<image>\n"
            turns.append({"from": "human", "value": f"{marker}{question.text}"})
            turns.append({"from": "gpt", "value": question.answer})
        row: dict[str, object] = {"id": study.phantom.name, "image": image, "conversations": turns}
        rows.setdefault(study.split, []).append(row)
    for split, part in rows.items():
        (folder / f"{split}.json").write_text(json.dumps(part, indent=2, ensure_ascii=False), "utf-8")


def _sharegpt(folder: Path, cohort: Cohort) -> None:
    for study, image in _images(folder, cohort):
        messages = []
        for number, question in enumerate(questions(study.phantom)):
            marker = "" if number else "<image>"
            messages.append({"role": "user", "content": f"{marker}{question.text}"})
            messages.append({"role": "assistant", "content": question.answer})
        with (folder / f"{study.split}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": messages, "images": [image]}, ensure_ascii=False) + "\n")


LAYOUTS = {"llava": _llava, "sharegpt": _sharegpt}


def _images(folder: Path, cohort: Cohort) -> Iterator[tuple[Study, str]]:
    (folder / "images").mkdir()
    for study in cohort.studies():
        image = f"images/{study.phantom.name}.png"
        (folder / image).write_bytes(study.phantom.png())
        yield study, image
