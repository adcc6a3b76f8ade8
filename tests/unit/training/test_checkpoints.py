"""A checkpoint is whole or it is not there: what is written comes back bit for bit, damage is passed over."""

import ast
import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
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
from steps import _caching
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
    found = Checkpoints(tmp_path).latest(delete_damaged=True)
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
    step, state = Checkpoints(tmp_path).latest(delete_damaged=True) or (0, {})
    again.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    train(again, resumed, range(step, 6))
    assert same(dict(again.state_dict()), dict(model.state_dict()))
    assert same(resumed.state_dict(), optimizer.state_dict())


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    assert kept.latest(delete_damaged=True) is None
    for step in (1, 2, 10, 100_000_000):
        kept.save(step, {"step": step})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step-00000010", "step-100000000"]
    assert kept.latest(delete_damaged=True) == (100_000_000, {"step": 100_000_000})


def test_one_of_another_run_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Checkpoints(tmp_path / name).save(1, {"run": name})
    Checkpoints(tmp_path / "b").save(2, {"run": "b"})
    (tmp_path / "b" / "step-00000002").rename(tmp_path / "a" / "step-00000002")
    assert Checkpoints(tmp_path / "a").latest(delete_damaged=True) == (1, {"run": "a"})
    assert "the checkpoint of step 2 is damaged (it is of run b); taking the one before" in caplog.text


