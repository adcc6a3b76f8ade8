"""benchmarks/gpu, at tiny size on the CPU."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import bench as benches
from benchmarks.gpu import train, vqa_rad
from benchmarks.gpu.bench import Bench, Device
from benchmarks.gpu.shapes import SHAPES, Shape
from benchmarks.gpu.train import Variant
from benchmarks.gpu.vqa_rad import Pair
from benchmarks.gpu.work import Load, count
from radloop.models import prefix_attention
from radloop.models.packing import PADDING, Batch, Row, block_mask

ROOT = Path(__file__).parents[2]
FAMILIES = tuple(SHAPES)
PACKED = Variant("packed", "fp32", checkpointing=False)


@pytest.fixture(scope="module", params=FAMILIES)
def bench(request: pytest.FixtureRequest) -> Bench:
    """A model in which LoRA layers and images count, and whose attention Torch can count."""
    found = Bench(SHAPES[request.param](tiny=True), "fp32", Device("cpu"), "sdpa")
    torch.manual_seed(1)
    for name, parameter in found.model.named_parameters():
        if "gate" in name and parameter.numel() == 1:
            torch.nn.init.ones_(parameter)  # Mllama's cross attention begins without effect
        elif parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return found


def rows_of(bench: Bench, num_images: int, share_prefix: bool) -> list[Row]:
    return bench.shape.rows(bench.base, vqa_rad.epoch()[:num_images], share_prefix)


@pytest.mark.parametrize("name", FAMILIES)
def test_all_variants_run_and_are_in_the_table(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    train.main(["--tiny", "--device", "cpu", "--models", name, "--minutes", "0", "--json", str(file)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 110
    figures = json.loads(file.read_text())
    assert figures["versions"]["torch"]
    assert figures["device"]
    precisions = train.PRECISIONS if benches.has_nf4() else ("bf16",)
    names = ("layout", "precision", "checkpointing")
    measured = [Variant(*(row[name] for name in names)) for row in figures["results"]]
    assert measured == [*train.variants(precisions)]
    assert len(set(measured)) == 6 * len(precisions)
    for row in figures["results"]:
        assert row["status"] == "measured", row
        assert math.isfinite(row["loss"])
        assert len(row["seconds"]) == 3
        epochs = 5 * 1793 / row["samples"] * sum(row["seconds"])
        filling = row["filling_seconds"]
        assert (filling > 0) == (row["layout"] == "packed + cache") == (row["load"]["encoded"] == 0)
        assert row["epochs_seconds"] == pytest.approx(epochs + filling)
        checkpointing = "on" if row["checkpointing"] else "off"
        assert any(
            line.startswith(f"{row['layout']:<15}{row['precision']:<8}{checkpointing}") for line in lines
        )


def test_plain_and_packed_rows_give_the_same_loss(bench: Bench) -> None:
    plain, packed = (rows_of(bench, 4, share_prefix) for share_prefix in (False, True))
    assert len(plain) == sum(len(group.tails) for row in packed for group in row) > 2 * len(packed)
    with torch.no_grad():
        bench.lay_out(plain=True)
        expected = bench.loss(plain, cached=False)
        bench.lay_out(plain=False)
        assert 0.1 < expected < 100
        # The seed of the tokens is the order of the groups, which is the same in both.
        torch.testing.assert_close(bench.loss(packed, cached=False), expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(bench.loss(packed, cached=True), expected, rtol=1e-5, atol=0)


def as_computed(shape: Shape) -> Shape:
    """With the padding that Mllama's vision tower gives each tile: multiples of 8 positions."""
    if not shape.vision.states:
        return shape
    padded = 4 * 8 * math.ceil(shape.vision.positions / 4 / 8)
    layers = shape.vision.pairs // shape.vision.positions**2
    return replace(shape, vision=replace(shape.vision, positions=padded, pairs=layers * padded**2))


