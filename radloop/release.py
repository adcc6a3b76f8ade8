"""A registered model version, as steps hand it on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from radloop import html


@dataclass(frozen=True)
class Release:
    """Where a tuned model went.

    Attributes:
        model_name: Name in the registry.
        version: Version number in the registry, from 1.
        fingerprint: Of the corpus that it was tuned on.
        bento: Tag of its Bento; empty while there is none.
    """

    model_name: str
    version: int
    fingerprint: str
    bento: str = ""

    def save(self, folder: Path) -> None:
        (folder / "release.json").write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(**json.loads((folder / "release.json").read_text()))

    def views(self) -> dict[str, str | bytes]:
        rows: list[list[object]] = [
            ["model", self.model_name],
            ["version", self.version],
            ["corpus fingerprint", self.fingerprint],
            ["Bento", self.bento or "none"],
        ]
        title = f"{self.model_name} version {self.version}"
        return {
            "release.html": html.page(title, html.section("Registered", html.table(["what", "value"], rows)))
        }

    def facts(self) -> dict[str, str | int | float]:
        return asdict(self)
