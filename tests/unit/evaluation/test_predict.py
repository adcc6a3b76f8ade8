from __future__ import annotations

import weakref

import pyarrow as pa
import pyarrow.compute as pc

from radloop.data.prepared import PREPARED_SAMPLES, PreparedData
from radloop.evaluation.predict import PREDICTIONS, SYSTEMS, predict
from tests.unit.scripted import CONFIG, Scripted, habit, half, prepared, report, sees, with_image_sets


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
            assert row["shown_image_ids"] is None
        elif row["system"] == "shuffled":
            own, shown = (patients(row[name]) for name in ("image_ids", "shown_image_ids"))
            assert len(own) == len(shown) == 1
            assert own != shown
        else:
            assert row["shown_image_ids"] == row["image_ids"]


def patients(image_ids: list[str]) -> list[int]:
    return [int(image_id.removeprefix("image")) // 2 for image_id in image_ids]


def test_samples_may_have_several_images_or_none() -> None:
    data = with_image_sets(prepared(num_test=10, group_size=2))
    found = report(data, base=habit, tuned=sees, champion=half)
    of_system = {
        system: found.predictions.filter(pc.equal(found.predictions["system"], system)).to_pylist()
        for system in SYSTEMS
    }
    for rows in of_system.values():
        assert [row["image_ids"] for row in rows] == data.split("test")["image_ids"].to_pylist()
    assert [row["shown_image_ids"] for row in of_system["tuned"]][:4] == [
        ["image1", "image0"],
        ["image0"],
        ["image1"],
        [],
    ]
    several, _, _, none = of_system["shuffled"][:4]
    assert len(set(several["shown_image_ids"])) == 2
    assert not set(patients(several["shown_image_ids"])) & {0}
    assert (none["shown_image_ids"], none["prediction"]) == ([], of_system["tuned"][3]["prediction"])
    assert [row["shown_image_ids"] for row in of_system["blind"][:4]] == [None] * 4
    assert found.metrics["exact_match"] == 1
    assert found.metrics["num_images"] == 10


def test_without_any_image_there_is_nothing_to_shuffle() -> None:
    data = prepared(num_test=4)
    samples = data.samples.set_column(
        data.samples.schema.get_field_index("image_ids"),
        PREPARED_SAMPLES.field("image_ids"),
        pa.array([[]] * data.samples.num_rows, pa.list_(pa.string())),
    )
    found = report(PreparedData(data.images, samples, data.fingerprint), base=habit, tuned=habit)
    assert "shuffled" not in found.predictions["system"].to_pylist()
    assert (found.metrics["num_images"], found.metrics["n"]) == (0, 8)


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


def test_one_engine_is_in_memory_at_a_time() -> None:
    opened: list[weakref.ref[Scripted]] = []
    alive: list[int] = []

    def open_engine() -> Scripted:
        alive.append(sum(engine() is not None for engine in opened))
        engine = Scripted(sees)
        opened.append(weakref.ref(engine))
        return engine

    predict(prepared(num_test=2), dict.fromkeys(("base", "tuned", "champion"), open_engine), CONFIG, 0)
    assert alive == [0, 0, 0]
