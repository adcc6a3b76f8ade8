"""Each setting of fine-tuning does what it says, and combinations that cannot work are refused."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import modeling_utils

from radloop import models, workspace
from radloop.config import FinetuneConfig, ModelConfig, RunConfig
from radloop.data.prepared import PreparedData
from radloop.errors import ConfigError, ModelError
from radloop.models import encoding, get_family
from radloop.models.llava import Llava
from radloop.models.loading import Loaded
from radloop.models.packing import Batch
from radloop.training import finetune
from radloop.training.adapter import Adapter, with_lora
from radloop.training.augmentation import augment
from radloop.training.batching import Batches, split_passes
from radloop.training.examples import read_examples
from radloop.training.noise import EmbeddingNoise
from radloop.training.optimizers import make_optimizer
from radloop.training.pictures import FeatureSource
from radloop.training.plan import Plan, make_plan
from radloop.training.state import restore_optimizer
from tests.unit.tiny import image, prepared, save_base
from tests.unit.training.test_finetune import changed


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(base=str(save_base(tmp_path_factory.mktemp("base"))))


def run(base: ModelConfig, data: PreparedData | None = None, **settings: Any) -> Adapter:
    """Train for a few steps."""
    chosen = {"rank": 4, "images_per_step": 3, "max_steps": 3, "learning_rate": 1e-2} | settings
    return finetune(data or prepared(6, 2), base, FinetuneConfig(**chosen), seed=0)


def losses(adapter: Adapter) -> list[float]:
    return [entry["loss"] for entry in adapter.record["history"]]


def weights(adapter: Adapter) -> dict[str, torch.Tensor]:
    return load_file(adapter.folder / "adapter_model.safetensors")


# Length


def test_max_steps_ends_a_run_within_an_epoch_or_after_many(base: ModelConfig) -> None:
    history = run(base, max_steps=5, epochs=1).record["history"]
    assert [entry["epoch"] for entry in history] == [0.5, 1, 1.5, 2, 2.5]
    assert history[-1]["learning_rate"] < 0.2 * history[0]["learning_rate"]


# LoRA


def test_rslora_scales_by_the_root_of_the_rank(base: ModelConfig) -> None:
    torch.manual_seed(0)
    loaded = with_lora(models.load(base), FinetuneConfig(rank=4, alpha=8, use_rslora=True))
    scales = {module.scaling["default"] for module in loaded.model.modules() if hasattr(module, "lora_A")}
    assert scales == {8 / 4**0.5}
    adapter = run(base, use_rslora=True)
    assert losses(adapter)[2] != losses(run(base))[2]
    assert models.load(base, adapter.folder).model.peft_config["default"].use_rslora


def test_dora_trains_magnitudes_and_answers_after_loading(base: ModelConfig) -> None:
    adapter = run(base, use_dora=True)
    assert any("lora_magnitude_vector" in name for name in weights(adapter))
    assert losses(adapter)[2] < losses(adapter)[0]
    assert models.load(base, adapter.folder).model.peft_config["default"].use_dora


def test_a_group_that_the_model_does_not_have_is_named(
    base: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Llava, "targets", Llava.targets | {"experts": r"model\.experts\.\d+"})
    with pytest.raises(ModelError, match=r"has no layer to train in finetune\.targets experts; leave it out"):
        run(base, targets=("attention", "experts"))


# Optimisers


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_every_optimizer_trains(base: ModelConfig, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        adapter = run(base, optimizer=name, rank=64, targets=("mlp",))
    found = losses(adapter)
    assert found[2] < found[0]
    assert ("has no GPU memory to page here" in caplog.text) == name.startswith("paged")
    # 64 x 64 numbers, which is where 8 bits begin.
    assert (found == losses(run(base, rank=64, targets=("mlp",)))) == (name == "paged_adamw")


def test_eight_bits_hold_the_state_of_large_layers_only() -> None:
    large, small = (torch.nn.Parameter(torch.ones(size)) for size in (4096, 4095))
    optimizer = make_optimizer(FinetuneConfig(optimizer="adamw_8bit"), [large, small])
    large.grad, small.grad = torch.ones(4096), torch.ones(4095)
    optimizer.step()
    assert {state["state1"].dtype for state in optimizer.state.values()} == {torch.uint8, torch.float32}
    assert optimizer.state[large]["state1"].dtype == torch.uint8


def test_weight_decay_and_clipping_act(base: ModelConfig) -> None:
    plain = weights(run(base, schedule="constant", warmup=0))
    decayed = weights(run(base, schedule="constant", warmup=0, weight_decay=10))
    norms = [sum(value.norm() for value in found.values()) for found in (plain, decayed)]
    assert norms[1] < 0.9 * norms[0]
    tight = weights(run(base, max_grad_norm=1e-9, schedule="constant", warmup=0))
    assert max((tight[name] - plain[name]).abs().max() for name in plain) > 1e-3


# Noise


def test_noise_acts_in_training_only_and_is_drawn_by_seed_and_step(base: ModelConfig) -> None:
    adapter = run(base, neftune_alpha=5)
    shutil.rmtree(workspace.home() / "training")  # else the next is made of this one's checkpoint
    again, without = run(base, neftune_alpha=5), run(base)
    assert adapter.sha256 == again.sha256
    assert losses(adapter)[0] != losses(without)[0]
    frozen = {"neftune_alpha": 5, "learning_rate": 1e-30}
    validated = [
        run(base, **settings).record["history"][-1] for settings in (frozen, {"learning_rate": 1e-30})
    ]
    assert validated[0]["validation_loss"] == pytest.approx(validated[1]["validation_loss"], rel=1e-6)


def test_noise_is_of_the_papers_size_however_pairs_are_packed(base: ModelConfig) -> None:
    loaded = models.load(base)
    sets = read_examples(prepared(3), "train", loaded.prompts, True).sets
    (rows,) = split_passes([group for found in sets for group in found.groups], None, "shared rows")
    ids = torch.zeros(len(rows), max(sum(map(len, row)) for row in rows), dtype=torch.long)
    embeddings = loaded.base_model.get_input_embeddings()
    clean = embeddings(ids)
    with EmbeddingNoise(loaded.base_model, 5.0).on(rows):
        added = (embeddings(ids) - clean).abs().amax(dim=-1)
    assert torch.equal(embeddings(ids), clean)
    for row, found in zip(rows, added, strict=True):
        at = 0
        for group in row:
            at += len(group.head)
            for tail in group.tails:
                largest = 5 / (len(tail) * clean.shape[-1]) ** 0.5
                assert (found[at : at + len(tail.read)] <= largest * 1.001).all()
                assert (found[at : at + len(tail.read)] > 0.7 * largest).all()
                at += len(tail.read)


def test_noise_fits_a_family_that_takes_rows_apart(tmp_path: Path) -> None:
    family = get_family("blip")
    family.tiny(tmp_path)
    loaded = models.load(ModelConfig(family="blip", base=str(tmp_path)))
    sets = read_examples(prepared(6), "train", loaded.prompts, True).sets
    groups = [group for found in sets for group in found.groups]
    (rows,) = split_passes(groups, None, "shared rows")
    assert len(rows) < len(groups)
    features = loaded.encode([image(0)])
    embeddings = loaded.base_model.get_input_embeddings()
    seen: list[torch.Tensor] = []
    with torch.no_grad(), EmbeddingNoise(loaded.base_model, 5.0).on(rows):
        hook = embeddings.register_forward_hook(
            lambda module, ids, found: seen.append(
                (found - torch.nn.functional.embedding(ids[0], module.weight)).abs().amax(dim=-1)
            )
        )
        loaded.family.logits(loaded.model, Batch.of(rows), features * len(groups))
        hook.remove()
    (added,) = seen
    laid = [group for row in rows for group in row]
    assert len(added) == len(laid)
    for group, found in zip(laid, added, strict=True):
        at = len(group.head)
        for tail in group.tails:
            largest = 5 / (len(tail) * embeddings.embedding_dim) ** 0.5
            assert (found[at : at + len(tail.read)] <= largest * 1.001).all()
            assert (found[at : at + len(tail.read)] > 0.6 * largest).all()
            at += len(tail.read)


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("family", ["blip", "mllama"])
def test_families_that_lay_tokens_out_again_are_trained_with_noise(
    family: str, share_prefix: bool, tmp_path: Path
) -> None:
    get_family(family).tiny(tmp_path)
    model = ModelConfig(family=family, base=str(tmp_path))
    assert len(losses(run(model, neftune_alpha=5.0, share_prefix=share_prefix))) == 3


def test_no_hook_is_left_where_there_is_no_noise(base: ModelConfig) -> None:
    model = models.load(base).base_model
    with EmbeddingNoise(model, 0.0).on([]):
        assert not model.get_input_embeddings()._forward_hooks


# Memory


@pytest.mark.parametrize("targets", [("attention", "mlp"), ("attention", "projector", "vision")])
def test_gradient_checkpointing_changes_nothing_but_memory(
    base: ModelConfig, targets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    checkpoint = modeling_utils.checkpoint

    def spy(*arguments: Any, **options: Any) -> Any:
        calls.append(options["use_reentrant"])
        return checkpoint(*arguments, **options)

    plain = run(base, targets=targets)
    monkeypatch.setattr(modeling_utils, "checkpoint", spy)
    saving = run(base, targets=targets, gradient_checkpointing=True)
    assert calls
    assert not any(calls)
    assert losses(saving) == pytest.approx(losses(plain), rel=1e-6)


# Shortcuts


def test_shortcuts_are_taken_where_they_are_exact() -> None:
    family = Llava()
    assert make_plan(family, FinetuneConfig()) == Plan(True, False)
    assert make_plan(family, FinetuneConfig(augment=True)) == Plan(False, False)
    assert make_plan(family, FinetuneConfig(targets=("vision", "mlp"))) == Plan(False, True)
    assert make_plan(family, FinetuneConfig(targets=("projector",))) == Plan(True, False)
    assert make_plan(family, FinetuneConfig(cache_features=False)) == Plan(False, False)


def test_a_cache_that_is_not_exact_is_refused_with_the_reason() -> None:
    config = FinetuneConfig(cache_features=True, targets=("vision", "lungs"))
    with pytest.raises(ConfigError) as caught:
        make_plan(Llava(), config)
    message = caught.value.message
    assert "unknown group of layers 'lungs'; known: attention, mlp, projector, vision" in message
    assert "cache_features: got true, but finetune.targets has vision, whose training changes" in message


def test_a_cache_of_augmented_images_is_refused_before_anything_starts() -> None:
    values = {"data": {"adapter": "phantoms"}, "finetune": {"augment": True, "cache_features": True}}
    with pytest.raises(ConfigError, match="finetune: got cache_features: true with augment: true"):
        RunConfig.parse(values, "here")


@pytest.mark.parametrize("settings", [{"cache_features": False}, {"share_prefix": False}])
def test_shortcuts_change_nothing_but_the_time(base: ModelConfig, settings: dict[str, bool]) -> None:
    assert losses(run(base, **settings)) == pytest.approx(losses(run(base)), rel=1e-5)


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images in each encoding."""
    monkeypatch.setattr(encoding, "_BUSY", 0)
    counts: list[int] = []
    stock = Loaded.encode_in_graph  # which `encode` calls

    def spy(loaded: Loaded, images: Sequence[Image.Image], *read: Any) -> Any:
        counts.append(len(images))
        return stock(loaded, images, *read)

    monkeypatch.setattr(Loaded, "encode_in_graph", spy)
    return counts


