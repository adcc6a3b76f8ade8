"""A merged checkpoint is a stock one, says what base and adapter say, and none that does not is left."""

import dataclasses
import json
import resource
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from safetensors.torch import load_file, save
from transformers import AutoModelForImageTextToText, PreTrainedModel
from typer.testing import CliRunner

from radloop import models, registry
from radloop.answering import AnswerConfig
from radloop.cli import app
from radloop.config import FinetuneConfig, ModelConfig
from radloop.errors import ConfigError, ModelError
from radloop.models.family import Family
from radloop.models.fuyu import Fuyu
from radloop.models.llava import Llava
from radloop.models.loading import Loaded
from radloop.models.qwen2_5_vl import Qwen25VL
from radloop.models.smolvlm import SmolVLM
from radloop.training import merged_checkpoint, merging
from radloop.training.adapter import Adapter, with_lora
from radloop.training.merged_checkpoint import merge
from radloop.training.merging import require_agreement, verify_merge
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
        kind: type[Family] = Llava,
        precision: str = "fp32",
        size: float = 0.05,
        max_pixels: int | None = None,
        **settings: Any,
    ) -> tuple[Adapter, Loaded]:
        config = bases(kind).model_copy(update={"precision": precision, "max_pixels": max_pixels})
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


def unmerged(monkeypatch: pytest.MonkeyPatch, leave: Callable[[Any], bool]) -> None:
    """Let PEFT leave out layers."""
    merged = Linear.merge
    monkeypatch.setattr(Linear, "merge", lambda self: None if leave(self) else merged(self))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [0.05, 0.005])
