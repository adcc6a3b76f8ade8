"""The shipped base: intact, stock, able to see, and never taught what the phantom data set asks."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from radloop import models
from radloop.config import ModelConfig
from radloop.data.adapters import phantoms as adapter
from radloop.data.phantoms import FINDINGS, QUESTION_TYPES, Phantom, Stream, make_phantom, questions
from radloop.data.phantoms.anatomy import SIDES
from radloop.data.phantoms.findings import ZONES
from radloop.errors import ModelError
from radloop.inference import Engine, Request
from radloop.models.loading import Loaded
from radloop.models.tiny_base import RECORD, tiny_base_folder, verified
from radloop.models.tiny_text import DESCRIBE, GENERIC, KIND, RIGHT_KINDS, WRONG_KINDS, pretraining_texts
from radloop.models.tiny_vision import normalise, tower_features


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return models.load(ModelConfig(base="tiny"))


def unseen(count: int) -> list[Phantom]:
    return [make_phantom(Stream.VALIDATION, 4000, index) for index in range(count)]


def picture(phantom: Phantom) -> Image.Image:
    return Image.fromarray(phantom.pixels).convert("RGB")


def test_it_is_small_and_holds_data_only() -> None:
    files = [file for file in tiny_base_folder().iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 10_000_000
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja", ".py", ""}
    assert [file.name for file in files if file.suffix == ".py"] == ["__init__.py"]
    configs = [file.read_text() for file in files if file.suffix == ".json"]
    assert not any("auto_map" in text for text in configs)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_a_flipped_bit_is_found(copy: Path) -> None:
    assert verified(copy) == copy
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError, match=r"model\.safetensors has another hash.*make tiny-base"):
        verified(copy)


def test_a_missing_file_is_found(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        verified(copy)


def test_a_file_too_many_is_found(copy: Path) -> None:
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapter_config\.json is not part"):
        verified(copy)


@pytest.mark.parametrize("content", [None, ""])
def test_without_its_record_it_is_not_trusted(copy: Path, content: str | None) -> None:
    (copy / RECORD).unlink()
    if content is not None:
        (copy / RECORD).write_text(content)
    with pytest.raises(ModelError, match=RECORD):
        verified(copy)


def test_the_record_is_in_the_form_of_sha256sum() -> None:
    for line in (tiny_base_folder() / RECORD).read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tiny_base_folder() / name).read_bytes()).hexdigest() == digest


def test_stock_transformers_loads_it_and_its_token_ids_agree() -> None:
    folder = tiny_base_folder()
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    assert type(model) is LlavaForConditionalGeneration
    assert 2e6 < sum(parameter.numel() for parameter in model.parameters()) < 4e6
    tokenizer, text = processor.tokenizer, model.config.get_text_config()
    assert (
        tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id == processor.image_token_id
    )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        ids = {getattr(holder, name) for holder in (tokenizer, text, model.config, model.generation_config)}
        assert len(ids) == 1, name
        assert None not in ids
    assert len(tokenizer) == text.vocab_size == model.get_input_embeddings().num_embeddings
    for word in ("Café", "3 nodules, 12 mm", "naïve\nline", "胸部"):
        assert tokenizer.decode(tokenizer(word)["input_ids"], skip_special_tokens=True) == word


def test_stock_generate_answers_a_chat(loaded: Loaded) -> None:
    chat = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "What part of the body is shown?"}],
        }
    ]
    text = loaded.processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == "USER: <image>\nWhat part of the body is shown? ASSISTANT:"
    inputs = loaded.processor(images=picture(unseen(1)[0]), text=text, return_tensors="pt")
    output = loaded.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert loaded.prompts.answer(output[0, inputs["input_ids"].shape[1] :].tolist()) == "chest"


def test_the_template_marks_what_the_assistant_says(loaded: Loaded) -> None:
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is this a radiograph?"}]},
        {"role": "assistant", "content": "yes"},
    ]
    ids = loaded.processor.tokenizer.apply_chat_template(
        chat,
        chat_template=loaded.processor.chat_template,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    said = [token for token, mark in zip(ids["input_ids"], ids["assistant_masks"], strict=True) if mark]
    assert loaded.processor.tokenizer.decode(said) == " yes</s>"


def test_training_saw_what_the_processor_and_llava_make_of_a_picture(loaded: Loaded) -> None:
    made = unseen(3)
    pictures = [picture(phantom) for phantom in made]
    pixels = torch.cat([loaded.family.read(loaded.processor, image)["pixel_values"] for image in pictures])
    for phantom, expected in zip(made, pixels, strict=True):
        torch.testing.assert_close(normalise(phantom.pixels[None])[0], expected)
    with torch.no_grad():
        features = tower_features(loaded.model.model.vision_tower, pixels)
    torch.testing.assert_close(features, torch.stack([item["image"] for item in loaded.encode(pictures)]))


def test_it_sees_the_findings_of_phantoms_it_never_met(loaded: Loaded) -> None:
    made = unseen(24)
    images = {phantom.name: picture(phantom) for phantom in made}
    requests = [Request((phantom.name,), DESCRIBE["caption"][0]) for phantom in made]
    answers = Engine(ModelConfig(base="tiny"), None).answer(images, requests, 80)
    right = [
        (name.removesuffix("s") in answer.text) == (name in phantom.findings)
        for phantom, answer in zip(made, answers, strict=True)
        for name in FINDINGS
    ]
    assert sum(right) / len(right) > 0.9


PROMPTS = {
    *(prompt for prompts in DESCRIBE.values() for prompt in prompts),
    *(prompt for prompt, _ in GENERIC),
    *(prompt.format(kind=kind) for prompt in KIND for kind in RIGHT_KINDS + WRONG_KINDS),
}


def test_no_question_of_the_data_set_was_in_its_training() -> None:
    made = [make_phantom(Stream.PRETRAINING, 1, index, 24) for index in range(600)]
    taught = {prompt for phantom in made for prompt, _ in pretraining_texts(phantom)}
    asked = {question.text for phantom in made for question in questions(phantom)}
    assert taught == PROMPTS
    assert len(asked) > 40
    assert not asked & taught
    assert not {tuple(text.split()[:2]) for text in asked} & {tuple(text.split()[:2]) for text in taught}


def test_what_it_was_taught_asks_for_no_single_finding() -> None:
    """So no prompt can be a paraphrase of a presence, side, zone, count, location or open question."""
    words = {
        *SIDES,
        *ZONES,
        "side",
        "zone",
        "abnormality",
        "device",
        "size",
        "large",
        "number",
        "many",
        "where",
    }
    for finding in FINDINGS.values():
        words |= set(f"{finding.name} {finding.noun}".split()) - {"a"}
    for prompt in PROMPTS:
        assert not words & set(prompt.lower().strip("?.").split()), prompt
    assert not set(DESCRIBE) & set(QUESTION_TYPES)


def test_no_data_set_can_hold_a_phantom_of_its_training() -> None:
    assert Stream.PRETRAINING not in adapter._SPLITS.values()
    assert len({int(stream) for stream in Stream}) == len(Stream.__members__)
