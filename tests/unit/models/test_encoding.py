"""Small images share a batch on a CPU only where each comes out as it does alone, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from radloop import models
from radloop.config import ModelConfig
from radloop.models import get_family
from radloop.models.encoding import Encoder
from radloop.models.family import Features
from radloop.models.loading import Loaded
from tests.unit.models.test_feature_cache import IMAGES
from tests.unit.models.test_feature_store import same
from tests.unit.tiny import image


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder: Path = tmp_path_factory.mktemp("bases") / "qwen3_vl"
    get_family("qwen3_vl").tiny(folder)  # keeps two tensors of an image
    return models.load(ModelConfig(family="qwen3_vl", base=str(folder)))


def spied(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Features]], None]) -> list[int]:
    """Change what models encode; return the sizes of the batches that they will."""
    sizes: list[int] = []
    encode = Loaded.encode

    def changed(self: Loaded, images: Sequence[Image.Image], *read: Any) -> list[Features]:
        sizes.append(len(images))
        found = encode(self, images, *read)
        change(found)
        return found

    monkeypatch.setattr(Loaded, "encode", changed)
    return sizes


def depend_on_company(found: list[Features]) -> None:
    if len(found) > 4:
        found[-1]["deepstack"].mul_(1 + 2e-7)


def grow(times: int, found: list[Features]) -> None:
    for features in found:
        features["image"] = features["image"].repeat(times, 1)


@pytest.mark.parametrize(
    ("change", "trial", "later"),
    [
        (lambda found: None, [1] * 5 + [5], [5]),
        (depend_on_company, [1] * 5 + [5], [1] * 5),
        (partial(grow, 400), [1, 1, 2, 2, 1], [2, 2, 1]),
        (partial(grow, 1000), [1] * 5, [1] * 5),
    ],
    ids=["small", "other in company", "larger", "large"],
)
def test_images_are_encoded_together_where_each_is_the_same_alone(
    loaded: Loaded,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[list[Features]], None],
    trial: list[int],
    later: list[int],
) -> None:
    sizes = spied(monkeypatch, change)
    encode = Encoder(loaded)
    alone = [encode([found])[0] for found in IMAGES]
    for expected in ([1] * 5, trial, later):
        sizes.clear()
        assert same(encode(IMAGES), alone)
        assert sizes == expected


def test_company_of_other_number_or_shape_is_tried_by_itself(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = spied(monkeypatch, lambda found: None)
    encode = Encoder(loaded)
    others = [image(7), image(8, (48, 96))]
    for shown in (IMAGES, IMAGES, IMAGES[:2], others, others):
        sizes.clear()
        encode(shown)
    assert sizes == [1, 1, 2]
    sizes.clear()
    encode(IMAGES[:2])
    encode(others[:1])
    assert sizes == [2, 1]


def test_a_batch_is_as_large_as_its_images_allow(loaded: Loaded) -> None:
    encode = Encoder(loaded)
    encode._sizes = {"a": 200_000, "b": 400_000, "c": 800_000}
    parts = encode._parts(["a", "b", "c", "new", "a", "a", "a", "a"])
    assert [(part.start, part.stop) for part in parts] == [(0, 2), (2, 3), (3, 4), (4, 7), (7, 8)]
