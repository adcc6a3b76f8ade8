"""What the figures of an evaluation say, in plain sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_NEGLIGIBLE = 0.05  # of all answers: a model that changes or loses no more than these does not look


@dataclass(frozen=True)
class Finding:
    """A sentence, and whether it speaks for the model (None: it cannot be told)."""

    topic: str
    text: str
    good: bool | None


def findings(metrics: dict[str, Any]) -> list[Finding]:
    """Return what was gained, whether guessing does as well, and whether the image is used."""
    return [_gain(metrics), _over_blind(metrics), _grounding(metrics)]


def percent(value: float) -> str:
    """Return a share 0 to 1 as '93.6 %'."""
    return f"{100 * value:.1f} %"


def points(comparison: dict[str, Any]) -> str:
    """Return a difference with its interval, '+3.1 points (-0.4 to +6.6)'."""
    low, high = comparison["interval"]
    return f"{100 * comparison['difference']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"


def _gain(metrics: dict[str, Any]) -> Finding:
    gain = metrics["gain"]
    other = gain["incumbent"]
    figures = (
        f"exact match {percent(metrics['exact_match'])} against {percent(metrics[f'exact_match_{other}'])} "
        f"of the {other}, {points(gain)}"
    )
    verdict = _sign(gain)
    if verdict > 0:
        return Finding("gain", f"The tuned model is better than the {other}: {figures}.", True)
    if verdict < 0:
        return Finding("gain", f"The tuned model is worse than the {other}: {figures}.", False)
    return Finding("gain", f"No gain over the {other} can be shown: {figures}; the interval holds 0.", False)


def _over_blind(metrics: dict[str, Any]) -> Finding:
    figures = f"({percent(metrics['exact_match_blind'])}): {points(metrics['over_blind'])}."
    guess = "the most common training answer to each question, given without looking"
    if _sign(metrics["over_blind"]) > 0:
        return Finding("beyond guessing", f"It beats {guess} {figures}", True)
    return Finding("beyond guessing", f"It does not beat {guess} {figures}", False)


def _grounding(metrics: dict[str, Any]) -> Finding:
    grounding = metrics["grounding"]
    if grounding is None:
        return Finding(
            "uses the image", "Whether it uses the image cannot be told: there is one test image only.", None
        )
    if metrics["exact_match"] == metrics["exact_match_shuffled"] == 0:
        return Finding(
            "uses the image", "Whether it uses the image cannot be told: no answer is right.", None
        )
    figures = (
        f"{percent(metrics['exact_match_shuffled'])} on the wrong images against "
        f"{percent(metrics['exact_match'])} on the right ones, {points(grounding)}; "
        f"{percent(grounding['changed'])} of its answers change with the image"
    )
    if _sign(grounding) > 0 and grounding["difference"] <= _NEGLIGIBLE:
        return Finding(
            "uses the image", f"It uses the image, but little ({figures}): most is answer habits.", False
        )
    if _sign(grounding) > 0:
        return Finding("uses the image", f"It uses the image: {figures}.", True)
    if grounding["interval"][1] <= _NEGLIGIBLE or grounding["changed"] <= _NEGLIGIBLE:
        return Finding(
            "uses the image",
            f"The model answers equally well on other patients' images ({figures}): "
            "it has learnt answer habits, not anatomy.",
            False,
        )
    return Finding(
        "uses the image",
        f"That it uses the image cannot be shown ({figures}): "
        "take it to have learnt answer habits, not anatomy.",
        False,
    )


def _sign(comparison: dict[str, Any]) -> int:
    """Return 1 or -1 where the interval lies on one side of 0, else 0."""
    low, high = comparison["interval"]
    return int(low > 0) - int(high < 0)
