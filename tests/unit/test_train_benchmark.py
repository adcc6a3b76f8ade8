"""benchmarks/train.py, in its smallest form."""

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import MllamaConfig, MllamaForConditionalGeneration

from benchmarks import _train_ours, _train_theirs, train
from benchmarks import _train_setups as setups
from benchmarks._json_file import json_file, write
from benchmarks._measure import Measured
from benchmarks._train_setups import Shape
from benchmarks._train_tables import difference, to_text
from benchmarks.gpu.shapes import mllama
from benchmarks.ingest import machine
from radloop import models
from radloop.config import ModelConfig
from radloop.data.prepared import PreparedData
from radloop.models.mllama import Mllama
from radloop.training.examples import Examples, read_examples

NAME = "tiny base, 4 an image"
PAIRING = train.Pairing("tiny", Shape(2, 4), 2, 2, 4096, 8, 6.0)
_ROW = {
    "what": f"Mllama-shaped, 4 tiles, {train._CACHED_EPOCHS} epochs",
    "samples_per_s": 1234.5,
    "other_samples_per_s": 123.4,
    "times": 10.0,
    "goal": 15.0,
    "whole_job": 10.0,
    "peak_mb": 12_345.0,
    "other_peak_mb": 12_345.0,
    "memory": 1.0,
}
_QUALITY = [
    {"what": side, "seed": seed, "loss": 1.0, "exact_match": 0.5}
    for seed in (1, 2)
    for side in ("radloop", "SFTTrainer")
]


def test_both_sides_train_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_same, sides = train._require_same, []

    def kept(name: str, *found: Measured) -> None:
        sides.extend(found)
        require_same(name, *found)

    monkeypatch.setattr(train, "_require_same", kept)
    about = machine() | {"load_before": 2.0}
    speed = train._speed(NAME, PAIRING, tmp_path / "speed")
    tables = {"speed": [speed], "quality": _QUALITY, "cache": [_ROW]}
    text = to_text(tables, about)
    assert [(side.values["samples"], side.values["steps"]) for side in sides] == [(16, 2)] * 2
    assert speed["samples_per_s"] > 0
    assert speed["memory"] > 0
    assert f"\n{NAME} " in text
    assert max(map(len, text.splitlines())) <= 110
    assert json.loads(json.dumps(tables)) == tables
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["samples", "steps", "tokens", "trained_parameters"])
def test_sides_that_differ_are_not_compared(what: str) -> None:
    tokens = {"all": 3, "with_loss": 1, "sha256": "a"}
    values = {"samples": 8, "steps": 2, "tokens": tokens, "trained_parameters": 5}
    same, other = (Measured(values | changed, 1.0, 1.0, 1) for changed in ({}, {what: "another"}))
    train._require_same(NAME, same, same)
    with pytest.raises(RuntimeError, match=f"{NAME}: the sides differ in {what}: .*another"):
        train._require_same(NAME, same, other)


def test_the_longest_names_fit_the_tables() -> None:
    speed = [_ROW | {"what": name} for name in (*train.FULL.pairings, *train.QUICK.pairings)]
    text = to_text({"speed": speed, "quality": _QUALITY, "cache": [_ROW]}, machine())
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize(("times", "verdict"), [(14.9, "missed"), (15.0, "met")])
def test_a_goal_is_met_or_missed(times: float, verdict: str) -> None:
    row = _ROW | {"times": times}
    text = to_text({"speed": [row], "quality": _QUALITY, "cache": [row]}, machine())
    lines = [line.split() for line in text.splitlines() if line.startswith(_ROW["what"])]
    assert [verdict in words for words in lines] == [True, True]


def test_the_difference_is_ours_less_theirs_with_its_standard_error() -> None:
    scores = {"radloop": (1.0, 2.0, 3.0), "SFTTrainer": (0.5, 2.0, 2.5)}
    rows = [{"what": side, "seed": n, "loss": found[n]} for side, found in scores.items() for n in range(3)]
    mean, error = difference(rows, "loss")
    assert mean == pytest.approx(1 / 3)
    assert error == pytest.approx(1 / 6)


@pytest.mark.parametrize("plan", [train.FULL, train.QUICK])
def test_both_sides_take_the_same_samples_a_step(plan: train.Plan) -> None:
    for pairing in plan.pairings.values():
        assert pairing.images_per_step * pairing.shape.questions % pairing.batch == 0
        assert pairing.shape.images % pairing.images_per_step == 0


def read(base: Path, family: str, shape: Shape, folder: Path) -> Examples:
    setups.write_data(folder, shape, seed=7)
    prompts = models.load(ModelConfig(base=str(base), family=family)).prompts
    return read_examples(PreparedData.load(folder), "train", prompts, share_prefix=True)


