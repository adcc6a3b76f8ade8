"""A launched run ends with the process that asked for it, however that ends, and loses nothing."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.errors import TrainingError
from radloop.models.llava import Llava
from radloop.training import finetune, job
from radloop.training.adapter import Adapter
from tests.unit.tiny import prepared

ROOT = Path(__file__).parents[3]
TWO = ROOT / "configs" / "accelerate" / "two_processes_cpu.yaml"
SETTINGS = {"images_per_step": 2, "max_steps": 200, "rank": 2, "checkpoint_every": 2}
DATA = prepared(8)

# A process that asks for a launched run and tells of its steps.
CALLER = """
import sys
from radloop.config import FinetuneConfig, ModelConfig
from radloop.training import finetune
from tests.unit.training.test_job import DATA, SETTINGS
config = FinetuneConfig(**SETTINGS, launch=sys.argv[2])
try:
    finetune(DATA, ModelConfig(base=sys.argv[1]), config, 0, lambda facts: print(facts["step"], flush=True))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    Llava().tiny(folder)
    return folder


@pytest.fixture
def home() -> Path:
    """The state folder of a test."""
    return Path(os.environ["RADLOOP_HOME"])


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """One process is faster than two."""
    file = tmp_path / "alone.yaml"
    file.write_text("distributed_type: 'NO'\nnum_processes: 1\nuse_cpu: true\n")
    return file


def call(base: Path, launch: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CALLER, base, launch],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for_step(caller: subprocess.Popen[str], step: int) -> None:
    assert caller.stdout is not None
    while int(caller.stdout.readline()) < step:
        pass


def launched(home: Path) -> list[psutil.Process]:
    """Return the processes of launched runs of a state folder, the launcher among them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.environ().get("RADLOOP_HOME") != str(home):
                continue
            if "radloop.training.job" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def require_end(home: Path, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while launched(home) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not launched(home)


def test_a_killed_caller_takes_the_processes_along_and_the_next_start_goes_on(
    base: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caller = call(base, TWO)
    wait_for_step(caller, 5)
    assert len(launched(home)) == 3
    caller.kill()
    caller.wait()
    require_end(home)
    last = sorted(path.name for path in home.glob("training/*/step-*"))[-1]
    assert "step-00000004" <= last < "step-00000200"
    assert not list(home.glob("jobs/*/data"))

    config = FinetuneConfig(**SETTINGS, launch=TWO)
    with caplog.at_level(logging.INFO, "radloop"):
        again = finetune(DATA, ModelConfig(base=str(base)), config, 0)
    assert [path.name for path in home.glob("jobs/*")] == ["lock"]
    assert "going on after step" in caplog.text
    assert len(again.record["history"]) == SETTINGS["max_steps"]


def test_a_caller_that_is_killed_before_the_processes_start(base: Path, home: Path, alone: Path) -> None:
    caller = call(base, alone)
    while not launched(home):
        time.sleep(0.01)
    caller.kill()
    caller.wait()
    require_end(home, 60)
    assert not list(home.glob("training/*"))


def test_a_terminated_caller_leaves_neither_processes_nor_images(base: Path, home: Path) -> None:
    caller = call(base, TWO)
    wait_for_step(caller, 3)
    caller.terminate()
    assert caller.stdout is not None
    assert caller.stdout.read().endswith("interrupted\n")
    caller.wait()
    require_end(home)
    assert [path.name for path in home.glob("jobs/*")] == ["lock"]


def test_a_killed_launcher_takes_the_processes_along(base: Path, home: Path) -> None:
    def kill_launcher(facts: dict[str, float]) -> None:
        if facts["step"] == 3:
            for child in psutil.Process().children():
                if "radloop.training.job" in child.cmdline():
                    child.kill()

    config = FinetuneConfig(**SETTINGS | {"max_steps": 4000}, launch=TWO)
    with pytest.raises(TrainingError, match=r"was killed by signal 9; .*if it has written one"):
        finetune(DATA, ModelConfig(base=str(base)), config, 0, kill_launcher)
    require_end(home)


def test_an_adapter_that_is_whole_is_not_lost_to_what_fails_after_it(
    base: Path, alone: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    run = job._run_launcher
    monkeypatch.setattr(job, "_run_launcher", lambda *arguments: run(*arguments) or -11)
    adapter = finetune(DATA, ModelConfig(base=str(base)), FinetuneConfig(max_steps=2, launch=alone), 0)
    assert "ended with code -11, after the adapter was written" in caplog.text
    adapter.save(tmp_path)  # its job is gone, it is not
    assert Adapter.load(tmp_path).sha256 == adapter.sha256
    assert len(adapter.record["history"]) == 2


def with_test_split(data: PreparedData) -> PreparedData:
    """Return data whose last image belongs to the test split."""
    rows = data.samples.to_pylist()
    last = data.images["id"].to_pylist()[-1]
    for row in rows:
        if last in row["image_ids"]:
            row["split"] = "test"
    return PreparedData(data.images, pa.Table.from_pylist(rows, schema=data.samples.schema), data.fingerprint)


def test_a_job_holds_only_what_training_reads(tmp_path: Path) -> None:
    data = with_test_split(prepared(4, validation=2))
    job.write(tmp_path, data, ModelConfig(), FinetuneConfig(), 0)
    written = PreparedData.load(tmp_path / "data")
    assert written.images["id"].to_pylist() == [f"image-{number}" for number in range(5)]
    for split in ("train", "validation"):
        assert written.split(split).equals(data.split(split))
        assert written.split(split).num_rows
    assert not written.split("test").num_rows
    assert written.fingerprint == data.fingerprint
    assert written.image("image-3").tobytes() == data.image("image-3").tobytes()


HOLDER = """
import sys, time
from radloop.training import job
with job._job_folder() as folder:
    (folder / "image").touch()
    print(folder, flush=True)
    time.sleep(60)
