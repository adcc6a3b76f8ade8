"""The printed form of what the training benchmark measured."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
_WIDTH = 110
_SPEED = """
    Training, side by side with TRL's SFTTrainer on the same model, phantoms, tokens, LoRA layers, precision
    (fp32) and samples a step; gradient checkpointing off in both. Samples a second of training, reading of
    images and texts included, loading and saving not; "job" compares the whole jobs, in which radloop also
    checks that the adapter can be merged. Medians. Peak MB is what the process holds and the system cannot
    drop.
"""
_QUALITY = """
    Quality after equal samples, each seed's adapter scored by the same code on the same validation questions.
    The other side's warm-up takes its first step at a learning rate of zero; in few steps that shows.
"""
_CACHE = """
    The feature cache on a model of Llama-3.2-Vision's shape, one question an image: a first run, which
    computes the features in its first epoch, and a later one, which finds them on disk.
"""


def to_text(tables: dict[str, list[Row]], machine: dict[str, Any]) -> str:
    """Return the printed form of what `run` and `machine` of the benchmark gave."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    about = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB; {versions}"
    about = textwrap.fill(about, _WIDTH)
    if machine["load_before"] > 0.5:
        about += f"\nthe machine was shared: load {machine['load_before']:.1f} before the first measurement"
    blocks = [about, _prose(_SPEED), _speeds(tables["speed"])]
    blocks += [_prose(_QUALITY), _qualities(tables["quality"])]
    blocks += [_prose(_CACHE), _cached(tables["cache"])]
    return "\n\n".join(blocks)


def difference(rows: Sequence[Row], figure: str) -> tuple[float, float]:
    """Return the mean of radloop's figure minus the other's, seed by seed, and its standard error."""
    by_seed: dict[int, dict[str, float]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], {})[row["what"]] = row[figure]
    gaps = [found["radloop"] - found["SFTTrainer"] for found in by_seed.values()]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
    return statistics.mean(gaps), error


def _speeds(rows: Sequence[Row]) -> str:
    lines = [["", "radloop/s", "SFTTrainer/s", "times", "goal", "", "job", "peak MB", "theirs", "share"]]
    lines += [
        [
            row["what"],
            f"{row['samples_per_s']:.1f}",
            f"{row['other_samples_per_s']:.1f}",
            f"{row['times']:.1f} x",
            f"{row['goal']:g} x",
            _met(row["times"] >= row["goal"]),
            f"{row['whole_job']:.1f} x",
            f"{row['peak_mb']:,.0f}",
            f"{row['other_peak_mb']:,.0f}",
            f"{row['memory']:.2f}",
        ]
        for row in rows
    ]
    return _aligned(lines)


def _qualities(rows: Sequence[Row]) -> str:
    lines = [["", "seed", "validation loss", "exact match"]]
    lines += [
        [row["what"], str(row["seed"]), f"{row['loss']:.3f}", f"{row['exact_match']:.1%}"] for row in rows
    ]
    loss, match = difference(rows, "loss"), difference(rows, "exact_match")
    lines.append(["difference", "", f"{loss[0]:+.3f} ± {loss[1]:.3f}", f"{match[0]:+.1%} ± {match[1]:.1%}"])
    return _aligned(lines) + "\nThe difference is the mean over the seeds with its standard error."


def _cached(rows: Sequence[Row]) -> str:
    lines = [["", "with it/s", "without/s", "times", "goal", ""]]
    lines += [
        [
            row["what"],
            f"{row['samples_per_s']:.1f}",
            f"{row['other_samples_per_s']:.1f}",
            f"{row['times']:.1f} x",
            f"{row['goal']:g} x",
            _met(row["times"] >= row["goal"]),
        ]
        for row in rows
    ]
    return _aligned(lines)


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _prose(text: str) -> str:
    return textwrap.dedent(text).strip()


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(
        (
            line[0].ljust(widths[0])
            + "".join("  " + cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        ).rstrip()
        for line in lines
    )
