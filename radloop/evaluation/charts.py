"""Pictures of an evaluation."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from radloop.evaluation.predict import BASE, BLIND, CHAMPION, SHUFFLED, TUNED

# From what knows least to what should know most, top to bottom. Colours tell apart in grey, too.
STYLE = {
    BLIND: ("blind guess", "#b8c0c8"),
    SHUFFLED: ("tuned, wrong images", "#e59f4a"),
    BASE: ("base", "#7fb2c8"),
    CHAMPION: ("champion", "#5b6fa8"),
    TUNED: ("tuned", "#0b6e8a"),
}
_INK, _SOFT = "#1c2733", "#5b6b7b"
_MOST_KINDS = 16


def overall(metrics: dict[str, Any]) -> bytes:
    """Return a PNG: exact match of every system as bars, with intervals as whiskers."""
    shown = [(system, _key(system)) for system in STYLE if metrics.get(_key(system)) is not None]
    figure = Figure(figsize=(8.6, 0.55 * len(shown) + 0.9), layout="constrained")
    axes = figure.subplots()
    for row, (system, key) in enumerate(shown):
        colour = STYLE[system][1]
        weight = "bold" if system == TUNED else None
        value = 100 * metrics[key]
        low, high = (100 * bound for bound in metrics["intervals"][key])
        axes.barh(row, value, height=0.62, color=colour)
        axes.errorbar(value, row, xerr=[[value - low], [high - value]], color=_INK, capsize=3, lw=1.2)
        axes.text(102, row, f"{value:.1f} %", va="center", color=_INK, weight=weight)
    axes.set_yticks(range(len(shown)), [STYLE[system][0] for system, _ in shown])
    axes.invert_yaxis()
    _finish(axes, f"exact match in %, with {100 * metrics['confidence_level']:g} % interval")
    return _png(figure)


def by_kind(slices: dict[str, dict[str, Any]]) -> bytes:
    """Return a PNG: exact match of every system for each kind of question, the most frequent first."""
    kinds = list(slices)[:_MOST_KINDS]
    figure = Figure(figsize=(8.6, 0.5 * len(kinds) + 1.3), layout="constrained")
    axes = figure.subplots()
    drawn = [system for system in STYLE if system in slices[kinds[0]]]
    for place, system in enumerate(drawn):
        label, colour = STYLE[system]
        # Side by side, so that equal scores stay visible.
        heights = [row + 0.14 * (place - (len(drawn) - 1) / 2) for row in range(len(kinds))]
        values = [100 * slices[kind][system] for kind in kinds]
        if system == TUNED:
            bounds = [slices[kind]["intervals"][system] for kind in kinds]
            lows = [value - 100 * low for value, (low, _) in zip(values, bounds, strict=True)]
            highs = [100 * high - value for value, (_, high) in zip(values, bounds, strict=True)]
            axes.errorbar(values, heights, xerr=[lows, highs], fmt="none", color=colour, capsize=3, lw=1.2)
        size = 95 if system == TUNED else 60
        axes.scatter(values, heights, s=size, color=colour, label=label, zorder=3, edgecolor="white", lw=0.8)
    axes.set_yticks(range(len(kinds)), [f"{kind}  (n = {slices[kind]['n']})" for kind in kinds])
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.grid(axis="y", color="#edf1f4")
    _finish(axes, "exact match in %; the whisker is the tuned model's interval")
    figure.legend(loc="outside upper center", ncols=len(STYLE), frameon=False, labelcolor=_INK)
    return _png(figure)


def _key(system: str) -> str:
    return "exact_match" if system == TUNED else f"exact_match_{system}"


def _finish(axes: Axes, label: str) -> None:
    axes.set_xlim(-1.5, 100 + 1.5)
    axes.set_xlabel(label, color=_SOFT)
    axes.grid(axis="x", color="#d9e0e7")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=_INK)
    axes.spines[:].set_visible(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()
