"""Every sample and image against the suites of its task: an error quarantines, a warning is reported.

Whether the run stops is up to the thresholds in the config.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather

from radloop.config import ValidationConfig
from radloop.data.corpus import Corpus, where
from radloop.data.quality.overview import overview
from radloop.data.quality.relations import Relations
from radloop.data.quality.report import FINDINGS, ValidationReport
from radloop.data.quality.report_page import report_pages
from radloop.data.quality.suite_run import Failures, SuiteResult, SuiteRun
from radloop.data.quality.suites import Check, Suite, load_suites
from radloop.data.storage import TableWriter, scratch_folder

if TYPE_CHECKING:
    import pandas as pd

_VALUE_LENGTH = 80


def validate(corpus: Corpus, config: ValidationConfig) -> ValidationReport:
    """Check every sample and every image of the corpus.

    The report is handed out even if a threshold is exceeded; `ValidationReport.require_accepted`
    raises then.

    Raises:
        ConfigError: A suite of the config holds faults.
    """
    suites = load_suites([Path(path) for path in config.suites])
    folder = scratch_folder()
    results: dict[str, SuiteResult] = {}
    with Relations(corpus) as relations:
        with _Findings(folder / "findings.arrow", corpus.samples.num_rows) as findings:
            results["images"] = _check_images(suites["images"], relations, findings)
            for name in relations.suites():
                results[name] = _check_samples(suites[name], relations, findings)
        leakage, duplicates = relations.leakage(), relations.duplicates()
    table = feather.read_table(folder / "findings.arrow", memory_map=True)
    summary = {
        "fingerprint": corpus.fingerprint,
        "rows": corpus.rows,
        "samples": corpus.samples.num_rows,
        "images": corpus.images.num_rows,
        "accepted": int((~findings.quarantined).sum()),
        "quarantined": int(findings.quarantined.sum()),
        "splits": _splits(corpus),
        "reasons": _reasons(table, findings.remedies),
        "left_out": corpus.left_out,
        "removed": corpus.removed,
        "leakage": leakage,
        "duplicates": duplicates,
        "suites": {
            name: {
                "evaluated": len(result.json["results"]),
                "successful": sum(item["success"] for item in result.json["results"]),
            }
            for name, result in results.items()
        },
    }
    summary["rejected"] = _rejections(summary, config)
    charts = overview(corpus, findings.quarantined)
    pages = report_pages(summary, table, charts)
    pages |= {f"expectations_{name}.html": result.page for name, result in results.items()}
    return ValidationReport(summary, table, {name: result.json for name, result in results.items()}, pages)


def _check_samples(suite: Suite, relations: Relations, findings: _Findings) -> SuiteResult:
    run = SuiteRun(suite)
    for frame in relations.sample_frames(suite.name):
        for failures in run.add(frame):
            check = suite.checks[failures.check]
            rows = frame.iloc[np.searchsorted(frame["row"].to_numpy(), np.sort(failures.rows))]
            shown = dict(zip(failures.rows.tolist(), failures.shown, strict=True))
            values = [_value(check, shown[row.row], row.notes) for row in rows.itertuples()]
            findings.add(
                check, values, row=rows["row"], sample_id=rows["id"], image=rows["image"],
                file=rows["file"], row_in_file=rows["row_in_file"],
            )  # fmt: skip
    return run.result()


def _check_images(suite: Suite, relations: Relations, findings: _Findings) -> SuiteResult:
    run = SuiteRun(suite)
    for frame in relations.image_frames():
        for failures in run.add(frame):
            _add_images(suite.checks[failures.check], frame, failures, relations, findings)
    return run.result()


def _add_images(
    check: Check, frame: pd.DataFrame, failures: Failures, relations: Relations, findings: _Findings
) -> None:
    """An image's fault is a fault of each sample that uses it."""
    image = frame.set_index("row")["image"]
    note = frame.set_index("row")["note"]
    shown = dict(zip(failures.rows.tolist(), failures.shown, strict=True))
    users = relations.users(failures.rows).to_pandas()
    values = []
    for number in users["image_row"]:
        name = image[number]
        about = note[number] if check.show == "image" else shown[number]
        named = not about or str(name) in str(about)
        values.append(str(about or name) if named else f"{name}: {about}")
    findings.add(
        check, values, row=users["row"], sample_id=users["id"], image=users["image_row"].map(image),
        file=users["file"], row_in_file=users["row_in_file"],
    )  # fmt: skip