"""


def test_folders_of_dead_processes_are_deleted_and_those_of_others_left(home: Path) -> None:
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLDER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    dead, alive = (Path(holder.stdout.readline().strip()) for holder in holders if holder.stdout)
    without_lock = dead.parent / "killed while it was made"
    without_lock.mkdir()
    holders[0].kill()
    holders[0].wait()
    assert dead.exists()
    with job._job_folder() as own:
        assert own.parent == home / "jobs"
        assert own.stat().st_mode & 0o777 == 0o700
        assert sorted(own.parent.iterdir()) == sorted([own, alive, own.parent / "lock"])
        assert (alive / "image").exists()
    assert not own.exists()
    holders[1].kill()
    holders[1].wait()


def test_a_disk_without_room_for_a_job_is_named(
    base: Path, alone: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PreparedData, "save", full)
    with pytest.raises(TrainingError, match=r"jobs/.* cannot be written .*No space left.*RADLOOP_HOME"):
        finetune(DATA, ModelConfig(base=str(base)), FinetuneConfig(launch=alone), 0)
    assert [path.name for path in home.glob("jobs/*")] == ["lock"]


@pytest.fixture
def sigterm() -> Iterator[None]:
    """Nobody handles SIGTERM, whatever an earlier test in this process (Ray's) has left."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_termination_is_an_interruption_only_in_the_block(sigterm: None) -> None:
    with job._terminated_as_interrupted(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_the_caller_is_left_alone(sigterm: None) -> None:
    own = lambda *_: None  # noqa: E731
    signal.signal(signal.SIGTERM, own)
    with job._terminated_as_interrupted():
        assert signal.getsignal(signal.SIGTERM) is own


# Two processes of which the second finds another checkpoint than the first.
APART = """
import os, sys
from accelerate import Accelerator
from radloop.errors import TrainingError
from radloop.training.loop import _require_same_step
accelerator = Accelerator(cpu=True)
_require_same_step(accelerator, 4)
try:
    _require_same_step(accelerator, 4 * accelerator.process_index)
except TrainingError as error:
    with open(f"{sys.argv[1]}/{accelerator.process_index}", "w") as file:
        file.write(error.message)
"""


def test_processes_that_would_go_on_from_different_steps_all_stop(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(APART)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*torchrun, program, tmp_path], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True
    )
    for rank in ("0", "1"):
        assert "go on after different steps (0, 4)" in (tmp_path / rank).read_text()


def test_a_failure_without_room_for_the_adapter_reaches_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from radloop.training import loop

    (tmp_path / "source").mkdir()
    job.write(tmp_path, DATA, ModelConfig(), FinetuneConfig(), 0)
    monkeypatch.setattr(loop, "finetune", lambda *_: Adapter(tmp_path / "source"))  # which has no files
    with pytest.raises(TrainingError, match="adapter cannot be written to"):
        job.run(tmp_path)
    assert json.loads((tmp_path / "error-0.json").read_text())["kind"] == "TrainingError"
    assert not (tmp_path / "adapter").exists()
