"""The result of a judging."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from markupsafe import Markup

from radloop import html
from radloop.judging.protocol import Judgement, Pair

_EXAMPLES = 30


@dataclass(frozen=True)
class JudgeReport:
    """Who won how many pairs, by whose judgement.

    Attributes:
        summary: JSON values: "judge" (its name), "challenger", "incumbent", "num_pairs", "num_groups",
            "num_asked" (pairs with unequal answers), "verdicts" (counts), the challenger's "win_rate"
            (a tie is half a win; invalid pairs do not count) with "interval" by group and "p" of the
            sign-flip test by group, "consistency" (share of asked pairs with one verdict in both
            orders; None if none was asked), "tokens".
        judgements: Every pair with its verdicts.
    """

    summary: dict[str, Any]
    judgements: tuple[Judgement, ...]

    def save(self, folder: Path) -> None:
        content = {"summary": self.summary, "judgements": list(map(asdict, self.judgements))}
        (folder / "judge.json").write_text(json.dumps(content, indent=2))

    @classmethod
    def load(cls, folder: Path) -> Self:
        content = json.loads((folder / "judge.json").read_text())
        return cls(content["summary"], tuple(map(_judgement, content["judgements"])))

    def views(self) -> dict[str, str | bytes]:
        return {"judge.html": _page(self)}

    def facts(self) -> dict[str, str | int | float]:
        names = ("judge", "incumbent", "num_pairs", "win_rate", "p", "consistency", "tokens")
        return {name: self.summary[name] for name in names if self.summary[name] is not None}


def _judgement(values: dict[str, Any]) -> Judgement:
    pair = values["pair"] | {"references": tuple(values["pair"]["references"])}
    return Judgement(**(values | {"pair": Pair(**pair)}))


def _page(report: JudgeReport) -> str:
    summary = report.summary
    low, high = (100 * bound for bound in summary["interval"])
    consistency = None if summary["consistency"] is None else f"{100 * summary['consistency']:.0f} %"
    other = summary["incumbent"]
    differing = [judgement for judgement in report.judgements if judgement.verdict != "tie"]
    differing += [judgement for judgement in report.judgements if judgement.first != judgement.second]
    shown = list(dict.fromkeys(differing))[:_EXAMPLES]
    ours = summary["challenger"]
    names = {"challenger": ours, "incumbent": other, "tie": "tie", "invalid": "outside the protocol"}
    rows = [
        [
            judgement.pair.question,
            " | ".join(judgement.pair.references),
            judgement.pair.challenger,
            judgement.pair.incumbent,
            _badge(judgement, names),
        ]
        for judgement in shown
    ]
    counts = [[names[verdict], count] for verdict, count in summary["verdicts"].items()]
    return html.page(
        f"Judge: {summary['challenger']} against {other}",
        html.paragraph(f"Judged by {summary['judge']}."),
        html.tiles(
            [
                (f"{100 * summary['win_rate']:.1f} %", f"wins, a tie is half ({low:.1f} to {high:.1f})"),
                (f"{summary['p']:.3g}", "p that neither is better"),
                (summary["num_pairs"], f"pairs, {summary['num_asked']:,} with unequal answers"),
                (consistency, "same verdict in both orders"),
                (summary["tokens"], "tokens used"),
            ]
        ),
        html.section("Verdicts", html.table(["preferred", "pairs"], counts)),
        html.section(
            "Where they differ", html.table(["question", "reference", ours, other, "verdict"], rows)
        ),
        html.section("How it was judged", _method(summary)),
    )


def _badge(judgement: Judgement, names: dict[str, str]) -> Markup:
    good = {"challenger": True, "incumbent": False}.get(judgement.verdict)
    text = "orders disagree" if judgement.verdict == "tie" else names[judgement.verdict]
    return html.badge(text, good)


def _method(summary: dict[str, Any]) -> Markup:
    level = f"{100 * summary['confidence_level']:g} %"
    return html.note(
        "Every pair is put to the judge in both orders; a system wins only if it is preferred in both, and a "
        "pair whose orders disagree is a tie. Equal answers are ties and are not put to the judge. A reply "
        "outside the protocol is counted, not guessed, and does not enter the win rate. The interval "
        f"({level}) and p are computed over the {summary['num_groups']:,} groups (images, studies, patients)."
    )
