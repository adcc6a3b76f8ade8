"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from radloop import workspace

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a server of others
ROOT = Path(__file__).parents[1]
settings.register_profile("radloop", deadline=None)  # a busy machine is no defect
settings.load_profile("radloop")


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """A function from the name of a published data set to its folder; skips the test without it."""

    def folder(name: str) -> Path:
        root = Path(os.environ.get("RADLOOP_DATA", workspace.DEFAULTS["RADLOOP_DATA"]))
        found = (ROOT / root / name).resolve()
        if not found.is_dir():
            pytest.skip(f"the data set {name} is not in {found.parent}; RADLOOP_DATA names another folder")
        return found

    return folder
