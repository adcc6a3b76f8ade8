"""Which layers a target names: a whole group of the family, or one layer of it."""

import re
from pathlib import Path

import pytest

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.errors import ConfigError, ModelError
from radloop.models.blip import Blip
from radloop.models.llava import Llava
from radloop.models.loading import Loaded
from radloop.training.adapter import with_lora
from radloop.training.plan import make_plan


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    Llava().tiny(tmp_path)
    return models.load(ModelConfig(base=str(tmp_path)))


def trained(loaded: Loaded) -> set[str]:
    return set(loaded.model.base_model.targeted_module_names)


def test_single_layers_of_a_group_can_be_trained(loaded: Loaded) -> None:
    targets = tuple(f"attention.{name}_proj" for name in "qkv")
    tuned = with_lora(loaded, FinetuneConfig(rank=2, targets=targets))
    # The vision tower has layers of these names, too; the other half of the language model has not.
    place = "model.language_model.layers.{}.self_attn.{}_proj"
    assert trained(tuned) == {place.format(layer, name) for layer in range(2) for name in "qkv"}


def test_a_group_and_a_layer_of_another_go_together(loaded: Loaded) -> None:
    tuned = with_lora(loaded, FinetuneConfig(rank=2, targets=("projector", "mlp.down_proj")))
    assert {name.rsplit(".", 1)[-1] for name in trained(tuned)} == {"linear_1", "linear_2", "down_proj"}
    assert not any("vision_tower" in name for name in trained(tuned))


@pytest.mark.parametrize("target", ["attention.fc1", "attention.", "attention.proj", "mlp.q_proj"])
def test_a_layer_that_the_group_does_not_have_is_named(loaded: Loaded, target: str) -> None:
    with pytest.raises(ModelError, match=rf"no layer to train in finetune\.targets {re.escape(target)}; "):
        with_lora(loaded, FinetuneConfig(targets=("mlp", target)))


def test_an_unknown_group_lists_the_known_ones(loaded: Loaded) -> None:
    words = "unknown target 'lungs.q_proj'; known: attention, mlp, projector, vision"
    with pytest.raises(ConfigError, match=re.escape(words)):
        Llava().pattern("lungs.q_proj")
    with pytest.raises(ConfigError, match=r"unknown group of layers 'lungs'; known: attention, mlp"):
        with_lora(loaded, FinetuneConfig(targets=("attention", "lungs.q_proj")))


def test_a_layer_of_the_tower_is_before_the_features_as_all_of_it_is() -> None:
    tower, language = (
        make_plan(Llava(), FinetuneConfig(targets=(target,))) for target in ("vision.fc1", "attention.q_proj")
    )
    assert (tower.cache_features, tower.in_graph) == (False, True)
    assert (language.cache_features, language.in_graph) == (True, False)


def test_names_of_several_parts_keep_to_their_group() -> None:
    layer = "text_decoder.bert.encoder.layer.0."
    query, dense = re.compile(Blip().pattern("attention.query")), re.compile(Blip().pattern("mlp.dense"))
    assert query.fullmatch(layer + "crossattention.self.query")
    assert query.fullmatch(layer + "attention.self.query")
    assert not query.fullmatch(layer + "attention.self.key")
    assert dense.fullmatch(layer + "output.dense")
    assert not dense.fullmatch(layer + "attention.output.dense")
