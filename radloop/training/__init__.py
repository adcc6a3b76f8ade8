"""LoRA fine-tuning on a plain accelerate loop, with every image read once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from radloop.config import FinetuneConfig, ModelConfig

if TYPE_CHECKING:
    from radloop.data.prepared import PreparedData
    from radloop.training.adapter import Adapter


def finetune(
    data: PreparedData,
    model: ModelConfig,
    config: FinetuneConfig,
    seed: int,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> Adapter:
    """Train LoRA layers on the train split; the base itself, its vision tower included, stays as it is.

    Same arguments, same library versions and number of threads: the same adapter, bit for bit, on a CPU.

    Args:
        data: Images, and samples with the splits train and, if there is one, validation.
        model: The base.
        config: Rank, rates, epochs, ...
        seed: Of the LoRA initialisation, dropout and the order of images, >= 0.
        on_step: Called after each optimiser step with `step` (from 1), `loss` (mean over the step's
            answer tokens), `learning_rate`, `grad_norm` (before clipping), `samples_per_s`, and, after
            the last step of an epoch, `validation_loss`.

    Raises:
        ConfigError: `config.targets` names a group of layers that the family does not have.
        DataError: No sample to train on, several images in one sample, or a sample too long.
        ModelError: The base cannot be loaded, or its chat template cannot be cut into a shared prefix.
        TrainingError: The loss is not a finite number.
    """
    from radloop.training import loop  # torch, transformers and peft take seconds to import

    return loop.finetune(data, model, config, seed, on_step)
