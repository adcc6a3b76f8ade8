"""Parameters and memory are known before anything is loaded, and are what a run then has."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.models import REGISTRY, get_family
from radloop.training import estimate, simulation
from radloop.training.adapter import with_lora
from radloop.training.estimate import Memory, Parameters, Setting, base_bytes, estimate_memory
from radloop.training.examples import read_examples
from radloop.training.losses import summed_loss
from radloop.training.plan import make_plan
from radloop.training.preview import sketch_with_lora
from tests.unit.tiny import prepared

ROOT = Path(__file__).parents[3]
DATA = prepared(4, questions=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in REGISTRY}
    for name, folder in made.items():
        get_family(name).tiny(folder)
    return made


def setting(model: ModelConfig, config: FinetuneConfig, data: PreparedData = DATA) -> Setting:
    plan = make_plan(get_family(model.family), config)
    sketch = sketch_with_lora(model, config)
    train = read_examples(data, "train", sketch.prompts, config.share_prefix)
    return Setting(sketch, data, train, plan, model, config, seed=0)


class RealBytes(simulation._LiveBytes):
    """Counts what is alive where everything is computed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in simulation._tensors((args, kwargs)):
            self._know(tensor.untyped_storage(), 0)
        found = func(*args, **(kwargs or {}))
        for tensor in simulation._tensors(found):
            self._know(tensor.untyped_storage(), tensor.untyped_storage().nbytes())
        return found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", REGISTRY)
