"""How a model that is being trained does on the validation split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from radloop import workspace
from radloop.config import FinetuneConfig
from radloop.data.prepared import PreparedData
from radloop.evaluation.metrics import get_metric
from radloop.inference import Engine, Request
from radloop.models.loading import Loaded
from radloop.training.batching import StepBatch
from radloop.training.losses import FeaturesOf, Weighting, summed_loss
from radloop.training.processes import total

_MIN_ANSWER_TOKENS = 16


class Validation:
    """Measures the model on the validation split, as it is at that moment."""

    def __init__(
        self,
        loaded: Loaded,
        data: PreparedData,
        batches: Sequence[StepBatch],
        features: FeaturesOf,
        config: FinetuneConfig,
    ) -> None:
        self._loaded, self._data, self._batches, self._features = loaded, data, batches, features
        self._weighting: Weighting = config.loss
        self._ask = config.best_by == "exact_match"
        self._images_per_step = config.images_per_step
        self._folder = None if config.cache_features is False else workspace.features()

    def measure(self, accelerator: Accelerator, forward: Any) -> dict[str, float]:
        """Return `validation_loss`, weighted as in training, and `exact_match` if that chooses the best.

        Args:
            accelerator: Of this process; all get the same figures.
            forward: The model's prepared `ForwardPass`.
        """
        with answering(self._loaded.model):
            with torch.no_grad(), accelerator.autocast():
                found = {"validation_loss": self._loss(accelerator, forward)}
            if self._ask:  # by each process the same, as it is when one has to wait for others in each layer
                matched = total(accelerator, [forward(self._exact_match)])
                found["exact_match"] = matched[0] / accelerator.num_processes
        return found

    def _loss(self, accelerator: Accelerator, forward: Any) -> float:
        summed = 0.0
        for batch in self._batches:
            for rows, counts in batch.passes_of(accelerator.process_index):
                loss = forward(summed_loss, self._loaded, self._features, rows, self._weighting)
                summed += loss.item() * counts
        (over_all,) = total(accelerator, [summed])
        return over_all / sum(batch.total_weight(self._weighting) for batch in self._batches)

    def _exact_match(self) -> float:
        """Return the share of validation questions that greedy decoding answers as one of the references."""
        samples = self._data.split("validation").select(["image_ids", "prompt", "answers"]).to_pylist()
        # A new one each time: it keeps what the last weights computed.
        engine = Engine(self._loaded, features=self._folder)
        length = self._longest_answer()
        metric, scores = get_metric("exact_match"), []
        for part in _chunks(samples, self._images_per_step):
            ids = {image_id for row in part for image_id in row["image_ids"]}
            requests = [Request((*row["image_ids"],), row["prompt"]) for row in part]
            answers = engine.answer({name: self._data.image(name) for name in ids}, requests, length)
            scores += [metric(answer.text, row["answers"]) for answer, row in zip(answers, part, strict=True)]
        return sum(scores) / len(scores)

    def _longest_answer(self) -> int:
        """Return a number of tokens that leaves room for every reference and fits behind every question."""
        pairs = [
            (len(group.head) + len(tail.tail) - tail.num_answer, tail.num_answer)
            for batch in self._batches
            for found in batch.sets
            for group in found.groups
            for tail in group.tails
        ]
        wanted = max(_MIN_ANSWER_TOKENS, *(answer for _, answer in pairs))
        return min(wanted, self._loaded.prompts.max_tokens - max(asked for asked, _ in pairs))


@contextmanager
def answering(model: torch.nn.Module) -> Iterator[None]:
    """Put a model that is being trained in eval mode for this block."""
    model.eval()
    try:
        yield
    finally:
        model.train()


def _chunks(samples: list[dict[str, Any]], num_images: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the samples of `num_images` image sets at a time."""
    of_images: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in samples:
        of_images.setdefault((*row["image_ids"],), []).append(row)
    sets = list(of_images.values())
    for at in range(0, len(sets), num_images):
        yield [row for found in sets[at : at + num_images] for row in found]
