"""Every number of a merged weight is what base and adapter give, and what was left out is noticed."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.errors import ModelError
from radloop.models.llava import Llava
from radloop.models.loading import Loaded
from radloop.training.adapter import with_lora
from radloop.training.merged_weights import MergedWeights, is_merged, merge_layers
from radloop.training.merging import merged_weight

PRECISIONS = ["bf16", "fp32"]
ALL = ("attention", "mlp", "projector", "vision")
KINDS = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "linear_1",
    "fc2",
    "vision",
]
SMALL = 0.005  # of lora_B, as after a few hundred steps at a rate of 2e-4

Tuned = Callable[..., Loaded]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("bases") / "llava"
    Llava().tiny(folder)

    def loaded(precision: str, size: float = SMALL, **settings: Any) -> Loaded:
        torch.manual_seed(0)
        config = ModelConfig(family="llava", base=str(folder), precision=precision)
        found = with_lora(models.load(config), FinetuneConfig(rank=4, targets=ALL, **settings))
        for name, parameter in found.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=size)
            if "magnitude" in name:
                parameter.data *= 1 + size * torch.randn_like(parameter)
        return found

    return loaded


def layers_of(loaded: Loaded) -> dict[str, Any]:
    return {name: part for name, part in loaded.base_model.named_modules() if isinstance(part, Linear)}


@contextmanager
def left_out(layers: list[Any]) -> Iterator[None]:
    merge = Linear.merge
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Linear, "merge", lambda self: None if self in layers else merge(self))
        yield


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("size", [SMALL, 0.5, 5.0, 0.0])
def test_what_peft_merges_is_accepted(tuned: Tuned, precision: str, use_dora: bool, size: float) -> None:
    loaded = tuned(precision, size, use_dora=use_dora)
    names = {f"{name}.weight" for name in layers_of(loaded)}
    weights = merge_layers(loaded.model)
    model = loaded.model.unload()
    assert weights.adapted.keys() == names
    assert not weights.faults(model)
    assert {*weights.adapted, *weights.kept} == set(model.state_dict())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_layer_that_was_left_out_is_noticed(
    tuned: Tuned, precision: str, use_dora: bool, kind: str
) -> None:
    loaded = tuned(precision, use_dora=use_dora)
    left = {name: layer for name, layer in layers_of(loaded).items() if kind in name}
    assert left
    with left_out(list(left.values())), pytest.raises(ModelError, match=f"of {len(left)} of ") as found:
        merge_layers(loaded.model)
    assert all(name in found.value.message for name in list(left)[:20])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("use_dora", [False, True])
def test_each_single_layer_that_was_left_out_is_noticed(tuned: Tuned, precision: str, use_dora: bool) -> None:
    for layer in layers_of(tuned(precision, use_dora=use_dora)).values():
        weight = layer.get_base_layer().weight.detach()
        assert not is_merged(layer, weight, weight)
        assert is_merged(layer, weight, merged_weight(layer, weight.dtype))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_change_that_is_rounded_first_is_accepted(tuned: Tuned, precision: str) -> None:
    for layer in layers_of(tuned(precision)).values():
        weight = layer.get_base_layer().weight.detach()
        (adapter,) = layer.active_adapters
        assert is_merged(layer, weight, weight + layer.get_delta_weight(adapter).to(weight.dtype))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("row", [0, 1024, -1])
def test_one_number_that_is_another_is_noticed(tuned: Tuned, precision: str, row: int) -> None:
    layer = with_rows(next(iter(layers_of(tuned(precision)).values())), 1030)
    weight = layer.get_base_layer().weight.detach()
    merged = merged_weight(layer, weight.dtype)
    assert is_merged(layer, weight, merged)
    for wrong in (merged[row, 3] * (1 + 4 * torch.finfo(weight.dtype).eps), float("nan"), float("inf")):
        other = merged.clone()
        other[row, 3] = wrong
        assert not is_merged(layer, weight, other)


def with_rows(layer: Any, rows: int) -> Any:
    """Return a copy of a layer that is larger, so that it is looked at in more than one part."""
    layer = copy.deepcopy(layer)
    (adapter,) = layer.active_adapters
    base, up = layer.get_base_layer(), layer.lora_B[adapter]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(rows, base.in_features, generator=generator).to(base.weight.dtype)
    base.weight = torch.nn.Parameter(drawn, requires_grad=False)
    up.weight = torch.nn.Parameter(SMALL * torch.randn(rows, up.in_features, generator=generator))
    return layer


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("use_dora", [False, True])
def test_a_merge_is_foretold_bit_for_bit_also_under_autocast(
    tuned: Tuned, precision: str, use_dora: bool
) -> None:
    for layer in layers_of(tuned(precision, use_dora=use_dora)).values():
        weight = layer.get_base_layer().weight
        with torch.autocast("cpu", torch.bfloat16):
            foretold = merged_weight(layer, weight.dtype)
        layer.merge()
        assert torch.equal(foretold, weight)


def test_a_tensor_that_is_missing_or_more_or_another_is_named(tuned: Tuned, tmp_path: Path) -> None:
    loaded = tuned("bf16")
    weights = merge_layers(loaded.model)
    model = loaded.model.unload()
    model.lm_head.weight.data[0, 0] += 1
    kept = {name: digest for name, digest in weights.kept.items() if "embed_tokens" not in name}
    extra = {"other": next(iter(kept.values()))}
    faults = MergedWeights(weights.adapted, kept | extra).faults(model)
    assert faults == ["lm_head.weight", "model.language_model.embed_tokens.weight", "other"]


def test_the_same_numbers_in_a_wider_type_are_the_same(tuned: Tuned) -> None:
    loaded = tuned("bf16")
    weights = merge_layers(loaded.model)
    assert not weights.faults(loaded.model.unload().float())
