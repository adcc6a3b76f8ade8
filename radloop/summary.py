"""What a run gave, on a terminal: one short table, and what to type next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from radloop import registry
from radloop.config import DEFAULT_CONFIG, RunConfig
from radloop.evaluation import EvaluationReport
from radloop.promotion import PromotionDecision
from radloop.registry import Version
from radloop.release import Release

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

DEFAULT_NAME = RunConfig.model_fields["model_name"].default
STEPS = (
    "ingest",
    "validate",
    "preprocess",
    "finetune",
    "evaluate",
    "judge",
    "register",
    "promote",
    "package",
)


def show_run(run: PipelineRunResponse, config: Path, *, tiny: bool) -> None:
    """Print the table of one finished run of a config, and what to type next."""
    release: Release = run.steps["package"].outputs["packaged"][0].load()
    decision: PromotionDecision = run.steps["promote"].outputs["promotion_decision"][0].load()
    report: EvaluationReport = run.steps["evaluate"].outputs["evaluation_report"][0].load()
    version = registry.version(release.model_name, release.version)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    in_words = ("in words", report.metrics["learnt"][-1])
    for label, value in [
        *_scores(version),
        in_words,
        *_verdict(version, decision),
        ("time", _durations(run)),
    ]:
        table.add_row(label, value)
    console = Console(highlight=False)
    console.print()
    console.print(table)
    console.print("\nNext:")
    for command, purpose in next_commands(version, config, tiny=tiny):
        console.print(f"  {command:<44} {purpose}", soft_wrap=True)


def _scores(version: Version) -> list[tuple[str, str]]:
    scores, tags = version.metrics, version.tags
    rows = [
        ("data", f"{tags['dataset']}, fingerprint {version.fingerprint}"),
        (
            "test set",
            f"{scores['n']:,.0f} questions about {scores['num_groups']:,.0f} images or patients "
            "never trained on",
        ),
    ]
    labels = {
        "_base": f"base ({tags['base']})",
        "_champion": f"champion ({tags['incumbent']})",
        "": "tuned",
        "_shuffled": "tuned, on shuffled images",
        "_blind": "blind: majority answer",
        "_published": "tuned, on the published test split",
    }
    for key, label in labels.items():
        name = f"exact_match{key}"
        if scores.get(name) is not None:
            low, high = scores["intervals"].get(name, (None, None))
            interval = f"  [{100 * low:.1f}, {100 * high:.1f}]" if low is not None else ""
            rows.append((f"exact match, {label}", f"{_percent(scores[name])}{interval}"))
    return rows


def _verdict(version: Version, decision: PromotionDecision) -> list[tuple[str, str]]:
    rows = [
        (f"gate: {gate.name}", f"{'passed' if gate.passed else 'FAILED'}: {gate.explanation}")
        for gate in decision.gates
    ]
    return [
        *rows,
        ("verdict", "promoted" if decision.promoted else "NOT promoted: see the gates"),
        (
            "registered",
            f"{version.name} version {version.version}, alias {', '.join(version.aliases) or 'none'}",
        ),
        ("Bento", version.tags.get("bento") or "none: only promoted versions are packaged"),
    ]


def _durations(run: PipelineRunResponse) -> str:
    parts, cached = [], 0
    for name in STEPS:
        step = run.steps[name]
        if str(step.status) == "cached" or step.start_time is None or step.end_time is None:
            cached += 1
        else:
            parts.append(f"{name} {(step.end_time - step.start_time).total_seconds():.0f} s")
    if cached:
        parts.append(f"{cached} of {len(STEPS)} steps from the cache")
    return ", ".join(parts)


def next_commands(version: Version, config: Path, *, tiny: bool) -> list[tuple[str, str]]:
    """Return commands with what each is for."""
    option = "" if config == DEFAULT_CONFIG else f" -c {shlex.quote(str(config))}"
    again = f"radloop run{option}" if tiny else f"radloop retrain{option} --if-new-data"
    serving = [
        (f"radloop serve{_name_option(version)}", "the champion as an HTTP endpoint on port 3000"),
        ("radloop app", "the chat page, in a second shell; then open http://127.0.0.1:7860"),
    ]
    return [
        ("source .venv/bin/activate", "once per shell"),
        *(serving if registry.champion(version.name) else []),
        ("radloop models", "all versions, their scores, and why each was promoted or not"),
        ("zenml login --local", "runs, artifacts and reports in ZenML's dashboard"),
        ("mlflow ui", "loss curves and the registry"),
        (again, "the whole run that this one was a trial of" if tiny else "around again"),
    ]


def _name_option(version: Version) -> str:
    return "" if version.name == DEFAULT_NAME else f" --name {version.name}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def list_versions(versions: list[Version]) -> None:
    """Print one line a version, and below the table why each was promoted or not."""
    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("model", "version", "alias", "tuned", "base", "blind", "shuffled", "n"):
        if heading in ("model", "alias"):  # where there is no room for all, names give way to figures
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, no_wrap=True, justify="right")
    for version in versions:
        scores = version.metrics
        table.add_row(
            version.name,
            str(version.version),
            ", ".join(version.aliases),
            *(_percent(scores.get(f"exact_match{which}")) for which in ("", "_base", "_blind", "_shuffled")),
            f"{scores.get('n', 0):,.0f}",
        )
    console.print("Exact match on the test split:\n")
    console.print(table)
    for version in versions:
        bento = version.tags.get("bento") or "none"
        console.print(
            f"\n{version.name} {version.version}: data {version.fingerprint}, Bento {bento}\n"
            f"  {version.tags.get('reason', 'not decided yet')}",
            soft_wrap=True,
        )
