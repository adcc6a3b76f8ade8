"""One adapter a data set: its own file here, and one line in `REGISTRY`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from radloop import hub
from radloop.data.source import Source
from radloop.errors import ConfigError, DataError, unknown

REGISTRY = {
    "phantoms": "radloop.data.adapters.phantoms:Phantoms",
    "vqa_rad": "radloop.data.adapters.vqa_rad:VqaRad",
    "slake": "radloop.data.adapters.slake:Slake",
    "med_vqa": "radloop.data.adapters.med_vqa:MedVqa",
    "vqa_med_2019": "radloop.data.adapters.vqa_med_2019:VqaMed2019",
    "mimic_cxr": "radloop.data.adapters.mimic_cxr:MimicCxr",
    "open_i": "radloop.data.adapters.open_i:OpenI",
    "roco": "radloop.data.adapters.roco:Roco",
    "ehrxqa": "radloop.data.adapters.ehrxqa:Ehrxqa",
    "table": "radloop.data.adapters.table:Table",
    "dicom": "radloop.data.adapters.dicom:Dicom",
    "conversations": "radloop.data.adapters.conversations:Conversations",
}

_HUB = "hf://"  # said outright: a mistyped path must not be asked of a server


class Adapter(Protocol):
    """Knows one data set in the layouts it is published in."""

    Options: type[BaseModel]

    def open(self, path: str | None, options: Any) -> Source:
        """Recognise the layout under `path`.

        Args:
            path: File or folder; None where the adapter needs none.
            options: An instance of `Options`.

        Raises:
            DataError: The source as a whole cannot be used: missing, empty, of another layout.
        """


def get_adapter(name: str) -> Adapter:
    """Return the adapter of that name.

    Raises:
        ConfigError: No adapter has this name; the message lists the known ones.
    """
    if name not in REGISTRY:
        raise ConfigError(unknown("adapter", name, REGISTRY))
    module, attribute = REGISTRY[name].split(":")
    adapter: Adapter = getattr(importlib.import_module(module), attribute)()
    return adapter


def need_path(path: str | None, adapter: str, layouts: str) -> Path:
    """Return the file or folder that `path` names.

    Args:
        path: As the config has it; hf://owner/name or hf://owner/name@revision is fetched from the hub.
        adapter: Its name, for the message.
        layouts: What the adapter needs there, in words.

    Raises:
        DataError: There is none; the message says what is needed.
    """
    if not path:
        raise DataError(f"data.path: is missing; {adapter} needs {layouts}")
    found = Path(path).expanduser()
    if found.exists():
        return found.resolve()
    if path.startswith(_HUB.rstrip("/")):
        return _fetch(path, f"{adapter} needs {layouts}")
    looked = "" if found.is_absolute() else f" in {Path.cwd()}"
    raise DataError(f"{path}: no such file or folder{looked}; {adapter} needs {layouts}")


def _fetch(path: str, needed: str) -> Path:
    """Return the local copy of a data set of the Hugging Face hub, made by the first call."""
    name, _, revision = path.removeprefix("hf:").lstrip("/").partition("@")
    try:
        return hub.fetch(name, "dataset", revision or None)
    except hub.HubError as error:
        raise DataError(
            f"{path}: the Hugging Face hub did not give it ({error}). "
            f"Where there is no network: `hf download {name} --repo-type dataset --local-dir DIR` elsewhere, "
            f"then name DIR; {needed}"
        ) from None


def no_such_layout(path: Path, adapter: str, layouts: str) -> DataError:
    """Return the error for a file or folder that is there but holds something else."""
    if path.is_file():
        return DataError(f"{path}: is a file of another kind; {adapter} needs {layouts}")
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    return DataError(f"{path}: holds {found}; {adapter} needs {layouts}")
