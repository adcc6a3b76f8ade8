"""The result of an evaluation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.feather as feather


@dataclass(frozen=True)
class EvaluationReport:
    """What every system answered, what it was worth, and the page that shows it.

    Attributes:
        predictions: Table of schema `radloop.evaluation.predict.PREDICTIONS`.
        metrics: JSON values, as `radloop.evaluation.scores.score` describes them, and the
            "fingerprint" of the data.
        page: Self-contained HTML.
    """

    predictions: pa.Table
    metrics: dict[str, Any]
    page: str

    def save(self, folder: Path) -> None:
        feather.write_feather(self.predictions, folder / "predictions.arrow", compression="uncompressed")
        (folder / "metrics.json").write_text(json.dumps(self.metrics, indent=2))
        (folder / "report.html").write_text(self.page, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        predictions = feather.read_table(folder / "predictions.arrow", memory_map=True)
        metrics = json.loads((folder / "metrics.json").read_text())
        return cls(predictions, metrics, (folder / "report.html").read_text(encoding="utf-8"))

    def views(self) -> dict[str, str | bytes]:
        return {"report.html": self.page}

    def scores(self) -> dict[str, Any]:
        """The figures that a registered version carries: exact match of all systems, intervals, counts."""
        names = [name for name in self.metrics if name.startswith("exact_match")]
        intervals = {
            name: self.metrics["intervals"][name] for name in names if name in self.metrics["intervals"]
        }
        counts = {name: self.metrics[name] for name in ("n", "num_groups")}
        return {name: self.metrics[name] for name in names} | counts | {"intervals": intervals}

    def facts(self) -> dict[str, str | int | float]:
        names = [f"exact_match{ending}" for ending in ("", "_base", "_champion", "_blind", "_shuffled")]
        figures = {name: self.metrics.get(name) for name in [*names, "n", "num_groups", "fingerprint"]}
        return {name: value for name, value in figures.items() if value is not None}
