"""A run tried out before it starts: what it reads, and how long a few of its steps take."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from operator import itemgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from radloop import models
from radloop.models.family import Features
from radloop.models.loading import Loaded
from radloop.models.packing import PADDING, Batch, Row
from radloop.training.adapter import with_lora
from radloop.training.batching import Batches, StepBatch, arrangement, groups_of
from radloop.training.estimate import Setting
from radloop.training.examples import Examples
from radloop.training.losses import FeaturesOf
from radloop.training.pictures import FeatureSource
from radloop.training.trainer import Trainer
from radloop.training.validation import Validation

_MAX_STEPS, _MAX_SECONDS = 8, 4.0
_CPU_FLOPS = 2e10  # a second: low, so that what is said to take long does
_LONG_STEP = 60.0  # seconds; longer ones are not waited for


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of the samples of a split, images and answers included.

    Attributes:
        lengths: Of each sample, after cutting, int, shape (samples,).
        longest: Id of the longest sample.
        image_share: Share of image tokens in all of them.
        epoch: Tokens of an epoch as they are read, without padding.
    """

    lengths: np.ndarray
    longest: str
    image_share: float
    epoch: int

    @property
    def plain(self) -> int:
        """Tokens that are read in an epoch if each sample has a row of its own: all but its last."""
        return int(self.lengths.sum()) - len(self.lengths)

    def bars(self, count: int = 10) -> list[tuple[int, int, int]]:
        """Return the histogram: first and last length of a bar, and its number of samples."""
        low, high = int(self.lengths.min()), int(self.lengths.max())
        width = -(-(high - low + 1) // count)
        edges = range(low, high + 1, width)
        found = np.bincount((self.lengths - low) // width, minlength=len(edges))
        return [(edge, edge + width - 1, int(number)) for edge, number in zip(edges, found, strict=True)]


def count_tokens(setting: Setting) -> TokenCounts:
    """Return the tokens of the train split."""
    sketch, batches = setting.sketch, setting.batches
    token = sketch.family.image_token_id(sketch.processor) if setting.train.num_images else None
    samples, lengths, num_image = [], [], 0
    for found in setting.train.sets:
        for group in found.groups:
            num_image += len(group.tails) * sum(token == other for other in group.head.ids)
            samples += [found.sample_ids[number] for number in group.numbers]
            lengths += [len(tail) for tail in group.tails]
    epoch = sum(batches.of(step).num_tokens for step in range(1, batches.steps_per_epoch + 1))
    longest = samples[int(np.argmax(lengths))]
    return TokenCounts(np.array(lengths), longest, num_image / sum(lengths), epoch)


@dataclass(frozen=True)
class Part:
    """A text, and whether the model is trained to write it or only reads it."""

    text: str
    has_loss: bool


def read_row(setting: Setting, row: Row) -> list[list[Part]]:
    """Return the texts of the first group of a row: the head, then each question with its answer.

    What has a loss is taken from the tensors of the forward pass, not from how they came about.
    """
    batch = Batch.of([row])
    targets = iter(batch.targets.tolist())
    segments: dict[int, list[tuple[bool, int]]] = defaultdict(list)  # whether it has a loss, and the token
    tensors = (batch.groups[0], batch.segments[0], batch.input_ids[0], batch.predicts[0])
    for group, segment, token, predicts in zip(*(tensor.tolist() for tensor in tensors), strict=True):
        if group != 0 or segment == PADDING:
            continue
        if segments[segment][-1:] != [(True, token)]:  # else it is there, as a target
            segments[segment].append((False, token))
        if predicts:
            segments[segment].append((True, next(targets)))
    head, *tails = segments.values()
    while _decoded(setting, [token for _, token in head]).endswith("\ufffd"):  # within a character
        shared = head.pop()
        for tail in tails:
            tail.insert(0, shared)
    return [
        [
            Part(_decoded(setting, [token for _, token in run]), has_loss)
            for has_loss, run in groupby(tokens, key=itemgetter(0))
        ]
        for tokens in segments.values()
    ]


def _decoded(setting: Setting, ids: Sequence[int]) -> str:
    """Return the text of tokens, control tokens included, with runs of image tokens counted."""
    sketch = setting.sketch
    image = sketch.family.image_token_id(sketch.processor)
    texts = []
    for is_image, run in groupby(ids, key=lambda token: token == image):
        found = list(run)
        count = f" x {len(found):,} " if len(found) > 1 else ""
        decode = sketch.processor.tokenizer.decode
        texts.append(
            sketch.family.image_token(sketch.processor) + count
            if is_image
            else decode(found, clean_up_tokenization_spaces=False)
        )
    return "".join(texts)


@dataclass(frozen=True)
class Timing:
    """How long a run takes, in seconds.

    Attributes:
        num_steps: Of the run.
        num_timed: Steps that were taken to find out, without the first.
        step: Of a step, at the mean number of tokens.
        samples_per_s: Of training.
        features: To compute the image features that are kept, once.
        validation: All of them; with the answers, where those decide on the best weights.
    """

    num_steps: int
    num_timed: int
    step: float
    samples_per_s: float
    features: float
    validation: float

    @property
    def total(self) -> float:
        return self.num_steps * self.step + self.features + self.validation


def long_step(setting: Setting, num_parameters: int, tokens: TokenCounts) -> float | None:
    """Return the seconds of a step by the number of its operations, if it is too long to be timed here."""
    if torch.cuda.is_available():
        return None
    a_step = tokens.epoch / setting.batches.steps_per_epoch
    seconds = 6 * num_parameters * a_step / _CPU_FLOPS
    return seconds if seconds > _LONG_STEP else None


@contextmanager
def _random_numbers_of_its_own() -> Iterator[None]:
    """Give back the state of PyTorch's random numbers, which steps are seeded by."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield


@_random_numbers_of_its_own()
def time_steps(setting: Setting, validation: Examples, tokens: TokenCounts) -> Timing:
    """Take a few steps of the run and forget them; neither disk nor random numbers are touched.

    Args:
        setting: The run.
        validation: Its validation split.
        tokens: Of the train split, to which the steps are scaled up.

    Raises:
        ConfigError: See `Trainer`; so for TrainingError.
        ModelError: The base cannot be loaded.
    """
    config, batches = setting.config, setting.batches
    loaded = with_lora(models.load(setting.model), config)
    source = _InMemory(loaded, setting.data, setting.plan, config, setting.seed, keep=False)
    trainer = Trainer(loaded, config, batches, source, None, setting.seed)
    start, steps = time.perf_counter(), trainer.steps()
    timed: list[tuple[float, int, int]] = []  # seconds, samples and tokens of each step
    for step in range(1, min(_MAX_STEPS, trainer.num_steps) + 1):
        batch = batches.of(step)
        source.look_up(batch)
        facts, num_samples = next(steps)
        timed.append((num_samples / facts["samples_per_s"], num_samples, batch.num_tokens))
        if step > 1 and time.perf_counter() - start > _MAX_SECONDS:
            break
    counted = timed[1:] or timed
    seconds, num_samples, num_tokens = map(sum, zip(*counted, strict=True))
    num_steps = trainer.num_steps
    every = config.validate_every or batches.steps_per_epoch
    num_images = setting.train.num_images + validation.num_images  # of which some may be kept already
    validate = _validation_seconds(loaded, trainer, setting, source, validation)
    return Timing(
        num_steps,
        len(counted),
        seconds / num_tokens * tokens.epoch / batches.steps_per_epoch,
        num_samples / seconds,
        float(np.median(source.seconds or [0.0])) * num_images,
        validate * -(-num_steps // every),
    )


class _InMemory(FeatureSource):
    """Keeps the features that a run would keep, but for as long as it lives; knows what they cost."""

    def look_up(self, batch: StepBatch) -> None:
        """Compute the features of a batch that the run would have by then, so that its step does not."""
        if self._plan.cache_features:
            self.training(0)([image_id for group in groups_of(batch.sets) for image_id in group.image_ids])

    @cached_property
    def _found(self) -> dict[str, Features]:
        return {}

    @cached_property
    def seconds(self) -> list[float]:
        """For each image whose features were computed."""
        return []

    def training(self, epoch: int) -> FeaturesOf:
        compute = super().training(epoch)
        if not self._plan.cache_features:
            return compute

        def features(image_ids: Sequence[str]) -> list[Features]:
            for image_id in dict.fromkeys(image_ids):
                if image_id not in self._found:
                    start = time.perf_counter()
                    (self._found[image_id],) = compute([image_id])
                    self.seconds.append(time.perf_counter() - start)
            return [self._found[image_id] for image_id in image_ids]

        return features


def _validation_seconds(
    loaded: Loaded, trainer: Trainer, setting: Setting, source: FeatureSource, split: Examples
) -> float:
    """Return how long a validation takes, by its first batch."""
    if not split.num_samples:
        return 0.0
    config = setting.config.model_copy(update={"cache_features": False})  # else answers keep some on disk
    first, *others = Batches(split, *arrangement(loaded, config), setting.seed).in_order()
    features = source.training(0)
    features([image_id for group in groups_of(first.sets) for image_id in group.image_ids])
    ids = pa.array([sample_id for found in first.sets for sample_id in found.sample_ids])
    samples = setting.data.samples
    data = replace(setting.data, samples=samples.filter(pc.is_in(samples["id"], ids)))
    validation = Validation(loaded, data, [first], features, config)
    start = time.perf_counter()
    validation.measure(trainer.accelerator, trainer.forward)
    seconds = time.perf_counter() - start
    return seconds / first.num_tokens * sum(batch.num_tokens for batch in (first, *others))