DAMAGE = {
    "a flipped bit in the tensors": lambda folder: flip(folder / "tensors.safetensors"),
    "a flipped bit in the state": lambda folder: flip(folder / "state.json"),
    "a file cut short": lambda folder: os.truncate(folder / "tensors.safetensors", 10),
    "an empty list of hashes": lambda folder: (folder / "sha256.json").write_text(""),
    "a missing hash": lambda folder: (folder / "sha256.json").write_text("{}"),
    "null for hashes": lambda folder: (folder / "sha256.json").write_text("null"),
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
    found = Checkpoints(tmp_path).latest(delete_damaged=True)
    assert found is not None
    assert found[0] == 1
    assert found[1]["weights"].tolist() == [1.0] * 8
    assert "the checkpoint of step 2 is damaged" in caplog.text
    DAMAGE[damage](tmp_path / "step-00000001")
    assert Checkpoints(tmp_path).latest(delete_damaged=False) is None
    Checkpoints(tmp_path).save(1, {"step": 1})  # where the damaged one still is
    assert Checkpoints(tmp_path).latest(delete_damaged=True) == (1, {"step": 1})
    Checkpoints(tmp_path).save(2, {"step": 2})
    assert Checkpoints(tmp_path).latest(delete_damaged=True) == (2, {"step": 2})


def test_an_error_of_reading_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoints(tmp_path)
    for step in (1, 2):
        kept.save(step, {"step": step})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"cannot be read \(Too many open files\); it is left as"):
            kept.latest(delete_damaged=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def fail(file: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", fail)
        with pytest.raises(TrainingError, match=r"step-00000002 cannot be read \(Input/output error\)"):
            kept.latest(delete_damaged=True)
    assert kept.latest(delete_damaged=True) == (2, {"step": 2})


def test_only_the_process_that_holds_them_deletes_damaged_ones(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    for step in (1, 2):
        kept.save(step, {"step": step})
    flip(tmp_path / "step-00000002" / "state.json")
    assert kept.latest(delete_damaged=False) == (1, {"step": 1})
    assert (tmp_path / "step-00000002").exists()
    assert kept.latest(delete_damaged=True) == (1, {"step": 1})
    assert not (tmp_path / "step-00000002").exists()


def test_what_else_lies_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "step-old").mkdir()
    kept = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        kept.save(step, {"step": step})
    assert kept.latest(delete_damaged=True) == (3, {"step": 3})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step-00000002", "step-00000003", "step-old"]


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
        with pytest.raises(TrainingError, match=r"after step 1, .*none before it.*start anew"):
            kept.save(1, {"step": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["step-00000001"]
    assert kept.latest(delete_damaged=True) == (1, {"step": 1})


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
        step, state = kept.latest(delete_damaged=True) or (0, {})
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
        step, state = kept.latest(delete_damaged=True) or (0, {})
        assert step >= 3
        assert state["step"] == step
        assert torch.equal(state["weights"], torch.full((400_000,), float(step)))
        assert not list(tmp_path.glob(".writing-*"))


def test_a_run_that_ends_well_keeps_the_last_and_another_its_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "training" / "key"

    def fail() -> None:
        with opened(folder, every=1) as kept:
            kept.save(1, {"step": 1})
            kept.save(2, {"step": 2})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with opened(folder, every=1) as kept:
        assert kept.latest(delete_damaged=True) == (2, {"step": 2})
        assert len(list(folder.glob("step-*"))) == 2
    assert [file.name for file in folder.glob("step-*")] == ["step-00000002"]
    assert kept.latest(delete_damaged=True) == (2, {"step": 2})


def leave(folder: Path, finished: bool = True) -> Path:
    with suppress(RuntimeError), opened(folder, every=1) as kept:
        kept.save(1, {"step": 1})
        if not finished:
            raise RuntimeError
    return folder


def age(folder: Path, days: float) -> None:
    then = time.time() - days * 24 * 3600
    for file in (*folder.iterdir(), folder):
        os.utime(file, (then, then))


def test_a_later_run_deletes_what_was_left_long_ago(tmp_path: Path) -> None:
    parent = tmp_path / "training"
    days = {
        leave(parent / "finished today"): 0.9,
        leave(parent / "finished yesterday"): 1.1,
        leave(parent / "unfinished this month", finished=False): 29,
        leave(parent / "unfinished last month", finished=False): 31,
        leave(parent / "held"): 31,
        leave(parent / "own", finished=False): 31,
        parent / "of something else": 31,
    }
    (parent / "of something else").mkdir()
    with opened(parent / "held", every=1):
        for folder, left in days.items():
            age(folder, left)
        with opened(parent / "own", every=1) as own:
            assert own.latest(delete_damaged=True) == (1, {"step": 1})
            gone = {folder.name for folder in days} - {folder.name for folder in parent.iterdir()}
    assert gone == {"finished yesterday", "unfinished last month"}


@pytest.mark.parametrize("call", ["flock", "write"])
def test_a_folder_that_cannot_be_locked_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    handles = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(fcntl if call == "flock" else os, call, refuse)
        with (
            pytest.raises(TrainingError, match=r"key cannot be written or locked \(No locks.*RADLOOP_HOME"),
            opened(tmp_path / "key", every=1),
        ):
            pass
    assert len(os.listdir("/proc/self/fd")) == handles


def test_a_lock_that_another_run_deletes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, folder = fcntl.flock, tmp_path / "key"

    def once_deleted(lock: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        shutil.rmtree(folder)
        flock(lock, how)

    monkeypatch.setattr(fcntl, "flock", once_deleted)
    with opened(folder, every=1) as kept:
        kept.save(1, {"step": 1})
    assert (folder / "lock").is_file()


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
        pytest.raises(TrainingError, match=r"file/key cannot be written or locked .*RADLOOP_HOME"),
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


def test_collecting_the_state_counts_among_the_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    kept = Checkpoints(tmp_path)
    kept.save(1, {}, collecting_s=2.0)
    now += 199.0
    assert not kept.due(2)
    now += 1.0
    assert kept.due(3)


def loaded(sha256: str = "a" * 64, device: str = "cpu", precision: str = "fp32") -> Any:
    reference = BaseReference("tiny", None, sha256)
    return SimpleNamespace(reference=reference, device=torch.device(device), precision=precision)


def test_the_key_covers_what_the_result_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model, config, base = prepared(3, 1), ModelConfig(), FinetuneConfig(), loaded()
    key = run_key(data, model, base, config, 0)
    assert key == run_key(prepared(3, 1), model, loaded(), config, 0)
    assert key == run_key(data, model, base, config.model_copy(update={"checkpoint_every": 3}), 0)
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("num_processes: 1")
    two.write_text("num_processes: 2")
    others = [
        run_key(prepared(3, 2), model, base, config, 0),
        run_key(prepared(3, 1, questions=3), model, base, config, 0),
        run_key(data, ModelConfig(family="qwen2_vl"), base, config, 0),
        run_key(data, model, loaded(sha256="b" * 64), config, 0),
        run_key(data, model, loaded(device="cuda"), config, 0),
        run_key(data, model, loaded(precision="bf16"), config, 0),
        run_key(data, model, base, FinetuneConfig(rank=3), 0),
        run_key(data, model, base, FinetuneConfig(launch=one), 0),
        run_key(data, model, base, FinetuneConfig(launch=two), 0),
        run_key(data, model, base, config, 1),
    ]
    monkeypatch.setattr(checkpoints, "code_hash", lambda *parts: "other")
    others.append(run_key(data, model, base, config, 0))
    assert len({key, *others}) == len(others) + 1


def imported(module: str, found: set[str]) -> set[str]:
    """Return the names of all modules of radloop that a module imports, at whatever remove."""
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if module in found or not file.is_file():
        return found
    found.add(module)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("radloop"):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                imported(name, found)
    return found


def test_the_code_of_a_run_is_all_that_is_imported_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {name.split(".")[1] for name in imported("radloop.training.loop", set()) if "." in name}
    packages = {name for name in packages if (ROOT / "radloop" / name).is_dir()}
    hashed: list[set[str]] = []
    for module in (checkpoints, _caching):
        monkeypatch.setattr(module, "code_hash", lambda *parts: hashed.append(set(parts)) or "")
    run_key(prepared(1), ModelConfig(), loaded(), FinetuneConfig(), 0)
    _caching.training_code()
    assert hashed == [packages, packages]
