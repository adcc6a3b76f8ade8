"""Cross attention to tiles: which are looked at, by which tokens, and what is kept of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import DynamicCache

from radloop import models
from radloop.config import ModelConfig
from radloop.inference import Engine, Request
from radloop.models import prefix_attention
from radloop.models.loading import Loaded
from radloop.models.mllama import Mllama
from radloop.models.packing import Batch, Group, Tokens
from tests.unit.models.stock import Pair, Stock
from tests.unit.models.test_families import picture, relative_error

IMAGES = {"one": picture(0, (20, 20)), "two": picture(1, (50, 20)), "four": picture(2, (120, 130))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mllama")
    Mllama().tiny(folder)
    return folder


@pytest.fixture(params=["sdpa", prefix_attention.NAME])
def loaded(folder: Path, request: pytest.FixtureRequest) -> Loaded:
    """The model as it is loaded, and as a CPU trains it."""
    loaded = models.load(ModelConfig(family="mllama", base=str(folder)))
    loaded.model.config.text_config._attn_implementation = request.param
    return loaded


def group_of(loaded: Loaded, question: str, *image_ids: str) -> Group:
    (prompt,) = loaded.prompts.questions([question], [[IMAGES[name].size for name in image_ids]])
    return Group(image_ids, prompt.head, (prompt,), (0,))


def logits_of(loaded: Loaded, *rows: tuple[Group, ...]) -> torch.Tensor:
    images: list[Image.Image] = [IMAGES[name] for row in rows for group in row for name in group.image_ids]
    with torch.no_grad():
        return loaded.family.logits(loaded.model, Batch.of(rows), loaded.encode(images))


def test_a_head_says_how_many_tiles_its_images_have(loaded: Loaded) -> None:
    head = group_of(loaded, "Why?", "one", "four", "two").head
    assert [tiles for tiles in head.positions[1] if tiles] == [1, 4, 2]
    assert head.positions[0] == tuple(range(len(head)))


def test_empty_tiles_reach_the_answer_and_so_are_kept(loaded: Loaded) -> None:
    (features,) = loaded.encode([IMAGES["one"]])
    assert features["image"].shape == (4 * 5, 32)  # tiles of 4 patches and a class token
    batch = Batch.of([(group_of(loaded, "Why?", "one"),)])
    with torch.no_grad():
        expected = loaded.family.logits(loaded.model, batch, [features])
        features["image"][5:] = 0
        assert relative_error(loaded.family.logits(loaded.model, batch, [features]), expected) > 1e-3


def test_a_group_is_alone_with_its_images_whatever_else_is_in_the_batch(loaded: Loaded) -> None:
    asked = [("one",), (), ("four", "two"), ("two",), ("two", "one", "four")]
    groups = [group_of(loaded, "Which side?", *image_ids) for image_ids in asked]
    together = logits_of(loaded, tuple(groups[:3]), tuple(groups[3:]))
    for found, group in zip(together, groups, strict=True):
        assert relative_error(found, logits_of(loaded, (group,))[0]) < 1e-5


@pytest.mark.parametrize("between", ["", "See: "])
def test_text_sees_the_images_before_it_as_in_stock(loaded: Loaded, folder: Path, between: str) -> None:
    stock = Stock.of(Mllama(), folder, IMAGES)
    for processor in (stock.processor, loaded.processor):
        assert "'<|image|>'" in processor.chat_template
        processor.chat_template = processor.chat_template.replace("'<|image|>'", f"'{between}<|image|>'")
    image_ids = ("four", "one", "two")
    with torch.no_grad():
        expected = stock.model(**stock.asked(Pair(image_ids, "Why?", ""))).logits[0, -1]
    assert relative_error(logits_of(loaded, (group_of(loaded, "Why?", *image_ids),))[0], expected) < 1e-5


def test_groups_that_share_a_row_can_be_continued(loaded: Loaded) -> None:
    row = (group_of(loaded, "Why?", "four", "one"), group_of(loaded, "Which side?", "two"))
    heads = Batch.of([tuple(replace(group, tails=()) for group in row)])
    tails = Batch.of([row], with_head=False)
    cache = DynamicCache()
    features = loaded.encode([IMAGES[name] for group in row for name in group.image_ids])
    with torch.no_grad():
        loaded.family.logits(loaded.model, heads, features, cache=cache)
        found = loaded.family.logits(loaded.model, tails, (), tails.after(heads), cache)
    assert relative_error(found, logits_of(loaded, row)) < 1e-5


def test_images_of_different_tiles_share_a_cache(folder: Path) -> None:
    stock = Stock.of(Mllama(), folder, IMAGES)
    pairs = [Pair((name,), question, "") for name in IMAGES for question in ("Why?", "Which side?")]
    pairs.append(Pair((), "Why?", ""))
    engine = Engine(ModelConfig(family="mllama", base=str(folder)))
    requests = [Request(pair.image_ids, pair.question) for pair in pairs]
    expected = [stock.generate(pair, 6) for pair in pairs]
    for _ in range(2):  # computed, then kept
        answers = engine.answer(IMAGES, requests, 6)
        assert [answer.confidence for answer in answers] == pytest.approx([p for _, p in expected], rel=1e-4)
        assert [answer.num_tokens for answer in answers] == [len(ids) for ids, _ in expected]


def test_padding_and_pairs_without_an_image_look_at_nothing(loaded: Loaded) -> None:
    group = group_of(loaded, "Is there a pleural effusion?")
    short = group_of(loaded, "Why?", "four")
    tails = (*group.tails, Tokens(group.head, group.tails[0].tail * 3))
    batch = Batch.of([(Group((), group.head, tails, (0, 1)),), (short,)])
    with torch.no_grad():
        found = loaded.family.logits(loaded.model, batch, loaded.encode([IMAGES["four"]]))
        stock = loaded.model(input_ids=torch.tensor([group.tails[0].ids])).logits[0, -1]
    assert found.isfinite().all()
    assert relative_error(found[0], stock) < 1e-5
