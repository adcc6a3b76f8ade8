"""Measures fine-tuning side by side with TRL's SFTTrainer, and with and without the feature cache.

python -m benchmarks.train [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import _train_setups as setups
from benchmarks._json_file import json_file, write
from benchmarks._measure import Measured, measure
from benchmarks._train_setups import Shape
from benchmarks._train_tables import Row, to_text
from benchmarks.ingest import machine
from radloop.models import get_family

_RECIPE: dict[str, Any] = {"rank": 16, "alpha": 32, "learning_rate": 3e-3, "targets": ["attention", "mlp"]}
_QUALITY_SEEDS = (1, 2, 3)
_CACHED_EPOCHS = 5
_CACHED = {"epochs": _CACHED_EPOCHS, "images_per_step": 8}  # as `rocov2_llama_vision`


@dataclass(frozen=True)
class Pairing:
    """One line of the table of speeds.

    Attributes:
        model: "tiny" or "100m".
        shape: Of the data.
        epochs: Over them.
        images_per_step: Of radloop; the other side takes as many samples a step.
        tokens_per_pass: Of radloop; the large model takes an image at a time, as the other side a question.
        batch: Rows in one forward pass of the other side: the fastest of those tried on this machine.
        goal: Times its speed.
        repetitions: Of each side; of the large model, which takes minutes, fewer.
    """

    model: str
    shape: Shape
    epochs: int
    images_per_step: int
    tokens_per_pass: int
    batch: int
    goal: float
    repetitions: int = 1


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    pairings: dict[str, Pairing]
    quality: Shape
    quality_seeds: tuple[int, ...]
    cached: Shape
    cached_repetitions: int


# The other side's batch makes little difference to it. Samples per second of processor time: tiny base, 7 an
# image: 47 in batches of 8 and 14, 51 of 28, 48 of 56; 22 an image: 50 of 11, 49 of 22, 52 of 44; LLaVA of
# 100 M: 0.43 one by one, 0.39 in batches of 7.
FULL = Plan(
    {
        "tiny base, 7 an image": Pairing("tiny", Shape(256, 7), 3, 8, 4096, 28, 6.0, 3),
        "tiny base, 22 an image": Pairing("tiny", Shape(96, 22), 3, 4, 4096, 44, 10.0, 3),
        "LLaVA of 100 M, 7 an image": Pairing("100m", Shape(4, 7), 3, 2, 1024, 1, 7.0, 2),
        "LLaVA of 100 M, 22 an image": Pairing("100m", Shape(2, 22), 3, 1, 1024, 1, 15.0, 2),
    },
    Shape(200, 7, validation=60),
    _QUALITY_SEEDS,
    Shape(96, 1),
    3,
)
QUICK = Plan(
    {
        "tiny base, 7 an image": Pairing("tiny", Shape(32, 7), 3, 8, 4096, 28, 6.0),
        "tiny base, 22 an image": Pairing("tiny", Shape(8, 22), 3, 4, 4096, 44, 10.0),
    },
    Shape(16, 7, validation=4),
    _QUALITY_SEEDS[:2],
    Shape(16, 1),
    1,
)


def run(plan: Plan, folder: Path) -> dict[str, list[Row]]:
    """Measure all, in an empty folder.

    Returns:
        Table name to rows; the fields of a row are the columns of the printed table, and the raw figures.
    """
    speed = [_speed(name, pairing, folder / name) for name, pairing in plan.pairings.items()]
    return {
        "speed": speed,
        "quality": _quality(plan, folder / "quality"),
        "cache": _cache(plan, folder / "cache"),
    }


def _speed(name: str, pairing: Pairing, folder: Path) -> Row:
    model = _model(pairing.model, folder)
    setups.write_data(folder / "data", pairing.shape, seed=7)
    ours: list[Measured] = []
    theirs: list[Measured] = []
    for repetition in range(pairing.repetitions):
        # In turn forwards and backwards, so that a machine that slows down slows both.
        sides = [(ours, _ours), (theirs, _theirs)]
        for found, side in sides[:: -1 if repetition % 2 else 1]:
            found.append(side(pairing, model, folder, seed=7))
    _require_same(name, ours[0], theirs[0])
    shutil.rmtree(folder)
    rate = statistics.median(_rate(run) for run in ours)
    other = statistics.median(_rate(run) for run in theirs)
    jobs = [statistics.median(run.values["seconds"] for run in found) for found in (ours, theirs)]
    whole = jobs[1] / jobs[0]
    peak, other_peak = (statistics.median(run.peak_mb for run in found) for found in (ours, theirs))
    return {
        "what": name,
        "samples_per_s": rate,
        "other_samples_per_s": other,
        "times": rate / other,
        "goal": pairing.goal,
        "whole_job": whole,
        "peak_mb": peak,
        "other_peak_mb": other_peak,
        "memory": peak / other_peak,
    }


def _quality(plan: Plan, folder: Path) -> list[Row]:
    """Train both sides on equal samples and score both with the same code."""
    setups.write_data(folder / "data", plan.quality, seed=11)
    pairing = Pairing("tiny", plan.quality, 2, 8, 4096, 28, 0.0)
    rows = []
    for seed in plan.quality_seeds:
        for name, side in (("radloop", _ours), ("SFTTrainer", _theirs)):
            side(pairing, setups.tiny_base(), folder, seed=seed, keep=folder / f"{name}-{seed}")
            told = {
                "model": str(setups.tiny_base()),
                "adapter": str(folder / f"{name}-{seed}"),
                "data": str(folder / "data"),
            }
            scored = measure("benchmarks._train_scores", told, folder / "home")
            rows.append({"what": name, "seed": seed} | scored.values)
    shutil.rmtree(folder)
    return rows


def _cache(plan: Plan, folder: Path) -> list[Row]:
    """Train a model of Llama-3.2-Vision's shape without the feature cache, with it, and with it again."""
    setups.write_mllama(folder / "model")
    setups.write_data(folder / "data", plan.cached, seed=7)
    rates: dict[str, list[float]] = {"without": [], "first": [], "again": []}
    for repetition in range(plan.cached_repetitions):
        home = folder / f"home-{repetition}"
        for what in rates:
            told = {
                "model": {"base": str(folder / "model"), "family": "mllama"},
                "data": str(folder / "data"),
                "out": str(folder / f"{what}-{repetition}"),
                "settings": _RECIPE | _CACHED | {"cache_features": what != "without"},
                "seed": 8 if what == "again" else 7,
            }
            rates[what].append(_rate(measure("benchmarks._train_ours", told, home)))
    shutil.rmtree(folder)
    rate = {what: statistics.median(found) for what, found in rates.items()}
    return [
        {
            "what": f"Mllama-shaped, 4 tiles, {name}",
            "samples_per_s": rate[run],
            "other_samples_per_s": rate["without"],
            "times": rate[run] / rate["without"],
            "goal": 3.0,
        }
        for name, run in ((f"{_CACHED_EPOCHS} epochs", "first"), ("a later run", "again"))
    ]


