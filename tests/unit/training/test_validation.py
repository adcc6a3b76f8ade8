"""When a run validates, which weights it keeps, and when it stops."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.errors import ConfigError
from radloop.evaluation.metrics import get_metric
from radloop.inference import Engine, Request
from radloop.training import finetune
from radloop.training.adapter import Adapter
from radloop.training.validation import Validation
from tests.unit.tiny import prepared, save_base
from tests.unit.training.test_finetune import changed


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(base=str(save_base(tmp_path_factory.mktemp("base"))))


def run(base: ModelConfig, data: PreparedData | None = None, **settings: Any) -> Adapter:
    chosen = {"rank": 4, "images_per_step": 2, "learning_rate": 3e-2, "schedule": "constant"} | settings
    return finetune(data or prepared(4, 2), base, FinetuneConfig(**chosen), seed=0)


def script(monkeypatch: pytest.MonkeyPatch, **measures: list[float]) -> None:
    """Let validations find these figures, one after the other, in place of the model's own."""
    stock, rows = Validation.measure, iter(zip(*measures.values(), strict=True))

    def measure(*arguments: Any) -> dict[str, float]:
        stock(*arguments)
        return dict(zip(measures, next(rows), strict=True))

    monkeypatch.setattr(Validation, "measure", measure)


def weights(adapter: Adapter) -> dict[str, torch.Tensor]:
    return load_file(adapter.folder / "adapter_model.safetensors")


def test_validation_comes_every_so_many_steps_and_at_the_end(base: ModelConfig) -> None:
    history = run(base, max_steps=7, validate_every=3).record["history"]
    assert [entry["step"] for entry in history if "validation_loss" in entry] == [3, 6, 7]


@pytest.mark.parametrize(
    ("best_by", "measures", "kept"),
    [
        ("last", {"validation_loss": [5.0, 1.0, 3.0, 4.0]}, 4),
        ("validation_loss", {"validation_loss": [5.0, 1.0, 3.0, 4.0]}, 2),
        ("validation_loss", {"validation_loss": [5.0, 3.0, 3.0, 3.0]}, 2),
        (
            "exact_match",
            {"validation_loss": [1.0, 2.0, 3.0, 4.0], "exact_match": [0.1, 0.2, 0.5, 0.4]},
            3,
        ),
    ],
)
def test_the_best_weights_are_kept(
    base: ModelConfig,
    monkeypatch: pytest.MonkeyPatch,
    best_by: str,
    measures: dict[str, list[float]],
    kept: int,
) -> None:
    expected = weights(run(base, max_steps=kept))
    script(monkeypatch, **measures)
    adapter = run(base, max_steps=4, validate_every=1, best_by=best_by)
    assert adapter.record["kept_step"] == kept
    assert len(adapter.record["history"]) == 4
    assert all(torch.equal(value, expected[name]) for name, value in weights(adapter).items())
    facts = adapter.facts()
    assert (facts["steps"], facts["validation_loss"]) == (4, measures["validation_loss"][kept - 1])
    assert facts.get("exact_match") == measures.get("exact_match", [None] * 4)[kept - 1]


@pytest.mark.parametrize(("patience", "last"), [(1, 3), (2, 6), (3, 7), (None, 7)])
def test_training_stops_when_patience_is_over(
    base: ModelConfig, monkeypatch: pytest.MonkeyPatch, patience: int | None, last: int
) -> None:
    script(monkeypatch, validation_loss=[5.0, 4.0, 4.5, 3.0, 3.5, 3.1, 3.2])
    adapter = run(base, max_steps=7, validate_every=1, best_by="validation_loss", patience=patience)
    assert len(adapter.record["history"]) == last
    assert adapter.record["kept_step"] == {3: 2, 6: 4, 7: 4}[last]


def test_patience_follows_the_chosen_measure(base: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, validation_loss=[1.0, 2.0, 3.0], exact_match=[0.1, 0.2, 0.3])
    adapter = run(base, max_steps=3, validate_every=1, best_by="exact_match", patience=1)
    assert adapter.record["kept_step"] == 3


def test_exact_match_is_that_of_the_engine_with_the_kept_weights(base: ModelConfig) -> None:
    data = prepared(4, 3)
    rows = data.samples.to_pylist()
    # Asked about what it was trained on, it gets some right and some not.
    shown = [["image-0"] if row["split"] == "validation" else row["image_ids"] for row in rows]
    data = changed(data, image_ids=shown)
    adapter = run(base, data, max_steps=12, validate_every=3, best_by="exact_match")
    history = adapter.record["history"]
    found = {entry["step"]: entry["exact_match"] for entry in history if "exact_match" in entry}
    assert sorted(found) == [3, 6, 9, 12]
    rows = data.split("validation").to_pylist()
    engine, metric = Engine(base, adapter.folder), get_metric("exact_match")
    requests = [Request((*row["image_ids"],), row["prompt"]) for row in rows]
    answers = engine.answer({"image-0": data.image("image-0")}, requests)
    scores = [metric(answer.text, row["answers"]) for answer, row in zip(answers, rows, strict=True)]
    assert found[adapter.record["kept_step"]] == sum(scores) / len(scores) == max(found.values())
    assert max(found.values()) > 0


def test_asking_leaves_training_as_it_was(base: ModelConfig) -> None:
    asked, silent = (
        run(base, max_steps=4, validate_every=1, best_by=best_by, dropout=0.2).record["history"]
        for best_by in ("exact_match", "last")
    )
    for with_answers, without in zip(asked, silent, strict=True):
        for name in ("loss", "grad_norm", "validation_loss"):
            assert with_answers[name] == without[name]


def test_what_needs_validation_is_refused_without(base: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=r"finetune.best_by, finetune.patience: needs a validation split"):
        run(base, prepared(2), best_by="validation_loss", patience=2)