@pytest.mark.parametrize("cached", [False, True])
def test_the_work_is_what_torch_counts(bench: Bench, cached: bool) -> None:
    # One image in one row: nothing is padding. Torch counts all pairs, seen or not.
    rows = bench.shape.rows(bench.base, [[Pair(30, 5)] * 3], share_prefix=True)
    (length,) = (sum(map(len, row)) for row in rows)
    load = replace(Load.of(rows, bench.shape, cached), pairs=length**2)
    expected = count(bench.model, as_computed(bench.shape), load)
    assert expected.forward < expected.done < expected.as_full
    bench.features  # noqa: B018 # computes them
    forward, step = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), step:
        with forward:
            loss = bench.loss(rows, cached)
        loss.backward()
    bench.model.zero_grad()
    assert expected.forward == pytest.approx(forward.get_total_flops(), rel=0.005)
    assert expected.done == pytest.approx(step.get_total_flops(), rel=0.005)


@pytest.mark.parametrize("share_prefix", [False, True])
def test_pairs_are_those_of_the_mask(bench: Bench, share_prefix: bool) -> None:
    rows = rows_of(bench, 5, share_prefix)
    batch = Batch.of(rows)
    seen = block_mask(batch, batch)[:, 0] & (batch.groups != PADDING)[:, :, None]
    load = Load.of(rows, bench.shape, cached=False)
    assert load.pairs == seen.sum()
    assert load.tokens == (batch.groups != PADDING).sum()
    assert load.predicts == batch.predicts.sum() == len(batch.targets)
    assert load.images == load.encoded == (5 if share_prefix else len(rows))
    assert load.cross_pairs == load.tokens * bench.shape.vision.states


def test_shapes_have_as_many_parameters_as_the_published_models() -> None:
    parameters = {"llava": 7.063e9, "qwen": 8.292e9, "mllama": 10.670e9}
    for name, expected in parameters.items():
        shape = SHAPES[name]()
        with torch.device("meta"):
            model = shape.model_class(shape.config)
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(expected, rel=1e-3), name


def test_a_full_card_halves_the_batch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    step = bench.step

    def small_card(rows: list[Row], *arguments: Any) -> torch.Tensor:
        tried.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(rows, *arguments)

    monkeypatch.setattr(bench, "step", small_card)
    monkeypatch.setattr(bench, "shape", replace(bench.shape, packed_rows=8))
    found = train.measure(bench, PACKED, rows_of(bench, 40, True), seconds=0)
    assert tried == [8, 4, 2, 2, 2, 2, 2]
    assert (found["status"], found["rows"]) == ("measured", 2)


def test_steps_in_which_a_kernel_is_compiled_are_not_timed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = bench.step
    taken: list[int] = []

    def compiling(*arguments: Any) -> torch.Tensor:
        taken.append(len(taken))
        if taken[-1] in (0, 4):
            torch.compile(lambda x: x + 1, backend=lambda graph, _: graph.forward)(torch.ones(2))
        return step(*arguments)

    monkeypatch.setattr(bench, "step", compiling)
    found = train.measure(bench, PACKED, rows_of(bench, 40, True), seconds=0)
    assert taken == list(range(6))  # two to warm up, and the one that compiles
    assert len(found["seconds"]) == 3


def test_what_does_not_fit_and_what_fails_is_said_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, cached = Bench.step, Bench.cached

    def full(self: Bench, rows: list[Row], *arguments: Any) -> torch.Tensor:
        if len(rows[0][0].tails) == 1 and len(rows[0]) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, rows, *arguments)

    def broken(self: Bench, image_ids: list[str]) -> Any:
        if self.base.is_gradient_checkpointing:
            raise ValueError("no such kernel on this card, " + "at all, " * 20)
        return cached(self, image_ids)

    monkeypatch.setattr(Bench, "step", full)
    monkeypatch.setattr(Bench, "cached", broken)
    monkeypatch.setattr(Device, "peak_bytes", lambda self: 23_400_000_000)
    monkeypatch.setattr(train, "PRECISIONS", ("bf16",))
    with pytest.raises(SystemExit, match="1"):
        train.main(["--tiny", "--device", "cpu", "--models", "llava", "--minutes", "0"])
    table = [line for line in capsys.readouterr().out.splitlines() if "bf16  " in line]
    assert [line.split()[-1] for line in table if "out of memory" in line] == ["23.4"] * 2
    assert [line[:20].split()[0] for line in table if "out of memory" in line] == ["plain"] * 2
    (failed,) = (line for line in table if "failed" in line)
    assert failed.startswith("packed + cache bf16    on   failed: no such kernel on this card")
    assert len(table) == 6
    assert max(map(len, table)) <= 110


