"""What can be known before training: it is said before training."""

from __future__ import annotations

from importlib.util import find_spec

from radloop import models
from radloop.config import JudgeConfig, RunConfig
from radloop.errors import ConfigError, RadloopError
from radloop.judging.judges import get_judge


def base(config: RunConfig) -> str:
    """Find the base model, and the layers that LoRA is to train in it.

    Returns:
        The SHA-256 of its weights: another base under the same name is another input.

    Raises:
        ModelError: There is no such base, or it cannot be used.
        ConfigError: The family has no such group of layers.
    """
    known = models.get_family(config.model.family).targets
    if unknown := [name for name in config.finetune.targets if name not in known]:
        raise ConfigError(
            f"finetune.targets: unknown {', '.join(map(repr, unknown))}; known: {', '.join(known)}"
        )
    return models.find(config.model)[1].sha256


def judge(config: JudgeConfig) -> str:
    """Ask the config's judge one question, so that a run does not find out after its training.

    Returns:
        The judge's name, with model and host where it has them.

    Raises:
        JudgeError: It cannot be set up or reached.
    """
    found = get_judge(config.judge)
    found.compare("Is this a chest radiograph?", ("yes",), "yes", "no")
    return found.name


def packages() -> None:
    """Make sure that what the last step needs is installed.

    Raises:
        RadloopError: It is not; the message has the command that installs it.
    """
    if find_spec("bentoml") is None:
        raise RadloopError("BentoML is not installed; pip install 'radloop[serve]'")
