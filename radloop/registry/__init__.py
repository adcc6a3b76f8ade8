"""The model registry: versions with their evidence, and the decisions on them, in MLflow.

Two aliases are in use. `challenger` is the newest version, `champion` the one that serves. A
version is created by one call that carries all its tags, after its files are in place: a killed run
leaves files without a version, never a version without files.
"""

from __future__ import annotations

from radloop.registry._client import experiment
from radloop.registry._decisions import promote, refuse, rollback
from radloop.registry._register import register, set_bento
from radloop.registry._versions import (
    CHALLENGER,
    CHAMPION,
    Version,
    adapter_folder,
    champion,
    describe,
    names,
    split_of,
    version,
    versions,
)

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "Version",
    "adapter_folder",
    "champion",
    "describe",
    "experiment",
    "names",
    "promote",
    "refuse",
    "register",
    "rollback",
    "set_bento",
    "split_of",
    "version",
    "versions",
]
