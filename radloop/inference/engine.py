"""Greedy answers to many questions, with everything that questions about one image share done once."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from radloop import models
from radloop.config import ModelConfig
from radloop.errors import DataError
from radloop.inference.decoding import decode
from radloop.inference.prefixes import Prefixes
from radloop.models import packing
from radloop.models.feature_cache import FeatureCache
from radloop.models.loading import Loaded
from radloop.models.packing import Group, Tokens

logger = logging.getLogger(__name__)
_BATCH_TOKENS = 32_768  # of one batch with padding, which bounds the memory of its keys and values
_UNUSED_SETTINGS: dict[str, Any] = {  # of a generation config, with the value that changes nothing
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
}


@dataclass(frozen=True)
class Request:
    """A question about images.

    Attributes:
        image_ids: Keys of the images in the images given along, in the order of the prompt; may be empty.
        question: The user's whole turn.
    """

    image_ids: tuple[str, ...]
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

    The answers are those of Transformers' greedy `generate` on one question at a time, without what
    the checkpoint's generation config may add to that, such as a repetition penalty or tokens to
    suppress. But an image is processed once for all its questions, questions about one image share
    its keys and values, and those of the last images are kept for the next call.

    In int8 an answer also depends on what it is batched with, because bitsandbytes decides by the
    whole batch which columns it computes exactly; choose NF4 where that matters.
    """

    def __init__(
        self,
        model: ModelConfig | Loaded,
        adapter: Path | None = None,
        batch_images: int = 32,
        features: Path | None = None,
    ) -> None:
        """Load the model.

        Args:
            model: The base; or one that is loaded already, in eval mode, which is asked as it is.
            adapter: Folder of the LoRA adapter, to be put on the base.
            batch_images: Most images in one forward pass, which bounds the memory it takes; there are
                fewer where they have many tokens.
            features: Folder in which to look for image features, and to keep them; None to leave
                nothing of the images on disk.

        Raises:
            ModelError: See `radloop.models.load`.
        """
        if isinstance(model, Loaded):
            self._loaded = model
        else:
            self._loaded = models.load(model, adapter)
            _log_unused_settings(self._loaded)
        if adapter is not None and self._loaded.is_exact:
            # Saves a third of the time; in fewer bits the sum would round the adapter away.
            self._loaded.model.merge_adapter()
        self._batch_images = batch_images
        self._features = FeatureCache(self._loaded, features)
        self._prefixes = Prefixes(self._loaded, self._features)
        self._lock = threading.Lock()

    def answer(
        self, images: Mapping[str, Image.Image], requests: Sequence[Request], max_new_tokens: int = 16
    ) -> list[Answer]:
        """Answer all `requests`, in their order.

        Args:
            images: RGB images by id; looked up as they are needed, so that it may decode as it goes:
                once for each combination that is asked about. Few more than twice `batch_images` are
                held at a time.
            requests: Questions about them, in any order.
            max_new_tokens: Longest answer, >= 1.

        Raises:
            DataError: A question is too long for the model.
            KeyError: A request names an image that is not in `images`.
        """
        answers: dict[int, Answer] = {}
        for batch in self._batches(images, requests, max_new_tokens):
            with self._lock, torch.inference_mode():
                found = self._answer_batch(batch, max_new_tokens)
            answers.update(zip(batch.numbers, found, strict=True))
        return [answers[number] for number in range(len(requests))]

    def answer_one(self, image: Image.Image, question: str, max_new_tokens: int = 64) -> Answer:
        """Answer one question about an RGB image; the next one about the same image is faster."""
        return self.answer({"": image}, [Request(("",), question)], max_new_tokens)[0]

    def _batches(
        self, images: Mapping[str, Image.Image], requests: Sequence[Request], max_new_tokens: int
    ) -> Iterator[_Batch]:
        """Yield what to answer together: heads of one length, because they share a cache.

        Where lengths are many, the fullest batch does not wait for more, so that images do not pile up.
        """
        of_images: dict[tuple[str, ...], list[int]] = {}
        for number, request in enumerate(requests):
            of_images.setdefault(request.image_ids, []).append(number)
        pictures: dict[str, Image.Image] = {}
        filling: dict[int, _Batch] = {}
        for image_ids, numbers in of_images.items():
            pictures = {name: pictures[name] if name in pictures else images[name] for name in image_ids}
            shown = [pictures[name] for name in image_ids]
            prompts = self._prompts([requests[number].question for number in numbers], shown, max_new_tokens)
            for group in packing.groups(image_ids, prompts):
                batch = filling.setdefault(len(group.head), _Batch())
                if batch.groups and (
                    batch.num_images + _num_images(group) > self._batch_images
                    or batch.num_tokens_with(group) > _BATCH_TOKENS
                ):
                    yield batch
                    batch = filling[len(group.head)] = _Batch()
                batch.add(group, shown, [numbers[number] for number in group.numbers])
            while sum(batch.num_images for batch in filling.values()) > 2 * self._batch_images:
                yield filling.pop(max(filling, key=lambda length: filling[length].num_images))
        yield from filling.values()

    def _prompts(
        self, questions: Sequence[str], images: Sequence[Image.Image], max_new_tokens: int
    ) -> list[Tokens]:
        sizes = [image.size for image in images]
        prompts = self._loaded.prompts.questions(questions, [sizes] * len(questions))
        limit = self._loaded.prompts.max_tokens
        for question, prompt in zip(questions, prompts, strict=True):
            if len(prompt) + max_new_tokens > limit:
                raise DataError(
                    f"the question {question[:80]!r} has {len(prompt)} tokens with its image; with "
                    f"up to {max_new_tokens} for the answer that is more than the model's {limit}: shorten it"
                )
        return prompts

    def _answer_batch(self, batch: _Batch, max_new_tokens: int) -> list[Answer]:
        """Answer the questions of a batch, tail by tail."""
        cache = self._prefixes.get(batch.images, batch.groups)
        found = decode(self._loaded, cache, batch.groups, max_new_tokens)
        prompts = self._loaded.prompts
        return [
            Answer(
                prompts.answer(question.ids),
                math.exp(question.log_probability),
                len(question.ids),
                question.ended,
            )
            for question in found
        ]


@dataclass
class _Batch:
    """Groups to answer together, with their images, and the number of each tail's request."""

    groups: list[Group] = field(default_factory=list)
    images: list[list[Image.Image]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        return sum(map(_num_images, self.groups))

    def num_tokens_with(self, group: Group) -> int:
        """Return how many tokens there are, with padding, if `group` comes to them."""
        return (len(self.groups) + 1) * max(map(len, [*self.groups, group]))

    def add(self, group: Group, images: list[Image.Image], numbers: Sequence[int]) -> None:
        self.groups.append(group)
        self.images.append(images)
        self.numbers += numbers


def _num_images(group: Group) -> int:
    return max(1, len(group.image_ids))  # a row takes memory without an image, too


def _log_unused_settings(loaded: Loaded) -> None:
    """Say in which settings of the checkpoint stock `generate` would answer otherwise."""
    config = loaded.base_model.generation_config
    found = {name: getattr(config, name, None) for name in _UNUSED_SETTINGS}
    unused = [
        f"{name} {value}"
        for name, value in found.items()
        if value is not None and value != _UNUSED_SETTINGS[name]
    ]
    if unused:
        logger.info(
            "base model %s: answers are greedy, without its %s", loaded.reference.name, ", ".join(unused)
        )