def test_every_family_is_known_without_its_weights(
    folders: dict[str, Path], name: str, checkpointing: bool
) -> None:
    """Parameters, tokens and bytes are those of the model itself, all groups of layers trained or not."""
    model = ModelConfig(family=name, base=str(folders[name]), precision="fp32")
    groups = tuple(get_family(name).targets) if checkpointing else ("attention", "mlp")
    config = FinetuneConfig(targets=groups, gradient_checkpointing=checkpointing)
    found = setting(model, config)
    loaded = with_lora(models.load(model), config)
    parameters = Parameters.of(found.sketch)
    assert (parameters.trained, parameters.total) == loaded.model.get_nb_trainable_parameters()
    assert read_examples(DATA, "train", loaded.prompts, config.share_prefix) == found.train

    rows = found.batches.of(1).shares[0][0]
    simulated = estimate._pass_memory(found, rows)
    real = Setting(loaded, DATA, found.train, found.plan, model, config, 0)  # type: ignore[arg-type]
    loaded.model.train()
    if checkpointing:
        loaded.base_model.activation_checkpointing_enable({"use_reentrant": False})
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    with RealBytes() as live:
        torch.autograd.backward(summed_loss(loaded, estimate._features_of(real), rows, "token"))
    assert simulated.peak == pytest.approx(live.peak, rel=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
def test_the_bases_bytes_are_those_of_the_loaded_one(folders: dict[str, Path], precision: str) -> None:
    model = ModelConfig(family="llava", base=str(folders["llava"]), precision=precision)
    sketch = sketch_with_lora(model, FinetuneConfig())
    tensors: list[Any] = [*(base := models.load(model).model).parameters(), *base.buffers()]
    held = sum(tensor.nbytes for tensor in tensors)
    states = [parameter.quant_state for parameter in tensors if hasattr(parameter, "quant_state")]
    for state in filter(None, states):
        held += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
    assert base_bytes(sketch, model) == pytest.approx(held, rel=0.03)


def test_what_saves_memory_is_seen_to_save_it(folders: dict[str, Path]) -> None:
    model = ModelConfig(family="llava", base=str(folders["llava"]))

    def parts(data: PreparedData = DATA, **settings: Any) -> dict[str, int]:
        return estimate_memory(setting(model, FinetuneConfig(**settings), data)).parts

    usual = parts()
    assert usual["gradients"] == usual["LoRA weights"] == usual["optimizer state"] / 2
    assert parts(gradient_checkpointing=True)["activations"] < 0.9 * usual["activations"]
    assert parts(tokens_per_pass=64)["activations"] < 0.6 * usual["activations"]
    assert parts(targets=("attention",))["LoRA weights"] < usual["LoRA weights"]
    wide = parts(rank=128)["optimizer state"]
    assert parts(rank=128, optimizer="adamw_8bit")["optimizer state"] < 0.3 * wide
    assert parts(neftune_alpha=5)["activations"] >= usual["activations"]


def test_weights_are_no_activations(folders: dict[str, Path]) -> None:
    """What an operation reads, or only looks at in another shape, is not counted."""
    found = setting(ModelConfig(family="llava", base=str(folders["llava"])), FinetuneConfig(rank=1))
    linear = found.sketch.base_model.lm_head
    tokens = torch.ones(1, linear.in_features, device="meta")
    with simulation._LiveBytes() as live:
        torch.nn.functional.linear(tokens, linear.weight)
    assert live.made == 4 * linear.out_features


def test_what_is_free_counts_what_the_process_has() -> None:
    memory = Memory({"base weights": 60, "libraries and data": 50}, [], free=100)
    assert memory.total == 110
    assert not memory.fits
    assert Memory(memory.parts, [], free=110).fits


@pytest.mark.parametrize("version", [1, 2])
def test_what_a_container_leaves_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """The least that any of its groups leaves, pages of files that nobody needs counted as free."""
    root = tmp_path / "memory" if version == 1 else tmp_path
    own = root / "docker" / "abc"
    own.mkdir(parents=True)
    groups = tmp_path / "cgroup"
    groups.write_text("5:cpuset:/\n4:memory:/docker/abc\n" if version == 1 else "0::/docker/abc\n")
    monkeypatch.setattr(estimate, "_CGROUP", tmp_path)
    monkeypatch.setattr(estimate, "_OWN_CGROUPS", groups)
    machine = psutil.virtual_memory()._replace(available=10**9)
    monkeypatch.setattr(estimate.psutil, "virtual_memory", lambda: machine)
    assert estimate._free_bytes() == 10**9

    def bound(folder: Path, limit: int | str, used: int, droppable: int) -> None:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if version == 2:
            names = ("memory.max", "memory.current", "inactive_file")
        for name, value in zip(names, (limit, used), strict=False):
            (folder / name).write_text(f"{value}\n")
        (folder / "memory.stat").write_text(f"cache 5\nanon 7\n{names[2]} {droppable}\n")

    bound(own, 8000, 5000, 1000)
    assert estimate._free_bytes() == 4000
    bound(own.parent, 6000, 5000, 500)
    assert estimate._free_bytes() == 1500
    bound(root, "max" if version == 2 else 2**63 - 4096, 5000, 0)
    assert estimate._free_bytes() == 1500
    bound(own, 5000, 5000, 0)
    assert estimate._free_bytes() == 0
    groups.unlink()
    assert estimate._free_bytes() == 10**9


def test_what_a_gpu_has_free_counts_what_this_process_has_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time that it is asked, CUDA itself has taken its part, which the estimate holds as well."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 20)
    assert estimate._free_gpu_bytes() == 90 + estimate._CUDA_CONTEXT


def test_passes_without_a_bound_are_looked_at_in_all_epochs(folders: dict[str, Path]) -> None:
    model = ModelConfig(family="llava", base=str(folders["llava"]))
    data = prepared(24, questions=12)
    config = FinetuneConfig(tokens_per_pass=None, images_per_step=4, epochs=3)
    found = replace(setting(model, config, data), seed=1)
    sizes = [estimate._num_tokens(rows) for rows in found.passes()]
    assert len(sizes) == 18
    assert max(sizes) > max(sizes[:6])
    bounded = setting(model, config.model_copy(update={"tokens_per_pass": 10**6}), data)
    assert len(list(bounded.passes())) == 6
    short = setting(model, config.model_copy(update={"max_steps": 2}), data)
    assert len(list(short.passes())) == 2


MEASURED = """
import json, sys
from radloop.config import FinetuneConfig, ModelConfig
from radloop import models
from radloop.training.adapter import with_lora
from radloop.training.estimate import estimate_memory
from radloop.training.faults import peak_memory_mb
from radloop.training.pictures import FeatureSource
from radloop.training.trainer import Trainer
from tests.unit.tiny import prepared
from tests.unit.training.test_estimate import setting

model, config = ModelConfig(**json.loads(sys.argv[1])), FinetuneConfig(**json.loads(sys.argv[2]))
found = setting(model, config, prepared(32, questions=12))
memory = estimate_memory(found)
loaded = with_lora(models.load(model), config)
source = FeatureSource(loaded, found.data, found.plan, config, 0, keep=False)
steps = Trainer(loaded, config, found.batches, source, None, 0).steps()
for _ in range(2):
    next(steps)
peak = peak_memory_mb(loaded.device) * 1e6
print(json.dumps({"total": memory.total, "parts": memory.parts, "peak": peak}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is that of Linux and its allocator")
@pytest.mark.parametrize(
    ("sizes", "precision", "settings", "share"),
    [
        ((128, 344, 18), "fp32", {"images_per_step": 32, "tokens_per_pass": 8192}, 0.35),
        ((1024, 2752, 6), "bf16", {"images_per_step": 4, "gradient_checkpointing": True}, 0.0),
    ],
)
def test_the_estimate_is_within_a_fifth_of_the_peak(
    folders: dict[str, Path],
    tmp_path: Path,
    sizes: tuple[int, int, int],
    precision: str,
    settings: dict[str, Any],
    share: float,
) -> None:
    get_family("llava").tiny(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = sizes
    text.num_attention_heads = text.num_key_value_heads = 8
    text.head_dim = sizes[0] // 8
    AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    model = {"family": "llava", "base": str(tmp_path), "precision": precision}
    command = [sys.executable, "-W", "ignore", "-c", MEASURED, json.dumps(model), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["total"] == pytest.approx(found["peak"], rel=0.2), found
    assert found["parts"]["activations"] > share * found["peak"], found
