"""The store of image features: what it finds and keeps, and what damage, kills and full disks do to it."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from radloop.models import feature_store
from radloop.models.family import Features
from radloop.models.feature_store import FeatureStore

PLENTY = 10**9


def same(ours: list[Features], expected: list[Features]) -> bool:
    return len(ours) == len(expected) and all(
        left.keys() == right.keys()
        and all(
            left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
        )
        for left, right in zip(ours, expected, strict=True)
    )


def stores(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def features_of(number: int) -> Features:
    """Return something with odd shapes that the number decides, and a hash with the number in it."""
    torch.manual_seed(number)
    return {
        "image": torch.randn(1 + number % 7, 5),
        "half": torch.randn(3, number % 3, 2).to(torch.bfloat16),
        "size": torch.tensor([[number, 2]]),
        "flag": torch.tensor(number % 2 == 0),
    }


def name_of(number: int) -> str:
    return f"{number:032x}"


def filled(folder: Path, numbers: range = range(8)) -> FeatureStore:
    store = FeatureStore(folder, "{}", PLENTY)
    for number in numbers:
        store.add(name_of(number), features_of(number))
    return store


def found_in(store: FeatureStore, numbers: range = range(8)) -> set[int]:
    """Return which of the numbers are there, having made sure that they are what was added."""
    found = store.get(map(name_of, numbers))
    for name, features in found.items():
        assert same([features], [features_of(int(name, 16))])
    return {int(name, 16) for name in found}


def test_a_store_that_has_been_given_the_name_of_another_is_not_used(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    for settings in ('{"base": "other"}', "{}"):
        store = FeatureStore(tmp_path / "store", settings, PLENTY)
        assert found_in(store) == set()
        store.add(name_of(1), features_of(1))
        assert found_in(FeatureStore(tmp_path / "store", settings, PLENTY)) == {1}
    assert stores(tmp_path) == {"store"}


@pytest.mark.parametrize(
    "damage",
    [lambda file: file.unlink(), lambda file: file.write_text(""), lambda file: file.write_bytes(b"\xff")],
)
def test_a_store_without_its_settings_is_made_anew(tmp_path: Path, damage: Any) -> None:
    held = filled(tmp_path / "store")
    damage(tmp_path / "store" / "settings.json")
    store = filled(tmp_path / "store", range(2))
    assert found_in(store) == {0, 1}
    assert found_in(held, range(3)) <= {0, 1}  # whose files are gone
    assert (tmp_path / "store" / "settings.json").read_text() == "{}"
    assert stores(tmp_path) == {"store"}


@pytest.mark.parametrize("name", ["deleted-1", "making-1"])
def test_what_a_killed_process_has_left_of_a_store_is_deleted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "1.data").write_bytes(bytes(3_000_000))
    filled(tmp_path / "store")
    assert stores(tmp_path) == {"store"}


def test_odd_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    assert found_in(FeatureStore(tmp_path / "store", "{}", PLENTY), range(20)) == set(range(8))
    assert tmp_path.joinpath("store").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o077 for file in tmp_path.glob("store/*.[di]*a*")} == {0}


def damaged(content: bytes, kind: str, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    match kind:
        case "bit":
            return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
        case "cut":
            return content[:place]
        case "zeros":
            return content[:place] + bytes(len(content) - place)
        case _:
            return content[:place] + rng.randbytes(60) + content[place:]


@pytest.mark.parametrize("kind", ["bit", "cut", "zeros", "more"])
@pytest.mark.parametrize("ending", ["data", "index"])
def test_damage_is_noticed_and_mended(tmp_path: Path, kind: str, ending: str) -> None:
    rng = random.Random(0)
    lost = 0
    for round in range(40):
        folder = tmp_path / str(round)
        filled(folder)
        (file,) = folder.glob(f"*.{ending}")
        file.write_bytes(damaged(file.read_bytes(), kind, rng))
        store = FeatureStore(folder, "{}", PLENTY)
        missing = set(range(8)) - found_in(store)
        lost += len(missing)
        for number in missing:
            store.add(name_of(number), features_of(number))
        for opened in (store, FeatureStore(folder, "{}", PLENTY)):
            assert found_in(opened) == set(range(8))
        added = sum(path.stat().st_size > 0 for path in folder.glob("*.index"))
        assert added == 1 + bool(missing)
    assert lost > 20


def test_damage_while_it_is_open_is_noticed(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    assert found_in(store) == set(range(8))
    (data,) = tmp_path.glob("store/*.data")
    with data.open("r+b") as file:
        file.seek(-70, os.SEEK_END)  # behind the header of the last one
        file.write(b"\xff\x00\xff")
    assert found_in(store) == set(range(7))
    with data.open("r+b") as file:
        file.truncate(data.stat().st_size // 2)
    left = found_in(store)
    assert left < set(range(7))
    data.unlink()
    assert found_in(store) == set()


def write(folder: Path, numbers: range, added: Connection) -> None:
    """Add what is not there, and send the number of each when it is there."""
    store = FeatureStore(folder, "{}", PLENTY)
    for number in numbers:
        if not found_in(store, range(number, number + 1)):
            store.add(name_of(number), features_of(number))
            added.send(number)
    added.close()


def writer(folder: Path, numbers: range) -> tuple[BaseProcess, Connection]:
    """Start a process; forked, because importing torch would take most of the time."""
    context = multiprocessing.get_context("fork")
    receives, sends = context.Pipe(duplex=False)
    process = context.Process(target=write, args=(folder, numbers, sends))
    process.start()
    sends.close()
    return process, receives


def received(connection: Connection) -> list[int]:
    """Return all that comes until the other end is closed."""
    numbers = []
    with suppress(EOFError):
        while True:
            numbers.append(connection.recv())
    return numbers


@pytest.mark.parametrize("num_written", [1, 30, 150])
def test_a_killed_writer_loses_at_most_what_it_was_writing(tmp_path: Path, num_written: int) -> None:
    process, added = writer(tmp_path / "store", range(10**6))
    while added.recv() < num_written:
        pass
    process.kill()
    last = max([num_written, *received(added)])
    process.join()
    assert process.exitcode == -signal.SIGKILL
    found = found_in(FeatureStore(tmp_path / "store", "{}", PLENTY), range(last + 3))
    assert found in (set(range(last + 1)), set(range(last + 2)))  # perhaps it was only not sent any more


def test_processes_at_once_see_what_the_others_add(tmp_path: Path) -> None:
    numbers = range(300)
    store = FeatureStore(tmp_path / "store", "{}", PLENTY)
    writers = [writer(tmp_path / "store", order) for order in (numbers, numbers, numbers[::-1])]
    seen: set[int] = set()
    while any(process.is_alive() for process, _ in writers):
        now = found_in(store, numbers)
        assert seen <= now
        seen = now
        time.sleep(0.01)
    added = [received(connection) for _, connection in writers]
    assert set().union(*added) == set(numbers)
    assert sum(map(len, added)) < 900
    assert found_in(store, numbers) == set(numbers)


# Its size


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.*") if file.is_file())


def test_stores_that_were_not_used_for_longest_make_room(tmp_path: Path) -> None:
    for days, name in enumerate(("first", "second", "third"), start=1):
        filled(tmp_path / name)
        os.utime(tmp_path / name / "settings.json", (days * 86400, days * 86400))
    FeatureStore(tmp_path / "first", "{}", PLENTY)  # for a moment
    held = FeatureStore(tmp_path / "third", "{}", PLENTY)
    os.utime(tmp_path / "third" / "settings.json", (0, 0))
    bound = size(tmp_path) + size(tmp_path / "first") // 2
    store = FeatureStore(tmp_path / "new", "{}", bound)
    for number in range(8):
        store.add(name_of(number), features_of(number))
        assert size(tmp_path) <= bound
    assert stores(tmp_path) == {"first", "third", "new"}
    for number in range(8, 16):
        store.add(name_of(number), features_of(number))
        assert size(tmp_path) <= bound
    assert stores(tmp_path) == {"third", "new"}
    assert found_in(held) == set(range(8))
    assert found_in(store, range(16)) == set(range(16))


def add_all(folder: Path, number: int, bound: int) -> None:
    store = FeatureStore(folder / str(number), "{}", bound)
    for image_number in range(60):
        store.add(name_of(image_number), features_of(image_number))


def test_processes_at_once_keep_to_the_bound_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 2 * size(filled(tmp_path / "other")._folder)
    stock = shutil.disk_usage

    def slow(folder: Path) -> Any:  # so that there is time to take the room that another has measured
        time.sleep(0.002)
        return stock(folder)

    monkeypatch.setattr(feature_store.shutil, "disk_usage", slow)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_all, args=(tmp_path, number, bound)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert 0.8 * bound < size(tmp_path) <= bound


def test_a_full_store_stays_as_it_is_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bound = size(filled(tmp_path / "other")._folder)
    store = FeatureStore(tmp_path / "store", "{}", bound)
    for number in range(20):
        store.add(name_of(number), features_of(number))
    assert stores(tmp_path) == {"store"}
    assert bound // 2 < size(tmp_path) <= bound
    assert found_in(store, range(20)) == set(range(len(found_in(store, range(20)))))
    assert len([found for found in caplog.records if "has all of its share" in found.message]) == 1


def test_a_lower_bound_takes_effect_when_a_store_is_opened(tmp_path: Path) -> None:
    filled(tmp_path / "old")
    FeatureStore(tmp_path / "store", "{}", 1000)
    assert stores(tmp_path) == {"store"}


def test_half_of_the_free_disk_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path / "store", range(1))
    one = size(tmp_path)

    def disk_usage(_: Path) -> SimpleNamespace:
        return SimpleNamespace(free=8 * one - size(tmp_path))

    monkeypatch.setattr(feature_store.shutil, "disk_usage", disk_usage)
    for number in range(1, 20):
        store.add(name_of(number), features_of(number))
    assert 3 * one < size(tmp_path) <= 4 * one