def test_a_difference_in_the_last_sample_is_seen(tmp_path: Path) -> None:
    found = read(setups.tiny_base(), "llava", Shape(3, 4), tmp_path / "data")
    described = _train_ours._tokens(found)
    assert described["with_loss"] == sum(g.num_answer_tokens for one in found.sets for g in one.groups)
    assert _train_ours._tokens(Examples(found.sets[::-1], 12, 0)) == described
    last = found.sets[-1].groups[-1]
    tail = last.tails[-1].tail
    object.__setattr__(last.tails[-1], "tail", (*tail[:-1], tail[-1] + 1))
    assert _train_ours._tokens(found)["sha256"] != described["sha256"]


def test_rows_are_counted_as_they_come() -> None:
    collate = _train_theirs._Counted(lambda rows: [*rows])
    assert [collate([1, 2]), collate([3])] == [[1, 2], [3]]
    assert collate.num_rows == 3


def test_the_first_reading_is_timed_and_kept(tmp_path: Path) -> None:
    setups.write_data(tmp_path / "data", Shape(2, 3, validation=1), seed=7)
    data, reading = PreparedData.load(tmp_path / "data"), _train_ours._TimedReading()
    prompts = models.load(ModelConfig(base=str(setups.tiny_base()))).prompts
    for split, num_samples in (("train", 6), ("validation", 3)):
        before = reading.seconds
        assert reading(data, split, prompts, True).num_samples == num_samples
        assert reading.seconds > before
    assert reading.train.num_samples == 6


def test_figures_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = json_file(str(tmp_path / "figures.json"))
    write(file, {"a": 1})
    with pytest.raises(TypeError):
        write(file, {"a": 2, "b": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    for text, words in (
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "no" / "file"), "there is no folder"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=words):
            json_file(text)


def test_the_cache_saves_what_it_would_save_of_the_published_model(tmp_path: Path) -> None:
    """FLOPs in the tower against those in the language model, as `write_mllama` says."""
    setups.write_mllama(tmp_path / "model")
    found = read(tmp_path / "model", "mllama", train.FULL.cached, tmp_path / "data")
    pairs = [pair for one in found.sets for group in one.groups for pair in group.tails]
    tokens = round(statistics.mean(map(len, pairs)))
    assert tokens == 37
    ours = tower_to_text(MllamaConfig.from_pretrained(tmp_path / "model"), tokens)
    published = tower_to_text(mllama().config, num_tokens=50)
    assert [ours, published] == pytest.approx([6.7, 6.7], abs=0.05)


def tower_to_text(config: MllamaConfig, num_tokens: int) -> float:
    """Return FLOPs of the tower, forward, by those of the language model, forward and backward with LoRA.

    Of one image of 4 tiles and a text of so many tokens, half of which have a loss.
    """
    targets = "|".join(Mllama.targets[name] for name in train._RECIPE["targets"])
    lora = LoraConfig(r=train._RECIPE["rank"], target_modules=targets)
    side, tower = config.vision_config.image_size, FlopCounterMode(display=False)
    # On this device attention by other kernels is not counted.
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
        model: Any = MllamaForConditionalGeneration._from_config(
            copy.deepcopy(config), attn_implementation="sdpa", dtype=torch.float32
        )
        model = get_peft_model(model, lora).get_base_model()
        tiles = {
            "aspect_ratio_ids": torch.zeros(1, 1).long(),
            "aspect_ratio_mask": torch.ones(1, 1, 4).long(),
        }
        with tower, torch.no_grad():
            seen = model.model.vision_model(torch.empty(1, 1, 4, 3, side, side), **tiles).last_hidden_state
            features = model.model.multi_modal_projector(seen).flatten(1, 3)
        return tower.get_total_flops() / text_flops(model, features, num_tokens)


def text_flops(model: Any, features: torch.Tensor, length: int) -> int:
    states = torch.nn.functional.pad(features, (0, 0, 1, 0))  # as radloop has them, with a zero before
    with FlopCounterMode(display=False) as counter:
        hidden = model.model.language_model(
            input_ids=torch.zeros(1, length).long(),
            attention_mask=torch.ones(1, 1, length, length).bool(),
            position_ids=torch.arange(length)[None],
            cross_attention_states=states,
            cross_attention_mask=torch.zeros(1, 1, length, states.shape[1]),
            full_text_row_masked_out_mask=torch.ones(1, 1, length, 1),
            use_cache=False,
        ).last_hidden_state
        model.lm_head(hidden[:, -length // 2 :]).sum().backward()
    return counter.get_total_flops()