@pytest.mark.parametrize(("cache", "expected"), [(None, 6), (False, 18)])
def test_images_are_encoded_once_or_each_time(
    base: ModelConfig, encodings: list[int], cache: bool | None, expected: int
) -> None:
    config = FinetuneConfig(rank=4, images_per_step=3, max_steps=6, cache_features=cache)
    counts: list[int] = []
    finetune(prepared(6), base, config, seed=0, on_step=lambda facts: counts.append(sum(encodings)))
    assert counts[-1] == expected


@pytest.mark.parametrize(
    "settings", [{"cache_features": False}, {"targets": ("vision", "mlp")}, {"best_by": "exact_match"}]
)
def test_only_features_that_are_kept_have_a_folder(base: ModelConfig, settings: dict[str, Any]) -> None:
    run(base, **settings)
    assert workspace.features().exists() == ("best_by" in settings)


def test_vision_layers_are_trained_through_the_features(base: ModelConfig) -> None:
    adapter = run(base, targets=("vision", "projector"), max_steps=6)
    trained = weights(adapter)
    assert any("vision_tower" in name for name in trained)
    assert all(
        value.abs().max() > 0 for name, value in trained.items() if "lora_B" in name and "layers.0" in name
    )
    assert losses(adapter)[-1] < losses(adapter)[0]
    plain = run(base, targets=("vision", "projector"), max_steps=6, share_prefix=False, tokens_per_pass=60)
    assert losses(plain) == pytest.approx(losses(adapter), rel=1e-4)


