"""Every family computes what stock Transformers computes, however images and questions are packed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PREPARED_IMAGES, PREPARED_SAMPLES, PreparedData, prepared_image
from radloop.inference import Engine, Request
from radloop.models import REGISTRY, get_family, packing
from radloop.models.family import Family, Features
from radloop.models.loading import Loaded
from radloop.models.packing import Batch, Group, Row
from radloop.training import finetune
from radloop.training.adapter import Adapter, with_lora
from radloop.training.losses import token_losses
from tests.unit.models.stock import Pair, Stock

FILES = {".safetensors", ".json", ".jinja", ".txt", ".model"}
ONE_IMAGE = {"blip", "fuyu"}  # families that take exactly one image a question
UNTRAINED = {name: {"lm_head"} for name in REGISTRY} | {  # linear layers in no group of targets
    "blip": {"text_decoder.cls.predictions.decoder", "text_decoder.cls.predictions.transform.dense"},
}
TOLERANCE = 1e-5
LENGTH = 6  # of an answer, in tokens


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Return coarse coloured squares, which survive any resizing."""
    squares = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(squares).resize(size, Image.Resampling.NEAREST)


IMAGES = {"wide": picture(0, (120, 80)), "tall": picture(1, (50, 130)), "square": picture(2, (64, 64))}
PAIRS = [
    Pair(("wide",), "Which side?", "left"),
    Pair(("wide",), "Is there a pleural effusion?", "yes"),
    Pair(("tall",), "How many nodules are there?", "2"),
    Pair(("wide",), "Which side?", "both sides, more on the right"),
    Pair(("square",), "Is there cardiomegaly or a pneumothorax?", "cardiomegaly"),
    Pair(("wide",), "Which side?", "left"),
    Pair((), "What is a consolidation?", "fluid in place of air"),
    Pair(("square",), "Why?", "the heart is as wide as half the chest"),
    Pair(("tall", "wide"), "What is new?", "a nodule"),
    Pair((), "Why?", "no"),
    Pair(("tall", "wide"), "Which of the two is normal, if any?", "none"),
    Pair(("wide", "tall"), "What is new?", "nothing"),
]


@dataclass(frozen=True)
class Case:
    """A family's tiny checkpoint."""

    name: str
    family: Family
    folder: Path

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(family=self.name, base=str(self.folder))

    @property
    def pairs(self) -> list[Pair]:
        """What can be asked of this family."""
        return [pair for pair in PAIRS if self.name not in ONE_IMAGE or len(pair.image_ids) == 1]

    def stock(self, adapter: Path | None = None) -> Stock:
        return Stock.of(self.family, self.folder, IMAGES, adapter)

    def group_of(self, module: str) -> list[str]:
        return [name for name, pattern in self.family.targets.items() if re.fullmatch(pattern, module)]


