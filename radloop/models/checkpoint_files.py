"""Checkpoints as files: safetensors read file by file, and folders that are written whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from radloop.errors import ModelError

_INDEX = "model.safetensors.index.json"
_IN_USE = "in-use"
_FAULTS = (OSError, SafetensorError)


@dataclass(frozen=True)
class Shard:
    """A safetensors file: its tensors' names with their new ones, and their shapes by the new ones."""

    file: Path
    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.names)

    def without(self, prefix: str) -> Shard:
        """Return it without the tensors whose new names start so."""
        names = {old: new for old, new in self.names.items() if not new.startswith(prefix)}
        return Shard(self.file, names, {new: self.shapes[new] for new in names.values()})


def read_shards(folder: Path, renaming: Mapping[str, str]) -> list[Shard]:
    """Return a checkpoint's safetensors files, without those that hold nothing to take over.

    Args:
        folder: Of the checkpoint.
        renaming: Regular expressions over whole names to new names; empty for what is to be left out.

    Raises:
        ModelError: A file is missing or damaged, weights are pickled, or a name is unknown or there twice.
    """
    shards, unknown, seen = [], [], set[str]()
    for file in weight_files(folder, str(folder)):
        names: dict[str, str] = {}
        shapes = {}
        for old, shape in header(file).items():
            new = renamed(old, renaming)
            if new is None:
                unknown.append(old)
            elif new in seen:
                raise ModelError(
                    f"{folder}: {old} is in two of its files; delete those of another checkpoint"
                )
            elif new:
                seen.add(new)
                names[old], shapes[new] = new, shape
        shards.append(Shard(file, names, shapes))
    if unknown:
        raise ModelError(f"{folder}: has weights that are not known here: {listed(unknown)}")
    return [shard for shard in shards if len(shard)]


def renamed(name: str, renaming: Mapping[str, str]) -> str | None:
    """Return the new name by the first expression that fits, None if there is none."""
    for pattern, new in renaming.items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, new, name)
    return None


def listed(names: Sequence[str]) -> str:
    """Return names for a message: the first 20, and how many more there are."""
    rest = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + rest


def weight_files(folder: Path, owner: str) -> list[Path]:
    """Return the safetensors files of a checkpoint: those that its index names, else all in the folder.

    Args:
        folder: Of the checkpoint.
        owner: Whose it is, what messages begin with.

    Raises:
        ModelError: There are none, the index cannot be read, or it names others than files of this folder.
    """
    index = folder / _INDEX
    if index.is_file() and not (folder / "model.safetensors").is_file():  # Transformers takes that first
        weight_map: Any = read_json(index).get("weight_map")
        names = set(weight_map.values()) if _are_file_names(weight_map) else set()
        if not names:
            raise ModelError(
                f"{owner}: the weight_map of {_INDEX} does not give each weight the name of a *.safetensors "
                "file beside it; download it again"
            )
        if missing := sorted(name for name in names if not (folder / name).is_file()):
            raise ModelError(
                f"{owner}: {_INDEX} names files that are not there: {listed(missing)}; copy or download them "
                "again"
            )
        return [folder / name for name in sorted(names)]
    if files := sorted(folder.glob("*.safetensors")):
        parts = [file.name for file in files if re.search(r"-\d{5}-of-\d{5}\.", file.name)]
        if parts and not (folder / "model.safetensors").is_file():
            raise ModelError(
                f"{owner}: has parts of a checkpoint ({listed(parts)}) and not the {_INDEX} that says which "
                "weight is in which; download that as well"
            )
        return files
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{owner}: has only pickled weights ({listed(pickled)}), which can run code and are not read "
            "here; rewrite each once, where that does no harm, with safetensors.torch.save_file(torch.load("
            "FILE, weights_only=True), FILE_AS_SAFETENSORS), or the whole with save_pretrained"
        )
    raise ModelError(f"{owner}: has no weights: no *.safetensors file; give the folder of a checkpoint")


def _are_file_names(weight_map: Any) -> bool:
    """Say whether it maps to plain names: a path would reach files that nobody has taken a hash of."""
    return isinstance(weight_map, dict) and all(
        isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\")
        for name in weight_map.values()
    )


def header(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a safetensors file's tensors by name; a ModelError if it is not whole."""
    try:
        with safe_open(file, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except _FAULTS as error:
        raise ModelError(f"{file}: is damaged or not whole ({error}); download it again") from None


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; a ModelError if it cannot be read."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read ({error}); copy or download it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file}: holds no JSON object; download it again")
    return content


def sha256s(folder: Path) -> dict[str, str]:
    """Return the hash of each file of a checkpoint that says what it is: weights, configs, tokenizer."""
    found = {}
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".model"):
            with file.open("rb") as stream:
                found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yield a folder beside `target` that takes its place at the end, or is deleted.

    Its files are on the disk before it has its name. What a killed run has left there is taken over by
    the next.

    Raises:
        ModelError: Another process writes it, there is something at `target`, or the disk is full or fails.
    """
    folder = target.with_name(target.name + ".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _IN_USE).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ModelError(f"{target}: another process is writing it; wait for that") from None
            try:
                for old in folder.iterdir():
                    if old.is_dir():
                        shutil.rmtree(old)
                    elif old.name != _IN_USE:
                        old.unlink()
                yield folder
                for path in (*folder.rglob("*"), folder):
                    _sync(path)
                folder.rename(target)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            (target / _IN_USE).unlink()
            _sync(target.parent)
    except _FAULTS as error:
        raise ModelError(f"{target}: cannot be written, and nothing of it is left ({error})") from error


def _sync(path: Path) -> None:
    """Have a file's contents, or a folder's names, written to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def require_room(folder: Path, shards: Sequence[Shard]) -> None:
    """Raise a ModelError if a copy of the files does not fit on the folder's disk."""
    require_bytes(folder, sum(shard.file.stat().st_size for shard in shards))


def require_bytes(folder: Path, needed: int) -> None:
    """Raise a ModelError if the folder's disk has less than that left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"{folder.parent}: has {free / 1e6:,.0f} MB left of {needed / 1e6:,.0f} that are needed; make "
            "room there, or name another folder"
        )
