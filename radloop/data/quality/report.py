"""The validation report: what was found, what is quarantined, and the pages that show it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather

from radloop.errors import DataError

FINDINGS = pa.schema(
    [
        ("severity", pa.string()),  # error: the sample is quarantined; warning: reported only
        ("row", pa.int64()),  # number of the sample in the corpus; null for an image that none uses
        ("sample_id", pa.string()),
        ("image", pa.string()),  # name
        ("reason", pa.string()),
        ("column", pa.string()),
        ("value", pa.string()),  # at most 80 characters
        ("file", pa.string()),  # of the source
        ("row_in_file", pa.int64()),  # from 1; 0 where the file is no table
    ]
)


@dataclass(frozen=True)
class ValidationReport:
    """The result of `validate`.

    Attributes:
        summary: Counts, reasons, leakage, and in "rejected" the thresholds that were exceeded.
        findings: Table of schema `FINDINGS`, one row per sample and fault.
        results: Great Expectations results per suite, as JSON; examples only, not all rows.
        pages: HTML pages by file name.
    """

    summary: dict[str, Any]
    findings: pa.Table
    results: dict[str, dict[str, Any]]
    pages: dict[str, str]

    @property
    def quarantine(self) -> pa.Table:
        """The findings that keep a sample out."""
        return self.findings.filter(
            pc.and_(pc.equal(self.findings["severity"], "error"), pc.is_valid(self.findings["row"]))
        )

    @cached_property
    def accepted(self) -> np.ndarray:
        """For each sample of the corpus, in its order, whether it may be used."""
        mask = np.ones(self.summary["samples"], bool)
        mask[self.quarantine["row"].to_numpy()] = False
        return mask

    def require_accepted(self) -> None:
        """Stop here if the data exceeds a threshold of the config.

        Raises:
            DataError: Counts the reasons, gives an example of each, and says what to change.
        """
        if self.summary["rejected"]:
            raise DataError(_message(self.summary))

    def save(self, folder: Path) -> None:
        (folder / "validation.json").write_text(
            json.dumps({"summary": self.summary, "results": self.results})
        )
        feather.write_feather(self.findings, folder / "findings.arrow", compression="uncompressed")
        for name, page in self.pages.items():
            (folder / name).write_text(page, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        content = json.loads((folder / "validation.json").read_text())
        findings = feather.read_table(folder / "findings.arrow", memory_map=True)
        pages = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.html"))}
        return cls(content["summary"], findings, content["results"], pages)

    def views(self) -> dict[str, str | bytes]:
        return {**self.pages}

    def counts(self) -> dict[str, Any]:
        """Return what `radloop check --dataset --json` prints.

        Returns:
            rows, images, samples, accepted, quarantined and reported (reason to number of samples),
            left_out (reason to number of rows), removed (identifiers, by kind), leakage, duplicates, and
            in rejected the thresholds that were exceeded: empty where the data can be used.
        """
        by_severity: dict[str, dict[str, int]] = {"error": {}, "warning": {}}
        for reason in self.summary["reasons"]:
            by_severity[reason["severity"]][reason["reason"]] = reason["samples"]
        names = ("rows", "images", "samples", "accepted")
        others = ("left_out", "removed", "leakage", "duplicates", "rejected")
        return {name: self.summary[name] for name in names} | {
            "quarantined": by_severity["error"],
            "reported": by_severity["warning"],
            **{name: self.summary[name] for name in others},
        }

    def facts(self) -> dict[str, str | int | float]:
        counts = {
            name: self.summary[name] for name in ("rows", "samples", "accepted", "quarantined", "images")
        }
        passed = sum(suite["successful"] for suite in self.summary["suites"].values())
        total = sum(suite["evaluated"] for suite in self.summary["suites"].values())
        return counts | {
            "leakage": round(self.summary["leakage"]["share"], 4),
            "expectations": f"{passed} of {total} met",
            "verdict": "; ".join(self.summary["rejected"]) or "accepted",
        }


def _message(summary: dict[str, Any]) -> str:
    lines = ["the data is rejected:", *(f"  - {reason}" for reason in summary["rejected"])]
    errors = [reason for reason in summary["reasons"] if reason["severity"] == "error"]
    if errors:
        lines.append("quarantined, by reason:")
    for reason in errors:
        lines.append(f"  {reason['samples']:>6,}  {reason['reason']}; first: {reason['example']}")
        lines.append(f"          {reason['remedy']}")
    lines.append("mend the data, or change the threshold in the config if this is what you expect")
    return "\n".join(lines)
