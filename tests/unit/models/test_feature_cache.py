"""Image features are computed once for all epochs and runs, and are never anything else than computed."""

from __future__ import annotations

import logging
import resource
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from radloop import models, source, workspace
from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.imaging import pixel_hash
from radloop.errors import ConfigError
from radloop.inference import Engine, Request
from radloop.models import encoding, get_family
from radloop.models.feature_cache import FeatureCache, tunes_features
from radloop.models.loading import Loaded
from radloop.training import finetune
from radloop.training.adapter import with_lora
from radloop.training.merging import Probe
from tests.unit.models.test_feature_store import same, stores
from tests.unit.tiny import image, prepared

IMAGES = [image(number) for number in range(5)]
HASHES = [pixel_hash(found) for found in IMAGES]


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


@pytest.mark.parametrize("library", ["pillow", "numpy", "torchvision", "torch", "transformers"])
def test_another_version_of_what_scales_images_has_a_store_of_its_own(
    loaded: Loaded, tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FeatureCache(loaded, tmp_path)
    stock = source.version
    monkeypatch.setattr(source, "version", lambda name: "99" if name == library else stock(name))
    FeatureCache(loaded, tmp_path)
    assert len(stores(tmp_path)) == 2


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


# Faults of the disk


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
