"""One adapter a data set: its own file here, and one line in `REGISTRY`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from radloop.data.corpus import Corpus
from radloop.errors import ConfigError

REGISTRY = {
    "phantoms": "radloop.data.adapters.phantoms:Phantoms",
    "vqa_rad": "radloop.data.adapters.vqa_rad:VqaRad",
}


class Adapter(Protocol):
    """Reads one data set in the layouts it is published in."""

    Options: type[BaseModel]

    def read(self, path: str | None, options: Any) -> Corpus:
        """Read everything under `path`: what is wrong with a row is kept for validation to find.

        Args:
            path: File, folder or hub id; None where the adapter needs none.
            options: An instance of `Options`.

        Raises:
            DataError: The source as a whole cannot be read: missing, empty, of another layout.
        """


def get_adapter(name: str) -> Adapter:
    """Return the adapter of that name.

    Raises:
        ConfigError: No adapter has this name; the message lists the known ones.
    """
    if name not in REGISTRY:
        raise ConfigError(f"unknown adapter {name!r}; known: {', '.join(REGISTRY)}")
    module, attribute = REGISTRY[name].split(":")
    adapter: Adapter = getattr(importlib.import_module(module), attribute)()
    return adapter


def local_folder(path: str) -> Path | None:
    """Return `path` as a folder if it is one here, else None (it may be a hub id)."""
    folder = Path(path).expanduser()
    return folder.resolve() if folder.is_dir() else None
