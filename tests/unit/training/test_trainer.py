"""What a step does when it goes wrong: gradients that overflow in fp16, and losses that are no numbers."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.errors import TrainingError
from radloop.models.loading import Loaded
from radloop.training import finetune, trainer
from radloop.training.adapter import Adapter, with_lora
from radloop.training.batching import Batches, StepBatch
from radloop.training.examples import read_examples
from radloop.training.losses import summed_loss
from radloop.training.pictures import FeatureSource
from radloop.training.plan import make_plan
from radloop.training.processes import make_accelerator
from radloop.training.trainer import Trainer
from tests.unit.tiny import prepared, save_base

DATA = prepared(6, questions=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(base=str(save_base(tmp_path_factory.mktemp("base"))))


def run(
    base: ModelConfig,
    on_step: Callable[[dict[str, float]], None] | None = None,
    tokens_per_pass: int | None = 80,
) -> Adapter:
    config = FinetuneConfig(rank=4, images_per_step=6, max_steps=6, tokens_per_pass=tokens_per_pass)
    return finetune(DATA, base, config, seed=0, on_step=on_step)


# Gradients of fp16


def with_scaler(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Let a run on a CPU scale its losses as accelerate does for fp16, with PyTorch's own scaler."""

    def make(loaded: Loaded) -> Accelerator:
        accelerator = make_accelerator(loaded)
        accelerator.scaler = torch.amp.GradScaler("cpu", **settings)

        def unscale(optimizer: None = None) -> None:
            accelerator.scaler.unscale_(accelerator._optimizers[0].optimizer)

        monkeypatch.setattr(accelerator, "unscale_gradients", unscale)
        return accelerator

    monkeypatch.setattr(trainer, "make_accelerator", make)


def test_a_run_with_steps_skipped_by_overflow_ends_with_an_adapter(
    base: ModelConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = run(base).record["history"]
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path))  # else it would go on from that
    # At 2^127 scaled losses are beyond fp32, as they are beyond fp16 at the usual 2^16 now and then.
    with_scaler(monkeypatch, init_scale=2.0**127)
    told: list[dict[str, float]] = []
    history = run(base, told.append).record["history"]
    skipped = [entry for entry in history if "skipped" in entry]
    assert history == told
    assert 0 < len(skipped) < len(history)
    assert all(entry["skipped"] == 1 and "grad_norm" not in entry for entry in skipped)
    assert all(math.isfinite(entry["grad_norm"]) for entry in history[len(skipped) :])
    assert not any("skipped" in entry for entry in history[len(skipped) :])
    # A step that is left out leaves the weights as they were, by which the norm is that of the first step.
    assert history[len(skipped)]["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=1e-5)


def test_gradients_that_overflow_at_the_smallest_scale_stop_the_run(
    base: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(loaded: Any, *arguments: Any) -> torch.Tensor:
        weight = next(p for p in loaded.model.parameters() if p.requires_grad)
        return summed_loss(loaded, *arguments) + torch.sqrt((weight * 0).sum())  # 0, of a gradient 0 * inf

    with_scaler(monkeypatch, init_scale=4.0)
    monkeypatch.setattr(trainer, "summed_loss", spoilt)
    told: list[dict[str, float]] = []
    with pytest.raises(TrainingError, match="the gradient norm is nan at step 3 of 6"):
        run(base, told.append)
    assert [entry["skipped"] for entry in told] == [1, 1]  # at scales 4 and 2


# Losses that are no numbers


def spoil(monkeypatch: pytest.MonkeyPatch, is_spoilt: Callable[[Any], bool]) -> None:
    """Let the loss of rows for which it is said be nan."""

    def spoilt(loaded: Any, features: Any, rows: Any, weighting: Any) -> torch.Tensor:
        loss = summed_loss(loaded, features, rows, weighting)
        return loss * float("nan") if is_spoilt(rows) else loss

    monkeypatch.setattr(trainer, "summed_loss", spoilt)


def named(error: pytest.ExceptionInfo[TrainingError]) -> set[str]:
    """Return the samples that a message names."""
    listed = error.value.message.partition("with the samples ")[2].partition(";")[0]
    return set(listed.split(", "))


def ids_of(*numbers: int) -> set[str]:
    """Return the ids of the samples of images."""
    return {
        row["id"]
        for row in DATA.samples.to_pylist()
        if row["image_ids"] in [[f"image-{number}"] for number in numbers]
    }


def test_the_samples_whose_loss_is_no_number_are_named(
    base: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda rows: any(group.image_ids == ("image-2",) for row in rows for group in row))
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1 of 6 \(learning rate ") as caught:
        run(base, tokens_per_pass=None)  # all in one pass
    assert named(caught) == ids_of(2)


def test_where_no_sample_is_it_alone_those_of_the_pass_are_named(
    base: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[Any] = []

    def only_the_second(rows: Any) -> bool:
        passes.append(rows)
        return len(passes) == 2

    spoil(monkeypatch, only_the_second)
    with pytest.raises(TrainingError, match="the loss is nan at step 1") as caught:
        run(base)
    groups = [group for row in passes[1] for group in row]
    assert named(caught) == ids_of(*(int(group.image_ids[0].removeprefix("image-")) for group in groups))
    assert named(caught) < ids_of(*range(6))


def two_processes(base: ModelConfig) -> tuple[Trainer, StepBatch]:
    """Return the trainer of the second of two processes, as far as it goes without the first."""
    config = FinetuneConfig(rank=4)
    loaded = with_lora(models.load(base), config)
    batches = Batches(
        read_examples(DATA, "train", loaded.prompts, True), 6, 40, "one row", 0, num_processes=2
    )
    source = FeatureSource(loaded, DATA, make_plan(loaded.family, config), config, 0)
    return Trainer(loaded, config, batches, source, None, 0), batches.of(1)


def test_a_process_names_the_samples_of_another_whose_loss_is_no_number(base: ModelConfig) -> None:
    second, batch = two_processes(base)
    first, own = batch.passes_of(0), batch.passes_of(1)
    assert len(first) > 1
    told = torch.zeros(len(first) + len(own), dtype=torch.float64)
    told[1] = 1.0  # by the first process, of its second pass
    second.accelerator = SimpleNamespace(  # type: ignore[assignment]
        num_processes=2, process_index=1, device="cpu", reduce=lambda tensor, _how: tensor + told
    )
    (rows, _counts) = first[1]
    assert second._faulty_samples(1, batch, torch.zeros(len(own))) == batch.sample_ids(rows)
    losses = torch.zeros(len(own))
    losses[0] = math.nan
    both = [*rows, *own[0][0]]
    assert second._faulty_samples(1, batch, losses) == list(dict.fromkeys(batch.sample_ids(both)))
