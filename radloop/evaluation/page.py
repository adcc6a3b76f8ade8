"""The page of an evaluation: pictures first, then tables, examples, and how it was measured."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from markupsafe import Markup
from PIL import Image

from radloop import html
from radloop.evaluation import charts
from radloop.evaluation.baselines import seeded_order
from radloop.evaluation.learnt import findings, percent
from radloop.evaluation.metrics import REGISTRY
from radloop.evaluation.normalise import RULES
from radloop.evaluation.predict import BASE, BLIND, CHAMPION, SHUFFLED, TUNED

if TYPE_CHECKING:
    from radloop.data.prepared import PreparedData

_EXAMPLES = {False: 12, True: 6}  # of wrong and of right answers
_THUMBNAIL = 224  # pixels


def render(data: PreparedData, predictions: pa.Table, metrics: dict[str, Any], seed: int) -> str:
    """Return the page; the images of the few examples shown are embedded in it."""
    verdicts = Markup("").join(
        Markup("<p>{} {}</p>").format(
            html.badge(f"{finding.topic}: {_WORDS[finding.good]}", finding.good), finding.text
        )
        for finding in findings(metrics)
    )
    kinds = metrics["by_question_type"]
    right, wrong = _examples(data, predictions, seed)
    return html.page(
        "Evaluation on the test split",
        _tiles(metrics),
        html.section("What was learnt", verdicts),
        html.section("Exact match", html.figure(charts.overall(metrics)) + _scores(metrics)),
        *([_published(metrics["published"])] if metrics.get("published") else []),
        html.section("By type of question", html.figure(charts.by_kind(kinds)) + _slices(kinds)),
        html.section("By type of answer", _slices(metrics["by_answer_type"])),
        html.section("Wrong answers, drawn at random", html.grid(wrong) if wrong else html.note("none")),
        html.section("Right answers, drawn at random", html.grid(right) if right else html.note("none")),
        html.section("How it was measured", _method(metrics)),
    )


_WORDS = {True: "yes", False: "no", None: "unknown"}


def _tiles(metrics: dict[str, Any]) -> Markup:
    low, high = metrics["intervals"]["exact_match"]
    other = metrics["gain"]["incumbent"]
    shuffled = metrics["exact_match_shuffled"]
    return html.tiles(
        [
            (percent(metrics["exact_match"]), f"exact match, tuned ({percent(low)} to {percent(high)})"),
            (percent(metrics[f"exact_match_{other}"]), f"the {other}"),
            (percent(metrics["exact_match_blind"]), "most common answer, without looking"),
            (None if shuffled is None else percent(shuffled), "tuned, shown the wrong images"),
            (metrics["n"], f"questions on {metrics['num_images']:,} images"),
        ]
    )


def _published(metrics: dict[str, Any]) -> Markup:
    text = (
        f"The same models on the {metrics['n']:,} questions of the published test split, which lie partly on "
        "images that training has seen with other questions. None of these questions was trained on. "
        "Compare with published figures, and decide by the table above."
    )
    return html.section("On the published test split", html.paragraph(text) + _scores(metrics))


def _scores(metrics: dict[str, Any]) -> Markup:
    rows: list[list[object]] = []
    for system, (label, _) in charts.STYLE.items():
        keys = [name if system == TUNED else f"{name}_{system}" for name in REGISTRY]
        if metrics.get(keys[0]) is not None:
            rows.append([label, *(_with_interval(metrics[key], metrics["intervals"][key]) for key in keys)])
    return html.table(["system", *(name.replace("_", " ") for name in REGISTRY)], rows)


def _slices(slices: dict[str, dict[str, Any]]) -> Markup:
    systems = [system for system in charts.STYLE if system in next(iter(slices.values()))]
    rows: list[list[object]] = [
        [
            kind,
            found["n"],
            *(percent(found[system]) for system in systems[:-1]),
            _with_interval(found[TUNED], found["intervals"][TUNED]),
        ]
        for kind, found in slices.items()
    ]
    return html.table(["type", "n", *(charts.STYLE[system][0] for system in systems)], rows)


def _with_interval(value: float, interval: list[float]) -> str:
    return f"{percent(value)}  ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _examples(data: PreparedData, predictions: pa.Table, seed: int) -> tuple[list[Any], list[Any]]:
    """Return cards of right and of wrong answers of the tuned model, no image twice in a list."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row in predictions.to_pylist():
        rows.setdefault(row["sample_id"], {})[row["system"]] = row
    cards: dict[bool, list[tuple[bytes | None, str]]] = {True: [], False: []}
    used: dict[bool, set[str]] = {True: set(), False: set()}
    for sample in seeded_order(list(rows), seed):
        systems = rows[sample]
        tuned = systems[TUNED]
        right = tuned["exact_match"] == 1
        if used[right].isdisjoint(tuned["image_ids"]) and len(cards[right]) < _EXAMPLES[right]:
            used[right].update(tuned["image_ids"])
            images = [data.image(image_id) for image_id in tuned["image_ids"]]
            cards[right].append((_thumbnails(images) if images else None, _caption(systems)))
    return cards[True], cards[False]


def _caption(systems: dict[str, dict[str, Any]]) -> Markup:
    tuned = systems[TUNED]
    lines = [
        Markup("<b>{}</b>").format(tuned["question"]),
        f"reference: {' | '.join(tuned['answers'])}",
        Markup("<b>tuned: {}</b> (confidence {:.2f})").format(tuned["prediction"], tuned["confidence"]),
    ]
    labels = {CHAMPION: "champion", BASE: "base", SHUFFLED: "tuned, on another image", BLIND: "blind guess"}
    lines += [f"{label}: {systems[name]['prediction']}" for name, label in labels.items() if name in systems]
    return Markup("\n").join(lines)


def _thumbnails(images: list[Image.Image]) -> bytes:
    """Return one picture (PNG) of all images of a question, in rows about as many as columns."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    side = min(_THUMBNAIL, max(max(image.size) for image in images))
    sheet = Image.new("RGB", (columns * side, rows * side))
    for number, image in enumerate(images):
        image.thumbnail((side, side))
        left, top = number % columns * side, number // columns * side
        sheet.paste(image, (left + (side - image.width) // 2, top + (side - image.height) // 2))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _method(metrics: dict[str, Any]) -> Markup:
    level = f"{100 * metrics['confidence_level']:g} %"
    return Markup("").join(
        html.paragraph(text)
        for text in (
            f"All systems answer the same {metrics['n']:,} questions. " + RULES,
            "Exact match asks for the whole answer; token F1 counts shared words. Where a question has "
            "several accepted answers, the best match counts.",
            f"Intervals ({level}) come from a bootstrap over the {metrics['num_groups']:,} groups (images, "
            "studies or patients), because questions on one image are right or wrong together. Differences "
            "are paired: both systems on the same questions.",
            "Blind guess: the most frequent answer of the training split to the same question, else to its "
            "type. Wrong images: every image is replaced by one of another group; a model that looks must "
            "get worse. It may keep the points that the two images' answers have in common. A question "
            "without an image stays as it is.",
        )
    )
