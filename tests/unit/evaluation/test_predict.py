from __future__ import annotations

import pyarrow.compute as pc

from radloop.evaluation.predict import PREDICTIONS, SYSTEMS
from tests.unit.scripted import habit, half, prepared, report, sees


def test_every_system_answers_every_sample_in_order() -> None:
    data = prepared(num_test=10, group_size=2)
    predictions = report(data, base=habit, tuned=sees, champion=half).predictions
    assert predictions.schema == PREDICTIONS
    assert predictions["system"].unique().to_pylist() == list(SYSTEMS)
    for system in SYSTEMS:
        rows = predictions.filter(pc.equal(predictions["system"], system))
        assert rows["sample_id"].to_pylist() == data.indices["test"]
        assert rows["answers"].to_pylist() == data.split("test")["answers"].to_pylist()
        assert (rows["confidence"].null_count == rows.num_rows) == (system == "blind")


def test_only_the_shuffled_system_sees_other_images() -> None:
    predictions = report(prepared(num_test=10, group_size=2), base=habit, tuned=sees).predictions
    for row in predictions.to_pylist():
        if row["system"] == "blind":
            assert row["shown_image_id"] is None
        elif row["system"] == "shuffled":
            own, shown = (int(row[name].removeprefix("image")) for name in ("image_id", "shown_image_id"))
            assert own // 2 != shown // 2  # another patient's
        else:
            assert row["shown_image_id"] == row["image_id"]


def test_blind_learns_from_the_training_split_only() -> None:
    data = prepared(num_test=20, num_train=60)
    train = data.split("train").to_pylist()
    majority = {
        kind: max(
            ("yes", "no", "left", "right"),
            key=[r["answers"][0] for r in train if r["question_type"] == kind].count,
        )
        for kind in ("heart", "side")
    }
    predictions = report(data, base=sees, tuned=sees).predictions
    for row in predictions.filter(pc.equal(predictions["system"], "blind")).to_pylist():
        assert row["prediction"] == majority[row["question_type"]]


def test_the_seed_decides() -> None:
    data = prepared()
    assert (
        report(data, base=habit, tuned=sees).predictions == report(data, base=habit, tuned=sees).predictions
    )
    other = report(data, seed=8, base=habit, tuned=sees).predictions
    assert other != report(data, base=habit, tuned=sees).predictions


def test_one_image_cannot_be_shuffled() -> None:
    found = report(prepared(num_test=1), base=habit, tuned=sees)
    assert "shuffled" not in found.predictions["system"].to_pylist()
    assert found.metrics["exact_match_shuffled"] is None
    assert found.metrics["grounding"] is None
