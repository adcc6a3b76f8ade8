"""Phantoms written to disk in the layouts that real data sets are published in.

One file a data set here with its `LAYOUTS`, and one line in `REGISTRY`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from radloop.data.phantoms.formats._cohort import Cohort, Study
from radloop.errors import ConfigError, DataError, unknown

__all__ = ["REGISTRY", "Cohort", "Layout", "Study", "names", "write"]

Layout = Callable[[Path, Cohort], None]
REGISTRY = {
    "vqa_rad": "radloop.data.phantoms.formats.vqa_rad",
    "slake": "radloop.data.phantoms.formats.slake",
    "med_vqa": "radloop.data.phantoms.formats.med_vqa",
    "vqa_med_2019": "radloop.data.phantoms.formats.vqa_med_2019",
    "mimic_cxr": "radloop.data.phantoms.formats.mimic_cxr",
    "open_i": "radloop.data.phantoms.formats.open_i",
    "roco": "radloop.data.phantoms.formats.roco",
    "ehrxqa": "radloop.data.phantoms.formats.ehrxqa",
    "table": "radloop.data.phantoms.formats.table",
    "dicom": "radloop.data.phantoms.formats.dicom",
    "conversations": "radloop.data.phantoms.formats.conversations",
}


def names() -> list[str]:
    """Return what `write` takes: "slake:hub" is the hub's layout of SLAKE, "slake" its first one."""
    return [name for dataset in REGISTRY for name in (dataset, *_others(dataset))]


def write(name: str, folder: Path, cohort: Cohort) -> None:
    """Write the cohort in the layout `name` into a new or empty folder.

    Raises:
        ConfigError: Unknown name; the message lists the known ones.
        DataError: The folder holds something already.
    """
    dataset, _, layout = name.partition(":")
    if dataset not in REGISTRY or (layout and layout not in _layouts(dataset)):
        raise ConfigError(unknown("format", name, names()))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists and is not empty; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    layouts = _layouts(dataset)
    layouts[layout or next(iter(layouts))](folder, cohort)


def _layouts(dataset: str) -> dict[str, Layout]:
    found: dict[str, Layout] = importlib.import_module(REGISTRY[dataset]).LAYOUTS
    return found


def _others(dataset: str) -> list[str]:
    return [f"{dataset}:{layout}" for layout in list(_layouts(dataset))[1:]]
