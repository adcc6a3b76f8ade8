"""A merged checkpoint is a stock one, says what base and adapter say, and none that does not is left."""

import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners import LoraModel
from peft.tuners.lora import Linear
from transformers import AutoModelForImageTextToText, PreTrainedModel
from typer.testing import CliRunner

from radloop import models, registry
from radloop.cli import app
from radloop.config import FinetuneConfig, ModelConfig
from radloop.errors import ConfigError, ModelError
from radloop.models.family import Family
from radloop.models.llava import Llava
from radloop.models.loading import Loaded
from radloop.models.qwen2_5_vl import Qwen25VL
from radloop.training import merging
from radloop.training.adapter import Adapter, with_lora
from radloop.training.merging import merge, require_agreement, verify_merge
from tests.unit.models.stock import Pair, Stock
from tests.unit.tiny import image

QUESTION = "Which side?"


def drawn(loaded: Loaded, size: float) -> None:
    """Give the LoRA layers weights, which fresh ones do not have."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=size, generator=generator)
        if "magnitude" in name:
            parameter.data *= 1 + size * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[type[Family]], ModelConfig]:
    made: dict[type[Family], ModelConfig] = {}

    def base(kind: type[Family]) -> ModelConfig:
        if kind not in made:
            folder = tmp_path_factory.mktemp("bases") / kind.model_type
            kind().tiny(folder)
            made[kind] = ModelConfig(family=kind.model_type, base=str(folder))
        return made[kind]

    return base


Make = Callable[..., tuple[Adapter, Loaded]]


@pytest.fixture(scope="module")
def make(bases: Callable[[type[Family]], ModelConfig]) -> Make:
    def adapter(
        kind: type[Family] = Llava, precision: str = "fp32", size: float = 0.05, **settings: Any
    ) -> tuple[Adapter, Loaded]:
        config = bases(kind).model_copy(update={"precision": precision})
        torch.manual_seed(0)
        loaded = with_lora(models.load(config), FinetuneConfig(rank=4, **settings))
        drawn(loaded, size)
        return Adapter.of(loaded, config, {}), loaded

    return adapter


SETTINGS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "all layers": {"targets": ("attention", "mlp", "projector", "vision")},
    "bf16": {"precision": "bf16"},
    "int8": {"precision": "int8"},
    "nf4": {"precision": "nf4"},
    "nf4 with DoRA": {"precision": "nf4", "use_dora": True},
    "another family": {"kind": Qwen25VL},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_merged_model_says_what_base_and_adapter_say(make: Make, name: str, tmp_path: Path) -> None:
    adapter, loaded = make(**SETTINGS[name])
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    in_memory = verify_merge(loaded, merging.standard_probe(loaded))
    assert in_memory.agrees, in_memory
    after = loaded.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())  # it was only looked at
    written = merge(adapter, tmp_path / "merged")
    assert written.agrees
    assert written.precision == in_memory.precision
    assert written.tolerance == 1e-4 or written.precision == "bf16"
    assert json.loads((tmp_path / "merged" / "merge.json").read_text())["adapter_sha256"] == adapter.sha256
    assert [file.name for file in tmp_path.iterdir()] == ["merged"]
    again = models.load(ModelConfig(family=adapter.base.family, base=str(tmp_path / "merged")))
    probe = merging.standard_probe(again)
    assert not hasattr(again.model, "peft_config")
    if written.precision == "fp32" and adapter.base.precision != "int8":  # which rounds what layers read, too
        assert torch.allclose(probe.logits(again), probe.logits(loaded), atol=1e-4)


def test_stock_transformers_answers_from_it_as_with_the_adapter(make: Make, tmp_path: Path) -> None:
    adapter, _ = make()
    merge(adapter, tmp_path / "merged")
    pair, images = Pair(("x",), QUESTION, "left"), {"x": image(3)}
    merged = Stock.of(Llava(), tmp_path / "merged", images)
    apart = Stock.of(Llava(), Path(adapter.base.base), images, adapter.folder)
    with torch.no_grad():
        ours, theirs = merged.answer_logits(pair)[0], apart.answer_logits(pair)[0]
        base = Stock.of(Llava(), Path(adapter.base.base), images).answer_logits(pair)[0]
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, base, atol=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [0.05, 0.002])
def test_a_merge_that_saved_the_base_only_is_refused(
    make: Make, precision: str, size: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = make(size=size)
    monkeypatch.setattr(LoraModel, "merge_and_unload", LoraModel.unload)
    with pytest.raises(
        ModelError, match=r"does not say what base and adapter say .* nothing has been written"
    ):
        merge(adapter, tmp_path / "merged", precision)
    assert not list(tmp_path.iterdir())


def test_a_layer_that_was_not_merged_is_noticed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = make()
    merged = Linear.merge

    def but_one(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.out_features != self.in_features or self is not first:
            merged(self, *args, **kwargs)

    first = None
    load = models.load

    def loading(*args: Any) -> Loaded:
        nonlocal first
        loaded = load(*args)
        first = next(m for m in loaded.model.modules() if isinstance(m, Linear))
        return loaded

    monkeypatch.setattr(models, "load", loading)
    monkeypatch.setattr(Linear, "merge", but_one)
    with pytest.raises(ModelError, match="does not say"):
        merge(adapter, tmp_path / "merged")


def test_weights_that_change_on_their_way_to_disk_are_noticed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = make()
    save = PreTrainedModel.save_pretrained

    def twice(self: Any, folder: Path, **kwargs: Any) -> None:
        self.lm_head.weight.data *= 1.001
        save(self, folder, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", twice)
    with pytest.raises(ModelError, match="does not say"):
        merge(adapter, tmp_path / "merged")


def test_what_the_adapter_changes_less_than_rounding_does_is_lost_and_said_to_be(make: Make) -> None:
    _, loaded = make(precision="bf16", size=1e-4)
    found = verify_merge(loaded, merging.standard_probe(loaded))
    assert found.max_difference <= found.tolerance
    assert not found.agrees


def test_an_adapter_that_does_nothing_can_be_merged(make: Make) -> None:
    _, loaded = make(size=0.0)
    found = verify_merge(loaded, merging.standard_probe(loaded))
    assert found.agrees
    assert found.carried == 1.0


def test_weights_that_are_no_numbers_agree_with_nothing(make: Make) -> None:
    _, loaded = make()
    next(p for name, p in loaded.model.named_parameters() if "lora_B" in name).data[:] = float("nan")
    found = verify_merge(loaded, merging.standard_probe(loaded))
    assert not found.agrees
    json.dumps(found.facts(), allow_nan=False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_precision_can_be_chosen(make: Make, precision: str, tmp_path: Path) -> None:
    adapter, _ = make(precision="nf4")
    assert merge(adapter, tmp_path / "merged", precision).precision == precision
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert str(stock.dtype) == {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[precision]
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())


def test_what_cannot_be_is_refused_at_once(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = make()
    with pytest.raises(ConfigError, match=r"unknown precision 'fp8'; known: fp32, bf16, fp16"):
        merge(adapter, tmp_path / "merged", "fp8")
    with pytest.raises(ConfigError, match="exists; name a new folder"):
        merge(adapter, tmp_path)

    def full(self: Any, folder: Path, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(ModelError, match=r"cannot be written \(No space left on device\)"):
        merge(adapter, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_only_adapters_that_were_found_to_agree_can_be_registered(make: Make) -> None:
    adapter, loaded = make()
    found = verify_merge(loaded, merging.standard_probe(loaded))
    good, bad = found.facts(), dataclasses.replace(found, carried=0.0).facts()
    require_agreement(Adapter.of(loaded, adapter.base, {"merge": good}))
    with pytest.raises(ModelError, match=r"0% of what it changes is left; fine-tune again"):
        require_agreement(Adapter.of(loaded, adapter.base, {"merge": bad}))
    with pytest.raises(ModelError, match=r"earlier versions of radloop; fine-tune again"):
        require_agreement(adapter)


def test_the_command_writes_a_version(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, _ = make()
    monkeypatch.setattr(registry, "version", lambda name, number: {("radloop", 3): "third"}[name, number])
    monkeypatch.setattr(registry, "adapter_folder", {"third": adapter.folder}.__getitem__)
    arguments = ["merge", "3", str(tmp_path / "merged"), "--precision", "bf16"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "radloop version 3 in bf16" in result.stdout
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert stock.dtype == torch.bfloat16
