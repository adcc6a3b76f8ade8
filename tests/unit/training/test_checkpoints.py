"""A checkpoint is whole or it is not there: what is written comes back bit for bit, damage is passed over."""

import errno
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from torch import nn

from radloop.config import FinetuneConfig, ModelConfig
from radloop.errors import TrainingError
from radloop.models.loading import BaseReference
from radloop.training import checkpoints
from radloop.training.checkpoints import Checkpoints, opened, run_key
from tests.unit.tiny import prepared

ROOT = Path(__file__).parents[3]


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return type(ours) is type(theirs) and all(map(same, ours, theirs))
    return type(ours) is type(theirs) and ours == theirs


def test_any_nest_of_values_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    state = {
        "tensors": [shared, shared, shared[::2], torch.tensor(3, dtype=torch.uint8), torch.zeros(0, 4)],
        "half": torch.tensor([1.5, -0.1], dtype=torch.bfloat16),
        0: {"betas": (0.9, 0.999), "lr": 0.1 + 0.2, "foreach": None, "amsgrad": False},
        "history": [{"step": 1, "loss": 1e-323}, {"step": 2, "loss": float("inf")}],
    }
    Checkpoints(tmp_path).save(7, state)
    found = Checkpoints(tmp_path).latest()
    assert found is not None
    assert found[0] == 7
    assert same(found[1], state)


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "AdamW8bit": lambda p: bitsandbytes.optim.AdamW8bit(p, lr=0.01),
    "Lion8bit": lambda p: bitsandbytes.optim.Lion8bit(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(128, 64)  # large enough for 8-bit states
        return model, OPTIMIZERS[name](model.parameters())

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            inputs = torch.randn(4, 128, generator=torch.Generator().manual_seed(step))
            model(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = fresh()
    train(model, optimizer, range(3))
    Checkpoints(tmp_path).save(3, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    train(model, optimizer, range(3, 6))

    again, resumed = fresh()
    step, state = Checkpoints(tmp_path).latest() or (0, {})
    again.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    train(again, resumed, range(step, 6))
    assert same(dict(again.state_dict()), dict(model.state_dict()))
    assert same(resumed.state_dict(), optimizer.state_dict())


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    assert kept.latest() is None
    for step in (1, 2, 10, 100_000_000):
        kept.save(step, {"step": step})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step-00000010", "step-100000000"]
    assert kept.latest() == (100_000_000, {"step": 100_000_000})


DAMAGE = {
    "a flipped bit in the tensors": lambda folder: flip(folder / "tensors.safetensors"),
    "a flipped bit in the state": lambda folder: flip(folder / "state.json"),
    "a file cut short": lambda folder: os.truncate(folder / "tensors.safetensors", 10),
    "an empty list of hashes": lambda folder: (folder / "sha256.json").write_text(""),
    "a missing hash": lambda folder: (folder / "sha256.json").write_text("{}"),
    "a missing file": lambda folder: (folder / "state.json").unlink(),
}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_passed_over_with_a_word(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        Checkpoints(tmp_path).save(step, {"weights": torch.full((8,), float(step)), "step": step})
    DAMAGE[damage](tmp_path / "step-00000002")
    found = Checkpoints(tmp_path).latest()
    assert found is not None
    assert found[0] == 1
    assert found[1]["weights"].tolist() == [1.0] * 8
    assert "the checkpoint of step 2 is damaged" in caplog.text
    DAMAGE[damage](tmp_path / "step-00000001")
    assert Checkpoints(tmp_path).latest() is None
    Checkpoints(tmp_path).save(2, {"step": 2})  # where the damaged one was
    assert Checkpoints(tmp_path).latest() == (2, {"step": 2})


def test_a_full_disk_stops_with_the_step_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Checkpoints(tmp_path)

    def fill(monkeypatch: pytest.MonkeyPatch) -> None:
        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)

    with monkeypatch.context() as patched:
        fill(patched)
        with pytest.raises(TrainingError, match=r"after step 1, .*No space left.*none before it.*start anew"):
            kept.save(1, {"step": 1})
    kept.save(1, {"step": 1})
    with monkeypatch.context() as patched:
        fill(patched)
        with pytest.raises(TrainingError, match=r"after step 2, .*No space left.*of step 1.*goes on from it"):
            kept.save(2, {"step": 2})
    assert [file.name for file in tmp_path.iterdir()] == ["step-00000001"]
    assert kept.latest() == (1, {"step": 1})


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root's rights")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", tmp_path], check=False)
    if mounted.returncode:
        pytest.skip("mount is not allowed here")
    try:
        kept = Checkpoints(tmp_path)
        kept.save(1, {"weights": torch.ones(30_000)})
        for _ in range(2):
            with pytest.raises(TrainingError, match=r"No space left on device.*of step 1"):
                kept.save(2, {"weights": torch.ones(60_000)})
        step, state = kept.latest() or (0, {})
        assert step == 1
        assert torch.equal(state["weights"], torch.ones(30_000))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


WRITER = """
import sys, torch
from pathlib import Path
from radloop.training.checkpoints import Checkpoints
kept = Checkpoints(Path(sys.argv[1]))
for step in range(1, 1000):
    print(step, flush=True)
    kept.save(step, {"step": step, "weights": torch.full((400_000,), float(step))})
"""


def test_a_kill_while_writing_leaves_the_one_before(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    while int(writer.stdout.readline()) < 4:
        pass
    while not list(tmp_path.glob(".writing-*/*")):  # in the middle of one
        time.sleep(0.0002)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    with opened(tmp_path, every=1) as kept:
        step, state = kept.latest() or (0, {})
        assert step >= 3
        assert state["step"] == step
        assert torch.equal(state["weights"], torch.full((400_000,), float(step)))
        assert not list(tmp_path.glob(".writing-*"))


def test_a_run_that_ends_well_leaves_nothing_and_another_its_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "training" / "key"

    def fail() -> None:
        with opened(folder, every=1) as kept:
            kept.save(1, {"step": 1})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with opened(folder, every=1) as kept:
        assert kept.latest() == (1, {"step": 1})
    assert not folder.exists()


def test_a_second_run_of_the_same_key_is_refused(tmp_path: Path) -> None:
    with (
        opened(tmp_path / "key", every=1),
        pytest.raises(TrainingError, match=rf"process {os.getpid()} is training this very run"),
        opened(tmp_path / "key", every=1),
    ):
        pass
    with opened(tmp_path / "key", every=1):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(TrainingError, match=r"file/key cannot be written .*RADLOOP_HOME"),
        opened(tmp_path / "file" / "key", every=1),
    ):
        pass


def test_they_are_due_by_steps_or_by_their_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [step for step in range(1, 10) if Checkpoints(tmp_path, every=4).due(step)] == [4, 8]
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    kept = Checkpoints(tmp_path)
    times = []
    write = kept._write

    def slow(step: int, files: dict[str, bytes]) -> None:
        nonlocal now
        now += 5.0
        write(step, files)

    monkeypatch.setattr(kept, "_write", slow)
    for step in range(2000):  # of a second each
        now += 1.0
        if kept.due(step):
            times.append(now)
            kept.save(step, {})
    assert times[0] == 30.0
    assert [after - before for before, after in pairwise(times)] == [505.0] * 3


BASE = BaseReference("tiny", None, "a" * 64)


def test_the_key_covers_what_the_result_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model, config = prepared(3, 1), ModelConfig(), FinetuneConfig()
    key = run_key(data, model, BASE, config, 0)
    assert key == run_key(prepared(3, 1), model, BASE, config, 0)
    assert key == run_key(data, model, BASE, config.model_copy(update={"checkpoint_every": 3}), 0)
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("num_processes: 1")
    two.write_text("num_processes: 2")
    others = [
        run_key(prepared(3, 2), model, BASE, config, 0),
        run_key(prepared(3, 1, questions=3), model, BASE, config, 0),
        run_key(data, ModelConfig(family="qwen2_vl"), BASE, config, 0),
        run_key(data, model, BaseReference("tiny", None, "b" * 64), config, 0),
        run_key(data, model, BASE, FinetuneConfig(rank=3), 0),
        run_key(data, model, BASE, FinetuneConfig(launch=one), 0),
        run_key(data, model, BASE, FinetuneConfig(launch=two), 0),
        run_key(data, model, BASE, config, 1),
    ]
    monkeypatch.setattr(checkpoints, "code_hash", lambda *parts: "other")
    others.append(run_key(data, model, BASE, config, 0))
    assert len({key, *others}) == len(others) + 1
