"""Greedy answers to many questions, with everything that questions about one image share done once."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from radloop import models
from radloop.config import ModelConfig
from radloop.errors import DataError
from radloop.inference.decoding import decode
from radloop.inference.prefixes import Prefixes
from radloop.models.prompts import Tokens
from radloop.training import packing
from radloop.training.packing import Row

_ROWS_TAIL_TOKENS = 16_384  # of one batch, which bounds the memory of its keys and values


@dataclass(frozen=True)
class Request:
    """A question about an image.

    Attributes:
        image_id: Key of the image in the images given along.
        question: The user's whole turn.
    """

    image_id: str
    question: str


@dataclass(frozen=True)
class Answer:
    """What the model says.

    Attributes:
        text: The answer, without control tokens.
        confidence: Probability that the model gives to exactly this answer: the product over its
            tokens and its end token, in 0 to 1. Longer answers have lower ones.
        num_tokens: Tokens generated, the end token included.
        complete: Whether the model came to its end, rather than to the largest number of tokens.
    """

    text: str
    confidence: float
    num_tokens: int
    complete: bool


class Engine:
    """A model with its adapter, ready to answer; safe to call from several threads.

    The answers are those of Transformers' greedy `generate` on one question at a time, but an
    image is processed once for all its questions, questions about one image share its keys and
    values, and those of the last images are kept for the next call.
    """

    def __init__(self, model: ModelConfig, adapter: Path | None = None, batch_images: int = 32) -> None:
        """Load the model.

        Args:
            model: The base.
            adapter: Folder of the LoRA adapter; None to ask the base itself.
            batch_images: Images in one forward pass, which bounds the memory it takes.

        Raises:
            ModelError: See `radloop.models.load`.
        """
        self._loaded = models.load(model, adapter)
        if adapter is not None and self._loaded.base_model.dtype == torch.float32:
            # Saves a third of the time; in bfloat16 the sum would round the adapter away.
            self._loaded.model.merge_adapter()
        self._batch_images = batch_images
        self._prefixes = Prefixes(self._loaded)
        self._lock = threading.Lock()

    def answer(
        self, images: Mapping[str, Image.Image], requests: Sequence[Request], max_new_tokens: int = 16
    ) -> list[Answer]:
        """Answer all `requests`, in their order.

        Args:
            images: RGB images by id; looked up once an image, so that it may decode as it goes.
            requests: Questions about them, in any order.
            max_new_tokens: Longest answer, >= 1.

        Raises:
            DataError: A question is too long for the model.
            KeyError: A request names an image that is not in `images`.
        """
        prompts = self._loaded.prompts.questions([request.question for request in requests])
        for request, prompt in zip(requests, prompts, strict=True):
            limit = self._loaded.prompts.max_tokens
            if len(prompt) + max_new_tokens > limit:
                raise DataError(
                    f"the question {request.question[:80]!r} has {len(prompt)} tokens with its image; with "
                    f"up to {max_new_tokens} for the answer that is more than the model's {limit}: shorten it"
                )
        answers: dict[int, Answer] = {}
        for rows, numbers in self._batches(requests, prompts):
            distinct = {row.image_id: images[row.image_id] for row in rows}
            with self._lock, torch.inference_mode():
                found = self._answer_rows([distinct[row.image_id] for row in rows], rows, max_new_tokens)
            answers.update(zip(numbers, found, strict=True))
        return [answers[number] for number in range(len(requests))]

    def answer_one(self, image: Image.Image, question: str, max_new_tokens: int = 64) -> Answer:
        """Answer one question about an RGB image; the next one about the same image is faster."""
        return self.answer({"": image}, [Request("", question)], max_new_tokens)[0]

    def _batches(
        self, requests: Sequence[Request], prompts: list[Tokens]
    ) -> Iterator[tuple[list[Row], list[int]]]:
        """Yield rows to answer together, and for each tail of theirs in turn the number of its request."""
        by_image: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            by_image.setdefault(request.image_id, []).append(number)
        rows: list[Row] = []
        numbers: list[int] = []
        size = 0
        for image_id, of_image in by_image.items():
            for row in packing.rows(image_id, [prompts[number] for number in of_image]):
                length = sum(len(tail.tail) for tail in row.tails)
                other_head = rows and len(rows[0].head) != len(row.head)
                if rows and (
                    len(rows) == self._batch_images or size + length > _ROWS_TAIL_TOKENS or other_head
                ):
                    yield rows, numbers
                    rows, numbers, size = [], [], 0
                rows.append(row)
                numbers += [of_image[number] for number in row.numbers]
                size += length
        if rows:
            yield rows, numbers

    def _answer_rows(self, images: list[Image.Image], rows: list[Row], max_new_tokens: int) -> list[Answer]:
        """Answer the questions of `rows`, tail by tail."""
        cache = self._prefixes.get(images, [row.head for row in rows])
        prompts = self._loaded.prompts
        return [
            Answer(
                prompts.answer(question.ids),
                math.exp(question.log_probability),
                len(question.ids),
                question.ended,
            )
            for question in decode(self._loaded, cache, rows, max_new_tokens)
        ]
