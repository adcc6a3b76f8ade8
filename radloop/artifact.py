"""What every artifact of a run can do: live in a folder, and show itself.

A materializer needs no more than this to keep an artifact in any ZenML artifact store, and a
notebook needs no ZenML to open one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, Self, runtime_checkable


@runtime_checkable
class Artifact(Protocol):
    """An immutable result kept as files: Arrow, safetensors, JSON, HTML, PNG. Never pickle."""

    def save(self, folder: Path) -> None:
        """Write all files of the artifact into the existing, empty `folder`."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote. Tables are memory-mapped: `folder` must outlive them."""

    def views(self) -> dict[str, str | bytes]:
        """File name (`.html`, `.png`) to content, as the dashboard shows the artifact."""

    def facts(self) -> dict[str, str | int | float]:
        """The few figures that describe the artifact in a list, for metadata and logs."""
