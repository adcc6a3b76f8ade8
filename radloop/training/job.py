"""Training in several processes: a job in a folder that `accelerate launch` runs.

`launch` writes the job, starts it and reads the adapter back; `python -m radloop.training.job FOLDER`
is what each of the processes does. All of them end when the one that called `launch` ends, killed or not.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate import PartialState

from radloop import errors, workspace
from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.errors import RadloopError, TrainingError
from radloop.training.adapter import Adapter
from radloop.training.launch_file import require_launchable

logger = logging.getLogger(__name__)

OnStep = Callable[[dict[str, float]], None]

_JOB, _EVENTS, _LAUNCHER, _ADAPTER = "job.json", "events.jsonl", "launcher.log", "adapter"
_IN_USE = "in-use"  # locked by the process that called `launch`, as long as it is alive
_POLL_S = 0.1
_STOP_S = 30.0  # that processes get to end
_LINES = 15  # of a process that failed
# How torchrun names the process that failed first, which the others only followed.
_ROOT_CAUSE = re.compile(r"Root Cause.*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.DOTALL)


def launch(
    data: PreparedData, model: ModelConfig, config: FinetuneConfig, seed: int, on_step: OnStep | None
) -> Adapter:
    """Train in the processes that `config.launch` names; see `radloop.training.finetune`.

    Raises:
        ConfigError: See `require_launchable`.
        TrainingError: A process failed, with its last lines.
        RadloopError: Whatever the training itself raises.
    """
    if config.launch is None:
        raise ValueError("config.launch: there is none")
    require_launchable(config.launch, model, config)
    with _terminated_as_interrupted(), _job_folder() as folder:
        write(folder, data, model, config, seed)
        exit_code = _run_launcher(folder, config.launch, on_step)
        if not (folder / _ADAPTER).is_dir():
            raise _failure(folder, exit_code)
        if exit_code:  # the adapter has its name only once it is whole
            logger.warning(
                "finetune: a launched process ended with code %d, after the adapter was written", exit_code
            )
        return Adapter.load(folder / _ADAPTER).copy()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt in this block: by itself it ends Python without a clean-up.

    Python lets only the main thread do so, and a handler that the caller has set is left alone.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _job_folder() -> Iterator[Path]:
    """Yield a new folder that this process holds; delete it at the end, and those that dead processes held.

    Raises:
        TrainingError: It cannot be written or locked.
    """
    parent = workspace.home() / "jobs"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with (parent / "lock").open("w") as gate:  # else a new folder looks abandoned until it is locked
            fcntl.flock(gate, fcntl.LOCK_EX)
            for other in parent.iterdir():
                _delete_if_abandoned(other)
            folder = Path(tempfile.mkdtemp(dir=parent))
            lock = (folder / _IN_USE).open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise _unusable(parent, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _delete_if_abandoned(folder: Path) -> None:
    with suppress(OSError), (folder / _IN_USE).open("a") as lock:  # locked, or another user's
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


def _unusable(folder: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"finetune: {folder} cannot be written or locked ({error}); launched processes get their data there: "
        "make room, or name another state folder in RADLOOP_HOME, on a file system that can lock files"
    )


def _run_launcher(folder: Path, launch_file: Path, on_step: OnStep | None) -> int:
    """Start the processes of a job and wait for their end; return the launcher's exit code."""
    program = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch_file)]
    with (folder / _LAUNCHER).open("wb") as log, (folder / _EVENTS).open() as events:
        process = subprocess.Popen(
            [*program, "-m", "radloop.training.job", str(folder)],
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that a stop reaches the launcher and all that it started
        )
        try:
            _follow(process, events, on_step)
        finally:
            _stop(process)
    return process.returncode


def write(folder: Path, data: PreparedData, model: ModelConfig, config: FinetuneConfig, seed: int) -> None:
    """Write a job into an existing folder, with the data that training reads.

    Raises:
        TrainingError: There is no room.
    """
    settings = {
        "model": model.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
        "seed": seed,
    }
    try:
        (folder / "data").mkdir()
        _trained_on(data).save(folder / "data")
        (folder / _JOB).write_text(json.dumps(settings, indent=2) + "\n")
        (folder / _EVENTS).touch()
    except OSError as error:
        raise _unusable(folder, error) from error


