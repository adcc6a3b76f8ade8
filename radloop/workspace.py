"""Where a project keeps its state: below its own folder, never in the user's other projects.

ZenML, MLflow and BentoML keep their state in the user's home directory unless environment
variables say otherwise. `python -m radloop.workspace install` writes those variables into the
project's virtual environment (a `.pth` file, read at the start of every Python process there), so
that `zenml`, `mlflow`, `bentoml` and `radloop` typed in that environment all mean this project.
"""

from __future__ import annotations

import os
import re
import site
import sys
import tempfile
from pathlib import Path

from radloop.errors import ConfigError, RadloopError

FOREIGN = ("ZENML_STORE_", "ZENML_ACTIVE_", "ZENML_LOCAL_STORES_PATH", "ZENML_REPOSITORY_PATH")
DEFAULTS = {"RADLOOP_DATA": "../shared/data"}  # environment variables of configs that have a default


def home() -> Path:
    """The project's state folder: RADLOOP_HOME, or `.radloop` in the current folder."""
    return Path(os.environ.get("RADLOOP_HOME", ".radloop")).absolute()


def require_writable() -> None:
    """Make sure that the state folder can be written, before any tool trips over it.

    Raises:
        RadloopError: It cannot; the message says why and what to do.
    """
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RadloopError(
            f"{folder}: cannot be written ({error.strerror}); radloop keeps its state there: "
            "give this user the right to write it, or name another folder in RADLOOP_HOME"
        ) from None


def features() -> Path:
    """Where image features are kept; it can be deleted at any time."""
    return home() / "features"


def feature_bytes() -> int:
    """How much image features may take on disk: RADLOOP_FEATURES_GB (10^9 bytes), or else 20 GB.

    Raises:
        ConfigError: The variable is not a number >= 0; 0 keeps none.
    """
    given = os.environ.get("RADLOOP_FEATURES_GB", "20")
    if not re.fullmatch(r"\d+(\.\d*)?", given):
        raise ConfigError(
            f"RADLOOP_FEATURES_GB: got {given!r}; set it to how many GB image features may take on disk, "
            "such as 20, or to 0 to keep none"
        )
    return int(float(given) * 1e9)


def variables(folder: Path) -> dict[str, str]:
    """The environment variables that keep every tool's state inside `folder`."""
    return {
        "RADLOOP_HOME": str(folder),
        "ZENML_CONFIG_PATH": str(folder / "zenml"),
        "ZENML_ANALYTICS_OPT_IN": "false",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_REGISTRY_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "true",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
    }


def install(folder: Path, packages: Path) -> Path:
    """Make every Python process of the environment `packages` belongs to use `folder`.

    Args:
        folder: The state folder; created.
        packages: The `site-packages` folder of a virtual environment.

    Returns:
        The `.pth` file that was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    statements = ["import os", f"os.environ.setdefault('RADLOOP_HOME', {str(folder)!r})"]
    # A process that is given another RADLOOP_HOME gets all the rest below that one.
    for name, value in variables(folder).items():
        before, found, after = value.partition(str(folder))
        target = (
            f"{before!r} + os.path.abspath(os.environ['RADLOOP_HOME']) + {after!r}" if found else repr(value)
        )
        statements.append(f"os.environ[{name!r}] = {target}")
    # Else a shell that is set up for a team's ZenML server would register this project there.
    statements.append(f"list(map(os.environ.pop, [n for n in os.environ if n.startswith({FOREIGN!r})]))")
    statements += [f"os.environ.setdefault({name!r}, {value!r})" for name, value in DEFAULTS.items()]
    file = packages / "radloop_workspace.pth"
    file.write_text("; ".join(statements) + "\n")
    return file


if __name__ == "__main__":
    if sys.prefix == sys.base_prefix:
        sys.exit("radloop.workspace: not in a virtual environment; run `make setup`, which makes one")
    print(install(Path(".radloop").absolute(), Path(site.getsitepackages()[0])))
