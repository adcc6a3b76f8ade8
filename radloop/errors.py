"""Errors that the user can mend. Everything else is a defect of radloop and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import click

_SIMILARITY = 0.54  # of letters, 0 ... 1: 'fp16' is meant by 'float16', but 'projector' not by 'q_proj'


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


class OutOfMemory(RadloopError):
    """The device has too little memory for a model or a run."""


class RegistryError(RadloopError):
    """The model registry lacks what was asked of it, or cannot be reached."""


class JudgeError(RadloopError):
    """The judge's endpoint cannot be reached or answers outside its protocol."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that there is no `kind` of this name, which ones there are, and which may have been meant."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=_SIMILARITY)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    separator = "; " if any("," in item for item in names) else ", "
    return f"unknown {kind} {name!r}; known: {separator.join(names)}{hint}"
