"""A ZenML pipeline whose run config is checked before anything starts."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from zenml import Model
from zenml.client import Client
from zenml.config.pipeline_run_configuration import PipelineRunConfiguration
from zenml.integrations.mlflow.experiment_trackers import MLFlowExperimentTracker
from zenml.pipelines.pipeline_definition import Pipeline

from pipelines.schedule import schedule_hint
from radloop import workspace
from radloop.config import DEFAULT_CONFIG, RunConfig
from radloop.errors import ConfigError, RadloopError

logger = logging.getLogger(__name__)


class CheckedPipeline(Pipeline):
    """Takes `zenml_config.yaml` where no config is named, and reports every fault of it at once.

    ZenML by itself would ignore unknown keys at the top of the file, merge two files' parameters,
    and answer a wrong value with a traceback that leaves the field's name out.
    """

    def with_options(self, config_path: str | None = None, **options: Any) -> Self:  # type: ignore[override]
        """See `Pipeline.with_options`; `config_path` defaults to `zenml_config.yaml`."""
        path = Path(config_path or DEFAULT_CONFIG)
        config = RunConfig.read(path)
        options.setdefault("model", Model(name=config.model_name))
        if config.schedule and "schedule" not in options:
            logger.info("%s", schedule_hint(path, config.schedule.cron))
        try:
            PipelineRunConfiguration.from_yaml(str(path))
        except ValueError as error:
            raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
        return super().with_options(config_path=str(path), **options)  # type: ignore[return-value]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run, unless another run of this project is under way on this machine."""
        if self.configuration.parameters is None:
            return self.with_options()(*args, **kwargs)
        _use_mlflow_of_the_stack()
        with _one_at_a_time(), _quiet_logs():
            run = super().__call__(*args, **kwargs)
        _use_mlflow_of_the_stack()  # ZenML takes it back at the end of each step
        return run


def _use_mlflow_of_the_stack() -> None:
    """The champion that a run has to beat is looked up where its steps will register."""
    tracker = Client().active_stack.experiment_tracker
    if not isinstance(tracker, MLFlowExperimentTracker):
        raise ConfigError(
            f"the active ZenML stack {Client().active_stack.name!r} has no MLflow experiment tracker; "
            "`make setup` makes the stack 'radloop-local', `zenml stack set radloop-local` chooses it"
        )
    tracker.configure_mlflow()


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Hold the project's run lock: two runs would race for the champion's place.

    The lock goes with the process, so that a killed run leaves none behind.
    """
    workspace.require_writable()
    lock = (workspace.home() / "run.lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RadloopError(
                "another run of this project is under way on this machine; wait for it, or stop it first"
            ) from None
        yield


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Keep out of the log what helps nobody, first the traceback of an error that is explained anyway."""

    def explained(record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], RadloopError):
            record.exc_info = None
        return True

    logger = logging.getLogger("zenml.orchestrators.local.local_orchestrator")
    logger.addFilter(explained)
    tracker = logging.getLogger("zenml.integrations.mlflow.experiment_trackers.mlflow_experiment_tracker")
    level = tracker.level
    tracker.setLevel(logging.ERROR)  # it warns about frameworks that are not installed
    try:
        yield
    finally:
        logger.removeFilter(explained)
        tracker.setLevel(level)
