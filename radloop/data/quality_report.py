"""The validation report: what was found, what is quarantined, and the pages that show it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather

from radloop import html
from radloop.errors import DataError

FINDINGS = pa.schema(
    [
        ("severity", pa.string()),  # error: the sample is quarantined; warning: reported only
        ("sample_id", pa.string()),  # null for an image that no sample uses
        ("image", pa.string()),  # name
        ("reason", pa.string()),
        ("column", pa.string()),
        ("value", pa.string()),  # at most 80 characters
        ("source", pa.string()),  # file and row
    ]
)
_SUMMARY_PAGE = "validation.html"
_MAX_ROWS = 200  # of the quarantine table on the page; the Arrow table has all


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
            pc.and_(pc.equal(self.findings["severity"], "error"), pc.is_valid(self.findings["sample_id"]))
        )

    @property
    def quarantined_ids(self) -> set[str]:
        """Ids of the samples that must not be used."""
        return set(self.quarantine["sample_id"].to_pylist())

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
            (folder / name).write_text(page)

    @classmethod
    def load(cls, folder: Path) -> Self:
        content = json.loads((folder / "validation.json").read_text())
        findings = feather.read_table(folder / "findings.arrow", memory_map=True)
        pages = {path.name: path.read_text() for path in sorted(folder.glob("*.html"))}
        return cls(content["summary"], findings, content["results"], pages)

    def views(self) -> dict[str, str | bytes]:
        return {**self.pages}

    def facts(self) -> dict[str, str | int | float]:
        counts = {name: self.summary[name] for name in ("samples", "accepted", "quarantined", "images")}
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


def summary_page(
    summary: dict[str, Any], findings: pa.Table, cards: list[tuple[bytes | None, str]]
) -> dict[str, str]:
    """Return the page that a person reads first, by file name."""
    sections = [_headline(summary)]
    if cards:
        sections.append(html.section("Samples, as a reader of the data sees them", html.grid(cards)))
    for severity, title in (("error", "Quarantined, by reason"), ("warning", "Reported, by reason")):
        rows = [
            [reason["reason"], reason["samples"], reason["images"], reason["example"], reason["remedy"]]
            for reason in summary["reasons"]
            if reason["severity"] == severity
        ]
        header = ["reason", "samples", "images", "first example", "what to do"]
        sections.append(html.section(title, html.table(header, rows)))
    sections += [_leakage(summary["leakage"]), _quarantine(findings)]
    return {_SUMMARY_PAGE: html.page("Data validation", *sections)}


def _headline(summary: dict[str, Any]) -> str:
    rejected = summary["rejected"]
    verdict = html.badge("rejected", False) if rejected else html.badge("accepted", True)
    lines = [html.paragraph(reason) for reason in rejected]
    tiles = html.tiles(
        [
            (summary["samples"], "samples"),
            (summary["accepted"], "accepted"),
            (summary["quarantined"], "quarantined"),
            (summary["images"], "images"),
            (
                f"{summary['leakage']['share']:.1%}",
                "of the published test samples on pictures of other splits",
            ),
        ]
    )
    splits = ", ".join(f"{name or 'none'} {count:,}" for name, count in summary["splits"].items())
    suites = "; ".join(
        f"{name} {suite['successful']} of {suite['evaluated']} expectations met"
        for name, suite in summary["suites"].items()
    )
    note = html.note(
        f"Corpus {summary['fingerprint']}. Published splits: {splits}. Great Expectations: {suites}."
    )
    return f"<p>{verdict}</p>{''.join(lines)}{tiles}{note}"


def _leakage(leakage: dict[str, Any]) -> str:
    if not leakage["test_samples"]:
        return html.section(
            "Leakage of the published test split", html.note("The data set publishes no test split.")
        )
    text = (
        f"{leakage['leaking_samples']:,} of {leakage['test_samples']:,} test samples "
        f"({leakage['share']:.1%}) lie on a picture that train or validation uses, too: "
        f"{leakage['shared_images']:,} of {leakage['test_images']:,} test pictures. "
        "A score on such a split measures memory of pictures as well."
    )
    remedy = "preprocess.split: by_group makes a split that shares no picture."
    shared = leakage["shared_images"]
    body = html.paragraph(text) + html.note(remedy) if shared else html.paragraph("No picture is shared.")
    return html.section("Leakage of the published test split", body)


def _quarantine(findings: pa.Table) -> str:
    errors = findings.filter(pc.equal(findings["severity"], "error"))
    rows = errors.slice(0, _MAX_ROWS).select(["sample_id", "reason", "value", "source"]).to_pylist()
    body = html.table(["sample", "reason", "value", "where"], [list(row.values()) for row in rows])
    if errors.num_rows > _MAX_ROWS:
        body += html.note(f"The first {_MAX_ROWS} of {errors.num_rows:,}; findings.arrow holds all.")
    return html.section("Quarantine", body)
