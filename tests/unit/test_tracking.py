"""The curves that MLflow gets of a run."""

from pathlib import Path

import mlflow
import pytest

from steps._tracking import StepMetrics


def test_values_are_of_the_step_that_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a run that goes on after step 6, which does not begin at 1 again."""
    monkeypatch.setattr("steps._tracking._BATCH", 3)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    try:
        experiment = mlflow.create_experiment("curves")
        with mlflow.start_run(experiment_id=experiment) as run, StepMetrics() as metrics:
            for step in (7, 8, 9):
                metrics.log({"step": float(step), "loss": 10.0 - step})
        found = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    finally:
        mlflow.set_tracking_uri(None)
    assert [(metric.step, metric.value) for metric in found] == [(7, 3.0), (8, 2.0), (9, 1.0)]
