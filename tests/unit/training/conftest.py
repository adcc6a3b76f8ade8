"""What the tests of training share."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _state_of_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Checkpoints and image features go into a folder of the tests, not the project's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RADLOOP_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """And no test finds what another has left."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("RADLOOP_HOME", str(home))
    return home
