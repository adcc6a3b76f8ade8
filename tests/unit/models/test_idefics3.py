"""Idefics3 and SmolVLM cut images as their processors do, and SmolVLM's prompts are those of its own."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Idefics3Processor, SmolVLMProcessor
from transformers.models.smolvlm import processing_smolvlm

from radloop import models
from radloop.config import ModelConfig
from radloop.errors import ConfigError
from radloop.models import get_family
from radloop.models.loading import Loaded
from tests.unit.tiny import image

# Height and width: in crops 2 x 2, 2 x 1, 1 x 2 and, for what resizing makes thin, 2 x 1 again.
PICTURES = [image(0, (64, 64)), image(1, (130, 50)), image(2, (20, 61)), image(3, (500, 7))]
NUM_CROPS = [5, 3, 3, 3]  # with the whole image


@pytest.fixture(scope="module", params=["idefics3", "smolvlm"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("base") / request.param
    get_family(request.param).tiny(folder)
    return models.load(ModelConfig(family=request.param, base=str(folder)))


def test_features_are_those_of_a_stock_batch_that_fills_up_with_empty_crops(loaded: Loaded) -> None:
    inputs = loaded.processor.image_processor([[picture] for picture in PICTURES], return_tensors="pt")
    assert inputs["pixel_values"].shape[:2] == (4, 5)
    with torch.no_grad():
        stock = loaded.model.get_image_features(**inputs).pooler_output
    for found, expected, count in zip(loaded.encode(PICTURES), stock, NUM_CROPS, strict=True):
        assert len(found["image"]) == count * loaded.processor.image_seq_len
        torch.testing.assert_close(found["image"], expected)


def test_without_splitting_an_image_is_one(loaded: Loaded, tmp_path: Path) -> None:
    processor = loaded.processor
    processor.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "processor_config.json").read_text())
    content["image_processor"]["do_image_splitting"] = False
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    whole = loaded.family.load_processor(tmp_path)
    for picture in PICTURES:
        assert loaded.family.placement(whole, *picture.size).runs == (processor.image_seq_len,)
        assert loaded.family.read(whole, picture)["pixel_values"].shape == (1, 1, 3, 48, 48)


@pytest.mark.parametrize(("max_pixels", "num_crops"), [(48**2, 1), (95**2, 1), (96**2, 5), (10**9, 5)])
def test_pixels_are_limited_to_whole_crops(loaded: Loaded, max_pixels: int, num_crops: int) -> None:
    processor = copy.deepcopy(loaded.processor)
    loaded.family.limit_pixels(processor, max_pixels)
    (runs,) = {loaded.family.placement(processor, width, width).runs for width in (30, 500)}
    assert runs == (processor.image_seq_len,) * num_crops
    assert loaded.family.read(processor, image(0, (500, 500)))["pixel_values"].shape[1] == num_crops


def test_less_than_one_crop_is_refused(loaded: Loaded) -> None:
    with pytest.raises(ConfigError, match="max_pixels: got 2303; this model needs at least 2304"):
        loaded.family.limit_pixels(loaded.processor, 48**2 - 1)


def test_the_end_of_a_turn_ends_an_answer_though_the_checkpoint_does_not_name_it(tmp_path: Path) -> None:
    family = get_family("idefics3")
    family.tiny(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2]}')
    prompts = models.load(ModelConfig(family="idefics3", base=str(tmp_path))).prompts
    turn_end = prompts.processor.tokenizer.vocab["<end_of_utterance>"]
    assert prompts.end_ids == (turn_end, 2)
    (pair,) = prompts.pairs(["Why?"], ["no"], [[(48, 48)]])
    assert pair.tail.count(turn_end) == 2  # of the question and of the answer
    assert pair.ids[-1] == turn_end


class _NoVideo(SmolVLMProcessor):
    def __init__(self, image_processor: Any, tokenizer: Any, **options: Any) -> None:
        super().__init__(image_processor, tokenizer, None, **options)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, SmolVLMProcessor]:
    """A SmolVLM with the processor it is published with, and that processor."""
    monkeypatch.setattr(processing_smolvlm, "num2words", str)  # for videos only
    get_family("smolvlm").tiny(tmp_path)
    parts = Idefics3Processor.from_pretrained(tmp_path)
    template = parts.chat_template
    own = _NoVideo(
        parts.image_processor, parts.tokenizer, image_seq_len=parts.image_seq_len, chat_template=template
    )
    file = tmp_path / "processor_config.json"
    content = json.loads(file.read_text()) | {
        "processor_class": "SmolVLMProcessor",
        "video_processor": {"video_processor_type": "SmolVLMVideoProcessor", "fps": 1},
    }
    file.write_text(json.dumps(content))
    return tmp_path, own


def test_smolvlm_is_prompted_as_by_its_own_processor(own: tuple[Path, SmolVLMProcessor]) -> None:
    folder, stock = own
    loaded = models.load(ModelConfig(family="smolvlm", base=str(folder)))
    for pictures in ([picture] for picture in PICTURES):
        expected = stock(images=[pictures], text=["<|im_start|>User:<image>Why?"], return_tensors="pt")
        found = loaded.processor(
            images=[pictures], text=["<|im_start|>User:<image>Why?"], return_tensors="pt"
        )
        assert dict(found).keys() == dict(expected).keys()
        for name in expected:
            assert torch.equal(found[name], expected[name])
    both = ["<|im_start|>User:<image><image>Why?"]
    expected = stock(images=[PICTURES[:2]], text=both)["input_ids"]
    assert loaded.processor(images=[PICTURES[:2]], text=both)["input_ids"] == expected
