"""benchmarks/train.py, in its smallest form."""

import json
from pathlib import Path

import pytest

from benchmarks import train
from benchmarks._measure import Measured
from benchmarks._train_setups import Shape
from benchmarks._train_tables import difference, to_text
from benchmarks.ingest import machine

NAME = "tiny base, 4 an image"
PAIRING = train.Pairing("tiny", Shape(2, 4), 1, 2, 4096, 8, 6.0)
_ROW = {
    "what": f"Mllama-shaped, 4 tiles, {train._CACHED_EPOCHS} epochs",
    "samples_per_s": 1234.5,
    "other_samples_per_s": 123.4,
    "times": 10.0,
    "goal": 15.0,
    "whole_job": 10.0,
    "peak_mb": 12_345.0,
    "other_peak_mb": 12_345.0,
    "memory": 1.0,
}
_QUALITY = [
    {"what": side, "seed": seed, "loss": 1.0, "exact_match": 0.5}
    for seed in (1, 2)
    for side in ("radloop", "SFTTrainer")
]


def test_both_sides_train_the_same(tmp_path: Path) -> None:
    about = machine() | {"load_before": 2.0}
    speed = train._speed(NAME, PAIRING, tmp_path / "speed")
    tables = {"speed": [speed], "quality": _QUALITY, "cache": [_ROW]}
    text = to_text(tables, about)
    assert speed["samples_per_s"] > 0
    assert speed["memory"] > 0
    assert f"\n{NAME} " in text
    assert max(map(len, text.splitlines())) <= 110
    assert json.loads(json.dumps(tables)) == tables
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["samples", "tokens", "trained_parameters"])
def test_sides_that_differ_are_not_compared(what: str) -> None:
    values = {"samples": 8, "tokens": {"all": 3, "with_loss": 1, "sha256": "a"}, "trained_parameters": 5}
    same, other = (Measured(values | changed, 1.0, 1.0, 1) for changed in ({}, {what: "another"}))
    train._require_same(NAME, same, same)
    with pytest.raises(RuntimeError, match=f"{NAME}: the sides differ in {what}: .*another"):
        train._require_same(NAME, same, other)


def test_the_longest_names_fit_the_tables() -> None:
    speed = [_ROW | {"what": name} for name in (*train.FULL.pairings, *train.QUICK.pairings)]
    text = to_text({"speed": speed, "quality": _QUALITY, "cache": [_ROW]}, machine())
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize(("times", "verdict"), [(14.9, "missed"), (15.0, "met")])
def test_a_goal_is_met_or_missed(times: float, verdict: str) -> None:
    row = _ROW | {"times": times}
    text = to_text({"speed": [row], "quality": _QUALITY, "cache": [row]}, machine())
    lines = [line.split() for line in text.splitlines() if line.startswith(_ROW["what"])]
    assert [verdict in words for words in lines] == [True, True]


def test_the_difference_is_ours_less_theirs_with_its_standard_error() -> None:
    scores = {"radloop": (1.0, 2.0, 3.0), "SFTTrainer": (0.5, 2.0, 2.5)}
    rows = [{"what": side, "seed": n, "loss": found[n]} for side, found in scores.items() for n in range(3)]
    mean, error = difference(rows, "loss")
    assert mean == pytest.approx(1 / 3)
    assert error == pytest.approx(1 / 6)


@pytest.mark.parametrize("plan", [train.FULL, train.QUICK])
def test_both_sides_take_the_same_samples_a_step(plan: train.Plan) -> None:
    for pairing in plan.pairings.values():
        assert pairing.images_per_step * pairing.shape.questions % pairing.batch == 0
        assert pairing.shape.images % pairing.images_per_step == 0