def _trained_on(data: PreparedData) -> PreparedData:
    """Return the train and validation splits, with their images alone."""
    samples = data.samples.filter(pc.is_in(data.samples["split"], pa.array(["train", "validation"])))
    used = pc.unique(pc.list_flatten(samples["image_ids"]))
    return PreparedData(data.images.filter(pc.is_in(data.images["id"], used)), samples, data.fingerprint)


def run(folder: Path) -> None:
    """Do a process' part of the job in `folder`; the first process writes the adapter and the events there.

    Raises:
        RadloopError: See `radloop.training.finetune`; it is also left in the folder.
    """
    from radloop.training import loop

    PartialState(cpu=not torch.cuda.is_available())  # finds this process' device, which models are loaded to
    rank = int(os.environ.get("RANK", 0))
    job = json.loads((folder / _JOB).read_text())
    try:
        with _events(folder / _EVENTS, told=rank == 0) as on_step:
            adapter = loop.finetune(
                PreparedData.load(folder / "data"),
                ModelConfig(**job["model"]),
                FinetuneConfig(**job["config"]),
                job["seed"],
                on_step,
            )
        if rank == 0:
            scratch = folder / "adapter.writing"
            scratch.mkdir()
            adapter.save(scratch)
            scratch.rename(folder / _ADAPTER)
    except RadloopError as error:
        content = {"kind": type(error).__name__, "message": error.message}
        (folder / f"error-{rank}.json").write_text(json.dumps(content))
        raise


@contextmanager
def _events(file: Path, told: bool) -> Iterator[OnStep | None]:
    """Hand out what writes the facts of a step into `file`; radloop's log lines go there as well."""
    if not told:
        yield None
        return
    with file.open("a") as events:

        def tell(event: dict[str, Any]) -> None:
            events.write(json.dumps(event) + "\n")
            events.flush()

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                tell({"level": record.levelno, "message": record.getMessage()})

        handler, ours = Handler(), logging.getLogger("radloop")
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
        try:
            yield lambda facts: tell({"facts": facts})
        finally:
            ours.removeHandler(handler)


def _follow(process: subprocess.Popen[bytes], events: IO[str], on_step: OnStep | None) -> None:
    """Pass on what the first process tells, until the launcher ends."""
    begun = ""
    ended = False
    while not ended:
        ended = process.poll() is not None
        *lines, begun = (begun + events.read()).split("\n")
        for event in map(json.loads, lines):
            if "message" in event:
                logger.log(event["level"], "%s", event["message"])
            elif on_step is not None:
                on_step(event["facts"])
        if not ended:
            time.sleep(_POLL_S)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a launcher that still runs, with its processes: the caller was interrupted, or `on_step` failed."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, how)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                continue


def _failure(folder: Path, exit_code: int) -> RadloopError:
    """Return the error that a process raised, or what it said before it ended."""
    told = sorted(folder.glob("error-*.json"), key=lambda file: file.stat().st_mtime)
    if told:
        content = json.loads(told[0].read_text())
        kind: type[RadloopError] = getattr(errors, content["kind"])
        return kind(content["message"])
    output = (folder / _LAUNCHER).read_text(errors="replace")
    cause = _ROOT_CAUSE.search(output)
    rank, code = (int(cause[1]), int(cause[2])) if cause else (0, exit_code)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    log = folder / f"rank-{rank}.log"
    last = _last_lines(log.read_text(errors="replace") if log.is_file() else "") or _last_lines(output)
    return TrainingError(
        f"finetune: process {rank} of the launched ones {how}; the same run, started again, goes on from its "
        f"last checkpoint, if it has written one. Its last lines:\n{last}"
    )


def _last_lines(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-_LINES:])


def _end_with_caller(folder: Path) -> None:
    """Wait until the process that called `launch` is gone or done with this job, then end this one at once.

    Its lock tells so however it ended, and also where the launcher between the two is gone first. The folder
    goes as well: it holds patients' pictures, and a killed caller cannot delete it.
    """
    try:
        with (folder / _IN_USE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os._exit(1)


def main(folder: Path) -> int:
    """Run one process of a job; what it prints goes into a file of its own. Returns the exit code."""
    threading.Thread(target=_end_with_caller, args=[folder], daemon=True).start()
    rank = int(os.environ.get("RANK", 0))
    with (folder / f"rank-{rank}.log").open("wb") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    try:
        run(folder)
    except RadloopError as error:
        error.show()
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
