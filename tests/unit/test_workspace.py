import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from radloop import workspace
from radloop.errors import RadloopError


def environment(packages: Path, **given: str) -> dict[str, str]:
    """What a fresh Python process sees that reads the `.pth` files of `packages`."""
    code = f"import json, os, site; site.addsitedir({str(packages)!r}); print(json.dumps(dict(os.environ)))"
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PATH": os.environ["PATH"]} | given,
        capture_output=True,
        check=True,
    )
    assert not result.stderr
    return dict(json.loads(result.stdout))


def test_every_tool_keeps_its_state_below_the_project(tmp_path: Path) -> None:
    home = tmp_path / "a 'quoted' folder" / ".radloop"
    workspace.install(home, tmp_path)
    seen = environment(
        tmp_path,
        MLFLOW_TRACKING_URI="http://company",
        BENTOML_HOME="/home/me/bentoml",
        ZENML_STORE_URL="http://company",
        ZENML_ACTIVE_STACK_ID="theirs",
    )
    assert not [name for name in seen if name.startswith(("ZENML_STORE_", "ZENML_ACTIVE_"))]
    assert home.is_dir()
    assert seen["RADLOOP_HOME"] == str(home)
    for name in ("ZENML_CONFIG_PATH", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "BENTOML_HOME"):
        assert str(home) in seen[name], name


def test_another_home_moves_all_of_it(tmp_path: Path) -> None:
    workspace.install(tmp_path / "one", tmp_path)
    other = str(tmp_path / "two")
    seen = environment(tmp_path, RADLOOP_HOME=other, RADLOOP_DATA="/data")
    assert {name: seen[name] for name in workspace.variables(Path(other))} == workspace.variables(Path(other))
    assert seen["RADLOOP_DATA"] == "/data"


def test_a_folder_that_cannot_be_written_is_said_before_work_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path / "file" / "state"))
    with pytest.raises(RadloopError, match=r"file/state: cannot be written .* RADLOOP_HOME"):
        workspace.require_writable()
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path / "state"))
    workspace.require_writable()
    assert list((tmp_path / "state").iterdir()) == []
