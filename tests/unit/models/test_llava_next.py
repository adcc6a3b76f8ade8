"""Tiles of any number become the tokens that the processor announces, and old templates are refused."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from radloop import models
from radloop.config import ModelConfig
from radloop.errors import ModelError
from radloop.models.llava_next import LlavaNext
from tests.unit.tiny import image

SIZES = [(64, 64), (90, 40), (40, 90), (200, 33), (33, 200), (7, 5), (1, 300), (301, 299)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava_next")
    LlavaNext().tiny(folder)
    return folder


def test_every_shape_is_announced_as_the_processor_and_the_model_make_it(folder: Path) -> None:
    loaded = models.load(ModelConfig(family="llava_next", base=str(folder)))
    found = loaded.encode([Image.new("RGB", size) for size in SIZES])
    for size, features in zip(SIZES, found, strict=True):
        _, (text,) = loaded.processor._process_images([Image.new("RGB", size)], return_tensors="pt")
        placement = loaded.prompts.placement(size)
        assert placement.runs == (text.count("<image>"),) == (int(features["num_tokens"]),)
        assert placement.text == "<image>"
    assert {len(features["tiles"]) for features in found} == {3, 4, 5}
    assert len({int(features["num_tokens"]) for features in found}) > 4


def test_images_encoded_together_are_put_together_as_the_model_does(folder: Path) -> None:
    loaded = models.load(ModelConfig(family="llava_next", base=str(folder)))
    pictures = [image(number, size) for number, size in enumerate(SIZES)]  # other numbers of tiles
    inputs = loaded.processor.image_processor(pictures, return_tensors="pt")  # padded to the most tiles
    with torch.no_grad():
        stock = loaded.model.model.get_image_features(**inputs, return_dict=True).pooler_output
        arguments = loaded.family.image_arguments(loaded.model, loaded.encode(pictures), None, None)
    ours = arguments["mm_encoder_outputs"]["image"].pooler_output
    assert [len(tokens) for tokens in ours] == [len(tokens) for tokens in stock]
    for mine, expected in zip(ours, stock, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


def test_what_is_kept_is_narrower_than_what_the_language_model_gets(folder: Path) -> None:
    loaded = models.load(ModelConfig(family="llava_next", base=str(folder)))
    (features,) = loaded.encode([image(0)])
    assert features["tiles"].shape == (5, 16, loaded.model.config.vision_config.hidden_size)
    assert features["image_sizes"].tolist() == [48, 48]


def test_a_processor_that_counts_the_class_token_twice_is_refused(folder: Path) -> None:
    loaded = models.load(ModelConfig(family="llava_next", base=str(folder)))
    loaded.processor.num_additional_image_tokens = 2
    with pytest.raises(ModelError, match=r"makes 89 tokens of an image of 48 x 48 pixels, the model 88"):
        loaded.encode([image(0)])


@pytest.mark.parametrize("end", [r"<\s>", r"<\\s>"])
def test_a_template_that_ends_answers_with_no_token_is_refused(folder: Path, end: str) -> None:
    family = LlavaNext()
    processor = family.load_processor(folder)
    family.require_template(processor)
    processor.chat_template = processor.chat_template.replace("</s>", end)
    with pytest.raises(ModelError, match=r"ends answers with '<\\s>', which is plain text"):
        family.require_template(processor)
    processor.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        family.require_template(processor)
