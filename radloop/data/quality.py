"""Validation: bad data stops at the door, with file, row, value and remedy.

An error quarantines its sample, and an image's error all samples of the image. A warning is
reported only. Whether the run stops is up to the thresholds in the config.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pandas as pd
import pyarrow as pa

from radloop.config import ValidationConfig
from radloop.data import quality_frames as frames
from radloop.data.corpus import Corpus
from radloop.data.imaging import ImageFacts, resize, to_png, to_rgb
from radloop.data.quality_report import FINDINGS, ValidationReport, summary_page
from radloop.data.quality_suites import IMAGE_CHECKS, SAMPLE_CHECKS, Check, SuiteResult, run_suite

_VALUE_LENGTH = 80
_MAX_CARDS = 12
_CARD_PIXELS = 256


def validate(corpus: Corpus, config: ValidationConfig) -> ValidationReport:
    """Check every sample and every image of the corpus.

    The report is handed out even if a threshold is exceeded; `ValidationReport.require_accepted` raises then.
    """
    facts = frames.image_facts(corpus)
    image_frame, sample_frame = frames.image_frame(corpus, facts), frames.sample_frame(corpus, facts)
    suites = {
        "samples": run_suite("samples", sample_frame, SAMPLE_CHECKS),
        "images": run_suite("images", image_frame, IMAGE_CHECKS),
    }
    findings = [
        *_sample_findings(sample_frame, suites["samples"], corpus),
        *_image_findings(image_frame, suites["images"], corpus),
    ]
    table = pa.Table.from_pylist(findings, schema=FINDINGS)
    summary = _summary(corpus, findings, suites, frames.leakage(corpus, facts))
    summary["rejected"] = _rejections(summary, config)
    quarantined = {finding["sample_id"] for finding in findings if finding["severity"] == "error"}
    pages = summary_page(summary, table, _cards(corpus, facts, quarantined))
    pages |= {f"expectations_{name}.html": suite.page for name, suite in suites.items()}
    return ValidationReport(summary, table, {name: suite.json for name, suite in suites.items()}, pages)


def _sample_findings(frame: pd.DataFrame, suite: SuiteResult, corpus: Corpus) -> list[dict[str, Any]]:
    notes = corpus.samples.column("notes").to_pylist()
    found = []
    for check, rows in zip(SAMPLE_CHECKS, suite.failures, strict=True):
        for number in rows:
            row = frame.iloc[number]
            # Where the adapter mended the field, its note says more than the empty value it left.
            about = [note for note in notes[number] if note.startswith(f"{check.column}:")]
            value = "; ".join(about) or row[check.column]
            found.append(_finding(check, row["id"], row["image"], value, row["source"]))
    return found


def _image_findings(frame: pd.DataFrame, suite: SuiteResult, corpus: Corpus) -> list[dict[str, Any]]:
    users = defaultdict(list)
    columns = corpus.samples.select(["id", "image_ids", "source", "notes"]).to_pylist()
    for sample in columns:
        for image_id in dict.fromkeys(sample["image_ids"]):
            users[image_id].append(sample)
    found = []
    for check, rows in zip(IMAGE_CHECKS, suite.failures, strict=True):
        for number in rows:
            row = frame.iloc[number]
            value = row["image"] if check.column == "image" else f"{row['image']}: {row[check.column]}"
            for sample in users[row["id"]] or [{"id": None, "source": "", "notes": []}]:
                about = [note for note in sample["notes"] if note.startswith("image:")]
                text = "; ".join(about) or value
                found.append(_finding(check, sample["id"], row["image"], text, sample["source"]))
    return found


def _finding(check: Check, sample_id: str | None, image: str, value: Any, source: str) -> dict[str, Any]:
    text = str(value)
    return {
        "severity": check.severity,
        "sample_id": sample_id,
        "image": image,
        "reason": check.reason,
        "column": check.column,
        "value": text if len(text) <= _VALUE_LENGTH else text[: _VALUE_LENGTH - 3] + "...",
        "source": source,
    }


def _summary(
    corpus: Corpus,
    findings: list[dict[str, Any]],
    suites: dict[str, SuiteResult],
    leakage: dict[str, int | float],
) -> dict[str, Any]:
    quarantined = {finding["sample_id"] for finding in findings if finding["severity"] == "error"}
    ids = corpus.samples.column("id").to_pylist()
    num_quarantined = sum(sample_id in quarantined for sample_id in ids)
    splits = pd.Series(corpus.samples.column("split").to_pylist(), dtype="str").value_counts(sort=False)
    return {
        "fingerprint": corpus.fingerprint,
        "samples": len(ids),
        "accepted": len(ids) - num_quarantined,
        "quarantined": num_quarantined,
        "images": corpus.images.num_rows,
        "splits": {str(name): int(count) for name, count in splits.items()},
        "reasons": _reasons(findings),
        "leakage": leakage,
        "suites": {
            name: {
                "evaluated": len(suite.failures),
                "successful": sum(not rows for rows in suite.failures),
            }
            for name, suite in suites.items()
        },
    }


def _reasons(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    remedies = {check.reason: check.remedy for check in (*SAMPLE_CHECKS, *IMAGE_CHECKS)}
    groups = defaultdict(list)
    for finding in findings:
        groups[finding["severity"], finding["reason"]].append(finding)
    rows = [
        {
            "severity": severity,
            "reason": reason,
            "remedy": remedies[reason],
            "samples": sum(finding["sample_id"] is not None for finding in group),
            "images": len({finding["image"] for finding in group if finding["image"]}),
            "example": f"{group[0]['source'] or 'no sample'}: {group[0]['value'] or 'empty'}",
        }
        for (severity, reason), group in groups.items()
    ]
    return sorted(rows, key=lambda row: (row["severity"], -row["samples"], row["reason"]))


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


def _cards(
    corpus: Corpus, facts: dict[str, ImageFacts | None], quarantined: set[str | None]
) -> list[tuple[bytes | None, str]]:
    """Pick accepted samples evenly over the corpus and make a thumbnail and a text of each."""
    samples = corpus.samples.select(["id", "image_ids", "question", "answers", "split"]).to_pylist()
    usable = [
        sample
        for sample in samples
        if sample["id"] not in quarantined and any(facts.get(image_id) for image_id in sample["image_ids"])
    ]
    step = max(1, len(usable) / _MAX_CARDS)
    picked = [usable[int(number * step)] for number in range(min(_MAX_CARDS, len(usable)))]
    wanted = {sample["image_ids"][0] for sample in picked}
    rows = pa.compute.is_in(corpus.images["id"], pa.array(sorted(wanted), pa.string()))
    few = Corpus(corpus.images.filter(rows), corpus.samples.slice(0, 0), corpus.fingerprint)
    pictures = {
        image_id: to_png(resize(to_rgb(data), _CARD_PIXELS)) for image_id, data in few.image_bytes() if data
    }
    return [
        (
            pictures.get(sample["image_ids"][0]),
            f"{sample['question']}\n{sample['answers'][0]}\n({sample['split'] or 'no split'})",
        )
        for sample in picked
    ]
