"""Vision features are computed once an image, and are what they would be without the cache."""

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from radloop import models
from radloop.config import ModelConfig
from radloop.models.loading import Loaded
from radloop.training import features
from radloop.training.features import ImageFeatures
from tests.unit.tiny import image, save_base


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return models.load(ModelConfig(base=str(save_base(tmp_path_factory.mktemp("base")))))


def counting(reads: list[str]) -> Callable[[str], Image.Image]:
    def read(image_id: str) -> Image.Image:
        reads.append(image_id)
        return image(int(image_id))

    return read


def test_each_image_is_read_once_and_gives_what_the_model_gives(loaded: Loaded) -> None:
    reads: list[str] = []
    cached = ImageFeatures(loaded, counting(reads))
    wanted = [["0", "1", "0"], ["1", "2"], ["2", "0", "1"]]
    for ids in wanted:
        expected = torch.cat([loaded.encode([image(int(name))]) for name in ids])
        assert torch.allclose(cached(ids), expected, rtol=1e-5, atol=1e-6)
    assert sorted(reads) == ["0", "1", "2"]


def test_without_memory_for_them_features_are_computed_anew(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_SHARE_OF_FREE_MEMORY", 0.0)
    reads: list[str] = []
    uncached = ImageFeatures(loaded, counting(reads))
    first = uncached(["0", "1"])
    assert torch.equal(uncached(["0", "1"]), first)
    assert reads == ["0", "1"] * 2
