"""The base in fewer bits: what is kept exact, that it trains, and which settings are refused."""

from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.errors import ConfigError
from radloop.inference import Engine, Request
from radloop.models import precision
from radloop.models.family import Family
from radloop.models.llava import Llava
from radloop.models.loading import Loaded
from radloop.models.packing import Batch, groups
from radloop.training import finetune
from radloop.training.adapter import Adapter, with_lora
from tests.unit.tiny import ANSWERS, QUESTIONS, image, prepared

LANGUAGE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
FEWER = ("bf16", "int8", "nf4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "llava"
    Llava().tiny(folder)
    return folder


def config_of(folder: Path, name: str) -> ModelConfig:
    return ModelConfig(base=str(folder), precision=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a CPU does")
def test_auto_is_fp32_on_a_cpu(folder: Path) -> None:
    loaded = models.load(config_of(folder, "auto"))
    assert (loaded.precision, loaded.model.dtype, loaded.mixed_precision) == ("fp32", torch.float32, "no")
    assert loaded.is_exact


@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_only_the_language_model_is_quantised(folder: Path, name: str) -> None:
    loaded = models.load(config_of(folder, name))
    kinds = {
        module_name: type(module).__name__
        for module_name, module in loaded.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    quantised = {module_name for module_name, kind in kinds.items() if kind != "Linear"}
    assert quantised == {
        module_name for module_name in kinds if module_name.startswith("model.language_model.layers")
    }
    assert {kinds[name] for name in quantised} == {{"int8": "Linear8bitLt", "nf4": "Linear4bit"}[name]}
    if name == "nf4":
        state = loaded.model.model.language_model.layers[0].mlp.up_proj.weight.quant_state
        assert (state.quant_type, state.nested) == ("nf4", True)
    features = models.load(config_of(folder, "fp32")).encode([image(0)])
    assert torch.equal(loaded.encode([image(0)])[0]["image"], features[0]["image"])
    assert not loaded.is_exact


@pytest.mark.parametrize("name", FEWER)
@pytest.mark.parametrize("targets", [("attention", "mlp"), ("attention", "mlp", "projector", "vision")])
def test_three_steps_lower_the_loss(folder: Path, name: str, targets: tuple[str, ...]) -> None:
    config = FinetuneConfig(
        rank=4, max_steps=3, images_per_step=4, learning_rate=1e-2, schedule="constant", targets=targets
    )
    # With a validation in between, after which training has to go on.
    settings = {"validate_every": 1, "best_by": "exact_match"}
    adapter = finetune(prepared(4, 1), config_of(folder, name), config.model_copy(update=settings), seed=0)
    losses = [entry["loss"] for entry in adapter.record["history"]]
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < 0.8 * losses[0]
    assert adapter.record["precision"] == name
    exact = finetune(prepared(4, 1), config_of(folder, "fp32"), config, seed=0).record["history"]
    assert losses == pytest.approx([entry["loss"] for entry in exact], rel=0.1)
    assert losses != [entry["loss"] for entry in exact]


@pytest.mark.parametrize("name", FEWER)
def test_lora_weights_are_fp32(folder: Path, name: str) -> None:
    loaded = with_lora(models.load(config_of(folder, name)), FinetuneConfig(rank=2))
    trained = {p.dtype for p in loaded.model.parameters() if p.requires_grad}
    assert trained == {torch.float32}


def loss_gradients_and_saved(loaded: Loaded) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Return loss, gradients of LoRA, and the bytes kept for the backward pass, under autocast."""
    loaded.model.zero_grad()
    prompts = loaded.prompts.pairs(QUESTIONS[:2], ANSWERS[:2], [[(48, 48)]] * 2)
    batch = Batch.of([(group,) for group in groups(["0"], prompts)])
    features = loaded.encode([image(0)])
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        logits = loaded.family.logits(loaded.model, batch, features)
        loss = torch.nn.functional.cross_entropy(logits, batch.targets)
    loss.backward()
    grads = [p.grad.clone() for p in loaded.model.parameters() if p.grad is not None]
    return loss.detach(), grads, sum(saved.values())


def test_under_autocast_lora_layers_share_their_input_and_compute_the_same(folder: Path) -> None:
    torch.manual_seed(0)
    loaded = with_lora(models.load(config_of(folder, "bf16")), FinetuneConfig(rank=2))
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    loss, grads, saved = loss_gradients_and_saved(loaded)
    layers = [module for module in loaded.model.modules() if isinstance(module, LoraLayer)]
    assert layers
    assert not any(layer.cast_input_dtype_enabled for layer in layers)
    for layer in layers:  # as PEFT has them
        layer._forward_pre_hooks.clear()
        layer.cast_input_dtype_enabled = True  # type: ignore[assignment]
    stock_loss, stock_grads, stock_saved = loss_gradients_and_saved(loaded)
    assert torch.equal(loss, stock_loss)
    assert len(grads) == 2 * len(layers)
    assert all(map(torch.equal, grads, stock_grads))
    assert saved < 0.9 * stock_saved


def test_answering_does_not_take_the_gradient_from_four_bits(folder: Path) -> None:
    loaded = with_lora(models.load(config_of(folder, "nf4")), FinetuneConfig(rank=2))
    layer = loaded.base_model.model.language_model.layers[0].mlp.up_proj.base_layer
    before = layer.weight.clone()
    Engine(loaded).answer_one(image(0), "Which side?", max_new_tokens=2)
    assert torch.equal(layer.weight, before)
    read = torch.randn(3, layer.in_features, requires_grad=True)
    layer(read).sum().backward()
    assert read.grad is not None
    assert read.grad.abs().max() > 0


@pytest.mark.parametrize("name", FEWER)
def test_an_adapter_knows_its_precision_and_is_not_rounded_away(folder: Path, name: str) -> None:
    config = FinetuneConfig(rank=4, max_steps=8, images_per_step=4, learning_rate=1e-2)
    adapter = finetune(prepared(4), config_of(folder, name), config, seed=0)
    assert adapter.base.precision == name
    engine = Engine(adapter.base, adapter.folder)
    layers = [module for module in engine._loaded.model.modules() if hasattr(module, "lora_A")]
    assert layers
    assert not any(layer.merged for layer in layers)
    requests = [Request(("0",), question) for question in ("Which side?", "Is there a pleural effusion?")]
    tuned = engine.answer({"0": image(0)}, requests)
    base = Engine(adapter.base).answer({"0": image(0)}, requests)
    assert [answer.confidence for answer in tuned] != [answer.confidence for answer in base]


def test_an_adapter_of_an_earlier_version_says_nothing_of_precision(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "base.json").write_text('{"family": "llava", "base": "tiny", "revision": null}')
    assert Adapter(tmp_path).base == ModelConfig()


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a CPU does")
def test_what_needs_a_gpu_says_so(folder: Path) -> None:
    with pytest.raises(ConfigError, match="got 'fp16', which needs a GPU, and PyTorch finds none"):
        models.load(config_of(folder, "fp16"))
    config = FinetuneConfig(rank=2, use_dora=True)
    with pytest.raises(
        ConfigError, match=r"use_dora: got true with model\.precision int8, .* on a CPU; use nf4"
    ):
        with_lora(models.load(config_of(folder, "int8")), config)


def test_a_precision_that_the_family_does_not_allow_lists_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Family, "precisions", ("fp32", "bf16"))
    with pytest.raises(ConfigError, match="got 'nf4', but family llava allows fp32, bf16"):
        models.load(config_of(folder, "nf4"))


def test_without_bitsandbytes_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"int8 needs bitsandbytes; run pip install 'radloop\[quantized\]'"):
        models.load(config_of(folder, "int8"))


def test_on_a_gpu_training_mixes_the_precision_of_the_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = models.load(config_of(folder, "fp32"))
    monkeypatch.setattr(Loaded, "device", torch.device("cuda"))
    found = {
        name: Loaded(
            loaded.model, loaded.processor, loaded.family, loaded.prompts, loaded.reference, name
        ).mixed_precision
        for name in ("fp32", "bf16", "fp16", "int8", "nf4")
    }
    assert found == {"fp32": "no", "bf16": "bf16", "fp16": "fp16", "int8": "bf16", "nf4": "bf16"}