def test_a_merge_that_left_the_base_as_it_was_is_refused(
    make: Make, precision: str, size: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = make(size=size)
    unmerged(monkeypatch, lambda _: True)
    with pytest.raises(
        ModelError, match=r"other weights than those of base and adapter of 14 of 14 layers: .*q_proj"
    ):
        merge(adapter, tmp_path / "merged", precision)
    assert not list(tmp_path.iterdir())


def test_weights_that_change_on_their_way_to_disk_are_noticed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = make()
    save = PreTrainedModel.save_pretrained

    def otherwise(self: Any, folder: Path, **kwargs: Any) -> None:
        self.lm_head.weight.data[3, 4] *= 1.000001
        save(self, folder, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", otherwise)
    with pytest.raises(ModelError, match=r"does not hold the weights of base and adapter: lm_head\.weight;"):
        merge(adapter, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{broken"), "cannot be loaded by"),
    "other template": (
        lambda f: (f / "chat_template.jinja").write_text(
            "Why? {% for turn in messages %}{% for part in turn.content %}"
            "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endfor %}"
        ),
        "has another processor",
    ),
    "other crop": (
        lambda f: merged_checkpoint._set_image_processor(f, {"image_mean": [0.1, 0.1, 0.1]}),
        "has another processor",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_written_processor_is_the_one_that_is_checked(
    make: Make, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = make()
    write = merged_checkpoint._write_processor
    damage, message = FAULTS[name]

    def damaged(loaded: Loaded, base: Path, folder: Path) -> None:
        write(loaded, base, folder)
        damage(folder)

    monkeypatch.setattr(merged_checkpoint, "_write_processor", damaged)
    with pytest.raises(ModelError, match=message):
        merge(adapter, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [Qwen25VL, Fuyu, SmolVLM])
@pytest.mark.parametrize("is_old", [False, True])
def test_the_limit_of_pixels_is_in_the_written_processor(
    make: Make, kind: type[Family], is_old: bool, tmp_path: Path
) -> None:
    limit = 4000
    adapter, loaded = make(kind, max_pixels=limit)
    base = Path(adapter.base.base)
    if is_old:  # published ones have the image processor's settings in a file of their own
        base = tmp_path / "old"
        shutil.copytree(adapter.base.base, base)
        content = json.loads((base / "processor_config.json").read_text())
        images = content.pop("image_processor")
        if kind is Qwen25VL:
            images |= {"min_pixels": 576, "max_pixels": 9216}
        (base / "processor_config.json").write_text(json.dumps(content))
        (base / "preprocessor_config.json").write_text(json.dumps(images))
        config = adapter.base.model_copy(update={"base": str(base)})
        adapter = Adapter.of(loaded, config, {})
    merge(adapter, tmp_path / "merged")
    picture = image(1, (500, 400))
    stock = kind().load_processor(base).image_processor
    ours = kind().load_processor(tmp_path / "merged")
    assert ours.image_processor.to_dict() == loaded.processor.image_processor.to_dict() != stock.to_dict()
    read, expected = kind().read(ours, picture), kind().read(loaded.processor, picture)
    assert all(torch.equal(read[name], expected[name]) for name in expected)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / name).is_file():
            assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
    assert "_ImageProcessor" not in "".join(
        file.read_text() for file in (tmp_path / "merged").glob("*processor_config.json")
    )
    assert json.loads((tmp_path / "merged" / "merge.json").read_text())["base"]["max_pixels"] == limit


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_an_adapter_is_checked_whatever_its_base(make: Make, precision: str, tmp_path: Path) -> None:
    adapter, loaded = make(precision=precision)
    settings = json.loads((adapter.folder / "adapter_config.json").read_text())
    weights = load_file(adapter.folder / "adapter_model.safetensors")

    def faulty(name: str, content: bytes) -> Adapter:
        found = Adapter.of(loaded, adapter.base, {})
        (found.folder / name).write_bytes(content)
        return found

    faults = {
        "sets bias": faulty("adapter_config.json", json.dumps(settings | {"bias": "all"}).encode()),
        "missing ": faulty("adapter_model.safetensors", save(dict(list(weights.items())[:3]))),
        "another config.json": faulty(
            "base.json",
            json.dumps(
                json.loads((adapter.folder / "base.json").read_text()) | {"config_sha256": "0" * 64}
            ).encode(),
        ),
    }
    for message, bad in faults.items():
        with pytest.raises(ModelError, match=message):
            merge(bad, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_one_model_is_in_memory_at_a_time(
    make: Make, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = make(precision=precision)
    load, stock = models.load, merged_checkpoint._stock
    loaded: list[weakref.ref[Any]] = []
    alive: list[bool] = []

    def loading(*args: Any) -> Loaded:
        found = load(*args)
        loaded.extend(weakref.ref(parameter) for parameter in found.base_model.parameters())
        return found

    def reading(*args: Any) -> Loaded:
        alive.extend(ref() is not None for ref in loaded)
        return stock(*args)

    monkeypatch.setattr(models, "load", loading)
    monkeypatch.setattr(merged_checkpoint, "_stock", reading)
    merge(adapter, tmp_path / "merged")
    assert alive
    assert not any(alive)


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


@pytest.mark.parametrize("of_base", ["fp32", "nf4"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])  # the last on a CPU, too
def test_the_precision_can_be_chosen(make: Make, of_base: str, precision: str, tmp_path: Path) -> None:
    adapter, _ = make(precision=of_base)
    assert merge(adapter, tmp_path / "merged", precision).precision == precision
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert (
        str(stock.dtype)
        == {"fp32": "torch.float32", "bf16": "torch.bfloat16", "fp16": "torch.float16"}[precision]
    )
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())


def test_what_cannot_be_is_refused_at_once(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = make()
    with pytest.raises(ConfigError, match=r"unknown precision 'fp8'; known: fp32, bf16, fp16"):
        merge(adapter, tmp_path / "merged", "fp8")
    with pytest.raises(ConfigError, match="exists; name a new folder"):
        merge(adapter, tmp_path)

    monkeypatch.setattr(Llava, "precisions", ("fp32", "bf16", "nf4"))
    with pytest.raises(ConfigError, match=r"got precision 'fp16', but family llava allows fp32, bf16$"):
        merge(adapter, tmp_path / "merged", "fp16")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_and_nothing_is_left(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = make()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # bytes in one file
    try:
        with pytest.raises(
            ModelError, match=r"merged: cannot be written, and nothing of it is left \(.*large"
        ):
            merge(adapter, tmp_path / "merged")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=9))
    with pytest.raises(ModelError, match=r"has \d+ MB left of \d+ that are needed; make room there"):
        merge(adapter, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_merge_has_left_is_taken_over(make: Make, tmp_path: Path) -> None:
    adapter, _ = make()
    left = tmp_path / "merged.partial"
    (left / "below").mkdir(parents=True)
    (left / "model-00001-of-00009.safetensors").write_bytes(b"half")
    merge(adapter, tmp_path / "merged")
    assert [file.name for file in tmp_path.iterdir()] == ["merged"]
    assert not list((tmp_path / "merged").glob("model-*"))


def test_the_hint_is_not_what_has_been_done(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = make()
    monkeypatch.setattr(merging, "_CARRIED", (2.0, 3.0))
    with pytest.raises(ModelError, match=r"in bf16, .*nothing has been written, try precision fp32"):
        merge(adapter, tmp_path / "merged", "bf16")
    with pytest.raises(ModelError, match=r"in fp32, .*nothing has been written, fine-tune again"):
        merge(adapter, tmp_path / "merged")


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
    answering = AnswerConfig(image_size=64, prompt="Answer: {question}", max_new_tokens=9)
    answering.write(adapter.folder)
    arguments = ["merge", "3", str(tmp_path / "merged"), "--precision", "bf16"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "radloop version 3 in bf16" in result.stdout
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert stock.dtype == torch.bfloat16
    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert record["answering"] == answering.model_dump()
