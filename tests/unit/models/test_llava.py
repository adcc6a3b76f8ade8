"""Cached features stand for the model's own forward, whatever the feature layer and the tower."""

import json
from pathlib import Path

import pytest
import torch

from radloop import models
from radloop.config import ModelConfig
from radloop.errors import ModelError
from radloop.models.family import Features
from radloop.models.packing import Batch, groups
from tests.unit.tiny import image, save_base


@pytest.mark.parametrize("tower", ["siglip", "clip"])
def test_encoded_features_give_the_logits_of_the_stock_forward(tmp_path: Path, tower: str) -> None:
    loaded = models.load(ModelConfig(base=str(save_base(tmp_path, tower=tower))))
    pictures = [image(1), image(2, (60, 90))]
    prompts = [loaded.prompts.questions(["Which side?"], [[picture.size]])[0] for picture in pictures]
    ids = torch.tensor([prompt.ids for prompt in prompts])
    pixels = loaded.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    rows = [(group,) for prompt in prompts for group in groups(("i",), [prompt])]

    def asked(features: list[Features]) -> torch.Tensor:
        return loaded.family.logits(loaded.model, Batch.of(rows), features)

    with torch.no_grad():
        stock = loaded.model(input_ids=ids, pixel_values=pixels).logits[:, -1]
        features = loaded.encode(pictures)
        last = loaded.model.model.vision_tower(pixels).last_hidden_state[:, -len(features[0]["image"]) :]
        ours, wrong = asked(features), asked([{"image": item} for item in last])
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(wrong, stock, atol=1e-3)  # the feature layer matters here
    assert not torch.allclose(stock[0], stock[1], atol=1e-3)  # and so does the picture


def test_features_do_not_depend_on_training_mode(tmp_path: Path) -> None:
    folder = save_base(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    content["vision_config"]["attention_dropout"] = 0.5
    (folder / "config.json").write_text(json.dumps(content))
    loaded = models.load(ModelConfig(base=str(folder)))
    (expected,) = loaded.encode([image(1)])
    loaded.model.train()
    (found,) = loaded.encode([image(1)])
    assert torch.equal(found["image"], expected["image"])
    assert loaded.model.training


def test_a_processor_that_counts_other_image_tokens_is_refused(tmp_path: Path) -> None:
    folder = save_base(tmp_path, tower="clip")
    content = json.loads((folder / "processor_config.json").read_text())
    content["num_additional_image_tokens"] = 0
    (folder / "processor_config.json").write_text(json.dumps(content))
    loaded = models.load(ModelConfig(base=str(folder)))
    with pytest.raises(ModelError, match=r"makes 15 tokens of an image .*, the model 16.*num_additional"):
        loaded.encode([image(1)])