# Augmentation


def test_augmentation_is_small_drawn_by_epoch_and_id_and_never_a_flip() -> None:
    ramp = np.repeat(np.linspace(0, 255, 96, dtype=np.uint8)[None, :, None], 96, axis=0).repeat(3, axis=2)
    picture = Image.fromarray(ramp)
    first = augment(picture, 7, 0, "a")
    assert first.size == picture.size
    assert np.array_equal(first, augment(picture, 7, 0, "a"))
    others = [augment(picture, *key) for key in ((8, 0, "a"), (7, 1, "a"), (7, 0, "b"))]
    assert not any(np.array_equal(first, other) for other in others)
    for epoch in range(30):
        pixels = np.asarray(augment(picture, 7, epoch, "a")).astype(float)[20:-20, 20:-20, 0]
        assert pixels[:, -1].mean() > pixels[:, 0].mean() + 40  # what was right is right
        assert np.corrcoef(pixels.ravel(), ramp[20:-20, 20:-20, 0].ravel())[0, 1] > 0.98


def test_training_sees_another_picture_each_epoch_and_validation_the_picture(base: ModelConfig) -> None:
    loaded, data = models.load(base), prepared(2, 1)
    config = FinetuneConfig(augment=True)
    source = FeatureSource(loaded, data, make_plan(loaded.family, config), config, seed=3)
    (clean,) = loaded.encode([image(0)])
    seen = [source.training(epoch)(["image-0"])[0]["image"] for epoch in (0, 1, 0)]
    assert torch.equal(seen[0], seen[2])
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    assert not torch.allclose(seen[0], clean["image"], atol=1e-3)
    assert torch.allclose(source.validation()(["image-0"])[0]["image"], clean["image"], atol=1e-5)