def _ours(pairing: Pairing, model: Path, folder: Path, seed: int, keep: Path | None = None) -> Measured:
    settings = _RECIPE | {
        name: getattr(pairing, name) for name in ("epochs", "images_per_step", "tokens_per_pass")
    }
    told: dict[str, Any] = {"model": {"base": str(model)}, "settings": settings}
    return _measured("benchmarks._train_ours", told, folder, seed, keep)


def _theirs(pairing: Pairing, model: Path, folder: Path, seed: int, keep: Path | None = None) -> Measured:
    groups = get_family("llava").targets
    told: dict[str, Any] = {
        "model": str(model),
        "targets": "|".join(groups[name] for name in _RECIPE["targets"]),
        "settings": {name: _RECIPE[name] for name in ("rank", "alpha", "learning_rate")}
        | {"epochs": pairing.epochs},
        "batch": pairing.batch,
        "samples_per_step": pairing.images_per_step * pairing.shape.questions,
    }
    return _measured("benchmarks._train_theirs", told, folder, seed, keep)


def _measured(module: str, told: dict[str, Any], folder: Path, seed: int, keep: Path | None) -> Measured:
    home = folder / "home"
    out = keep or folder / "out"
    found = measure(module, told | {"data": str(folder / "data"), "out": str(out), "seed": seed}, home)
    shutil.rmtree(home)
    if keep is None:
        shutil.rmtree(out)
    return found


def _model(name: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    if name == "tiny":
        return setups.tiny_base()
    setups.write_llava_100m(folder / "model")
    return folder / "model"


def _rate(found: Measured) -> float:
    return found.values["samples"] / found.values["training_seconds"]


def _require_same(name: str, ours: Measured, theirs: Measured) -> None:
    for what in ("samples", "steps", "tokens", "trained_parameters"):
        sides = ours.values[what], theirs.values[what]
        if sides[0] != sides[1]:
            raise RuntimeError(
                f"{name}: the sides differ in {what}: {ours.values[what]}, {theirs.values[what]}"
            )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller, about 2 minutes instead of about 27")
    parser.add_argument("--json", type=json_file, help="write the figures here, too")
    options = parser.parse_args()
    about = machine()
    about["versions"] |= {name: version(name) for name in ("torch", "transformers", "peft", "trl")}
    with tempfile.TemporaryDirectory(prefix="radloop-benchmark-") as folder:
        tables = run(QUICK if options.quick else FULL, Path(folder))
    print(to_text(tables, about))
    if options.json:
        write(options.json, {"machine": about, "tables": tables})


if __name__ == "__main__":
    main()
