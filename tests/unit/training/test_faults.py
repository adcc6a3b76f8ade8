"""Runs that cannot go on stop with one message that says where, with what, and what to do."""

import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.errors import OutOfMemory, TrainingError
from radloop.training import finetune, loop, trainer, validation
from radloop.training.faults import (
    explain_out_of_memory,
    less_memory,
    not_finite,
    peak_memory_mb,
    reset_peak_memory,
)
from radloop.training.losses import summed_loss
from radloop.training.savings import estimate_in_words
from tests.unit.models.test_loading import change_weights
from tests.unit.tiny import prepared, save_base

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(base=str(save_base(tmp_path_factory.mktemp("base"))))


def run(base: ModelConfig, **settings: Any) -> list[dict[str, float]]:
    chosen = {"rank": 4, "images_per_step": 2, "max_steps": 6} | settings
    found: list[dict[str, float]] = []
    finetune(prepared(4, 1), base, FinetuneConfig(**chosen), seed=0, on_step=found.append)
    return found


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 40000000 bytes."),
    ],
)
def test_too_little_memory_is_said_with_place_peak_and_advice(error: Exception) -> None:
    words = r"out of memory at step 3, after a peak of [\d,]+ MB; lower what is high\. Checkpoints"
    with (
        pytest.raises(OutOfMemory, match=words),
        explain_out_of_memory("at step 3", CPU, "lower what is high"),
    ):
        raise error


def test_only_what_would_take_less_memory_is_named(
    base: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = models.load(base)
    tokens, checkpointing, bits = (
        "lower finetune.tokens_per_pass",
        "set finetune.gradient_checkpointing: true",
        "set model.precision: nf4",
    )
    saving = FinetuneConfig(gradient_checkpointing=True)
    assert less_memory(loaded, FinetuneConfig()) == f"{tokens} or {checkpointing} or {bits}"
    assert less_memory(loaded, saving) == f"{tokens} or {bits}"
    unbounded = FinetuneConfig(tokens_per_pass=None)
    assert less_memory(loaded, unbounded).startswith("set finetune.tokens_per_pass or")
    assert less_memory(replace(loaded, precision="nf4"), saving) == tokens
    monkeypatch.setattr(type(loaded.family), "precisions", ("fp32", "bf16"))
    assert less_memory(loaded, saving) == tokens
    monkeypatch.setattr(type(loaded.base_model), "supports_gradient_checkpointing", False)
    assert less_memory(loaded, FinetuneConfig()) == tokens


def test_a_real_failed_allocation_is_one() -> None:
    with pytest.raises(OutOfMemory, match="out of memory"), explain_out_of_memory("here", CPU):
        torch.empty(2**60)


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="shape"), explain_out_of_memory("here", CPU):
        raise RuntimeError("shape mismatch")


@pytest.mark.parametrize("where", [trainer, validation])
def test_a_pass_that_does_not_fit_is_named(
    base: ModelConfig, monkeypatch: pytest.MonkeyPatch, where: Any
) -> None:
    def fail(*arguments: Any) -> torch.Tensor:
        if not torch.is_grad_enabled() or where is trainer:
            raise torch.OutOfMemoryError
        return summed_loss(*arguments)

    monkeypatch.setattr(where, "summed_loss", fail)
    words = r"in a pass of \d+ tokens" if where is trainer else "in validation"
    peak = r"after a peak of [\d,]+ MB; lower finetune\.tokens_per_pass"
    estimate = r"It is estimated to need [\d,.]+ [MG]B in all"
    with pytest.raises(OutOfMemory, match=rf"out of memory at step \d of 6, {words}, {peak}.*{estimate}"):
        run(base)


