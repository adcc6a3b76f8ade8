"""A run of fine-tuning, from data and config to the adapter."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.errors import ConfigError, DataError
from radloop.models.loading import Loaded
from radloop.training.adapter import Adapter, with_lora
from radloop.training.batching import Batches
from radloop.training.checkpoints import Checkpoints, folder_of, opened, run_key
from radloop.training.examples import Examples, read_examples
from radloop.training.merging import Probe, verify_merge
from radloop.training.pictures import FeatureSource
from radloop.training.plan import Plan, make_plan
from radloop.training.processes import can_checkpoint, make_accelerator, total
from radloop.training.progress import Progress
from radloop.training.state import Facts
from radloop.training.trainer import Trainer
from radloop.training.validation import Validation

logger = logging.getLogger(__name__)

_PROBED = 2  # samples on which the merge is verified


def finetune(
    data: PreparedData,
    model: ModelConfig,
    config: FinetuneConfig,
    seed: int,
    on_step: Callable[[Facts], None] | None,
) -> Adapter:
    """See `radloop.training.finetune`."""
    run = Run.of(data, model, config, seed)
    trainer = run.trainer
    folder = folder_of(run_key(data, model, run.loaded.reference, config, seed))
    is_first = trainer.accelerator.is_main_process
    keeps = is_first and can_checkpoint(trainer.accelerator)
    with opened(folder, config.checkpoint_every) if keeps else nullcontext() as checkpoints:
        _resume(trainer, folder)
        start = time.perf_counter() - trainer.state.seconds
        with Progress(trainer.num_steps, trainer.state.step + 1, shown=is_first) as progress:
            for facts, num_samples in trainer.steps():
                trainer.state.num_samples += num_samples
                trainer.state.seconds = time.perf_counter() - start
                if is_first:
                    progress.show(facts, num_samples)
                    if on_step is not None:
                        on_step(facts)
                _save(trainer, checkpoints)
        kept_step = trainer.keep_best()
        state = trainer.state
        record = run.record() | {
            "kept_step": kept_step,
            "seconds": state.seconds,
            "samples_per_s": state.num_samples / state.seconds,
            "history": state.history,
            "merge": trainer.forward(verify_merge, run.loaded, run.probe()).facts(),
        }
        return Adapter.of(run.loaded, model, record)


def _resume(trainer: Trainer, folder: Path) -> None:
    """Take up the last whole checkpoint, if there is one."""
    with trainer.accelerator.main_process_first():  # it deletes damaged ones
        found = Checkpoints(folder).latest()
    if found is None:
        return
    step, checkpoint = found
    trainer.restore(checkpoint)
    if trainer.accelerator.is_main_process:
        logger.info("finetune: going on after step %d of %d, from %s", step, trainer.num_steps, folder)


def _save(trainer: Trainer, checkpoints: Checkpoints | None) -> None:
    """Write a checkpoint in the first process if one is due, but none of a run that is at its end."""
    step = trainer.state.step
    is_due = checkpoints is not None and checkpoints.due(step) and step < trainer.num_steps
    (wanted,) = total(trainer.accelerator, [float(is_due)])
    if wanted:
        content = trainer.checkpoint()  # to which each process may have to add its part
        if checkpoints is not None:
            checkpoints.save(step, content)


@dataclass(frozen=True)
class Run:
    """A run that is ready to start."""

    data: PreparedData
    model: ModelConfig
    config: FinetuneConfig
    seed: int
    loaded: Loaded
    train: Examples
    validation: Examples
    trainer: Trainer

    @classmethod
    def of(cls, data: PreparedData, model: ModelConfig, config: FinetuneConfig, seed: int) -> Run:
        """Load the model with fresh LoRA layers, and read the data.

        Raises:
            ConfigError: See `radloop.training.finetune`; so for DataError and ModelError.
        """
        plan = make_plan(models.get_family(model.family), config)
        _set_seeds(seed)
        loaded = with_lora(models.load(model), config)
        train, validation = (
            read_examples(data, split, loaded.prompts, config.share_prefix, config.max_tokens)
            for split in ("train", "validation")
        )
        require_samples(train, validation, config)
        trainer = _make_trainer(data, loaded, plan, config, train, validation, seed)
        return cls(data, model, config, seed, loaded, train, validation, trainer)

    def probe(self) -> Probe:
        """Return a few samples to compare models on."""
        group = self.train.sets[0].groups[0]
        images = {image_id: self.data.image(image_id) for image_id in group.image_ids}
        pairs = min(len(group.tails), _PROBED)
        return Probe([(replace(group, tails=group.tails[:pairs], numbers=group.numbers[:pairs]),)], images)

    def record(self) -> dict[str, Any]:
        """Return what is known of the run before it starts."""
        return {
            "model": self.model.model_dump(mode="json"),
            "settings": self.config.model_dump(mode="json"),
            "seed": self.seed,
            "precision": self.loaded.precision,
            "data": {
                "fingerprint": self.data.fingerprint,
                "images": self.train.num_images,
                "samples": self.train.num_samples,
                "cut_answers": self.train.num_cut,
                "validation_samples": self.validation.num_samples,
            },
        }


def _make_trainer(
    data: PreparedData,
    loaded: Loaded,
    plan: Plan,
    config: FinetuneConfig,
    train: Examples,
    validation: Examples,
    seed: int,
) -> Trainer:
    source = FeatureSource(loaded, data, plan, config, seed)
    num_processes = make_accelerator(loaded).num_processes
    arrangement = (config.images_per_step, config.tokens_per_pass, config.share_prefix, seed, num_processes)
    validate = None
    if validation.num_samples:
        batches = Batches(validation, *arrangement).in_order()
        validate = Validation(loaded, data, batches, source.validation(), config)
    return Trainer(loaded, config, Batches(train, *arrangement), source, validate, seed)


def require_samples(train: Examples, validation: Examples, config: FinetuneConfig) -> None:
    """Raise an error if a split lacks samples that the config needs."""
    if not train.num_samples:
        raise DataError(
            "finetune: the train split has no sample; lower preprocess.test and preprocess.validation"
        )
    wanted = [
        name
        for name, asked in (
            ("best_by", config.best_by != "last"),
            ("patience", config.patience),
            ("validate_every", config.validate_every),
        )
        if asked
    ]
    if wanted and not validation.num_samples:
        raise ConfigError(
            f"finetune.{', finetune.'.join(wanted)}: needs a validation split, but it has no sample; raise "
            "preprocess.validation, or leave this out"
        )


def _set_seeds(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
