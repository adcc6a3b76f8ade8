"""What steps tell MLflow and ZenML beside their outputs."""

from __future__ import annotations

import io
import time

import mlflow
from mlflow.entities import Metric
from PIL import Image
from zenml import get_step_context, log_metadata

from radloop.artifact import Artifact

_BATCH = 200  # MLflow writes a batch in one transaction: per-step writes would slow the loop


class StepMetrics:
    """Collects the metrics of training steps and sends them to the active MLflow run in batches."""

    def __init__(self) -> None:
        self._pending: list[Metric] = []

    def __enter__(self) -> StepMetrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()

    def log(self, values: dict[str, float]) -> None:
        """Note the values of the optimiser step `values["step"]`, which need not follow the last one."""
        now, step = int(time.time() * 1000), int(values["step"])
        self._pending += [Metric(key, float(value), now, step) for key, value in values.items()]
        if len(self._pending) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        run = mlflow.active_run()
        if run and self._pending:
            mlflow.MlflowClient().log_batch(run.info.run_id, metrics=self._pending)
        self._pending = []

    @staticmethod
    def as_image(content: str | bytes, name: str) -> tuple[Image.Image, str]:
        """PNG bytes as MLflow takes an image."""
        assert isinstance(content, bytes)
        return Image.open(io.BytesIO(content)), name


def log_facts(artifact: Artifact) -> None:
    """Show an artifact's facts on the step that made it."""
    log_metadata(dict(artifact.facts()))


def run_names() -> dict[str, str]:
    """Tags that lead from a registered version to the run that made it."""
    run = get_step_context().pipeline_run
    return {"zenml_run": run.name, "zenml_run_id": str(run.id)}
