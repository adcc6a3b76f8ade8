"""Every system's answer to every test question, in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
from PIL import Image

from radloop.config import EvaluationConfig
from radloop.evaluation.baselines import BlindMajority, shuffle_images
from radloop.evaluation.metrics import REGISTRY, get_metric

if TYPE_CHECKING:
    from radloop.data.prepared import PreparedData
    from radloop.inference import Answer, Request

TUNED, BASE, CHAMPION, SHUFFLED, BLIND = SYSTEMS = ("tuned", "base", "champion", "shuffled", "blind")
PREDICTIONS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("split", pa.string()),  # "test", or "held out" for what is scored as published only
        ("published_test", pa.bool_()),
        ("group", pa.string()),
        ("image_ids", pa.list_(pa.string())),  # that the question is about, in the order of the prompt
        ("shown_image_ids", pa.list_(pa.string())),  # that the system saw; null for blind
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("question_type", pa.string()),
        ("answer_type", pa.string()),
        ("system", pa.string()),  # one of SYSTEMS
        ("prediction", pa.string()),
        ("confidence", pa.float64()),  # as the engine gives it; null for blind
        *((name, pa.float64()) for name in REGISTRY),
    ]
)


class Answerer(Protocol):
    """What `radloop.inference.Engine` does here."""

    def answer(
        self, images: Mapping[str, Image.Image], requests: Sequence[Request], max_new_tokens: int
    ) -> list[Answer]: ...


def predict(
    data: PreparedData, systems: Mapping[str, Callable[[], Answerer]], config: EvaluationConfig, seed: int
) -> pa.Table:
    """Ask every system every test question; the tuned one also on shuffled images, and a blind one.

    Args:
        data: Its test split is asked, and the published one where it is to be scored beside it; the
            blind baseline learns from its train split.
        systems: "base", "tuned" and maybe "champion", each with what opens its engine. One engine
            is open at a time.
        config: Length of answers.
        seed: Of the shuffled images.

    Returns:
        Table of schema `PREDICTIONS`, one row a system and sample, systems in the order of
        `SYSTEMS`, samples in the order of the data. "shuffled" is missing where there are fewer
        than two images; a sample without any is asked as it is.
    """
    samples = data.asked()
    own: list[list[str]] = samples["image_ids"].to_pylist()
    groups = zip(own, samples["group"].to_pylist(), strict=True)
    other = shuffle_images({image: group for of_sample, group in groups for image in of_sample}, seed)
    tables = {BLIND: _rows(samples, BLIND, BlindMajority(data.split("train")).answer(samples))}
    for name, open_engine in systems.items():
        engine = open_engine()
        tables[name] = _ask(engine, data, samples, name, own, config)
        if name == TUNED and other is not None:
            shown = [[other[image] for image in of_sample] for of_sample in own]
            tables[SHUFFLED] = _ask(engine, data, samples, SHUFFLED, shown, config)
        del engine  # or it would stay in memory while the next one is loaded
    return pa.concat_tables([tables[name] for name in SYSTEMS if name in tables])


def _ask(
    engine: Answerer,
    data: PreparedData,
    samples: pa.Table,
    system: str,
    shown: list[list[str]],
    config: EvaluationConfig,
) -> pa.Table:
    """Answer all samples, each on its images of `shown`."""
    from radloop.inference import Request

    prompts = samples["prompt"].to_pylist()
    requests = [Request((*images,), prompt) for images, prompt in zip(shown, prompts, strict=True)]
    answers = engine.answer(_Pictures(data), requests, max_new_tokens=config.max_new_tokens)
    confidences = [answer.confidence for answer in answers]
    return _rows(samples, system, [answer.text for answer in answers], shown, confidences)


class _Pictures(Mapping[str, Image.Image]):
    """The images by id, decoded when looked up, so that they are never in memory all at once."""

    def __init__(self, data: PreparedData) -> None:
        self._data = data

    def __getitem__(self, image_id: str) -> Image.Image:
        return self._data.image(image_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self._data.images["id"].to_pylist())

    def __len__(self) -> int:
        return self._data.images.num_rows


def _rows(
    samples: pa.Table,
    system: str,
    texts: list[str],
    shown: list[list[str]] | None = None,
    confidences: list[float] | None = None,
) -> pa.Table:
    answers = samples["answers"].to_pylist()
    columns: dict[str, Any] = {
        "sample_id": samples["id"],
        "shown_image_ids": shown or [None] * len(texts),
        "system": [system] * len(texts),
        "prediction": texts,
        "confidence": confidences or [None] * len(texts),
    }
    columns |= {name: samples[name] for name in PREDICTIONS.names if name in samples.column_names}
    for name in REGISTRY:
        metric = get_metric(name)
        columns[name] = [metric(text, known) for text, known in zip(texts, answers, strict=True)]
    return pa.Table.from_pydict(columns, schema=PREDICTIONS)
