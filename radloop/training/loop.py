"""The training loop: LoRA, AdamW, one optimiser step for each batch of images."""

from __future__ import annotations

import logging
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.errors import DataError, TrainingError
from radloop.models.loading import Loaded
from radloop.training.adapter import Adapter, with_lora
from radloop.training.examples import Examples, read_examples
from radloop.training.features import ImageFeatures
from radloop.training.packing import Batch, Row

logger = logging.getLogger(__name__)


def finetune(
    data: PreparedData,
    model: ModelConfig,
    config: FinetuneConfig,
    seed: int,
    on_step: Callable[[dict[str, float]], None] | None,
) -> Adapter:
    """See `radloop.training.finetune`."""
    _set_seeds(seed)
    loaded = with_lora(models.load(model), config)
    train, validation = (
        read_examples(data, split, loaded.prompts, config.share_prefix) for split in ("train", "validation")
    )
    if not train.num_samples:
        raise DataError(
            "finetune: the train split has no sample; lower preprocess.test and preprocess.validation"
        )
    start = time.perf_counter()
    history = []
    steps = _Steps(loaded, config, train, validation, ImageFeatures(loaded, data.image), seed)
    with _Progress(steps.num_steps) as progress:
        for facts, num_samples in steps:
            history.append(facts)
            progress.show(facts, num_samples)
            if on_step is not None:
                on_step(facts)
    seconds = time.perf_counter() - start
    record = {
        "model": model.model_dump(),
        "settings": config.model_dump(),
        "seed": seed,
        "data": {
            "fingerprint": data.fingerprint,
            "images": len(train.rows_of),
            "samples": train.num_samples,
            "validation_samples": validation.num_samples,
        },
        "seconds": seconds,
        "samples_per_s": steps.num_samples_seen / seconds,
        "history": history,
    }
    return Adapter.of(loaded, model, record)


class _Steps:
    """The optimiser steps of a run, as an iterator over (facts, samples of the step)."""

    def __init__(
        self,
        loaded: Loaded,
        config: FinetuneConfig,
        train: Examples,
        validation: Examples,
        features: ImageFeatures,
        seed: int,
    ) -> None:
        self._loaded, self._config, self._features = loaded, config, features
        self._train, self._validation = train, validation
        self._seed = seed
        self._epoch_steps = math.ceil(len(train.rows_of) / config.images_per_step)
        self.num_steps = max(1, round(config.epochs * self._epoch_steps))
        self.num_samples_seen = 0

    def __iter__(self) -> Iterator[tuple[dict[str, float], int]]:
        config = self._config
        accelerator = Accelerator(cpu=self._loaded.device.type == "cpu")
        trained = [parameter for parameter in self._loaded.model.parameters() if parameter.requires_grad]
        optimizer = accelerator.prepare(torch.optim.AdamW(trained, weight_decay=config.weight_decay))
        batches = image_batches(self._train, config.images_per_step, self._seed)
        self._loaded.model.train()
        for step in range(1, self.num_steps + 1):
            start = time.perf_counter()
            rows = next(batches)
            rate = config.learning_rate * rate_factor(step, self.num_steps, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = token_losses(self._loaded, self._features, rows).mean()
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"finetune: the loss is {loss.item()} at step {step} of {self.num_steps} (learning "
                    f"rate {rate:.2g}); lower finetune.learning_rate or raise finetune.warmup. Nothing has "
                    "been written"
                )
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(trained, config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            num_samples = sum(len(row.tails) for row in rows)
            self.num_samples_seen += num_samples
            facts = {
                "step": step,
                "loss": loss.item(),
                "learning_rate": rate,
                "grad_norm": float(norm),
                "samples_per_s": num_samples / (time.perf_counter() - start),
            }
            if self._validation.num_samples and (step % self._epoch_steps == 0 or step == self.num_steps):
                facts["validation_loss"] = self._validation_loss()
            yield facts, num_samples

    def _validation_loss(self) -> float:
        """Return the mean loss over all answer tokens of the validation split."""
        images = list(self._validation.rows_of.values())
        size = self._config.images_per_step
        self._loaded.model.eval()
        with torch.no_grad():
            losses = [
                token_losses(
                    self._loaded, self._features, [row for rows in images[at : at + size] for row in rows]
                )
                for at in range(0, len(images), size)
            ]
        self._loaded.model.train()
        return torch.cat(losses).mean().item()


def token_losses(
    loaded: Loaded, features: Callable[[Sequence[str]], torch.Tensor], rows: Sequence[Row]
) -> torch.Tensor:
    """Return the cross entropy of every answer token of `rows`, float32, shape (answer tokens,).

    A step's loss is the mean over these, however the pairs are arranged in rows: each answer token
    of a step weighs the same, so a long answer weighs more than a short one.
    """
    batch = Batch.of(rows, loaded.device)
    images = features([row.image_id for row in rows])
    logits = loaded.model(
        input_ids=batch.input_ids,
        attention_mask=batch.mask(),
        position_ids=batch.position_ids,
        logits_to_keep=batch.predicts,
        use_cache=False,
        **loaded.family.image_inputs(loaded.base_model, images),
    ).logits
    return torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")


def image_batches(train: Examples, images_per_step: int, seed: int) -> Iterator[list[Row]]:
    """Yield the rows of `images_per_step` images for ever; every epoch in a new order, drawn by `seed`."""
    generator = np.random.default_rng(seed)
    images = list(train.rows_of.values())
    while True:
        order = generator.permutation(len(images))
        for at in range(0, len(order), images_per_step):
            yield [row for index in order[at : at + images_per_step] for row in images[index]]


def rate_factor(step: int, num_steps: int, config: FinetuneConfig) -> float:
    """Return the share of the learning rate at `step` (from 1): a linear rise, then the schedule's fall."""
    rise = math.ceil(config.warmup * num_steps)
    if step <= rise:
        return step / rise
    done = (step - 1 - rise) / (num_steps - rise)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if config.schedule == "linear" else 1.0


def _set_seeds(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class _Progress:
    """A bar on a terminal; elsewhere a log line for every tenth of the steps."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._every = max(1, num_steps // 10)
        self._start = time.perf_counter()
        self._num_samples = 0
        self._bar = tqdm(total=num_steps, desc="finetune", unit="step", disable=not sys.stderr.isatty())

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, facts: dict[str, float], num_samples: int) -> None:
        self._num_samples += num_samples
        speed = self._num_samples / (time.perf_counter() - self._start)
        self._bar.set_postfix_str(f"loss {facts['loss']:.3f}, {speed:.0f} samples/s", refresh=False)
        self._bar.update()
        step = int(facts["step"])
        if self._bar.disable and (step % self._every == 0 or step == self._num_steps):
            logger.info(
                "finetune: step %d of %d, loss %.3f, %.0f samples/s",
                step,
                self._num_steps,
                facts["loss"],
                speed,
            )
