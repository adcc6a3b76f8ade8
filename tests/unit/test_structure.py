"""The rules of the layout, held by looking at the imports and the registries."""

import ast
from pathlib import Path

import pytest

from radloop import models
from radloop.data import adapters
from radloop.evaluation import metrics
from radloop.judging import judges

ROOT = Path(__file__).parents[2]
LAYERS = {
    "radloop": {"radloop"},
    "deployment": {"radloop", "deployment"},
    "materializers": {"radloop", "materializers"},
    "steps": {"radloop", "materializers", "steps"},
    "pipelines": {"radloop", "steps", "pipelines"},
    "stacks": {"radloop", "stacks"},
}
FRONTS = {"radloop/cli.py"}  # starts all else, and imports it where a command needs it
ORCHESTRATION = {"zenml", "bentoml", "gradio"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_flow_one_way(layer: str) -> None:
    files = [path for path in (ROOT / layer).rglob("*.py") if str(path.relative_to(ROOT)) not in FRONTS]
    assert files
    for path in files:
        upward = {name.split(".")[0] for name in imports(path)} & set(LAYERS) - LAYERS[layer]
        assert not upward, f"{path.relative_to(ROOT)} imports {upward}"


def test_training_needs_no_orchestration() -> None:
    for part in ("data", "models", "training", "inference", "evaluation", "judging"):
        for path in (ROOT / "radloop" / part).rglob("*.py"):
            roots = {name.split(".")[0] for name in imports(path)}
            assert not roots & (ORCHESTRATION | {"mlflow"}), path


REGISTRIES = {
    "radloop/data/adapters": adapters.REGISTRY,
    "radloop/evaluation/metrics": metrics.REGISTRY,
    "radloop/judging/judges": judges.REGISTRY,
}


@pytest.mark.parametrize("folder", REGISTRIES)
def test_each_file_of_a_registry_folder_has_its_line(folder: str) -> None:
    listed = {target.split(":")[0].split(".")[-1] for target in REGISTRIES[folder].values()}
    files = {path.stem for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("_")}
    assert files == listed


@pytest.mark.parametrize("target", [t for r in [*REGISTRIES.values(), models.REGISTRY] for t in r.values()])
def test_each_line_of_a_registry_resolves(target: str) -> None:
    module, name = target.split(":")
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    assert name in {getattr(node, "name", None) for node in tree.body}


def test_nothing_reads_or_writes_pickle() -> None:
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("*.py"):
            assert not imports(path) & {"pickle", "cloudpickle", "dill", "joblib"}, path
            assert "trust_remote_code=True" not in path.read_text(), path
