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
    Packing and the size of forward passes change no more than the last digits of it, but for what is
    random: dropout and NEFTune draw other numbers.

    A run that was killed goes on from its last checkpoint when it is started again with the same
    arguments, to the same adapter, bit for bit; one that has ended is made again from its last step without
    training. See `radloop.training.checkpoints`.

    Args:
        data: Images, and samples with the splits train and, if there is one, validation.
        model: The base.
        config: Rank, rates, epochs, ...
        seed: Of the LoRA initialisation, dropout, augmentation and the order of images, >= 0.
        on_step: Called after each optimiser step, and when a run goes on first for each of its earlier
            steps, with `step` (from 1), `epoch` (epochs done), `loss`
            (weighted as `config.loss` says), `learning_rate`, `grad_norm` (before clipping; a step
            that fp16 had to skip has `skipped` in its place),
            `samples_per_s`, `tokens_per_s` (without padding), `memory_mb` (the peak so far: PyTorch's on
            a GPU, the whole process' on a CPU), and, after steps with a validation, `validation_loss`
            and maybe `exact_match`.

    Raises:
        ConfigError: Settings that cannot work with each other, this family or this machine, such as
            `config.targets` with a group of layers that the family does not have.
        DataError: No sample to train on, or one that has no room for an answer.
        ModelError: The base cannot be loaded, or its chat template cannot be cut into a shared prefix.
        TrainingError: The loss or its gradient is not a finite number, memory or the disk ran out, a process
            of `config.launch` failed, or another process is training the very same.
    """
    from radloop.training import job, loop  # torch, transformers and peft take seconds to import

    if config.launch is not None:
        return job.launch(data, model, config, seed, on_step)
    return loop.finetune(data, model, config, seed, on_step)
