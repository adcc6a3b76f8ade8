"""The training loop: it learns, repeats itself exactly, and stops with one message."""

import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from radloop import models, workspace
from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.errors import ConfigError, DataError, TrainingError
from radloop.models.loading import Loaded
from radloop.training import finetune, trainer, validation
from radloop.training.losses import summed_loss
from tests.unit.tiny import prepared, save_base

ROOT = Path(__file__).parents[3]
SHORT = FinetuneConfig(epochs=1, images_per_step=2, rank=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(base=str(save_base(tmp_path_factory.mktemp("base"))))


def changed(data: PreparedData, **columns: list) -> PreparedData:
    """Return `data` with whole columns of its samples replaced."""
    samples = data.samples
    for name, values in columns.items():
        index = samples.schema.get_field_index(name)
        samples = samples.set_column(
            index, samples.schema.field(name), pa.array(values, samples.schema.field(name).type)
        )
    return PreparedData(data.images, samples, data.fingerprint)


def test_the_loss_falls_on_answers_that_can_be_learnt(base: ModelConfig) -> None:
    steps: list[dict[str, float]] = []
    config = FinetuneConfig(epochs=30, images_per_step=4, learning_rate=1e-2)
    finetune(prepared(4, validation=2), base, config, seed=0, on_step=steps.append)
    assert [facts["step"] for facts in steps] == list(range(1, 31))
    assert steps[-1]["loss"] < 0.2 * steps[0]["loss"]
    for facts in steps:
        assert facts.keys() == {
            "step",
            "epoch",
            "loss",
            "learning_rate",
            "grad_norm",
            "samples_per_s",
            "tokens_per_s",
            "memory_mb",
            "validation_loss",
        }
        assert all(math.isfinite(value) for value in facts.values())


def test_the_loss_is_the_stock_models_mean_over_the_answer_tokens(base: ModelConfig) -> None:
    data = prepared(3)
    config = FinetuneConfig(epochs=1, images_per_step=3)  # one step, from which LoRA starts at zero
    loss = finetune(data, base, config, seed=0).record["history"][0]["loss"]
    loaded = models.load(base)
    total, num_tokens = 0.0, 0
    for row in data.samples.to_pylist():
        pair = loaded.prompts.pairs([row["prompt"]], [row["answers"][0]], [[(48, 48)]])[0]
        ids = torch.tensor([pair.ids])
        labels = torch.full_like(ids, -100)
        labels[:, -pair.num_answer :] = ids[:, -pair.num_answer :]
        picture = data.image(row["image_ids"][0])
        pixels = loaded.processor.image_processor([picture], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            stock = loaded.model(input_ids=ids, pixel_values=pixels, labels=labels).loss
        total, num_tokens = total + stock.item() * pair.num_answer, num_tokens + pair.num_answer
    assert loss == pytest.approx(total / num_tokens, rel=1e-5)


def test_sharing_prefixes_changes_nothing_but_the_time(base: ModelConfig) -> None:
    config = {"epochs": 2, "images_per_step": 3, "rank": 4}
    shared, plain = (
        finetune(prepared(6, 2), base, FinetuneConfig(share_prefix=share, **config), seed=0)
        for share in (True, False)
    )
    for ours, theirs in zip(shared.record["history"], plain.record["history"], strict=True):
        for name in ("loss", "grad_norm", "learning_rate"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
    assert "validation_loss" in shared.record["history"][-1]
    name = "adapter_model.safetensors"
    ours, theirs = load_file(shared.folder / name), load_file(plain.folder / name)
    assert all(torch.allclose(ours[key], theirs[key], rtol=1e-2, atol=1e-4) for key in ours)


def test_dropout_acts_in_training_and_not_in_validation(
    base: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def spy(loaded: Loaded, *arguments: Any) -> torch.Tensor:
        modes.append(loaded.base_model.training)
        return summed_loss(loaded, *arguments)

    monkeypatch.setattr(trainer, "summed_loss", spy)
    monkeypatch.setattr(validation, "summed_loss", spy)
    config = FinetuneConfig(epochs=2, images_per_step=2, rank=2, dropout=0.5)
    adapter = finetune(prepared(4, validation=1), base, config, seed=0)
    assert modes == [True, True, False] * 2
    without = finetune(prepared(4), base, config.model_copy(update={"dropout": 0.0}), seed=0)
    name = "adapter_model.safetensors"
    assert (adapter.folder / name).read_bytes() != (without.folder / name).read_bytes()


def test_the_projector_can_be_trained_as_well(base: ModelConfig) -> None:
    config = FinetuneConfig(epochs=2, rank=2, targets=("projector",), learning_rate=1e-2)
    adapter = finetune(prepared(3), base, config, seed=0)
    weights = load_file(adapter.folder / "adapter_model.safetensors")
    assert len(weights) == 4
    assert all(weight.abs().max() > 0 for weight in weights.values())


def test_fresh_processes_make_the_same_adapter_bit_for_bit(base: ModelConfig, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from radloop.config import FinetuneConfig, ModelConfig\n"
        "from radloop.training import finetune\n"
        "from tests.unit.tiny import prepared\n"
        "config = FinetuneConfig(epochs=3, images_per_step=2, dropout=0.1)\n"
        "print(finetune(prepared(5, 1), ModelConfig(base=sys.argv[1]), config, seed=7).sha256)"
    )
    # Two threads as anywhere; passive, because those of both runs wait for each other's cores.
    threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, base.base],
            cwd=ROOT,
            env=os.environ
            | threads
            | {"PYTHONHASHSEED": hash_seed, "RADLOOP_HOME": str(tmp_path / hash_seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("1", "2")
    ]
    first, second = (run.communicate()[0].split()[-1] for run in runs)
    assert first == second


def test_the_seed_reaches_weights_and_order(base: ModelConfig) -> None:
    hashes = []
    for seed in (7, 7, 8):
        hashes.append(finetune(prepared(5), base, SHORT, seed).sha256)
        shutil.rmtree(workspace.home() / "training")  # else the second is made of the first one's checkpoint
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_nothing(
    base: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = FinetuneConfig(epochs=50, learning_rate=1e30, warmup=0.0, schedule="constant")
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+ of 50 .*learning_rate"):
        finetune(prepared(2), base, config, seed=0)
    assert not list(tmp_path.iterdir())


def test_an_unknown_group_of_layers_names_the_known_ones(base: ModelConfig) -> None:
    config = FinetuneConfig(targets=("attention", "vison"))
    with pytest.raises(
        ConfigError,
        match=r"finetune.targets: unknown group .* 'vison'; known: attention, mlp, projector, vis",
    ):
        finetune(prepared(1), base, config, seed=0)
    with pytest.raises(ConfigError, match=r"finetune.targets: got none; known"):
        finetune(prepared(1), base, FinetuneConfig(targets=()), seed=0)


def test_a_sample_that_cannot_be_trained_on_is_named(base: ModelConfig) -> None:
    data = prepared(1)
    with pytest.raises(DataError, match="the train split has no sample"):
        finetune(changed(data, split=["validation"]), base, SHORT, seed=0)
    with pytest.raises(
        DataError,
        match=r"sample sample-0-0 has \d+ tokens before its answer, which leaves no room .* in 256",
    ):
        finetune(changed(data, prompt=["left " * 300]), base, SHORT, seed=0)