def test_what_is_asked_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything that runs on a GPU only, but the kernels."""
    properties = SimpleNamespace(name="NVIDIA Pretended", total_memory=80_000_000_000, major=9, minor=0)
    calls: Counter[str] = Counter()

    def pretend(name: str, result: Any) -> None:
        def called(*_: Any) -> Any:
            calls[name] += 1
            return result

        monkeypatch.setattr(torch.cuda, name, called)

    for name, result in {
        "get_device_properties": properties,
        "synchronize": None,
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 12_345_000_000,
        "empty_cache": None,
    }.items():
        pretend(name, result)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    device = Device("cpu")
    device.is_gpu = True
    lines: list[str] = []
    kept: list[int] = []
    found = train.run(
        [SHAPES["mllama"](tiny=True)],
        device,
        "sdpa",
        0,
        lines.append,
        lambda figures: kept.append(len(figures["results"])),
    )
    assert (found["device"], found["capability"]) == ("NVIDIA Pretended", "9.0")
    assert lines[0].startswith("NVIDIA Pretended; torch ")
    assert {row["peak_bytes"] for row in found["results"]} == {12_345_000_000}
    assert sum(" 12.3 " in line for line in lines) == len(found["results"]) == kept[-1]
    assert kept == [*range(1, len(kept) + 1)]
    steps = sum(len(row["seconds"]) for row in found["results"])
    assert calls["synchronize"] > 2 * steps
    assert calls["reset_peak_memory_stats"] == len(kept)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "llava,gpt"], "unknown gpt; known: llava, qwen, mllama"),
        (["--device", "cpu"], "for --tiny only"),
        (["--tiny", "--device", "cpu", "--attention", "flex"], "no backward pass on a CPU"),
        (["--json", "/no/such/figures.json"], "there is no folder /no/such; make it first"),
        ([], "torch sees no GPU here"),
    ],
)
def test_what_cannot_be_measured_is_said(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        train.main(arguments)
    assert words in capsys.readouterr().err


def test_on_a_cpu_packed_rows_attend_where_they_may_look(bench: Bench) -> None:
    found = Bench(bench.shape, "fp32", Device("cpu"))
    assert found.attention == prefix_attention.NAME
    found.model.load_state_dict(bench.model.state_dict())
    rows = rows_of(bench, 4, share_prefix=True)
    with torch.no_grad():
        torch.testing.assert_close(found.loss(rows, True), bench.loss(rows, True), rtol=1e-5, atol=0)


def test_plain_rows_attend_in_causal_order_without_a_mask(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense: Counter[bool] = Counter()
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        if query.shape[2] == key.shape[2] == tokens:  # the language model, looking at text
            assert named["is_causal"] == (named["attn_mask"] is None)
            dense[named["attn_mask"] is not None] += 1
        return kernel(query, key, *rest, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    for plain in (True, False):
        rows = rows_of(bench, 3, share_prefix=not plain)
        tokens = Batch.of(rows).input_ids.shape[1]
        bench.lay_out(plain)
        with torch.no_grad():
            bench.loss(rows, cached=True)
        assert set(dense) == {not plain}
        dense.clear()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_flex_attention_gives_the_same_loss(name: str) -> None:
    shape = SHAPES[name](tiny=True)
    dense, flex = (Bench(shape, "fp32", Device("cpu"), kind) for kind in ("sdpa", "flex"))
    assert flex.base.config.text_config._attn_implementation == "flex_attention"
    assert flex.base.config.vision_config._attn_implementation == "sdpa"
    rows = rows_of(dense, 4, share_prefix=True)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(flex.loss(rows, False), dense.loss(rows, False), rtol=1e-5, atol=0)


def test_nf4_is_of_the_language_model_only() -> None:
    nn = pytest.importorskip("bitsandbytes.nn", reason="NF4 needs bitsandbytes")
    for name in FAMILIES:
        shape = SHAPES[name](tiny=True)
        torch.manual_seed(0)
        model = shape.model_class(shape.config)
        layers = {key: layer for key, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
        benches.quantize(model, shape.family.kept_exact)
        small = {key: layer for key, layer in model.named_modules() if isinstance(layer, nn.Linear4bit)}
        assert set(small) == {key for key in layers if ".language_model." in key}
        for key, layer in small.items():
            assert layer.weight.numel() * 2 == layers[key].weight.numel()
            probe = torch.randn(8, layer.in_features)
            error = (layer(probe) - layers[key](probe)).norm() / layers[key](probe).norm()
            assert 0 < error < 0.2


def test_lengths_are_vqa_rads(real_data: Callable[[str], Path]) -> None:
    found = json.loads((real_data("vqa_rad") / "VQA_RAD Dataset Public.json").read_text())
    rows = [row for row in found if not row["phrase_type"].startswith("test")]
    assert len(rows) == 1797
    assert Counter(Counter(row["image_name"] for row in rows).values()) == vqa_rad.QUESTIONS_OF_IMAGE
    for field, table in (("question", vqa_rad.QUESTION_WORDS), ("answer", vqa_rad.ANSWER_WORDS)):
        assert Counter(len(str(row[field]).split()) for row in rows) == table


def test_an_epoch_has_those_lengths_and_is_the_same_each_time() -> None:
    images = vqa_rad.epoch()
    assert images == vqa_rad.epoch()
    assert images != vqa_rad.epoch(seed=1)
    assert Counter(map(len, images)) == vqa_rad.QUESTIONS_OF_IMAGE
    pairs = [pair for pairs in images for pair in pairs]
    assert Counter(pair.question for pair in pairs)[math.ceil(1.3 * 6)] >= vqa_rad.QUESTION_WORDS[6]
    assert sum(pair.answer for pair in pairs) == sum(
        math.ceil(1.3 * words) * number for words, number in vqa_rad.ANSWER_WORDS.items()
    )


def test_it_needs_nothing_but_torch_transformers_peft_accelerate_and_pillow() -> None:
    needed = {
        name.replace("-", "_") for name in closure(["torch", "transformers", "peft", "accelerate", "pillow"])
    }
    others = {
        module
        for module, owners in packages_distributions().items()
        if module.isidentifier() and not {owner.lower().replace("-", "_") for owner in owners} & needed
    }
    others -= {"radloop", "_distutils_hack"}  # the checkout's, and of setuptools
    others |= {"pydantic", "pyarrow", "zenml", "mlflow", "pandas", "datasets"}
    code = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(others)!r}))\n"  # importing them fails
        f"sys.path[:] = [path for path in sys.path if path not in ('', {str(ROOT)!r})]\n"
        "sys.argv = ['train.py', '--tiny', '--device', 'cpu', '--models', 'llava', '--minutes', '0']\n"
        f"runpy.run_path({str(ROOT / 'benchmarks' / 'gpu' / 'train.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert "packed + cache bf16    on " in done.stdout


def closure(names: list[str]) -> Iterator[str]:
    """The names of packages and of all that they need, in lower case."""
    seen: set[str] = set()
    while names:
        name = names.pop().lower()
        if name in seen:
            continue
        seen.add(name)
        yield name
        try:
            needs = requires(name) or []
        except PackageNotFoundError:
            continue
        for need in needs:
            if "extra ==" not in need:
                names += re.findall(r"^[\w.-]+", need)
