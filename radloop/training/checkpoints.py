"""Checkpoints of a run, so that a killed one goes on where it was, to the very same result.

A checkpoint is a folder with tensors (safetensors), all other state (JSON) and the hashes of both.
It gets its name only once it is on the disk as a whole, and what does not fit its hashes is passed over.

The last step has one as well, and keeps it when the run has ended: the adapter that was made of it has yet
to be stored, and can be made again without training. Later runs delete what is left of earlier ones.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from radloop import workspace
from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.errors import TrainingError
from radloop.models.loading import Loaded
from radloop.source import code_hash, versions_of

logger = logging.getLogger(__name__)

_TENSORS, _STATE, _HASHES = "tensors.safetensors", "state.json", "sha256.json"
_LOCK, _FINISHED = "lock", "finished"
_NAME = re.compile(r"step-(\d+)")
_KEPT = 2
_DAY_S = 24 * 3600.0
_FINISHED_KEPT_S, _UNFINISHED_KEPT_S = 1 * _DAY_S, 30 * _DAY_S  # until a later run deletes them
_SHORTEST_S = 30.0  # between two checkpoints that nobody asked for
_SHARE_OF_TIME = 0.01  # that those may cost
# Answers of the model, and their scores, choose the weights that are kept where `best_by` says exact_match.
_CODE = ("models", "training", "data", "inference", "evaluation")
_LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "numpy",
    "peft",
    "pillow",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)


def run_key(data: PreparedData, model: ModelConfig, loaded: Loaded, config: FinetuneConfig, seed: int) -> str:
    """Return the name of a run: a hash of all that its result depends on but threads and the kind of GPU.

    Two runs of one key make the same adapter, so one may go on where the other ended.
    """
    settings = config.model_dump(mode="json", exclude={"checkpoint_every", "launch"})
    # How many processes there are decides how sums are rounded.
    settings["launch"] = config.launch.read_text() if config.launch is not None else None
    parts = {
        "fingerprint": data.fingerprint,
        "data": [_content(data, split) for split in ("train", "validation")],
        "model": model.model_dump(mode="json"),
        "base": [loaded.reference.sha256, loaded.reference.config_sha256],
        "computes_on": [loaded.device.type, loaded.precision],  # precision: auto depends on the machine
        "finetune": settings,
        "seed": seed,
        "code": code_hash(*_CODE),
        "versions": versions_of(*_LIBRARIES),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def folder_of(key: str) -> Path:
    """Return where the checkpoints of a run lie."""
    return workspace.home() / "training" / key


def _content(data: PreparedData, split: str) -> str:
    """Hash what training reads of a split: questions, answers and pixels, in order."""
    columns = data.split(split).select(["id", "image_ids", "prompt", "answers"]).to_pylist()
    digest = hashlib.sha256()
    for row in columns:
        pixels = [data.pixel_hash(image_id) for image_id in row["image_ids"]]
        digest.update(json.dumps([row, pixels], sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


@contextmanager
def opened(folder: Path, every: int | None) -> Iterator[Checkpoints]:
    """Hold the checkpoints of a run; all but the last are deleted if the block ends well.

    Args:
        folder: See `folder_of`; made if it does not exist.
        every: Steps between checkpoints; None writes them as rarely as `Checkpoints.due` says.

    Raises:
        TrainingError: Another process holds them, or the folder cannot be written or locked.
    """
    lock = _lock(folder)
    try:
        (folder / _FINISHED).unlink(missing_ok=True)  # of an earlier time
        for scratch in folder.glob(".writing-*"):  # of a run that was killed while it wrote
            shutil.rmtree(scratch, ignore_errors=True)
        for other in folder.parent.iterdir():
            if other != folder:
                _delete_if_old(other)
        held = Checkpoints(folder, every)
        yield held
        held.finish()
    finally:
        os.close(lock)  # which the system does for a killed process


def _lock(folder: Path) -> int:
    file = folder / _LOCK
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _unusable(folder, error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, lock):
                os.truncate(lock, 0)
                os.write(lock, f"{os.getpid()}\n".encode())
                return lock
        except BlockingIOError:
            holder = os.read(lock, 20).decode().strip()
            os.close(lock)
            raise TrainingError(
                f"finetune: process {holder} is training this very run, with the same data, model and "
                f"settings ({folder}); wait for it or end it, then start again"
            ) from None
        except OSError as error:
            os.close(lock)
            raise _unusable(folder, error) from None
        os.close(lock)  # another run has deleted the file since it was opened


def _unusable(folder: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"finetune: {folder} cannot be written or locked ({error.strerror}); checkpoints are kept there: "
        "mend that, or name another state folder in RADLOOP_HOME, on a file system that can lock files"
    )


def _is_at(file: Path, handle: int) -> bool:
    """Say whether an open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False


def _delete_if_old(folder: Path) -> None:
    """Delete what a run has left long ago, unless a process holds it."""
    with suppress(OSError):  # another run may be deleting it, or it may be another user's
        finished = folder / _FINISHED
        touched, kept_s = (finished, _FINISHED_KEPT_S) if finished.exists() else (folder, _UNFINISHED_KEPT_S)
        if time.time() - touched.stat().st_mtime < kept_s:
            return
        lock = os.open(folder / _LOCK, os.O_RDWR)  # fails for what is no run's folder
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