def test_an_image_that_comes_twice_in_a_pass_is_computed_once(
    base: ModelConfig, encodings: list[int]
) -> None:
    loaded, data = models.load(base), prepared(2)
    source = FeatureSource(loaded, data, Plan(False, False), FinetuneConfig(), seed=3)
    found = source.training(0)(["image-1", "image-0", "image-1"])
    assert encodings == [2]
    assert torch.equal(found[0]["image"], found[2]["image"])
    assert source.training(0)([]) == []


# Long samples


def test_an_answer_that_does_not_fit_is_cut_at_its_end(
    base: ModelConfig, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = models.load(base).prompts
    data = prepared(4)
    whole = read_examples(data, "train", prompts, True)
    longest = max(
        len(group.head) + len(tail.tail)
        for found in whole.sets
        for group in found.groups
        for tail in group.tails
    )
    with caplog.at_level(logging.WARNING):
        cut = read_examples(data, "train", prompts, True, longest - 2)
    assert (whole.num_cut, cut.num_samples) == (0, whole.num_samples)
    assert 0 < cut.num_cut < cut.num_samples
    assert f"{cut.num_cut} of {cut.num_samples} answers of split train are cut" in caplog.text
    for before, after in zip(whole.sets, cut.sets, strict=True):
        assert before.sample_ids == after.sample_ids
        for group, shorter in zip(before.groups, after.groups, strict=True):
            assert shorter.head == group.head
            for tail, kept in zip(group.tails, shorter.tails, strict=True):
                lost = max(0, len(tail) - (longest - 2))
                assert kept.tail == tail.tail[: len(tail.tail) - lost]
                assert kept.num_answer == tail.num_answer - lost
    assert run(base, data, max_tokens=longest - 2).record["data"]["cut_answers"] == cut.num_cut


def test_more_tokens_than_the_model_takes_are_refused(base: ModelConfig) -> None:
    with pytest.raises(ConfigError, match="max_tokens: got 257, but the base model takes 256"):
        run(base, max_tokens=257)


def test_questions_without_an_image_are_trained_on_one_by_one(base: ModelConfig) -> None:
    data = prepared(3)
    ids = data.samples["image_ids"].to_pylist()
    mixed = changed(data, image_ids=[[], [], *ids[2:]])
    examples = read_examples(mixed, "train", models.load(base).prompts, True)
    assert [found.sample_ids for found in examples.sets[:2]] == [
        [row] for row in mixed.samples["id"].to_pylist()[:2]
    ]
    assert examples.num_images == len({name for found in ids[2:] for name in found})
    assert all(value > 0 for value in losses(run(base, mixed)))


def test_batches_are_counted_in_image_sets(base: ModelConfig) -> None:
    examples = read_examples(prepared(5), "train", models.load(base).prompts, True)
    batch = Batches(examples, 2, None, "shared rows", 0).of(1)
    assert len(batch.sets) == 2
    assert batch.num_samples == sum(len(found.sample_ids) for found in batch.sets)


class Paged(torch.optim.AdamW):
    """As far as resuming sees it, a paged optimiser on a GPU."""

    is_paged = True

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        super().__init__(parameters)
        self.buffers: list[torch.Tensor] = []

    def get_state_buffer(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        self.buffers.append(torch.zeros_like(parameter, dtype=dtype))
        return self.buffers[-1]


def test_the_state_of_a_paged_optimiser_is_paged_after_resuming_as_well() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = Paged([parameter])
    saved = {"step": 7, "state1": torch.tensor([1.0, 2, 3]), "state2": torch.tensor([4.0, 5, 6])}
    restore_optimizer(optimizer, optimizer.state_dict() | {"state": {0: saved}})
    found = optimizer.state[parameter]
    assert found["step"] == 7
    for name in ("state1", "state2"):
        assert any(found[name] is buffer for buffer in optimizer.buffers)
        assert found[name].tolist() == saved[name].tolist()
