"""Cron expressions: a ZenML schedule where the orchestrator takes one, clear words where not."""

from __future__ import annotations

from pathlib import Path

from zenml.client import Client
from zenml.config.schedule import Schedule

from radloop.config import RunConfig
from radloop.errors import ConfigError


def register_schedule(path: Path) -> str:
    """Hand the cron expression of a config to the active stack's orchestrator.

    Raises:
        ConfigError: The config has no cron expression, or the orchestrator takes no schedules.
    """
    config = RunConfig.read(path)
    if config.schedule is None:
        raise ConfigError(f"{path}: has no 'schedule: cron:' to register; for example cron: '0 3 * * 1'")
    if not Client().active_stack.orchestrator.config.is_schedulable:
        raise ConfigError(schedule_hint(path, config.schedule.cron))
    from pipelines.train import train_pipeline

    schedule = Schedule(cron_expression=config.schedule.cron)
    train_pipeline.with_options(config_path=str(path), schedule=schedule)()
    return (
        f"registered {config.schedule.cron!r} with the orchestrator of stack {Client().active_stack.name!r}"
    )


def schedule_hint(path: Path, cron: str) -> str:
    """How the cron expression of a config comes into force on the active stack."""
    orchestrator = Client().active_stack.orchestrator
    if orchestrator.config.is_schedulable:
        return (
            f"{path} has a schedule ({cron}); `radloop schedule -c {path}` registers it. This run is for now."
        )
    return (
        f"{path} has a schedule ({cron}), but the orchestrator {orchestrator.name!r} ({orchestrator.flavor}) "
        "takes none. Use a stack whose orchestrator does (kubeflow), or the system's cron:\n"
        f"{cron} cd {Path.cwd()} && .venv/bin/radloop retrain --if-new-data -c {path}"
    )
