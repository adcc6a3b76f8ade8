"""Errors that the user can mend. Everything else is a defect of radloop and keeps its traceback."""

from __future__ import annotations

import click


class RadloopError(click.ClickException):
    """Something the user gave is wrong: says what was got, what is allowed, what to do.

    A `ClickException`, so that both the `radloop` and the `zenml` command print its message in
    one piece, without a traceback, and exit with a non-zero code.
    """

    exit_code = 2

    def __str__(self) -> str:
        return self.message


class ConfigError(RadloopError):
    """The run config cannot be used; the message lists every fault at once."""


class DataError(RadloopError):
    """A source cannot be read, or holds more defects than the config's thresholds allow."""


class ModelError(RadloopError):
    """A base model or adapter cannot be loaded or is not what its hash says."""


class TrainingError(RadloopError):
    """The optimisation failed; there is no adapter, but checkpoints of earlier steps stay."""


class RegistryError(RadloopError):
    """The model registry lacks what was asked of it, or cannot be reached."""


class JudgeError(RadloopError):
    """The judge's endpoint cannot be reached or answers outside its protocol."""
