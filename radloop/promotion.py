"""The gates between a challenger and the champion's place: figures in, a decision with its evidence out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from radloop import html
from radloop.config import PromotionConfig
from radloop.evaluation import EvaluationReport
from radloop.judging import JudgeReport


@dataclass(frozen=True)
class Gate:
    """One condition of promotion.

    Attributes:
        name: What it asks for, such as "looks at the image".
        figure: What was measured, a share; None if it could not be.
        interval: (low, high) of the figure.
        threshold: What the interval has to lie above; for the judge, what its upper end must reach.
        passed: Whether it holds.
        explanation: One line with all the figures.
    """

    name: str
    figure: float | None
    interval: tuple[float, float] | None
    threshold: float
    passed: bool
    explanation: str


@dataclass(frozen=True)
class PromotionDecision:
    """Whether the challenger takes the champion's place, and why.

    Attributes:
        incumbent: What it was compared with, "base" or "champion 3".
        gates: All of them, passed or not.
    """

    incumbent: str
    gates: tuple[Gate, ...]

    @property
    def promoted(self) -> bool:
        """All gates passed."""
        return all(gate.passed for gate in self.gates)

    @property
    def reason(self) -> str:
        """One line: what was passed, or every gate that was not, with its figures."""
        chosen = [gate for gate in self.gates if gate.passed == self.promoted]
        verb = "promoted" if self.promoted else "not promoted"
        return f"{verb}: " + "; ".join(f"{gate.name}: {gate.explanation}" for gate in chosen)

    def save(self, folder: Path) -> None:
        content = asdict(self) | {"promoted": self.promoted, "reason": self.reason}
        (folder / "promotion.json").write_text(json.dumps(content, indent=2))

    @classmethod
    def load(cls, folder: Path) -> Self:
        content = json.loads((folder / "promotion.json").read_text())
        return cls(content["incumbent"], tuple(map(_gate, content["gates"])))

    def views(self) -> dict[str, str | bytes]:
        rows = [
            [gate.name, html.badge("passed" if gate.passed else "failed", gate.passed), gate.explanation]
            for gate in self.gates
        ]
        verdict = html.badge("promoted" if self.promoted else "not promoted", self.promoted)
        table = html.table(["gate", "verdict", "why"], rows)
        return {
            "promotion.html": html.page(
                f"Promotion: tuned against {self.incumbent}", verdict, html.section("Gates", table)
            )
        }

    def facts(self) -> dict[str, str | int | float]:
        return {"promoted": str(self.promoted).lower(), "incumbent": self.incumbent, "reason": self.reason}


def decide(
    evaluation: EvaluationReport, judge: JudgeReport, config: PromotionConfig, incumbent: str
) -> PromotionDecision:
    """Hold the tuned model against the gates.

    Args:
        evaluation: Paired figures on the test split.
        judge: Its pairwise verdicts; they can only refuse.
        config: Thresholds.
        incumbent: What the report's incumbent is called, "base" or "champion 3".
    """
    level = evaluation.metrics["confidence_level"]
    return PromotionDecision(
        incumbent,
        (
            _difference_gate(
                f"better than {incumbent}", evaluation.metrics["gain"], config.min_gain, level, incumbent
            ),
            _difference_gate(
                "looks at the image",
                evaluation.metrics["grounding"],
                config.min_grounding,
                level,
                "the wrong images",
            ),
            _judge_gate(judge.summary, incumbent),
        ),
    )


def _difference_gate(
    name: str, comparison: dict[str, Any] | None, threshold: float, level: float, other: str
) -> Gate:
    """Pass if the whole interval lies above the threshold, and p agrees that it is no accident.

    With a handful of images the bootstrap is too sure of itself; the sign-flip test is exact there, and
    cannot be significant with fewer than six groups at 95 %.
    """
    if comparison is None:
        return Gate(name, None, None, threshold, False, "cannot be told: there is one test image only")
    low, high = comparison["interval"]
    accident = 1 - level
    explanation = (
        f"{100 * comparison['difference']:+.1f} points of exact match over {other} "
        f"({100 * level:g} % interval {100 * low:+.1f} to {100 * high:+.1f}, p = {comparison['p']:.2g}; "
        f"needed: all of it above {100 * threshold:+.1f}, p at most {accident:.2g})"
    )
    passed = low > threshold and comparison["p"] <= accident
    return Gate(name, comparison["difference"], (low, high), threshold, passed, explanation)


def _judge_gate(summary: dict[str, Any], incumbent: str) -> Gate:
    """Fail only if the judge prefers the incumbent beyond doubt: it is a veto, not a vote."""
    low, high = summary["interval"]
    level = f"{100 * summary['confidence_level']:g} %"
    passed = high >= 0.5
    verdict = "does not prefer" if passed else "prefers"
    return Gate(
        "no veto by the judge",
        summary["win_rate"],
        (low, high),
        0.5,
        passed,
        f"{summary['judge']} {verdict} {incumbent}: win rate {100 * summary['win_rate']:.1f} % "
        f"({level} interval {100 * low:.1f} to {100 * high:.1f}; needed: not all of it below 50)",
    )


def _gate(values: dict[str, Any]) -> Gate:
    interval = values["interval"]
    return Gate(**(values | {"interval": None if interval is None else tuple(interval)}))
