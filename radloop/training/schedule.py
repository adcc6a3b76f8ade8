"""How many steps a run has, and the learning rate of each."""

from __future__ import annotations

import math
from fractions import Fraction

from radloop.config import FinetuneConfig
from radloop.errors import ConfigError


def count_steps(config: FinetuneConfig, steps_per_epoch: int) -> int:
    """Return the number of optimiser steps of a run; half a step counts as one.

    Raises:
        ConfigError: The warm-up is longer than the run.
    """
    of_epochs = math.floor(_exact(config.epochs) * steps_per_epoch + Fraction(1, 2))
    num_steps = config.max_steps or max(1, of_epochs)
    if (config.warmup_steps or 0) > num_steps:
        raise ConfigError(
            f"finetune.warmup_steps: got {config.warmup_steps}, but the run has {num_steps} steps and would "
            "never reach its learning rate; lower it"
        )
    return num_steps


def rate_factor(step: int, num_steps: int, config: FinetuneConfig) -> float:
    """Return the share of the learning rate at `step` (from 1): a linear rise, then the schedule's fall."""
    share = math.ceil(_exact(config.warmup) * num_steps)
    rise = share if config.warmup_steps is None else config.warmup_steps
    if step <= rise:
        return step / rise
    done = (step - 1 - rise) / (num_steps - rise)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if config.schedule == "linear" else 1.0


def _exact(number: float) -> Fraction:
    """Return a number as the config has it: as a float, 0.07 of 100 steps would be more than 7."""
    return Fraction(str(number))
