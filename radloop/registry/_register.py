"""New versions."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

import radloop
from radloop.answering import AnswerConfig, requirements
from radloop.registry._client import connect, find_experiment
from radloop.registry._versions import CHALLENGER, SPLIT_FILE, Version, find, get, set_tags

if TYPE_CHECKING:
    from radloop.training.adapter import Adapter

_IDENTITY = ("adapter_sha256", "fingerprint", "recipe", "incumbent")
_PYFUNC = Path(radloop.__file__).parent.parent / "deployment" / "mlflow_model.py"
_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.binary, "image"), ColSpec(DataType.string, "question")]),
    outputs=Schema([ColSpec(DataType.string)]),
)


def register(
    model_name: str,
    adapter: Path,
    answering: AnswerConfig,
    *,
    tags: dict[str, str],
    metrics: dict[str, Any],
    split: dict[str, str] | None = None,
    run_id: str | None = None,
) -> Version:
    """Register an adapter as a new version with the alias `challenger`.

    The same adapter of the same data and recipe is registered once: a second call returns the
    version that is there.

    Args:
        model_name: Of the registered model; created if it does not exist.
        adapter: Folder of what was trained, as `Adapter` saves it.
        answering: How the adapter is to be asked.
        tags: What made it; `fingerprint`, `recipe` and `incumbent` belong to its identity.
        metrics: Scores, kept on the version so that one look-up lists them all.
        split: Split by key of picture or person, for the next run to keep; see `split_of`.
        run_id: MLflow run that trained it; None keeps the version without one.

    Raises:
        ModelError: The folder is not that of an adapter, or of one that cannot be merged into its base.
        RegistryError: The registry cannot be reached or written.
    """
    from radloop.training.adapter import Adapter  # its import takes seconds, which readers need not wait
    from radloop.training.merging import require_agreement

    trained = Adapter.load(adapter)
    require_agreement(trained)
    tags = {**tags, "adapter_sha256": trained.sha256, "radloop": radloop.__version__}
    with connect() as client:
        for known in find(client, model_name):
            if all(known.tags.get(key) == tags.get(key) for key in _IDENTITY):
                if "promoted" not in known.tags:  # the run that made it was killed before it could decide
                    client.set_registered_model_alias(model_name, CHALLENGER, str(known.version))
                return get(client, model_name, known.version)
        model = _log_model(model_name, trained, answering, split or {}, run_id)
        tags["metrics"] = json.dumps(metrics, sort_keys=True)
        _create_model(client, model_name)
        created = client.create_model_version(
            model_name, f"models:/{model}", run_id, tags=tags, model_id=model
        )
        client.set_registered_model_alias(model_name, CHALLENGER, created.version)
        return get(client, model_name, int(created.version))


def set_bento(model_name: str, number: int, bento: str) -> None:
    """Note on a version which Bento holds it."""
    with connect() as client:
        get(client, model_name, number)
        set_tags(client, model_name, number, bento=bento)


def _log_model(
    model_name: str, adapter: Adapter, answering: AnswerConfig, split: dict[str, str], run_id: str | None
) -> str:
    """Log the pyfunc with its adapter, and return the id of the logged model."""
    client = mlflow.MlflowClient()
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch) / "adapter"
        files.mkdir()
        adapter.save(files)
        answering.write(files)
        # Beside the adapter, not in it: what is packaged for others must not list the samples.
        (Path(scratch) / SPLIT_FILE).write_text(json.dumps(split))
        code = shutil.copytree(
            Path(radloop.__file__).parent,
            Path(scratch) / "radloop",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        with _run(client, model_name, run_id):
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(_PYFUNC),
                artifacts={"adapter": str(files), "split": str(Path(scratch) / SPLIT_FILE)},
                code_paths=[str(code)],
                signature=_SIGNATURE,
                pip_requirements=requirements("pandas"),
            )
    return str(logged.model_id)


def _create_model(client: mlflow.MlflowClient, model_name: str) -> None:
    try:
        client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _run(
    client: mlflow.MlflowClient, model_name: str, run_id: str | None
) -> contextlib.AbstractContextManager[Any]:
    """Make the files of a model belong to a run, or to the model's experiment if there is none."""
    active = mlflow.active_run()
    if run_id is not None and (active is None or active.info.run_id != run_id):
        return mlflow.start_run(run_id=run_id, nested=active is not None)
    if active is None:
        mlflow.set_experiment(experiment_id=find_experiment(client, model_name))
    return contextlib.nullcontext()
