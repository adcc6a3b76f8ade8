"""A project of its own for the end-to-end tests: copied sources, its own state, nothing of the user's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from radloop import workspace

ROOT = Path(__file__).parents[2]
SOURCES = ("radloop", "steps", "pipelines", "materializers", "deployment", "stacks", "configs")
FILES = ("train_pipeline.py", "zenml_config.yaml")


@dataclass(frozen=True)
class Project:
    """A checkout in a temporary folder, with its ZenML repository and state."""

    root: Path
    home: Path

    @property
    def env(self) -> dict[str, str]:
        clean = {
            k: v for k, v in os.environ.items() if not k.startswith(("ZENML", "MLFLOW", "BENTOML", "OPENAI"))
        }
        return clean | workspace.variables(self.home) | {"PYTHONPATH": str(self.root), "COLUMNS": "200"}

    def command(self, name: str, *arguments: str) -> list[str]:
        return [str(Path(sys.executable).parent / name), *arguments]

    def run(
        self, name: str, *arguments: str, check: bool = True, **env: str
    ) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            self.command(name, *arguments),
            cwd=self.root,
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=580,
        )
        if check:
            assert result.returncode == 0, (
                f"{name} {arguments}\n{result.stdout[-4000:]}\n{result.stderr[-8000:]}"
            )
        return result

    def config(self, name: str, **changes: Any) -> str:
        """Write a small run config, with `section={...}` merged into the sections."""
        values: dict[str, Any] = {
            "model_name": "small",
            "data": {
                "adapter": "phantoms",
                "options": {"train_images": 24, "validation_images": 4, "test_images": 12, "seed": 501},
            },
            "preprocess": {"split": "official"},
            "finetune": {"epochs": 1},
        }
        for key, value in changes.items():
            values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"parameters": {"config": values}}))
        return path.name


def make_project(root: Path) -> Project:
    for name in SOURCES:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, root / name)
    project = Project(root, root / ".radloop")
    project.home.mkdir()
    project.run("zenml", "init")
    project.run("python", "-m", "stacks.local")
    return project
