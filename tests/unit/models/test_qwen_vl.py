"""Qwen: positions on three axes, images of any size, DeepStack, and a processor that needs no torchvision."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from radloop import models
from radloop.config import ModelConfig
from radloop.errors import ConfigError
from radloop.models.loading import Loaded
from radloop.models.packing import Batch, Head, groups
from tests.unit.tiny import QUESTIONS, image

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
PICTURES = [image(1, (84, 61)), image(2, (40, 130))]  # rows x columns; no whole number of windows


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(request.param, tmp_path_factory.mktemp(request.param))


def load(family: str, folder: Path) -> Loaded:
    models.get_family(family).tiny(folder)
    return models.load(ModelConfig(family=family, base=str(folder)))


def processed(loaded: Loaded, pictures: list[Image.Image], question: str) -> Any:
    """Return what the stock processor gives for a question about `pictures`."""
    content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": question}]
    text = loaded.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return loaded.processor(images=pictures or None, text=[text], return_tensors="pt")


def packed_logits(loaded: Loaded, pictures: list[Image.Image], questions: list[str]) -> torch.Tensor:
    """Return the logits after each of the questions, which share one head."""
    sizes = [[picture.size for picture in pictures]] * len(questions)
    (group,) = groups(["a", "b"][: len(pictures)], loaded.prompts.questions(questions, sizes))
    features = loaded.encode(pictures)
    with torch.no_grad():
        return loaded.family.logits(loaded.model, Batch.of([(group,)]), features)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_positions_are_those_of_the_stock_model(loaded: Loaded, number: int) -> None:
    pictures = PICTURES[:number]
    stock = processed(loaded, pictures, QUESTIONS[0])
    (tokens,) = loaded.prompts.questions([QUESTIONS[0]], [[picture.size for picture in pictures]])
    assert [*tokens.ids] == stock["input_ids"][0].tolist()
    expected, _ = loaded.model.model.get_rope_index(
        stock["input_ids"], stock["mm_token_type_ids"], image_grid_thw=stock.get("image_grid_thw")
    )
    (group,) = groups([], [tokens])
    batch = Batch.of([(group,)])
    assert torch.equal(loaded.family.position_ids(batch), expected)


def test_questions_behind_one_head_get_the_logits_of_the_stock_forward(loaded: Loaded) -> None:
    found = packed_logits(loaded, PICTURES, QUESTIONS)
    with torch.no_grad():
        expected = [
            loaded.model(**processed(loaded, PICTURES, question)).logits[0, -1] for question in QUESTIONS
        ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_features_do_not_depend_on_the_images_encoded_along(loaded: Loaded) -> None:
    together = loaded.encode(PICTURES)
    for picture, features in zip(PICTURES, together, strict=True):
        (alone,) = loaded.encode([picture])
        assert alone.keys() == features.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(features[name], tensor, rtol=1e-5, atol=1e-5)


def test_stock_generation_and_ours_leave_nothing_behind_for_each_other(loaded: Loaded) -> None:
    def generated(number: int) -> list[int]:
        inputs = processed(loaded, PICTURES[number:], QUESTIONS[number])
        ids: list[int] = loaded.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0].tolist()
        return ids

    ours = packed_logits(loaded, PICTURES, QUESTIONS)
    first, second = generated(0), generated(1)  # other position offsets
    deltas = loaded.model.model.rope_deltas
    assert torch.equal(packed_logits(loaded, PICTURES, QUESTIONS), ours)
    assert loaded.model.model.rope_deltas is deltas
    assert (generated(0), generated(1)) == (first, second)


def test_heads_are_made_by_a_model_with_lora_too(loaded: Loaded, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    own = load(loaded.family.model_type, tmp_path)
    (expected,) = own.prompts.questions(QUESTIONS[:1], [[PICTURES[0].size]])
    with_lora = get_peft_model(own.model, LoraConfig(target_modules=own.family.targets["attention"]))
    placement = own.prompts.placement(PICTURES[0].size)
    for model in (with_lora, own.model):  # the second has LoRA layers in it by now
        found: Head = own.family.head(model, expected.head.ids, [placement])
        assert found == expected.head


def test_windows_and_deepstack_are_in_what_is_kept(tmp_path: Path) -> None:
    windows = load("qwen2_5_vl", tmp_path / "windows")
    (kept,) = windows.encode(PICTURES[:1])
    windows.base_model.model.visual.fullatt_block_indexes = [0, 1, 2]
    (without,) = windows.encode(PICTURES[:1])
    assert not torch.allclose(kept["image"], without["image"], atol=1e-3)

    deep = load("qwen3_vl", tmp_path / "deep")
    (features,) = deep.encode(PICTURES[:1])
    assert features["deepstack"].shape == (2, *features["image"].shape)
    (tokens,) = deep.prompts.questions(QUESTIONS[:1], [[PICTURES[0].size]])
    (group,) = groups(["a"], [tokens])
    shallow = features | {"deepstack": torch.zeros_like(features["deepstack"])}
    with torch.no_grad():
        logits = [deep.family.logits(deep.model, Batch.of([(group,)]), [f]) for f in (features, shallow)]
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


OLD = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056}
NEW = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
}
PUBLISHED: dict[str, dict[str, Any]] = {"qwen2_vl": OLD, "qwen2_5_vl": OLD, "qwen3_vl": NEW}


def publish(family: str, folder: Path) -> None:
    """Give a tiny checkpoint the processor files that the published one has."""
    models.get_family(family).tiny(folder)
    stock = models.get_family(family).processor_class.__name__  # type: ignore[attr-defined]
    images = PUBLISHED[family] | {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(images | {"processor_class": stock}))
    video = {"video_processor_type": "Qwen2VLVideoProcessor", "processor_class": stock}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))


@pytest.mark.parametrize("family", FAMILIES)
def test_published_processor_files_are_read_and_written(tmp_path: Path, family: str) -> None:
    publish(family, tmp_path)
    qwen = models.get_family(family)
    processor = qwen.load_processor(tmp_path)
    assert isinstance(processor, qwen.processor_class)  # type: ignore[attr-defined]
    expected = PUBLISHED[family].get("size") or {"shortest_edge": 3136, "longest_edge": 12845056}
    assert dict(processor.image_processor.size) == expected
    qwen.limit_pixels(processor, 100_000)
    processor.save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "processor_config.json").read_text())
    assert written["processor_class"] == type(processor).__mro__[1].__name__
    again = qwen.load_processor(tmp_path / "saved")
    assert again.chat_template == processor.chat_template
    assert dict(again.image_processor.size) == dict(processor.image_processor.size)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("most", [4, 5, 16, 100])
def test_no_image_gets_more_tokens_than_the_pixels_allow(tmp_path: Path, family: str, most: int) -> None:
    publish(family, tmp_path)
    qwen = models.get_family(family)
    processor = qwen.load_processor(tmp_path)
    max_pixels = (most + 1) * 28**2 - 1
    qwen.limit_pixels(processor, max_pixels)
    for short in (1, 9, 14, 15, 27, 28, 41, 43, 100, 517, 2048):
        for ratio in (1, 1.1, 1.5, 1.9, 2.5, most / 2, most):
            size = (short, int(short * ratio))
            for height, width in (size, size[::-1]):
                patches = processor.image_processor.get_number_of_image_patches(height, width)
                assert patches // 4 <= most, (height, width)
    assert sum(qwen.placement(processor, 100, 300).runs) <= most


def test_limits_on_pixels_that_cannot_be_met_are_refused(loaded: Loaded, tmp_path: Path) -> None:
    processor = loaded.family.load_processor(Path(loaded.processor.tokenizer.name_or_path))
    with pytest.raises(ConfigError, match="got 575; this model needs at least 576"):
        loaded.family.limit_pixels(processor, 575)
    before = dict(processor.image_processor.size)
    loaded.family.limit_pixels(processor, 10**9)  # never more than the checkpoint itself allows
    assert dict(processor.image_processor.size) == before
    with pytest.raises(
        ConfigError, match=r"family llava scales images to sizes of its own; use preprocess\."
    ):
        models.get_family("llava").limit_pixels(processor, 1000)
