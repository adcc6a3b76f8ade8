"""The optimisers: AdamW, with its state in 32 or 8 bits, in the GPU's memory or paged out of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from radloop.config import FinetuneConfig
from radloop.errors import ConfigError

_BITSANDBYTES = {"adamw_8bit": "AdamW8bit", "paged_adamw": "PagedAdamW", "paged_adamw_8bit": "PagedAdamW8bit"}
logger = logging.getLogger(__name__)


def make_optimizer(config: FinetuneConfig, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser of `config.optimizer`.

    Paged ones move their state to the CPU's memory when a GPU's is full; on a CPU there is nothing to
    move, so they are what they are without. 8 bits hold the state of tensors of 4,096 numbers or more;
    smaller ones, as most of a tiny model's LoRA layers are, keep 32.

    Raises:
        ConfigError: bitsandbytes is needed and not installed.
    """
    name = config.optimizer
    on_cpu = parameters[0].device.type == "cpu"
    if on_cpu and name.startswith("paged_"):
        name = "adamw" if name == "paged_adamw" else "adamw_8bit"
        logger.warning(
            "finetune.optimizer: %s has no GPU memory to page here, %s is used", config.optimizer, name
        )
    options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if name == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    try:
        optimizers: Any = import_module("bitsandbytes.optim")
    except ImportError:
        raise ConfigError(
            f"finetune.optimizer: {config.optimizer} needs bitsandbytes; run "
            "pip install 'radloop[quantized]', or use adamw"
        ) from None
    made: torch.optim.Optimizer = getattr(optimizers, _BITSANDBYTES[name])(parameters, **options)
    return made
