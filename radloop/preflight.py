"""What can be known before training: it is said before training."""

from __future__ import annotations

from radloop.config import JudgeConfig
from radloop.judging.judges import get_judge


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
