"""Test data whose answers can be read off the pixels, and systems that do or do not read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from radloop.config import EvaluationConfig
from radloop.data.prepared import PREPARED_IMAGES, PREPARED_SAMPLES, PreparedData, prepared_image
from radloop.evaluation import EvaluationReport
from radloop.evaluation.predict import predict
from radloop.evaluation.scores import score
from radloop.inference import Answer, Request

HEART, SIDE = "Is the heart enlarged?", "Which side is the effusion on?"
CONFIG = EvaluationConfig(resamples=300)


def answer_to(question: str, grey: int) -> str:
    """The truth: the grey value of the picture holds the findings as bits."""
    return ("yes" if grey & 1 else "no") if question == HEART else ("left" if grey & 2 else "right")


def prepared(num_test: int = 30, num_train: int = 60, group_size: int = 1, seed: int = 0) -> PreparedData:
    """Images of 8 x 8 pixels, two questions each; two of three hearts are normal."""
    rng = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for number in range(num_test + num_train):
        grey = int(4 * rng.integers(8, 40) + (rng.random() < 1 / 3) + 2 * rng.integers(2))
        images.append(prepared_image(f"image{number}", Image.new("RGB", (8, 8), (grey, grey, grey))))
        samples += [
            {
                "id": f"{number}-{question_type}",
                "split": "test" if number < num_test else "train",
                "group": f"patient{number // group_size}",
                "image_ids": [f"image{number}"],
                "question": question,
                "prompt": f"Look: {question}",
                "answers": [answer_to(question, grey), "?"],
                "answer_type": answer_type,
                "question_type": question_type,
            }
            for question, question_type, answer_type in ((HEART, "heart", "closed"), (SIDE, "side", "open"))
        ]
    table = pa.Table.from_pylist(samples, schema=PREPARED_SAMPLES)
    return PreparedData(pa.Table.from_pylist(images, schema=PREPARED_IMAGES), table, "0123456789abcdef")


def with_image_sets(data: PreparedData) -> PreparedData:
    """Give the first test sample two images, its own last, and the fourth none."""
    rows = data.samples.to_pylist()
    rows[0]["image_ids"] = ["image1", "image0"]
    rows[3]["image_ids"] = []
    rows[3]["answers"] = [answer_to(rows[3]["question"], 0)]
    return PreparedData(data.images, pa.Table.from_pylist(rows, schema=PREPARED_SAMPLES), data.fingerprint)


class Scripted:
    """Stands in for an engine: answers by a rule from the question and the last picture's grey value."""

    def __init__(self, rule: Callable[[str, int], str]) -> None:
        self._rule = rule

    def answer(
        self, images: Mapping[str, Image.Image], requests: Sequence[Request], max_new_tokens: int
    ) -> list[Answer]:
        answers = []
        for request in requests:
            pixels = [images[image_id].getpixel((0, 0)) for image_id in request.image_ids]
            grey = int(np.array(pixels)[-1, 0]) if pixels else 0
            text = self._rule(request.question.removeprefix("Look: "), grey)
            answers.append(Answer(text, 0.75, 2, True))
        return answers


def sees(question: str, grey: int) -> str:
    """Always right."""
    return answer_to(question, grey)


def habit(question: str, grey: int) -> str:
    """The most common answer, whatever the picture."""
    return "no" if question == HEART else "left"


def half(question: str, grey: int) -> str:
    """Reads one finding and guesses the other."""
    return sees(question, grey) if question == HEART else habit(question, grey)


def report(data: PreparedData, seed: int = 7, **rules: Callable[[str, int], str]) -> EvaluationReport:
    """What `evaluate` makes of these rules (base=..., tuned=..., champion=...), without the page."""
    systems = {name: (lambda rule=rule: Scripted(rule)) for name, rule in rules.items()}
    predictions = predict(data, systems, CONFIG, seed)
    metrics = {"fingerprint": data.fingerprint} | score(predictions, CONFIG, seed)
    return EvaluationReport(predictions, metrics, "<html></html>")
