"""A run that is killed, as often as may be, and started again ends with the very same adapter."""

import errno
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError

from radloop.config import FinetuneConfig, ModelConfig
from radloop.errors import OutOfMemory, TrainingError
from radloop.models.llava import Llava
from radloop.training import finetune, loop
from radloop.training.checkpoints import Checkpoints
from radloop.training.trainer import Trainer
from tests.unit.tiny import prepared

ROOT = Path(__file__).parents[3]
STEPS = 15

# Runs fine-tuning in processes of its own, one after the other, each forked before torch has computed
# anything; so they start in no time, and can be killed.
PROGRAM = """
import json, logging, os, signal, sys
from pathlib import Path
from radloop.config import FinetuneConfig, ModelConfig
from radloop.training import finetune, job, loop
from radloop.training.checkpoints import Checkpoints
import radloop.models.llava
from tests.unit.tiny import prepared

def train(run, file):
    os.environ["RADLOOP_HOME"] = run["home"]
    def told(facts):
        print(json.dumps({"step": facts["step"], "loss": facts["loss"].hex()}), file=file, flush=True)
        if facts["step"] == run["kill_at"]:
            kill()
    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)
    fsync = os.fsync
    def killed_in_write(handle):
        fsync(handle)
        if list(Path(run["home"]).glob(f"training/*/.writing-*/state.json")):
            kill()
    if run["kill_at"] == "write":
        os.fsync = killed_in_write
    if run["kill_at"] == "merge":
        loop.verify_merge = kill
    config = FinetuneConfig(**run["config"])
    data = prepared(6, validation=2)
    adapter = finetune(data, ModelConfig(base=run["base"]), config, seed=3, on_step=told)
    if run["kill_at"] == "save":
        kill()
    adapter.save(Path(run["home"]))

for line in sys.stdin:
    run = json.loads(line)
    child = os.fork()
    if not child:
        with open(run["log"], "w") as file:
            logging.basicConfig(stream=file, level=logging.INFO, format="%(message)s")
            train(run, file)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@dataclass
class Run:
    """What one process did: how it ended, and the losses that it told of, as exact text.

    Attributes:
        after: The step after which it went on.
    """

    status: int
    losses: dict[int, str]
    log: str
    after: int


class Runner:
    """Starts runs; those of one home belong together."""

    def __init__(self, base: Path, folder: Path) -> None:
        self._base, self._folder = base, folder
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def run(self, home: Path, config: dict[str, Any], kill_at: int | str | None = None) -> Run:
        log = self._folder / "log"
        home.mkdir(parents=True, exist_ok=True)
        request = {"home": str(home), "config": config, "kill_at": kill_at}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(
            json.dumps(request | {"base": str(self._base), "log": str(log)}),
            file=self._process.stdin,
            flush=True,
        )
        status = int(self._process.stdout.readline())
        lines = log.read_text().splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        losses = {facts["step"]: facts["loss"] for facts in told}
        logged = "\n".join(line for line in lines if not line.startswith("{"))
        going_on = re.search(r"going on after step (\d+) of", logged)
        return Run(status, losses, logged, int(going_on[1]) if going_on else 0)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    Llava().tiny(folder)
    return folder


@pytest.fixture(scope="module")
def runner(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    started = Runner(base, tmp_path_factory.mktemp("runner"))
    yield started
    started.close()


COMMON = {"images_per_step": 2, "max_steps": STEPS, "rank": 4, "checkpoint_every": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": COMMON,
    "dropout, noise and several passes a step": COMMON
    | {"dropout": 0.2, "neftune_alpha": 5.0, "tokens_per_pass": 100, "use_dora": True},
    "8-bit states, the best weights and augmentation": COMMON
    | {"rank": 128, "optimizer": "adamw_8bit", "best_by": "exact_match", "augment": True}
    # No answer is right so early: the first weights stay the best.
    | {"learning_rate": 1e-3, "validate_every": 1, "max_steps": 7},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_three_kills_change_no_bit(runner: Runner, tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    num_steps = config["max_steps"]
    whole = runner.run(tmp_path / "whole", config)
    assert whole.status == 0, whole.log
    assert list(whole.losses) == list(range(1, num_steps + 1))
    assert len(set(whole.losses.values())) == num_steps

    home, after = tmp_path / "killed", 0
    kills = sorted(random.Random(name).sample(range(2, num_steps + 1), 3))
    for step in kills:
        killed = runner.run(home, config, kill_at=step)
        assert killed.status == signal.SIGKILL
        assert list(killed.losses) == list(range(1, step + 1))  # those before the last checkpoint as well
        assert killed.losses.items() <= whole.losses.items()
        assert killed.after == after
        after = (step - 1) // 2 * 2  # it was killed before a checkpoint of its last step
    last = runner.run(home, config)
    assert last.status == 0
    assert last.after == after
    assert list(last.losses.items()) == list(whole.losses.items())
    for file in ("adapter_model.safetensors", "adapter_config.json", "base.json"):
        assert (home / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    ours, theirs = (json.loads((folder / "record.json").read_text()) for folder in (home, tmp_path / "whole"))
    exact = ("step", "loss", "grad_norm", "learning_rate", "validation_loss")
    for mine, other in zip(ours["history"], theirs["history"], strict=True):
        assert {key: mine.get(key) for key in exact} == {key: other.get(key) for key in exact}
    assert ours["kept_step"] == theirs["kept_step"]
    # Where the best weights are kept, they have to be those of an earlier process.
    assert ours["kept_step"] <= after if "best_by" in config else ours["kept_step"] == num_steps
    assert ours["merge"] == theirs["merge"]
    (folder,) = (home / "training").iterdir()
    assert [file.name for file in folder.glob("step-*")] == [f"step-{num_steps:08d}"]


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_trained_again_after_the_last_step(runner: Runner, tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    whole = runner.run(tmp_path / "whole", config)
    home = tmp_path / "killed"
    for place, after in (("merge", 0), ("save", config["max_steps"]), (None, config["max_steps"])):
        run = runner.run(home, config, kill_at=place)
        assert run.status == (0 if place is None else signal.SIGKILL), run.log
        assert run.after == after
        assert list(run.losses.items()) == list(whole.losses.items())
    for file in ("adapter_model.safetensors", "adapter_config.json", "base.json"):
        assert (home / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    ours, theirs = (json.loads((folder / "record.json").read_text()) for folder in (home, tmp_path / "whole"))
    for key in ("kept_step", "merge", "data", "settings"):
        assert ours[key] == theirs[key]


def test_a_kill_in_the_middle_of_a_checkpoint(runner: Runner, tmp_path: Path) -> None:
    whole = runner.run(tmp_path / "whole", COMMON)
    home = tmp_path / "killed"
    assert runner.run(home, COMMON, kill_at=8).status == signal.SIGKILL
    torn = runner.run(home, COMMON, kill_at="write")
    assert torn.status == signal.SIGKILL
    assert torn.after == 6
    assert list(torn.losses) == list(range(1, 9))
    assert len(list(home.glob("training/*/.writing-*"))) == 1
    last = runner.run(home, COMMON)
    assert last.after == 6
    assert last.losses == whole.losses
    name = "adapter_model.safetensors"
    assert (home / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_full_disk_stops_the_run_and_more_room_lets_it_go_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = FinetuneConfig(**COMMON)
    model, data = ModelConfig(base=str(base)), prepared(4)
    whole = finetune(data, model, config, seed=0)
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path))
    write = Checkpoints._write

    def until_full(self: Checkpoints, step: int, files: dict[str, bytes]) -> None:
        if step > 4:
            raise OSError(28, os.strerror(28))
        write(self, step, files)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "_write", until_full)
        with pytest.raises(TrainingError, match=r"stopped after step 6.*No space left.*of step 4.*goes on"):
            finetune(data, model, config, seed=0)
    with caplog.at_level(logging.INFO):
        again = finetune(data, model, config, seed=0)
    assert "going on after step 4 of" in caplog.text
    assert again.sha256 == whole.sha256


def test_no_room_for_the_adapter_costs_no_step(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = FinetuneConfig(**COMMON | {"checkpoint_every": None})
    arguments = (prepared(4), ModelConfig(base=str(base)), config, 0)

    def full(*_: object, **__: object) -> None:
        raise SafetensorError(os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(PeftModel, "save_pretrained", full)
        with pytest.raises(TrainingError, match=r"adapter cannot be written to .*No space left.*goes on"):
            finetune(*arguments)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "verify_merge", lambda *_: torch.empty(1 << 60))
        with pytest.raises(OutOfMemory, match="out of memory after the last step"):
            finetune(*arguments)
    caplog.clear()
    with caplog.at_level(logging.INFO), monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", None)
        adapter = finetune(*arguments)
    assert f"going on after step {STEPS} of {STEPS}" in caplog.text
    assert len(adapter.record["history"]) == STEPS


def test_a_run_out_of_patience_has_a_checkpoint_of_its_last_step(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = COMMON | {"patience": 1, "validate_every": 1, "learning_rate": 1e-12, "checkpoint_every": None}
    arguments = (prepared(4, validation=2), ModelConfig(base=str(base)), FinetuneConfig(**settings), 0)
    whole = finetune(*arguments)
    assert len(whole.record["history"]) < STEPS
    monkeypatch.setattr(Trainer, "_step", None)
    assert finetune(*arguments).sha256 == whole.sha256


def test_other_settings_start_anew(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    steps = Trainer.steps

    def noted(self: Trainer) -> Any:
        begun.append(self.state.step + 1)
        return steps(self)

    monkeypatch.setattr(Trainer, "steps", noted)

    def begin(stop_at: int, seed: int = 0, **changes: Any) -> int:
        def stop(facts: dict[str, float]) -> None:
            if facts["step"] == stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            finetune(prepared(4), ModelConfig(base=str(base)), FinetuneConfig(**COMMON | changes), seed, stop)
        return begun[-1]

    assert begin(6) == 1
    assert begin(7) == 5
    assert begin(7, seed=1) == 1
    assert begin(7, rank=2) == 1
    assert begin(9, checkpoint_every=5) == 7


def test_a_run_that_cannot_have_checkpoints_says_so(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop, "can_checkpoint", lambda accelerator: False)
    finetune(prepared(2), ModelConfig(base=str(base)), FinetuneConfig(**COMMON | {"max_steps": 2}), 0)
    assert "no checkpoints are written under DeepSpeed: a killed run starts anew" in caplog.text
    assert not list(Path(os.environ["RADLOOP_HOME"]).glob("training/*"))
