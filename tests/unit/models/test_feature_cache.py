"""Image features are computed once for all epochs and runs, and are never anything else than computed."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from radloop import models, workspace
from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.imaging import pixel_hash
from radloop.errors import ConfigError
from radloop.inference import Engine, Request
from radloop.models import encoding, feature_store, get_family
from radloop.models.family import Features
from radloop.models.feature_cache import FeatureCache, tunes_features
from radloop.models.feature_store import FeatureStore
from radloop.models.loading import Loaded
from radloop.training import finetune
from radloop.training.adapter import with_lora
from radloop.training.merging import Probe
from tests.unit.tiny import image, prepared

IMAGES = [image(number) for number in range(5)]
HASHES = [pixel_hash(found) for found in IMAGES]
PLENTY = 10**9


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("bases") / "qwen3_vl"
    get_family("qwen3_vl").tiny(folder)  # keeps two tensors of an image
    return ModelConfig(family="qwen3_vl", base=str(folder))


@pytest.fixture(scope="module")
def loaded(base: ModelConfig) -> Loaded:
    return models.load(base)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Image.Image]:
    """All images that a model has encoded since, each alone."""
    monkeypatch.setattr(encoding, "_BUSY", 0)
    found: list[Image.Image] = []
    encode = Loaded.encode
    monkeypatch.setattr(
        Loaded, "encode", lambda self, images, *read: found.extend(images) or encode(self, images, *read)
    )
    return found


def refuse(_: int) -> Image.Image:
    raise AssertionError("an image is decoded whose features are there")


def same(ours: list[Features], expected: list[Features]) -> bool:
    return len(ours) == len(expected) and all(
        left.keys() == right.keys()
        and all(
            left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
        )
        for left, right in zip(ours, expected, strict=True)
    )


# What the cache gives


def test_an_image_is_encoded_once_for_all_epochs_and_runs(
    loaded: Loaded, tmp_path: Path, encoded: list[Image.Image]
) -> None:
    expected = [loaded.encode([found])[0] for found in IMAGES]
    assert set(expected[0]) == {"image", "deepstack"}
    encoded.clear()
    cache = FeatureCache(loaded, tmp_path)
    assert same(cache(HASHES[:2], IMAGES.__getitem__), expected[:2])
    assert same(cache(HASHES, IMAGES.__getitem__), expected)
    for later in (cache, FeatureCache(loaded, tmp_path)):
        wanted = [3, 0, 3, 4]
        assert same(later([HASHES[n] for n in wanted], refuse), [expected[n] for n in wanted])
    assert encoded == IMAGES


def test_a_batch_gives_the_same_features(loaded: Loaded, tmp_path: Path, encoded: list[Image.Image]) -> None:
    for folder in (tmp_path, None):
        cache = FeatureCache(loaded, folder)
        cache._encode = loaded.encode  # as on a GPU
        ours = cache([*HASHES, HASHES[0]], [*IMAGES, IMAGES[0]].__getitem__)
        assert len(encoded) == 5
        encoded.clear()
        for found, expected in zip(ours, loaded.encode([*IMAGES, IMAGES[0]]), strict=True):
            assert all(torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-5) for name in expected)
        encoded.clear()


def test_data_are_asked_by_image_id_and_decoded_only_when_needed(
    loaded: Loaded, tmp_path: Path, encoded: list[Image.Image]
) -> None:
    data = prepared(5)
    features = FeatureCache(loaded, tmp_path).of_data(data)
    first = features(["image-4", "image-1", "image-4"])
    assert [pixel_hash(found) for found in encoded] == [HASHES[4], HASHES[1]]
    without = replace(data, images=data.images.drop_columns("png"))
    again = FeatureCache(loaded, tmp_path).of_data(without)(["image-4", "image-1", "image-4"])
    assert same(again, first)


def test_features_can_be_changed_in_memory_without_changing_those_on_disk(
    loaded: Loaded, tmp_path: Path
) -> None:
    cache = FeatureCache(loaded, tmp_path)
    expected = cache(HASHES, IMAGES.__getitem__)
    for found in cache(HASHES, refuse):
        found["image"].zero_()
    assert same(cache(HASHES, refuse), expected)


def test_nothing_is_kept_without_a_folder_or_room(
    loaded: Loaded, tmp_path: Path, encoded: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RADLOOP_FEATURES_GB", "0")
    for folder in (None, tmp_path / "features"):
        cache = FeatureCache(loaded, folder)
        assert same(cache(HASHES, IMAGES.__getitem__), cache(HASHES, IMAGES.__getitem__))
        assert len(encoded) == 10
        encoded.clear()
    assert not list(tmp_path.iterdir())


def test_the_bound_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, expected in {"20": 20 * 10**9, "0.5": 5 * 10**8, "0": 0}.items():
        monkeypatch.setenv("RADLOOP_FEATURES_GB", given)
        assert workspace.feature_bytes() == expected
    monkeypatch.delenv("RADLOOP_FEATURES_GB")
    assert workspace.feature_bytes() == 20 * 10**9
    for given in ("", "-1", "many", "nan", "1e400"):
        monkeypatch.setenv("RADLOOP_FEATURES_GB", given)
        with pytest.raises(ConfigError, match=f"RADLOOP_FEATURES_GB: got '{given}'; set it to how many GB"):
            workspace.feature_bytes()


def test_autocast_around_it_changes_nothing(loaded: Loaded, tmp_path: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        ours = FeatureCache(loaded, tmp_path)(HASHES, IMAGES.__getitem__)
    assert same(ours, FeatureCache(loaded, None)(HASHES, IMAGES.__getitem__))


# Whose features they are


def stores(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_changes_features_changes_the_store(loaded: Loaded, base: ModelConfig, tmp_path: Path) -> None:
    FeatureCache(loaded, tmp_path)
    (own,) = stores(tmp_path)
    copy = tmp_path.parent / "copy"
    get_family("qwen3_vl").tiny(copy)
    FeatureCache(models.load(ModelConfig(family="qwen3_vl", base=str(copy))), tmp_path)
    assert stores(tmp_path) == {own}

    other = tmp_path.parent / "other"
    get_family("qwen3_vl").tiny(other, seed=1)
    changed = [models.load(ModelConfig(family="qwen3_vl", base=str(other)))]
    changed += [models.load(base) for _ in range(3)]
    changed[1].family.limit_pixels(changed[1].processor, 5000)
    changed[2].model.to(torch.bfloat16)
    changed[3].model.config.vision_config.deepstack_visual_indexes = [1, 2]
    for number, found in enumerate(changed, start=2):
        FeatureCache(found, tmp_path)
        assert len(stores(tmp_path)) == number


def tuned(base: ModelConfig, folder: Path, *groups: str) -> Path:
    """Write an adapter that changes what it is on."""
    torch.manual_seed(0)
    found = with_lora(models.load(base), FinetuneConfig(rank=4, alpha=8, targets=groups))
    for name, parameter in found.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    found.model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def test_an_adapter_behind_the_features_shares_them_with_its_base(
    base: ModelConfig, loaded: Loaded, tmp_path: Path
) -> None:
    expected = FeatureCache(loaded, tmp_path)(HASHES, IMAGES.__getitem__)
    adapter = tuned(base, tmp_path.parent / "adapter", "attention", "mlp")
    in_training = with_lora(models.load(base), FinetuneConfig())
    for found in (models.load(base, adapter), in_training):
        assert same(FeatureCache(found, tmp_path)(HASHES, refuse), expected)


@pytest.mark.parametrize("group", ["vision", "projector"])
def test_an_adapter_before_the_features_never_gets_those_of_the_base(
    base: ModelConfig, tmp_path: Path, group: str
) -> None:
    features = tmp_path / "features"
    adapter = tuned(base, tmp_path / "adapter", "attention", group)
    images = dict(zip(HASHES, IMAGES, strict=True))
    requests = [Request((name,), "Which side?") for name in images]
    untuned = Engine(base, features=features).answer(images, requests)
    kept = {file: file.read_bytes() for file in features.rglob("*.*")}
    expected = Engine(base, adapter).answer(images, requests)
    assert Engine(base, adapter, features=features).answer(images, requests) == expected
    assert [found.confidence for found in expected] != [found.confidence for found in untuned]
    assert {file: file.read_bytes() for file in features.rglob("*.*")} == kept


def test_whatever_else_an_adapter_changes_counts_as_before_the_features(
    base: ModelConfig, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    behind = r".*language_model.*q_proj"
    plain = models.load(base)
    assert not tunes_features(
        replace(plain, model=get_peft_model(plain.model, LoraConfig(target_modules=behind)))
    )
    for number, options in enumerate(
        [
            {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
            {"target_modules": r".*(q_proj|patch_embed\.proj)"},
            {"target_modules": behind, "bias": "all"},
            {"target_modules": behind, "target_parameters": ["model.visual.blocks.0.mlp.linear_fc1.weight"]},
        ]
    ):
        plain = models.load(base)
        found = replace(plain, model=get_peft_model(plain.model, LoraConfig(r=2, **options)))
        FeatureCache(found, tmp_path / str(number))
        assert not (tmp_path / str(number)).exists()


# The engine


def test_the_engine_encodes_only_what_is_new_and_leaves_nothing_unless_told_to(
    base: ModelConfig, tmp_path: Path, encoded: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path))
    images = dict(zip(HASHES, IMAGES, strict=True))
    requests = [Request((name,), "Which side?") for name in images]
    expected = Engine(base).answer(images, requests)
    Engine(base).answer_one(IMAGES[0], "Which side?")
    assert not list(tmp_path.iterdir())
    encoded.clear()
    assert Engine(base, features=workspace.features()).answer(images, requests[:3]) == expected[:3]
    assert encoded == IMAGES[:3]
    assert Engine(base, features=workspace.features()).answer(images, requests) == expected
    assert encoded == IMAGES


# Training


def test_training_computes_each_image_once_for_all_runs_and_learns_the_same(
    base: ModelConfig, tmp_path: Path, encoded: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path))
    logits = Probe.logits

    def uncounted(probe: Probe, loaded: Loaded) -> torch.Tensor:
        before = list(encoded)
        found = logits(probe, loaded)
        encoded[:] = before
        return found

    monkeypatch.setattr(Probe, "logits", uncounted)  # a check at the end reads pixels again
    config = FinetuneConfig(epochs=2, images_per_step=2, rank=2, best_by="exact_match")
    data = prepared(4, validation=2)
    first = finetune(data, base, config, seed=0)
    assert sorted(map(pixel_hash, encoded)) == sorted(data.images["pixels"].to_pylist())
    encoded.clear()
    shutil.rmtree(tmp_path / "training")  # else the second is made of the first one's checkpoint
    assert finetune(data, base, config, seed=0).sha256 == first.sha256
    assert encoded == []
    without = finetune(data, base, config.model_copy(update={"cache_features": False}), seed=0)
    assert len(encoded) == 2 * (6 + 2)  # validation images for the loss, and again for the answers
    for ours, theirs in zip(first.record["history"], without.record["history"], strict=True):
        names = {"loss", "validation_loss", "exact_match"} & set(ours)
        assert [ours[key] for key in names] == pytest.approx([theirs[key] for key in names], rel=1e-5)
    assert "validation_loss" in ours
    name = "adapter_model.safetensors"
    ours, theirs = load_file(first.folder / name), load_file(without.folder / name)
    assert all(torch.allclose(ours[key], theirs[key], rtol=1e-5, atol=1e-5) for key in ours)


# The store on disk


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


def test_deleting_everything_during_use_does_no_harm(loaded: Loaded, tmp_path: Path) -> None:
    cache = FeatureCache(loaded, tmp_path / "features")
    expected = cache(HASHES[:3], IMAGES.__getitem__)
    mapped = cache(HASHES[:3], refuse)
    subprocess.run(["rm", "-rf", str(tmp_path / "features")], check=True)
    assert same(mapped, expected)
    assert same(cache(HASHES[:3], IMAGES.__getitem__), expected)
    fresh = FeatureCache(loaded, tmp_path / "features")
    fresh(HASHES[:3], IMAGES.__getitem__)
    assert same(fresh(HASHES[:3], refuse), expected)


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


# Its faults


def test_a_full_disk_ends_the_keeping_and_not_the_run(
    loaded: Loaded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = FeatureCache(loaded, None)(HASHES, IMAGES.__getitem__)
    cache = FeatureCache(loaded, tmp_path)
    first = cache(HASHES[:1], IMAGES.__getitem__)
    (data,) = tmp_path.rglob("*.data")
    one = data.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(2.5 * one), limits[1]))
    try:
        assert same(cache(HASHES, IMAGES.__getitem__), expected)
        assert same(cache(HASHES, IMAGES.__getitem__), expected)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len([found for found in caplog.records if "computed anew" in found.message]) == 1
    assert same(FeatureCache(loaded, tmp_path)(HASHES[:1], refuse), first)
    assert data.stat().st_size % one == 0  # nothing is left of what did not fit
    assert same(FeatureCache(loaded, tmp_path)(HASHES[:2], refuse), expected[:2])


def test_a_folder_that_cannot_be_written_ends_the_keeping_and_not_the_run(
    loaded: Loaded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "file").write_text("")
    cache = FeatureCache(loaded, tmp_path / "file" / "features")
    expected = FeatureCache(loaded, None)(HASHES, IMAGES.__getitem__)
    assert same(cache(HASHES, IMAGES.__getitem__), expected)
    assert [found.message for found in caplog.records] == [
        f"image features are computed anew each time: {tmp_path / 'file' / 'features'} cannot be written "
        "(Not a directory)"
    ]
