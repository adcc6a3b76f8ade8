"""The optimiser steps of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from radloop.config import FinetuneConfig
from radloop.errors import TrainingError
from radloop.models.loading import Loaded
from radloop.models.packing import Row
from radloop.training.batching import Batches, StepBatch, pass_size
from radloop.training.faults import (
    explain_out_of_memory,
    less_memory,
    not_finite,
    peak_memory_mb,
    reset_peak_memory,
)
from radloop.training.losses import summed_loss
from radloop.training.noise import EmbeddingNoise
from radloop.training.optimizers import make_optimizer
from radloop.training.pictures import FeatureSource
from radloop.training.processes import make_accelerator, prepare, steps_itself, total, whole
from radloop.training.schedule import count_steps, rate_factor
from radloop.training.state import Facts, State, restore_optimizer, restore_weights, trained_weights
from radloop.training.validation import Validation

_SMALLEST_SCALE = 1.0  # of fp16 losses: gradients that overflow at this are not an accident


class Trainer:
    """Takes the steps of a run one by one.

    What a run goes on from is in the weights, the optimiser, the scaler of fp16 losses and `state`. What
    else it changes is set anew for each step: torch's global random numbers, gradients, learning rates.
    """

    def __init__(
        self,
        loaded: Loaded,
        config: FinetuneConfig,
        batches: Batches,
        source: FeatureSource,
        validation: Validation | None,
        seed: int,
    ) -> None:
        """Set up optimiser and schedule; the model's LoRA layers are trained in place.

        Raises:
            ConfigError: See `make_optimizer` and `count_steps`.
        """
        self._loaded, self._config, self._seed = loaded, config, seed
        self._batches, self._source, self._validation = batches, source, validation
        self.num_steps = count_steps(config, batches.steps_per_epoch)
        self.state = State()
        self.accelerator = make_accelerator(loaded)
        self.forward, self.optimizer = prepare(
            self.accelerator, loaded.model, partial(make_optimizer, config), config.max_grad_norm
        )
        self._trained = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
        self._explained = partial(
            explain_out_of_memory, device=loaded.device, advice=less_memory(loaded, config)
        )
        self._noise = EmbeddingNoise(loaded.base_model, config.neftune_alpha)
        if config.gradient_checkpointing:
            loaded.base_model.activation_checkpointing_enable({"use_reentrant": False})
        reset_peak_memory(loaded.device)

    def steps(self) -> Iterator[tuple[Facts, int]]:
        """Take the steps that are left; yield the facts of each and its number of samples."""
        self._loaded.model.train()
        while self.state.step < self.num_steps and not self.state.is_out_of_patience(self._config):
            yield self._step(self.state.step + 1)

    def keep_best(self) -> int:
        """Put the weights to be kept into the model and return the step that they are of."""
        best = self.state.best
        if best is None or best.weights is None:
            return self.state.step
        restore_weights(self._loaded.model, best.weights)
        return best.step

    def checkpoint(self) -> dict[str, Any]:
        """Return all that a run needs to go on from here; every process has to ask for it."""
        scaler = self.accelerator.scaler
        return {
            "weights": trained_weights(self._loaded.model),
            "optimizer": whole(self.optimizer.state_dict()),
            "scaler": None if scaler is None else scaler.state_dict(),
            "state": self.state.content(),
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Go on from what `checkpoint` returned."""
        restore_weights(self._loaded.model, checkpoint["weights"])
        restore_optimizer(self.optimizer, checkpoint["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint["scaler"])
        self.state = State.of(checkpoint["state"])

    def _step(self, step: int) -> tuple[Facts, int]:
        start = time.perf_counter()
        where = f"at step {step} of {self.num_steps}"
        _set_seed(step_seed(self._seed, step, self.accelerator.process_index))
        batch = self._batches.of(step)
        rate = self._config.learning_rate * rate_factor(step, self.num_steps, self._config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self._add_gradients(step, batch, where)
        (loss,) = total(self.accelerator, [losses.sum().item()])
        trying = f"{where} (learning rate {rate:.2g})"
        if not math.isfinite(loss):
            samples = self._faulty_samples(step, batch, losses)
            raise not_finite("the loss", loss, trying, samples, self._config, of_base=step == 1)
        update = self._update(batch, trying)
        seconds = time.perf_counter() - start
        facts = {
            "step": step,
            "epoch": step / self._batches.steps_per_epoch,
            "loss": loss,
            "learning_rate": rate,
            **update,
            "samples_per_s": batch.num_samples / seconds,
            "tokens_per_s": batch.num_tokens / seconds,
            "memory_mb": peak_memory_mb(self._loaded.device),
        }
        self.state.step = step
        if self._validation is not None and self._is_due(step):
            facts |= self._validate(self._validation, where)
        self.state.history.append(facts)
        return facts, batch.num_samples

    def _add_gradients(self, step: int, batch: StepBatch, where: str) -> torch.Tensor:
        """Add up the gradients of the step's loss, and return what each pass of this process adds to it."""
        features = self._source.training(self._batches.epoch_of(step))
        accelerator, weighting = self.accelerator, self._config.loss
        weight = batch.total_weight(weighting)
        passes = batch.passes_of(accelerator.process_index)
        losses = []
        for number, (rows, counts) in enumerate(passes, start=1):
            is_last = accelerator.sync_gradients = number == len(passes)  # DeepSpeed takes its step then
            meet = nullcontext() if is_last else accelerator.no_sync(self.forward)
            with meet, self._explained(f"{where}, in a pass of {pass_size(rows)}"):
                with accelerator.autocast(), self._noise.on(rows):
                    loss = (
                        self.forward(summed_loss, self._loaded, features, rows, weighting) * counts / weight
                    )
                # The processes' gradients are averaged where they are to be added.
                accelerator.backward(loss * accelerator.num_processes)
            losses.append(loss.detach())
        return torch.stack(losses)

    def _faulty_samples(self, step: int, batch: StepBatch, losses: torch.Tensor) -> list[str]:
        """Return the ids of the samples whose loss is no finite number, as far as it can be told.

        Args:
            step: From 1.
            batch: Of the step.
            losses: Of the passes of this process; only now do the others hear of them.
        """
        accelerator = self.accelerator
        shares = [batch.passes_of(process) for process in range(accelerator.num_processes)]
        faults = [[0.0] * len(share) for share in shares]
        faults[accelerator.process_index] = (~losses.isfinite()).float().tolist()
        faulty = total(accelerator, [fault for share in faults for fault in share])
        passes = [rows for share in shares for rows, _ in share]
        rows = [row for found, fault in zip(passes, faulty, strict=True) if fault for row in found]
        if accelerator.num_processes == 1:
            rows = self._narrowed(step, rows)
        # A pass that does not count is another's as well; a sum may overflow without any of them.
        return list(dict.fromkeys(batch.sample_ids(rows or batch.rows)))

    def _narrowed(self, step: int, rows: list[Row]) -> list[Row]:
        """Return the groups whose loss is no finite number when they are alone; all if there is none."""
        features = self._source.training(self._batches.epoch_of(step))
        alone: list[Row] = [(group,) for row in rows for group in row]
        try:
            with torch.no_grad(), self.accelerator.autocast():
                losses = [
                    summed_loss(self._loaded, features, [row], self._config.loss).item() for row in alone
                ]
        except RuntimeError:  # such as out of memory: the first fault is the one to be told
            return rows
        return [row for row, loss in zip(alone, losses, strict=True) if not math.isfinite(loss)] or rows

    def _update(self, batch: StepBatch, where: str) -> Facts:
        """Take the optimiser's step; return the norm of the gradient before clipping, or that it is left out.

        In fp16 a gradient may overflow, after which the losses are scaled down.
        """
        if steps_itself(self.accelerator) and self.optimizer.step_was_skipped:
            return {"skipped": 1.0}
        norm = float(whole(self.accelerator.clip_grad_norm_(self._trained, self._config.max_grad_norm)))
        is_finite, scaler = math.isfinite(norm), self.accelerator.scaler
        if not is_finite and (scaler is None or scaler.get_scale() <= _SMALLEST_SCALE):
            samples = batch.sample_ids(batch.rows)
            raise not_finite("the gradient norm", norm, where, samples, self._config, of_base=False)
        with self._explained(where):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": norm} if is_finite else {"skipped": 1.0}

    def _is_due(self, step: int) -> bool:
        every = self._config.validate_every or self._batches.steps_per_epoch
        return step % every == 0 or step == self.num_steps

    def _validate(self, validation: Validation, where: str) -> Facts:
        with self._explained(f"{where}, in validation"):
            facts = validation.measure(self.accelerator, self.forward)
        if not np.isfinite(facts["validation_loss"]):
            raise TrainingError(
                f"finetune: the validation loss is {facts['validation_loss']} {where}; lower "
                "finetune.learning_rate. Checkpoints written before are kept"
            )
        self.state.judge(facts, self._loaded.model, self._config)
        return facts


def _set_seed(seed: int) -> None:
    if torch.cuda.is_available():
        torch.manual_seed(seed)
    else:  # where CUDA is not started the above records a stack trace, in case it will be
        torch.default_generator.manual_seed(seed)


def step_seed(seed: int, step: int, process: int = 0) -> int:
    """Return a seed for what a step draws in a process, the same however the run came to it."""
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0] >> 1)
