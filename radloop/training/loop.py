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
from accelerate import Accelerator

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.errors import ConfigError, DataError, OutOfMemory, RadloopError, TrainingError
from radloop.models.loading import Loaded
from radloop.training.adapter import Adapter, with_lora
from radloop.training.allocator import freed_memory_kept
from radloop.training.batching import Batches, arrangement
from radloop.training.checkpoints import Checkpoints, folder_of, opened, run_key
from radloop.training.examples import Examples, read_examples
from radloop.training.faults import explain_out_of_memory
from radloop.training.merging import Probe, verify_merge
from radloop.training.pictures import FeatureSource
from radloop.training.plan import Plan, make_plan
from radloop.training.processes import can_checkpoint, make_accelerator, total
from radloop.training.progress import Progress
from radloop.training.savings import estimate_in_words
from radloop.training.state import Facts
from radloop.training.trainer import Trainer
from radloop.training.validation import Validation

logger = logging.getLogger(__name__)

_SMALLER = "lower finetune.rank, or train fewer layers"
_PROBED = 2  # samples on which the merge is verified


def finetune(
    data: PreparedData,
    model: ModelConfig,
    config: FinetuneConfig,
    seed: int,
    on_step: Callable[[Facts], None] | None,
) -> Adapter:
    """See `radloop.training.finetune`."""
    try:
        return _trained(_set_up(data, model, config, seed), on_step)
    except OutOfMemory as error:
        said = error.message
    # Only here, where what the run held is given back.
    raise OutOfMemory(f"{said}. {_estimated(data, model, config, seed)}")


def _estimated(data: PreparedData, model: ModelConfig, config: FinetuneConfig, seed: int) -> str:
    try:
        return estimate_in_words(data, model, config, seed)
    except (RadloopError, MemoryError, RuntimeError):  # too little memory even for that
        return "`radloop check` estimates what a run needs, and with which settings it needs less"


def _set_up(data: PreparedData, model: ModelConfig, config: FinetuneConfig, seed: int) -> Run:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with explain_out_of_memory("before the first step", device, _SMALLER):
        return Run.of(data, model, config, seed)


def _trained(run: Run, on_step: Callable[[Facts], None] | None) -> Adapter:
    accelerator = run.trainer.accelerator
    folder = folder_of(run_key(run.data, run.model, run.loaded, run.config, run.seed))
    keeps = can_checkpoint(accelerator)
    if not keeps and accelerator.is_main_process:
        logger.warning("finetune: no checkpoints are written under DeepSpeed: a killed run starts anew")
    holds = keeps and accelerator.is_main_process
    with opened(folder, run.config.checkpoint_every) if holds else nullcontext() as checkpoints:
        _resume(run.trainer, folder, holds)
        with freed_memory_kept() if run.loaded.device.type == "cpu" else nullcontext():
            _take_steps(run.trainer, checkpoints, on_step)
        return _adapter(run)


def _resume(trainer: Trainer, folder: Path, holds: bool) -> None:
    """Take up the last whole checkpoint, if there is one."""
    accelerator = trainer.accelerator
    with accelerator.main_process_first():  # it deletes damaged ones
        found = Checkpoints(folder).latest(delete_damaged=holds)
    _require_same_step(accelerator, 0 if found is None else found[0])
    if found is None:
        return
    step, checkpoint = found
    trainer.restore(checkpoint)
    if accelerator.is_main_process:
        logger.info("finetune: going on after step %d of %d, from %s", step, trainer.num_steps, folder)


def _require_same_step(accelerator: Accelerator, step: int) -> None:
    """Raise an error in all processes if they do not go on after the same step."""
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise TrainingError(
            f"finetune: the processes would go on after different steps ({', '.join(map(str, steps))}), as "
            "they do not read the same checkpoints; let RADLOOP_HOME name one folder that all of them share"
        )


def _take_steps(
    trainer: Trainer, checkpoints: Checkpoints | None, on_step: Callable[[Facts], None] | None
) -> None:
    """Take the steps that are left; tell of those before as well."""
    state, is_first = trainer.state, trainer.accelerator.is_main_process
    tell = on_step if is_first and on_step is not None else _ignore
    for facts in state.history:
        tell(facts)
    start = time.perf_counter() - state.seconds
    saved = state.step
    with Progress(trainer.num_steps, state.step + 1, shown=is_first) as progress:
        for facts, num_samples in trainer.steps():
            state.num_samples += num_samples
            state.seconds = time.perf_counter() - start
            if is_first:
                progress.show(facts, num_samples)
            tell(facts)
            if _any(trainer, checkpoints is not None and checkpoints.due(state.step)):
                _save(trainer, checkpoints)
                saved = state.step
    if saved < state.step and _any(trainer, checkpoints is not None):
        _save(trainer, checkpoints)


def _ignore(facts: Facts) -> None:
    """Be told of a step in a process that tells nobody."""


def _any(trainer: Trainer, holds: bool) -> bool:
    """Say in all processes whether it holds in one of them."""
    return total(trainer.accelerator, [float(holds)])[0] > 0


def _save(trainer: Trainer, checkpoints: Checkpoints | None) -> None:
    """Write a checkpoint in the first process."""
    start = time.perf_counter()
    content = trainer.checkpoint()  # to which each process may have to add its part
    if checkpoints is not None:
        checkpoints.save(trainer.state.step, content, time.perf_counter() - start)


def _adapter(run: Run) -> Adapter:
    """Make the adapter of the weights to be kept, when all steps are taken."""
    kept_step = run.trainer.keep_best()
    state = run.trainer.state
    with explain_out_of_memory("after the last step, when merging was tried", run.loaded.device):
        agreement = run.trainer.forward(verify_merge, run.loaded, run.probe())
    record = run.record() | {
        "kept_step": kept_step,
        "seconds": state.seconds,
        "samples_per_s": state.num_samples / state.seconds,
        "history": state.history,
        "merge": agreement.facts(),
    }
    return Adapter.of(run.loaded, run.model, record)


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
    arranged = (*arrangement(loaded, config), seed, num_processes)
    validate = None
    if validation.num_samples:
        batches = Batches(validation, *arranged).in_order()
        validate = Validation(loaded, data, batches, source.validation(), config)
    return Trainer(loaded, config, Batches(train, *arranged), source, validate, seed)


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
