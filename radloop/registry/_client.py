"""The way to MLflow: quiet, and with failures that say what to do."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from radloop import workspace
from radloop.errors import RegistryError


@contextlib.contextmanager
def connect() -> Iterator[mlflow.MlflowClient]:
    """Hand out a client; keep MLflow's chatter off the terminal, and its failures readable."""
    noisy = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in noisy]
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        _check_writable()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield mlflow.MlflowClient()
    except (MlflowException, SQLAlchemyError, OSError) as error:
        first = str(error).splitlines()[0]
        message = (
            f"the MLflow registry at {mlflow.get_registry_uri()} failed: {first}; "
            "check that it can be reached, and RADLOOP_HOME written"
        )
        raise RegistryError(re.sub(r"//[^@/\s]+@", "//***@", message)) from error
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


def experiment(name: str) -> str:
    """Return the id of the MLflow experiment of that name, created if need be.

    MLflow keeps the files of an experiment in the current folder unless told otherwise; this one
    keeps them beside the project's other state.
    """
    with connect() as client:
        return find_experiment(client, name)


def find_experiment(client: mlflow.MlflowClient, name: str) -> str:
    """Do as `experiment`, with a client at hand."""
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    folder = workspace.home() / "mlartifacts" / name
    return str(client.create_experiment(name, artifact_location=folder.as_uri()))


def _check_writable() -> None:
    """Refuse at once where MLflow would try ten times over minutes to open its database."""
    uri = mlflow.get_registry_uri()
    if not uri.startswith("sqlite:///"):
        return
    file = Path(uri.removeprefix("sqlite:///"))
    file.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise PermissionError(13, "no write permission", str(file))
