"""The local stack: ZenML's local orchestrator and artifact store, MLflow as tracker and registry.

`python -m stacks.local` makes it, and makes it the active stack of this repository only.
"""

from __future__ import annotations

import os

import mlflow
from zenml.client import Client
from zenml.enums import StackComponentType

from radloop import registry

NAME = "radloop-local"


def setup() -> None:
    """Register what is missing; leave all else as it is."""
    client = Client()
    uri = os.environ["MLFLOW_TRACKING_URI"]
    components = {
        StackComponentType.ORCHESTRATOR: "default",
        StackComponentType.ARTIFACT_STORE: "default",
        StackComponentType.EXPERIMENT_TRACKER: _component(
            StackComponentType.EXPERIMENT_TRACKER, {"tracking_uri": uri}
        ),
        StackComponentType.MODEL_REGISTRY: _component(StackComponentType.MODEL_REGISTRY, {}),
    }
    if not client.list_stacks(name=NAME).total:
        client.create_stack(NAME, components)
    client.activate_stack(NAME)
    registry.experiment("train_pipeline")


def _component(kind: StackComponentType, configuration: dict[str, str]) -> str:
    name = "radloop-mlflow"
    client = Client()
    if not client.list_stack_components(name=name, type=kind).total:
        client.create_stack_component(name, flavor="mlflow", component_type=kind, configuration=configuration)
    return name


if __name__ == "__main__":
    setup()
    print(f"active ZenML stack: {NAME}; MLflow {mlflow.__version__} at {os.environ['MLFLOW_TRACKING_URI']}")