class Checkpoints:
    """The checkpoints of one run; the last two are kept."""

    def __init__(self, folder: Path, every: int | None = None) -> None:
        self._folder = folder
        self._every = every
        self._last_s = time.perf_counter()
        self._pause_s = _SHORTEST_S

    def due(self, step: int) -> bool:
        """Say whether to write one after this step.

        Where no number of steps was asked for: after half a minute; then every half minute, or as rarely
        as it takes for the last one to cost no more than a hundredth of the time since.
        """
        if self._every is not None:
            return step % self._every == 0
        return time.perf_counter() - self._last_s >= self._pause_s

    def save(self, step: int, state: dict[str, Any], collecting_s: float = 0.0) -> None:
        """Write the checkpoint of a step, and delete the third last.

        Args:
            step: Steps done.
            state: Dicts, lists and tuples of tensors, texts, numbers, booleans and None.
            collecting_s: How long it took to collect `state`, which counts among the costs.

        Raises:
            TrainingError: It cannot be written; those before it are untouched.
        """
        start = time.perf_counter() - collecting_s
        tensors: dict[str, torch.Tensor] = {}
        # With the run's name, so that a folder moved to another run is not taken for one of its own.
        content = json.dumps({"run": self._folder.name, "state": _take_apart(state, "", tensors)}).encode()
        files = {_TENSORS: safetensors.torch.save(tensors), _STATE: content}
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        try:
            self._write(step, files | {_HASHES: json.dumps(hashes).encode()})
        except OSError as error:
            known = [number for number, _ in self._steps() if number < step]
            rest = f"the last good one is of step {known[-1]}: " if known else "there is none before it: "
            goes_on = "the same run, started again, goes on from it" if known else "the run has to start anew"
            raise TrainingError(
                f"finetune: stopped after step {step}, whose checkpoint cannot be written to {self._folder} "
                f"({error.strerror}); {rest}make room, and {goes_on}"
            ) from error
        for _, folder in self._steps()[:-_KEPT]:
            shutil.rmtree(folder, ignore_errors=True)
        self._last_s = time.perf_counter()
        self._pause_s = max(_SHORTEST_S, (self._last_s - start) / _SHARE_OF_TIME)

    def latest(self, delete_damaged: bool) -> tuple[int, dict[str, Any]] | None:
        """Return step and state of the last whole checkpoint, tensors on the CPU; None without any.

        Args:
            delete_damaged: For the one process that holds the folder.

        Raises:
            TrainingError: One cannot be read, which does not say that it is damaged.
        """
        for step, folder in reversed(self._steps()):
            try:
                return step, _read(folder, self._folder.name)
            except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
                logger.warning(
                    "finetune: the checkpoint of step %d is damaged (%s); taking the one before", step, error
                )
            except OSError as error:
                raise _unreadable(folder, error) from error
            if delete_damaged:
                shutil.rmtree(folder, ignore_errors=True)
        return None

    def finish(self) -> None:
        """Delete all but the last, and note when the run ended."""
        for _, folder in self._steps()[:-1]:
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # no reason to fail: without the note they are kept for longer
            (self._folder / _FINISHED).touch()

    def _write(self, step: int, files: dict[str, bytes]) -> None:
        scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=self._folder))
        try:
            for name, data in files.items():
                with (scratch / name).open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            _sync(scratch)
            target = self._folder / f"step-{step:08d}"
            if target.exists():  # a damaged one that could not be deleted
                shutil.rmtree(target)
            scratch.rename(target)
            _sync(self._folder)
        except OSError:
            shutil.rmtree(scratch, ignore_errors=True)
            raise

    def _steps(self) -> list[tuple[int, Path]]:
        """Return the checkpoints in order, whole or damaged."""
        try:
            named = [(_NAME.fullmatch(folder.name), folder) for folder in self._folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unreadable(self._folder, error) from error
        return sorted((int(name[1]), folder) for name, folder in named if name is not None)


def _unreadable(folder: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"finetune: {folder} cannot be read ({error.strerror}); it is left as it is: mend that and start "
        "again, or delete it to go on without it"
    )


def _read(folder: Path, run: str) -> dict[str, Any]:
    hashes = json.loads((folder / _HASHES).read_bytes())
    files = {name: (folder / name).read_bytes() for name in (_TENSORS, _STATE)}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != hashes[name]:
            raise ValueError(f"{name} is not what was written")
    content = json.loads(files[_STATE])
    if content["run"] != run:
        raise ValueError(f"it is of run {content['run']}")
    state: dict[str, Any] = _put_together(content["state"], safetensors.torch.load(files[_TENSORS]))
    return state


def _take_apart(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return what JSON can hold of a nest of values; its tensors are put into `tensors`.

    JSON by itself would make texts of an optimiser's integer keys, and lists of its tuples.
    """
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors)}{place}"
        # A copy, as optimisers share tensors among parameters, which safetensors refuses.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _take_apart(item, f"{place}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_take_apart(item, f"{place}/{at}", tensors) for at, item in enumerate(value)]}
    return value


def _put_together(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Undo `_take_apart`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _put_together(item, tensors) for key, item in content}
    items = [_put_together(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)


def _sync(folder: Path) -> None:
    """Make sure that a folder's entries are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
