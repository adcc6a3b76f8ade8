"""Cached features stand for the model's own forward, and LoRA lands on the language model."""

import json
import re
from pathlib import Path

import pytest
import torch

from radloop import models
from radloop.config import ModelConfig
from radloop.errors import ModelError
from tests.unit.tiny import image, save_base


@pytest.mark.parametrize("tower", ["siglip", "clip"])
def test_encoded_features_give_the_logits_of_the_stock_forward(tmp_path: Path, tower: str) -> None:
    loaded = models.load(ModelConfig(base=str(save_base(tmp_path, tower=tower))))
    pictures = [image(1), image(2, (60, 90))]
    prompt = loaded.prompts.questions(["Which side?"])[0]
    ids = torch.tensor([prompt.head + prompt.tail] * 2)
    pixels = loaded.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        stock = loaded.model(input_ids=ids, pixel_values=pixels).logits
        features = loaded.encode(pictures)
        ours = loaded.model(input_ids=ids, **loaded.family.image_inputs(loaded.model, features)).logits
        last = loaded.model.model.vision_tower(pixels).last_hidden_state[:, -features.shape[1] :]
        wrong = loaded.model(input_ids=ids, **loaded.family.image_inputs(loaded.model, last)).logits
    assert torch.equal(ours, stock)
    assert not torch.allclose(wrong, stock, atol=1e-3)  # the feature layer matters here
    assert not torch.allclose(stock[0], stock[1], atol=1e-3)  # and so does the picture


def test_features_do_not_depend_on_training_mode(tmp_path: Path) -> None:
    folder = save_base(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    content["vision_config"]["attention_dropout"] = 0.5
    (folder / "config.json").write_text(json.dumps(content))
    loaded = models.load(ModelConfig(base=str(folder)))
    expected = loaded.encode([image(1)])
    loaded.model.train()
    assert torch.equal(loaded.encode([image(1)]), expected)
    assert loaded.model.training


def test_a_processor_that_counts_other_image_tokens_is_refused(tmp_path: Path) -> None:
    folder = save_base(tmp_path, tower="clip")
    content = json.loads((folder / "processor_config.json").read_text())
    content["num_additional_image_tokens"] = 0
    (folder / "processor_config.json").write_text(json.dumps(content))
    loaded = models.load(ModelConfig(base=str(folder)))
    with pytest.raises(ModelError, match=r"makes 15 tokens of an image, the model 16.*num_additional"):
        loaded.encode([image(1)])


def test_target_groups_cover_the_language_model_and_nothing_of_the_vision_tower(tmp_path: Path) -> None:
    loaded = models.load(ModelConfig(base=str(save_base(tmp_path))))
    linear = [name for name, part in loaded.model.named_modules() if isinstance(part, torch.nn.Linear)]
    found = {
        group: [name for name in linear if re.fullmatch(pattern, name)]
        for group, pattern in loaded.family.targets.items()
    }
    assert {group: len(names) for group, names in found.items()} == {"attention": 8, "mlp": 6, "projector": 2}
    targeted = {name for names in found.values() for name in names}
    assert set(linear) - targeted == {"lm_head"} | {name for name in linear if "vision_tower" in name}