@dataclass(frozen=True)
class Tuned:
    """The checkpoint with LoRA layers that already do something, in all groups, and its adapter's folder."""

    case: Case
    loaded: Loaded
    folder: Path

    def groups(self, pairs: Sequence[Pair]) -> list[Group]:
        groups: list[Group] = []
        for image_ids in dict.fromkeys(pair.image_ids for pair in pairs):
            of_images = [pair for pair in pairs if pair.image_ids == image_ids]
            tokens = self.loaded.prompts.pairs(
                [pair.question for pair in of_images],
                [pair.answer for pair in of_images],
                [[IMAGES[name].size for name in image_ids]] * len(of_images),
            )
            groups += packing.groups(image_ids, tokens, lengthen_heads=True)
        return groups

    def rows(self, pairs: Sequence[Pair]) -> list[Row]:
        """Arrange pairs as closely as the family allows."""
        groups = self.groups(pairs)
        assert len(groups) < len(pairs)
        rows = packing.fill_rows(groups, 2 * max(map(len, groups)))
        assert len(rows) < len(groups)
        return rows

    def gradients(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Return the gradients of each group's LoRA layers, flat."""
        found: dict[str, list[torch.Tensor]] = {name: [] for name in self.case.family.targets}
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                (group,) = self.case.group_of(name.removeprefix("base_model.model.").split(".lora_")[0])
                grad = parameter.grad
                found[group].append(torch.zeros(parameter.numel()) if grad is None else grad.flatten())
        return {group: torch.cat(parts) for group, parts in found.items()}


@pytest.fixture(scope="module", params=REGISTRY)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family = get_family(request.param)
    folder = tmp_path_factory.mktemp("families") / request.param
    family.tiny(folder)
    return Case(request.param, family, folder)


@pytest.fixture(scope="module")
def tuned(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    torch.manual_seed(0)
    loaded = with_lora(
        models.load(case.config), FinetuneConfig(rank=2, alpha=4, targets=tuple(case.family.targets))
    )
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("adapters") / case.name
    loaded.model.save_pretrained(folder, save_embedding_layers=False)
    return Tuned(case, loaded, folder)


@pytest.fixture(scope="module")
def expected(tuned: Tuned) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of stock code on one pair a row, pixels and all."""
    stock = tuned.case.stock(tuned.folder)
    loss = stock.loss(tuned.case.pairs)
    loss.backward()
    return loss.detach(), tuned.gradients(stock.model)


def relative_error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    assert ours.shape == expected.shape
    return ((ours - expected).norm() / expected.norm()).item()


# The checkpoint


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_a_checkpoint_is_drawn_by_its_seed_and_holds_no_code(case: Case, tmp_path: Path) -> None:
    for number, seed in enumerate((0, 1)):
        torch.manual_seed(number)
        case.family.tiny(tmp_path / str(seed), seed)
    first, other = hashes(tmp_path / "0"), hashes(tmp_path / "1")
    assert first == hashes(case.folder)
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}
    assert {Path(name).suffix for name in first} <= FILES
    assert "auto_map" not in (case.folder / "config.json").read_text()
    assert sum(file.stat().st_size for file in case.folder.iterdir()) < 4 * 2**20


_OPEN = """
import socket, sys
def refuse(*_): raise AssertionError("a connection")
socket.socket.connect = socket.getaddrinfo = refuse
from pathlib import Path
from transformers import AutoModelForImageTextToText
from radloop.models import get_family
for folder in map(Path, sys.argv[1:]):
    model = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True)
    processor = get_family(folder.name).load_processor(folder)
    for part in (model, processor, processor.image_processor, processor.tokenizer):
        assert type(part).__module__.split(".")[0] in ("transformers", "radloop"), type(part)
    print(folder.name, model.config.model_type)
"""


def test_checkpoints_open_in_a_new_process_without_a_network(tmp_path: Path) -> None:
    for name in REGISTRY:
        get_family(name).tiny(tmp_path / name)
    found = subprocess.run(
        [sys.executable, "-c", _OPEN, *(str(tmp_path / name) for name in REGISTRY)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert not found.returncode, found.stderr
    assert found.stdout.split("\n")[:-1] == [f"{name} {get_family(name).model_type}" for name in REGISTRY]


def test_target_groups_cover_every_linear_layer_once(case: Case) -> None:
    modules = dict(case.stock().model.named_modules())
    groups = {name: case.group_of(name) for name in modules}
    linear = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
    assert {name for name, found in groups.items() if len(found) > 1} == set()
    assert {name for name, found in groups.items() if found} == linear - UNTRAINED[case.name]
    assert UNTRAINED[case.name] <= linear
    assert {group for found in groups.values() for group in found} == set(case.family.targets)
    assert {"attention", "mlp"} <= set(case.family.targets)


# Images


def test_features_of_an_image_do_not_depend_on_the_others(tuned: Tuned) -> None:
    together = tuned.loaded.encode(list(IMAGES.values()))
    for image, found in zip(IMAGES.values(), together, strict=True):
        (alone,) = tuned.loaded.encode([image])
        assert set(found) == set(alone)
        for name in found:
            assert not found[name].requires_grad
            torch.testing.assert_close(found[name], alone[name], rtol=TOLERANCE, atol=TOLERANCE)
    assert any(not torch.equal(v, w) for v, w in zip(together[0].values(), together[1].values(), strict=True))


def test_features_change_with_the_groups_that_make_them_and_no_others(case: Case) -> None:
    config = FinetuneConfig(rank=2, targets=tuple(case.family.targets))
    loaded = with_lora(models.load(case.config), config)
    image = [IMAGES["wide"]]
    (untouched,) = loaded.encode(image)
    changed = set()
    for group in case.family.targets:
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                module = name.removeprefix("base_model.model.").split(".lora_")[0]
                torch.nn.init.constant_(parameter, 0.3 * (case.group_of(module) == [group]))
        (features,) = loaded.encode(image)
        if any(not torch.equal(features[name], untouched[name]) for name in untouched):
            changed.add(group)
    assert changed == set(case.family.upstream)


def test_the_first_word_depends_on_the_images_and_their_order(case: Case) -> None:
    stock = case.stock()
    image_ids = dict.fromkeys(pair.image_ids for pair in case.pairs)
    asked = [stock.asked(Pair(names, "Which side?", "")) for names in image_ids]
    with torch.no_grad():
        logits = [stock.model(**inputs).logits[0, -1] for inputs in asked]
    for number, first in enumerate(logits):
        for other in logits[:number]:
            assert relative_error(first, other) > 0.01  # or else no test here could tell images apart


# Prompts


def test_tokens_are_those_of_the_stock_processor(case: Case) -> None:
    stock, prompts = case.stock(), models.load(case.config).prompts
    sizes = [[IMAGES[name].size for name in pair.image_ids] for pair in case.pairs]
    questions, answers = [pair.question for pair in case.pairs], [pair.answer for pair in case.pairs]
    asked, answered = prompts.questions(questions, sizes), prompts.pairs(questions, answers, sizes)
    for pair, prompt, full in zip(case.pairs, asked, answered, strict=True):
        assert list(prompt.ids) == stock.prompt(pair)
        assert list(full.ids) == stock.answered(pair)["input_ids"][0].tolist()
        assert len(full) - full.num_answer == len(prompt)
        assert prompts.answer(full.tail[-full.num_answer :]) == pair.answer


# Training


def encode(tuned: Tuned, image_ids: Sequence[str], in_graph: bool = False) -> list[Features]:
    distinct = [*dict.fromkeys(image_ids)]
    run = tuned.loaded.encode_in_graph if in_graph else tuned.loaded.encode
    found = dict(zip(distinct, run([IMAGES[name] for name in distinct]), strict=True)) if distinct else {}
    return [found[name] for name in image_ids]


def test_cached_features_on_plain_rows_give_the_stock_logits(tuned: Tuned) -> None:
    stock = tuned.case.stock(tuned.folder)
    rows = [(group,) for pair in tuned.case.pairs for group in tuned.groups([pair])]
    batch = Batch.of(rows)
    features = encode(tuned, [name for pair in tuned.case.pairs for name in pair.image_ids])
    with torch.no_grad():
        ours = tuned.case.family.logits(tuned.loaded.model.eval(), batch, features)
        logits, targets = zip(*map(stock.answer_logits, tuned.case.pairs), strict=True)
    assert torch.equal(batch.targets, torch.cat(targets))
    for number, expected in enumerate(logits):
        assert relative_error(ours[batch.answers == number], expected) < TOLERANCE, tuned.case.pairs[number]


@pytest.mark.parametrize("in_graph", [False, True], ids=["cached", "in_graph"])
def test_packed_rows_give_the_stock_loss_and_gradients(
    tuned: Tuned, expected: tuple[torch.Tensor, dict[str, torch.Tensor]], in_graph: bool
) -> None:
    family, model = tuned.case.family, tuned.loaded.model
    model.train()
    model.zero_grad()
    loss = token_losses(
        tuned.loaded, lambda image_ids: encode(tuned, image_ids, in_graph), tuned.rows(tuned.case.pairs)
    ).mean()
    loss.backward()
    gradients = tuned.gradients(model)
    expected_loss, expected_gradients = expected
    assert relative_error(loss.detach(), expected_loss) < TOLERANCE
    compared = set(family.targets) - (set() if in_graph else family.upstream)
    errors = {group: relative_error(gradients[group], expected_gradients[group]) for group in compared}
    assert max(errors.values()) < TOLERANCE, errors


# From training to answers


def prepared(pairs: Sequence[Pair]) -> PreparedData:
    images = [prepared_image(name, image) for name, image in IMAGES.items()]
    samples = [
        {
            "id": str(number),
            "split": "train",
            "image_ids": pair.image_ids,
            "question": pair.question,
            "prompt": pair.question,
            "answers": [pair.answer],
        }
        for number, pair in enumerate(pairs)
    ]
    return PreparedData(
        pa.Table.from_pylist(images, schema=PREPARED_IMAGES),
        pa.Table.from_pylist(samples, schema=PREPARED_SAMPLES),
        "0123456789abcdef",
    )


@pytest.fixture(scope="module")
def trained(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """Three steps on all pairs, without features that another run has left on disk."""
    config = FinetuneConfig(
        rank=4, alpha=8, epochs=3, images_per_step=len(PAIRS), learning_rate=1e-2, schedule="constant"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RADLOOP_HOME", str(tmp_path_factory.mktemp("home")))
        return finetune(prepared(case.pairs), case.config, config, seed=0)


def test_three_steps_of_training_lower_the_loss(case: Case, trained: Adapter) -> None:
    losses = [step["loss"] for step in trained.record["history"]]
    after = case.stock(trained.folder).loss(case.pairs).item()
    assert len(losses) == 3
    assert losses[0] == pytest.approx(case.stock().loss(case.pairs).item(), rel=TOLERANCE)
    assert losses[0] > losses[1] > losses[2] > after


def end_at(folder: Path, token: int) -> None:
    """Let the model of a folder end its answers at this token as well; BLIP at this one only."""
    file = folder / "generation_config.json"
    content = json.loads(file.read_text())
    ends = content.get("eos_token_id", [])
    content["eos_token_id"] = [*(ends if isinstance(ends, list) else [ends]), token]
    file.write_text(json.dumps(content))
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "blip":
        config["text_config"]["sep_token_id"] = token
        (folder / "config.json").write_text(json.dumps(config))


def common_token(answers: Sequence[Sequence[int]]) -> int:
    """Return the token that ends closest to half of the answers, and none at its first token."""
    first = {ids[0] for ids in answers}
    inner = [set(ids[1:]) - first for ids in answers]
    return min(
        sorted(set().union(*inner)),
        key=lambda token: abs(sum(token in ids for ids in inner) - len(inner) / 2),
    )


def test_a_saved_and_a_merged_adapter_answer_as_stock_generate(
    case: Case, trained: Adapter, tmp_path: Path
) -> None:
    (tmp_path / "adapter").mkdir()
    trained.save(tmp_path / "adapter")
    adapter = Adapter.load(tmp_path / "adapter")
    base, merged = (Path(shutil.copytree(case.folder, tmp_path / name)) for name in ("base", "merged"))
    case.stock(adapter.folder).model.merge_and_unload().save_pretrained(merged)

    untrained, endless = (
        [stock.generate(pair, LENGTH)[0] for pair in case.pairs]
        for stock in (case.stock(), Stock.of(case.family, merged, IMAGES))
    )
    assert sum(a != b for a, b in zip(untrained, endless, strict=True)) > len(case.pairs) / 2
    for folder in (base, merged):
        end_at(folder, common_token(endless))

    stock = Stock.of(case.family, merged, IMAGES)
    answers = [stock.generate(pair, LENGTH) for pair in case.pairs]
    texts = [stock.processor.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids, _ in answers]
    expected = [
        (text, len(ids), ids[-1] in stock.end_ids) for text, (ids, _) in zip(texts, answers, strict=True)
    ]
    assert {complete for _, _, complete in expected} == {True, False}

    engine = Engine(ModelConfig(family=case.name, base=str(base)), adapter.folder)
    requests = [Request(pair.image_ids, pair.question) for pair in case.pairs]
    batch = engine.answer(IMAGES, requests, LENGTH)
    single = [engine.answer(IMAGES, [request], LENGTH)[0] for request in requests]
    for found in (batch, single):
        assert [(answer.text, answer.num_tokens, answer.complete) for answer in found] == expected
        confidences = [answer.confidence for answer in found]
        assert confidences == pytest.approx([chance for _, chance in answers], rel=1e-4)