def _value(check: Check, shown: Any, notes: Any) -> str:
    """Where the adapter mended the field, its note says more than the empty value it left."""
    about = [
        note
        for note in (notes if isinstance(notes, str) else "").split("; ")
        if note.startswith(f"{check.show}:")
    ]
    return "; ".join(about) or str(shown)


class _Findings:
    """Writes the findings to a file as they come, and remembers which samples must not be used."""

    def __init__(self, path: Path, num_samples: int) -> None:
        self.quarantined = np.zeros(num_samples, bool)
        self.remedies: dict[str, str] = {}
        self._writer = TableWriter(path, FINDINGS)

    def __enter__(self) -> _Findings:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def add(self, check: Check, values: list[str], **columns: pd.Series) -> None:
        """Add a row per value; `columns` are those of `FINDINGS` that differ from row to row."""
        count = len(values)
        self.remedies[check.reason] = check.remedy
        if check.severity == "error":
            rows = columns["row"].dropna().to_numpy(np.int64)
            self.quarantined[rows] = True
        constant = {"severity": check.severity, "reason": check.reason, "column": check.show}
        table = {name: pa.repeat(value, count) for name, value in constant.items()}
        table["value"] = pa.array([_clip(value) for value in values], pa.string())
        table |= {
            name: pa.array(series, FINDINGS.field(name).type, from_pandas=True)
            for name, series in columns.items()
        }
        self._writer.write(pa.table({name: table[name] for name in FINDINGS.names}, schema=FINDINGS))


def _reasons(findings: pa.Table, remedies: dict[str, str]) -> list[dict[str, Any]]:
    """Group the findings by reason, errors first, the commonest first."""
    grouped = findings.group_by(["severity", "reason"], use_threads=False).aggregate(
        [
            ("row", "count_distinct", pc.CountOptions(mode="only_valid")),
            ("image", "count_distinct"),
            ("file", "first"),
            ("row_in_file", "first"),
            ("value", "first"),
        ]
    )
    rows = [
        {
            "severity": row["severity"],
            "reason": row["reason"],
            "remedy": remedies[row["reason"]],
            "samples": row["row_count_distinct"],
            "images": row["image_count_distinct"],
            "example": f"{where(row['file_first'] or 'no sample', row['row_in_file_first'] or 0)}: "
            f"{row['value_first'] or 'empty'}",
        }
        for row in grouped.to_pylist()
    ]
    return sorted(rows, key=lambda row: (row["severity"], -row["samples"], row["reason"]))


def _splits(corpus: Corpus) -> dict[str, int]:
    counts = pc.value_counts(corpus.samples["split"]).to_pylist()
    return {item["values"]: item["counts"] for item in counts}


def _rejections(summary: dict[str, Any], config: ValidationConfig) -> list[str]:
    samples, quarantined, accepted = summary["samples"], summary["quarantined"], summary["accepted"]
    leakage = summary["leakage"]
    found = []
    if quarantined > config.max_quarantined * samples:
        found.append(
            f"{quarantined:,} of {samples:,} samples ({quarantined / samples:.1%}) are quarantined; "
            f"validation.max_quarantined allows {config.max_quarantined:.1%}"
        )
    if accepted < config.min_samples:
        found.append(f"{accepted:,} samples are left; validation.min_samples asks for {config.min_samples:,}")
    if config.max_leakage is not None and leakage["share"] > config.max_leakage:
        found.append(
            f"{leakage['leaking_samples']:,} of {leakage['test_samples']:,} test samples "
            f"({leakage['share']:.1%}) lie on pictures of other splits; "
            f"validation.max_leakage allows {config.max_leakage:.1%}"
        )
    return found


def _clip(value: str) -> str:
    return value if len(value) <= _VALUE_LENGTH else value[: _VALUE_LENGTH - 3] + "..."
