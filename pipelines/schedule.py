"""Cron expressions: a ZenML schedule where the orchestrator takes one, clear words where not."""

from __future__ import annotations

import logging
from pathlib import Path

from zenml.client import Client
from zenml.config.schedule import Schedule
from zenml.orchestrators import BaseOrchestrator

from radloop.config import RunConfig
from radloop.errors import ConfigError

logger = logging.getLogger(__name__)


def schedule_of(config: RunConfig) -> Schedule | None:
    """The config's cron expression as a ZenML schedule; None if it has none, or it cannot be kept."""
    if config.schedule is None:
        return None
    if not _orchestrator().config.is_schedulable:
        logger.warning("%s The pipeline runs once, now.", _refusal(config.schedule.cron))
        return None
    return Schedule(cron_expression=config.schedule.cron)


def register_schedule(path: Path) -> str:
    """Hand the schedule of a config to the active stack's orchestrator.

    Raises:
        ConfigError: The config has no cron expression, or the orchestrator takes no schedules.
    """
    config = RunConfig.read(path)
    if config.schedule is None:
        raise ConfigError(f"{path}: has no 'schedule: cron:' to register; for example cron: '0 3 * * 1'")
    if not _orchestrator().config.is_schedulable:
        raise ConfigError(_refusal(config.schedule.cron))
    from pipelines.train import train_pipeline

    train_pipeline.with_options(config_path=str(path))()
    return f"registered {config.schedule.cron!r} with the orchestrator {_orchestrator().name!r}"


def _refusal(cron: str) -> str:
    orchestrator = _orchestrator()
    return (
        f"the orchestrator {orchestrator.name!r} ({orchestrator.flavor}) takes no schedules. Use a stack "
        f"whose orchestrator does (kubeflow), or the system's cron: {cron} cd {Path.cwd()} && "
        ".venv/bin/radloop retrain --if-new-data"
    )


def _orchestrator() -> BaseOrchestrator:
    return Client().active_stack.orchestrator
