"""The result of an evaluation."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.feather as feather

from radloop.evaluation.predict import PREDICTIONS


@dataclass(frozen=True)
class EvaluationReport:
    """What every system answered, what it was worth, and the page that shows it.

    Attributes:
        predictions: Table of schema `radloop.evaluation.predict.PREDICTIONS`.
        metrics: JSON values, as `radloop.evaluation.scores.score` describes them, and the
            "fingerprint" of the data.
        page: Self-contained HTML.
        published: The same for the published test split, where it is scored beside a clean one.
    """

    predictions: pa.Table
    metrics: dict[str, Any]
    page: str
    published: pa.Table = field(default_factory=PREDICTIONS.empty_table)

    def save(self, folder: Path) -> None:
        feather.write_feather(self.predictions, folder / "predictions.arrow", compression="uncompressed")
        feather.write_feather(self.published, folder / "published.arrow", compression="uncompressed")
        (folder / "metrics.json").write_text(json.dumps(self.metrics, indent=2))
        (folder / "report.html").write_text(self.page, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        predictions = feather.read_table(folder / "predictions.arrow", memory_map=True)
        metrics = json.loads((folder / "metrics.json").read_text())
        page = (folder / "report.html").read_text(encoding="utf-8")
        published = feather.read_table(folder / "published.arrow", memory_map=True)
        return cls(predictions, metrics, page, published)

    def views(self) -> dict[str, str | bytes]:
        return {"report.html": self.page}

    def scores(self) -> dict[str, Any]:
        """The figures that a registered version carries: exact match of all systems, intervals, counts."""
        names = [name for name in self.metrics if name.startswith("exact_match")]
        intervals = {
            name: self.metrics["intervals"][name] for name in names if name in self.metrics["intervals"]
        }
        counts = {name: self.metrics[name] for name in ("n", "num_groups")}
        scores = {name: self.metrics[name] for name in names} | counts | {"intervals": intervals}
        if published := self.metrics.get("published"):
            scores["exact_match_published"] = published["exact_match"]
            intervals["exact_match_published"] = published["intervals"]["exact_match"]
        return scores

    def facts(self) -> dict[str, str | int | float]:
        names = [f"exact_match{ending}" for ending in ("", "_base", "_champion", "_blind", "_shuffled")]
        figures = {name: self.metrics.get(name) for name in [*names, "n", "num_groups", "fingerprint"]}
        if published := self.metrics.get("published"):
            figures["exact_match_published"] = published["exact_match"]
        return {name: value for name, value in figures.items() if value is not None}
