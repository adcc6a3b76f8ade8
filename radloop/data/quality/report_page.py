"""The data report: the page that a person reads before a training is started, pictures first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from radloop import html
from radloop.data.corpus import where
from radloop.data.quality.overview import Card, Overview

PAGE = "validation.html"
_MAX_ROWS = 200  # of the quarantine table on the page; the Arrow table has all
_QUESTION, _ANSWER, _CELL = 160, 180, 200  # characters
_LEAKS = {
    "patient": "same patient",
    "study": "same study",
    "image": "same picture",
    "near_image": "nearly the same picture",
    "text": "same report or caption, word for word",
}
_DUPLICATES = {
    "pixels": ("images with the pixels of another file", "keep one file of each"),
    "near_pixels": ("images that look like another one", "re-encoded or cropped copies: keep one"),
    "questions": ("samples with image, question and answer of another", "keep one of each"),
    "contested": ("samples whose question has another answer elsewhere", "let a reader decide"),
}


def report_pages(summary: dict[str, Any], findings: pa.Table, overview: Overview) -> dict[str, str]:
    """Return the report as self-contained pages, by file name.

    Args:
        summary: As `radloop.data.quality.validate` makes it.
        findings: Table of schema `radloop.data.quality.report.FINDINGS`.
        overview: Of the same corpus.
    """
    return {PAGE: html.page("Data report", *_sections(summary, findings, overview))}


def _sections(summary: dict[str, Any], findings: pa.Table, overview: Overview) -> Iterator[str]:
    from radloop.data.quality import charts  # matplotlib takes its time

    yield _headline(summary, overview)
    if overview.cards:
        yield html.section("Samples, as a reader of the data sees them", _grid(overview.cards))
    yield from charts.contents(overview)
    yield _defects(summary)
    yield _duplicates(summary["duplicates"])
    yield _leakage(summary["leakage"])
    yield from _left_out_and_removed(summary)
    yield _quarantine(summary, findings, overview)
    yield _origin(summary)


def _headline(summary: dict[str, Any], overview: Overview) -> Markup:
    rejected = summary["rejected"]
    verdict = html.badge("rejected", False) if rejected else html.badge("accepted", True)
    reasons = Markup("").join(html.paragraph(reason) for reason in rejected)
    leakage = summary["leakage"]
    tiles = [
        (summary["samples"], "samples"),
        (summary["accepted"], "accepted"),
        (summary["quarantined"], "quarantined"),
        (summary["images"], "images"),
    ]
    if leakage["test_samples"]:
        share = f"{leakage['share']:.1%}"
        tiles.append((share, "of the published test samples on pictures of other splits"))
    return Markup("<p>{}</p>{}{}").format(verdict, reasons, html.tiles(tiles))


def _grid(cards: list[Card]) -> Markup:
    return html.grid(
        (
            card.png,
            Markup("<b>{}</b>\n{}\n{}").format(
                _clip(card.question, _QUESTION), _clip(card.answer, _ANSWER) or "no answer", _origin_of(card)
            ),
        )
        for card in cards
    )


def _origin_of(card: Card) -> Markup:
    """Where a card comes from, in a quieter tone."""
    pictures = f"1 of {card.num_images} images" if card.num_images > 1 else ""
    no_picture = "" if card.png else "picture cannot be shown" if card.num_images else "no picture"
    parts = (card.dataset, card.task, card.split or "no split", pictures, no_picture)
    return Markup('<span class="note">{}</span>').format(_clip(", ".join(filter(None, parts)), _CELL))


def _defects(summary: dict[str, Any]) -> Markup:
    """What is wrong, by reason: as bars, then what to do about each."""
    reasons = sorted(summary["reasons"], key=lambda reason: (reason["severity"], -_extent(reason)))
    if not reasons:
        return html.section("Defects", html.note("none"))
    rows = [(reason["reason"], _by_severity(reason), _affected(reason)) for reason in reasons]
    colours = [("quarantined", "worst"), ("reported", "second")]
    body = html.bars("By reason", rows, colours, "samples concerned")
    header = ["reason", "samples", "images", "first example", "what to do"]
    for severity, title in (("error", "Errors: quarantined"), ("warning", "Warnings: reported only")):
        listed = [
            [item["reason"], item["samples"], item["images"], _clip(item["example"], _CELL), item["remedy"]]
            for item in reasons
            if item["severity"] == severity
        ]
        body += Markup("<h3>{}</h3>{}").format(title, html.table(header, listed))
    return html.section("Defects", body)


def _by_severity(reason: dict[str, Any]) -> tuple[int, int]:
    extent = _extent(reason)
    return (extent, 0) if reason["severity"] == "error" else (0, extent)


def _extent(reason: dict[str, Any]) -> int:
    """Samples concerned; images, where no sample uses them."""
    return int(reason["samples"] or reason["images"])


def _affected(reason: dict[str, Any]) -> str:
    return f"{reason['samples']:,}" if reason["samples"] else f"{reason['images']:,} unused images"


def _duplicates(duplicates: dict[str, Any]) -> Markup:
    rows = [[what, duplicates[key], remedy] for key, (what, remedy) in _DUPLICATES.items() if duplicates[key]]
    body = html.table(["what", "count", "what to do"], rows)
    across = [[*pair["datasets"], pair["by"], pair["images"]] for pair in duplicates["across_datasets"]]
    if across:
        remedy = "Data sets that share pictures must not be trained on the one and tested on the other."
        body += html.paragraph(remedy)
        body += html.table(["data set", "data set", "matched by", "pictures in both"], across)
    return html.section("Duplicates", body)


def _leakage(leakage: dict[str, Any]) -> Markup:
    title = "Leakage of the published test split"
    total = leakage["test_samples"]
    if not total:
        return html.section(title, html.note("The data names no test split."))
    counts = {words: leakage[kind] for kind, words in _LEAKS.items()}
    if not any(counts.values()):
        nothing = f"None of {total:,} test samples shares anything with other splits."
        return html.section(title, html.paragraph(nothing))
    rows = [(words, (count,), f"{count:,} · {count / total:.1%}") for words, count in counts.items()]
    about = f"with train or validation, of {total:,}"
    body = html.bars("Test samples that share", rows, [("", "third")], about, whole=total)
    if leakage["leaking_samples"]:
        body += html.paragraph(
            f"{leakage['leaking_samples']:,} of {total:,} test samples ({leakage['share']:.1%}) lie on a "
            f"picture that train or validation uses, too; {leakage['shared_images']:,} of "
            f"{leakage['test_images']:,} test pictures are the same to the pixel. A score on such a split "
            "measures memory of pictures as well."
        )
    return html.section(title, body + html.note(_remedy(leakage)))


def _remedy(leakage: dict[str, Any]) -> str:
    if leakage["patient"] or leakage["study"]:
        return "preprocess.split: by_patient makes a split that shares no patient, and so no picture."
    if leakage["image"] or leakage["near_image"]:
        return "preprocess.split: by_image makes a split that shares no picture, nor nearly the same one."
    return "Normal studies are often reported in the same words: report the score without these, too."


def _left_out_and_removed(summary: dict[str, Any]) -> Iterator[Markup]:
    left_out, removed = _falling(summary["left_out"]), _falling(summary["removed"])
    if left_out:
        yield html.section("Rows left out by the options", html.table(["reason", "rows"], left_out))
    if removed:
        note = html.note("Counts only: no report, log or message holds what was removed.")
        table = html.table(["kind", "removed or replaced"], removed)
        yield html.section("Identifiers removed", table + note)


def _falling(counts: dict[str, int]) -> list[list[Any]]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [[_clip(name, _CELL), count] for name, count in ordered if count]


def _quarantine(summary: dict[str, Any], findings: pa.Table, overview: Overview) -> Markup:
    is_error = pc.equal(findings["severity"], "error")
    total = pc.sum(is_error).as_py() or 0
    if not total:
        return html.section("Quarantine", html.note("none"))
    errors = findings.take(pc.indices_nonzero(is_error).slice(0, _MAX_ROWS))
    shares = [
        [*group[:2], group.samples, group.quarantined, f"{group.quarantined / group.samples:.1%}"]
        for group in overview.groups
        if group.quarantined
    ]
    rows = [
        [
            where(_clip(row["file"] or "", _CELL), row["row_in_file"] or 0),
            "no sample uses it" if row["row"] is None else _clip(row["sample_id"] or "", _CELL),
            row["reason"],
            row["value"],
        ]
        for row in errors.to_pylist()
    ]
    body = Markup("")
    if shares:
        body = html.table(["data set", "task", "samples", "quarantined", "share"], shares)
    body += html.table(["where", "sample", "reason", "value"], rows)
    if total > _MAX_ROWS:
        body += html.note(f"The first {_MAX_ROWS} of {total:,}; findings.arrow holds all.")
    return html.section("Quarantine", body)


def _origin(summary: dict[str, Any]) -> Markup:
    suites = "; ".join(
        f"{name} {suite['successful']} of {suite['evaluated']}" for name, suite in summary["suites"].items()
    )
    splits = ", ".join(f"{name or 'none'} {count:,}" for name, count in summary["splits"].items())
    return html.note(
        f"Corpus {summary['fingerprint']}, from {summary['rows']:,} rows. Published splits: "
        f"{_clip(splits, _CELL)}. Expectations met, by suite: {suites}."
    )


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
