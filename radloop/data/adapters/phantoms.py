"""Phantom chest radiographs: simulated, with exact findings, split into train, validation and test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from radloop.data.phantoms import Phantom, Stream, caption, make_phantom, questions, report
from radloop.data.source import Images, Source, Unit
from radloop.errors import DataError

_IMAGES_PER_UNIT = 50
_SPLITS = {"train": Stream.TRAIN, "validation": Stream.VALIDATION, "test": Stream.TEST}


class Phantoms:
    """Adapter of the phantom generator; it needs no path.

    The published splits come from disjoint streams of random numbers: no image of one split can be
    in another, nor among those that the tiny base was made from.
    """

    class Options(BaseModel):
        """How many phantoms, which ones, and what is asked about them."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        train_images: int = Field(1000, ge=1, description="phantoms in the train split")
        validation_images: int = Field(100, ge=0, description="phantoms in the validation split")
        test_images: int = Field(300, ge=0, description="phantoms in the test split")
        seed: int = Field(0, ge=0, lt=2**32, description="another seed, other phantoms")
        size: int = Field(
            96, ge=48, le=1024, multiple_of=12, description="edge in pixels; the tiny base takes 96"
        )
        tasks: tuple[Literal["vqa", "report", "caption"], ...] = Field(
            ("vqa",), min_length=1, description="vqa: 7 or 8 questions an image; report, caption: one each"
        )

    def open(self, path: str | None, options: Options) -> Source:
        """Return the generator.

        Raises:
            DataError: A path is given.
        """
        if path:
            raise DataError(f"data.path: got {path!r}, but phantoms are generated, not read; leave it out")
        return _Generator(options)


@dataclass(frozen=True)
class _Generator(Source):
    options: Phantoms.Options

    def units(self) -> Iterator[Unit]:
        for split, count in (
            ("train", self.options.train_images),
            ("validation", self.options.validation_images),
            ("test", self.options.test_images),
        ):
            for start in range(0, count, _IMAGES_PER_UNIT):
                rows = tuple((split, index) for index in range(start, min(start + _IMAGES_PER_UNIT, count)))
                yield Unit(split, start + 1, rows)

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        split, index = row
        phantom = make_phantom(_SPLITS[split], self.options.seed, index, self.options.size)
        image_id = images.inline(
            phantom.png(), phantom.name, modality="XR", body_part="CHEST", view="PA",
            study=phantom.name, patient=phantom.name,
        )  # fmt: skip
        return _samples(phantom, split, image_id, self.options)


def _samples(phantom: Phantom, split: str, image_id: str, options: Phantoms.Options) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if "vqa" in options.tasks:
        rows += [
            {
                "id": f"{phantom.name}-q{number}",
                "task": "vqa",
                "question": question.text,
                "answers": [question.answer],
                "answer_type": question.answer_type,
                "question_type": question.type,
            }
            for number, question in enumerate(questions(phantom))
        ]
    for task, prompt, write in (
        ("report", "Write a report.", report),
        ("caption", "Describe the image.", caption),
    ):
        if task in options.tasks:
            text = {
                "question": prompt,
                "answers": [write(phantom)],
                "answer_type": "open",
                "question_type": task,
            }
            rows.append({"id": f"{phantom.name}-{task}", "task": task, **text})
    shared = {
        "dataset": "phantoms",
        "split": split,
        "patient": phantom.name,
        "study": phantom.name,
        "labels": list(phantom.findings),
        "image_ids": [image_id],
        "language": "en",
    }
    return [shared | row for row in rows]
