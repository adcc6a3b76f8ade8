"""Unit tests keep their state to themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _home_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features and checkpoints of earlier runs must not decide what a test finds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "RADLOOP_HOME", str(tmp_path_factory.mktemp("home")))
        yield