def test_each_change_that_would_help_is_named_with_its_estimate(
    base: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = type("Process", (), {"memory_info": lambda self: type("Info", (), {"rss": 0})()})
    monkeypatch.setattr("radloop.training.estimate.psutil.Process", process)
    said = estimate_in_words(prepared(4, 1), base, FinetuneConfig(images_per_step=4), 0)
    first, *changes = (int(found.replace(",", "")) for found in re.findall(r"([\d,]+) MB", said))
    assert "with finetune.tokens_per_pass: " in said
    assert changes
    assert max(changes) <= first


def test_too_little_memory_before_the_first_step_is_said(
    base: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000 bytes.")

    monkeypatch.setattr(loop, "with_lora", fail)
    words = r"out of memory before the first step.*lower finetune\.rank.*It is estimated to need"
    with pytest.raises(OutOfMemory, match=words):
        run(base)


def test_memory_is_that_of_the_process() -> None:
    now = psutil.Process().memory_info().rss / 1e6
    assert 0.99 * now < peak_memory_mb(CPU) < 50 * now


def test_the_peak_of_a_gpu_is_that_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    reset: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    reset_peak_memory(CPU)
    assert not reset
    reset_peak_memory(torch.device("cuda", 1))
    assert reset == [torch.device("cuda", 1)]


def test_a_run_counts_its_peak_from_its_start(base: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[torch.device] = []
    monkeypatch.setattr(trainer, "reset_peak_memory", told.append)
    run(base)
    assert told == [CPU]


def test_what_is_not_finite_names_step_samples_and_the_warm_up_in_force() -> None:
    told = partial(not_finite, "the loss", of_base=False)
    message = told(math.nan, "at step 2", ["a", "b"], FinetuneConfig()).message
    assert "the loss is nan at step 2, with the samples a, b; lower finetune.learning_rate" in message
    assert "raise finetune.warmup, or" in message
    many = [str(n) for n in range(25)]
    message = told(math.inf, "at step 2", many, FinetuneConfig(warmup_steps=0)).message
    assert ", 19 and 5 more; lower" in message
    assert "raise finetune.warmup_steps, or" in message


def test_a_base_that_gives_no_number_is_told_from_a_step_too_long(base: ModelConfig, tmp_path: Path) -> None:
    shutil.copytree(base.base, tmp_path / "base")
    change_weights(tmp_path / "base" / "model.safetensors", spoil_vision)
    with pytest.raises(TrainingError, match=r"nan at step 1 .* it is the base's own: look at its weights"):
        run(ModelConfig(base=str(tmp_path / "base")))


def spoil_vision(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    (name,) = (name for name in weights if name.endswith("position_embedding.weight"))
    return weights | {name: torch.full_like(weights[name], math.nan)}


@pytest.mark.parametrize(("name", "factor"), [("loss", float("nan")), ("gradient norm", 1.0)])
def test_a_step_that_is_not_finite_is_not_taken(
    base: ModelConfig, monkeypatch: pytest.MonkeyPatch, name: str, factor: float
) -> None:
    calls = 0

    def spoilt(loaded: Any, *arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = summed_loss(loaded, *arguments)
        if calls != 4:
            return loss
        if name == "gradient norm":  # a gradient of 0 * inf, behind a loss that is fine
            weight = next(p for p in loaded.model.parameters() if p.requires_grad)
            return loss + torch.sqrt((weight * 0).sum())
        return loss * factor

    monkeypatch.setattr(trainer, "summed_loss", spoilt)
    taken: list[dict[str, float]] = []
    with pytest.raises(TrainingError) as caught:
        finetune(
            prepared(8),
            base,
            FinetuneConfig(rank=4, images_per_step=2, max_steps=6),
            seed=0,
            on_step=taken.append,
        )
    assert len(taken) == 3
    message = caught.value.message
    assert f"the {name} is nan at step 4 of 6 (learning rate " in message
    assert "with the samples sample-" in message
    assert "Nothing of this step is kept" in message


def test_a_validation_that_is_not_finite_stops_the_run(
    base: ModelConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def spoilt(*arguments: Any) -> torch.Tensor:
        return summed_loss(*arguments) * float("nan")

    monkeypatch.setattr(validation, "summed_loss", spoilt)
    with pytest.raises(TrainingError, match="the validation loss is nan at step 2 of 6"):
        run(base)


def test_the_peak_of_a_process_is_not_that_of_its_parent() -> None:
    ballast = b"1" * 900_000_000  # in memory, since it is not zero
    script = "import torch; from radloop.training.faults import *; print(peak_memory_mb(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 50 < float(done.stdout) < len(ballast) / 1e6
    assert peak_memory_mb(torch.device("cpu")) > len(ballast) / 1e6
