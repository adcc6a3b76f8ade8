"""Gemma 3's masks are the stock ones of each question alone, and pan-and-scan is the processor's matter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.models.gemma3.modeling_gemma3 import (
    create_masks_for_vision_model,
    get_block_sequence_ids_for_mask,
)

from radloop import models
from radloop.config import ModelConfig
from radloop.models.gemma3 import Gemma3
from radloop.models.loading import Loaded
from radloop.models.packing import HEAD, Batch, Group, Tokens, groups
from tests.unit.tiny import image

QUESTIONS = ["Is there a pleural effusion?", "Which side?", "How many nodules are there in the left lung?"]
ANSWERS = ["yes", "left", "2"]
KINDS = ["full_attention", "sliding_attention"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma3")
    Gemma3().tiny(folder)
    return folder


def load(folder: Path) -> Loaded:
    return models.load(ModelConfig(family="gemma3", base=str(folder)))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    return load(folder)


def group(loaded: Loaded, num_images: int) -> Group:
    sizes = [[(64, 64)] * num_images] * len(QUESTIONS)
    (group,) = groups("ab"[:num_images], loaded.prompts.pairs(QUESTIONS, ANSWERS, sizes))
    return group


def stock_masks(loaded: Loaded, tokens: Tokens) -> dict[str, torch.Tensor]:
    """Return what the stock forward makes of one pair, from the processor's token_type_ids."""
    (types,) = loaded.processor.create_mm_token_type_ids([list(tokens.ids)])
    masks: dict[str, torch.Tensor] = create_masks_for_vision_model(
        loaded.model.config.text_config,
        torch.zeros(1, len(tokens), 1),
        attention_mask=None,
        past_key_values=None,
        position_ids=torch.arange(len(tokens))[None],
        block_sequence_ids=get_block_sequence_ids_for_mask(torch.tensor([types])),
    )
    return masks


@pytest.mark.parametrize("kind", KINDS)
def test_each_tail_of_a_packed_row_has_the_stock_mask_of_its_pair_alone(loaded: Loaded, kind: str) -> None:
    rows = [(group(loaded, 2), group(loaded, 1)), (group(loaded, 0),)]
    batch = Batch.of(rows)
    mask = loaded.family.mask(loaded.model, batch, batch)[kind]
    for row, of_row in enumerate(rows):
        for number, of_images in enumerate(of_row):
            in_group = batch.groups[row] == number
            for segment, tail in enumerate(of_images.tails, start=1):
                its_own = in_group & ((batch.segments[row] == HEAD) | (batch.segments[row] == segment))
                stock = stock_masks(loaded, tail)[kind][0, 0, :-1, :-1]  # the last token is not read
                assert torch.equal(mask[row, 0][its_own][:, its_own], stock)
                assert not mask[row, 0][in_group & (batch.segments[row] == segment)][:, ~its_own].any()
    assert mask.any(dim=-1).all()


def test_images_are_seen_at_once_and_the_window_is_shorter_than_the_prompt(loaded: Loaded) -> None:
    full, sliding = (stock_masks(loaded, group(loaded, 2).tails[0])[kind] for kind in KINDS)
    assert full.triu(1).sum() == 2 * 16 * 15 / 2
    assert sliding.sum() < full.sum()


def test_new_tokens_have_the_same_mask_when_the_head_is_in_the_cache(loaded: Loaded) -> None:
    rows = [(group(loaded, 2),), (group(loaded, 1),)]
    for row in rows:
        together, tails = Batch.of([row]), Batch.of([row], with_head=False)
        expected = loaded.family.mask(loaded.model, together, together)
        found = loaded.family.mask(loaded.model, tails, together)
        for kind in KINDS:
            assert torch.equal(found[kind], expected[kind][:, :, len(row[0].head) :])


def test_an_image_token_outside_the_head_is_a_token_like_others(loaded: Loaded) -> None:
    soft = loaded.model.config.image_token_id
    head = group(loaded, 1).head
    (said,) = groups("a", [Tokens(head, (*[soft] * 3, 7, 8), 1)])
    batch = Batch.of([(said,)])
    mask = loaded.family.mask(loaded.model, batch, batch)["full_attention"][0, 0]
    assert not mask[len(head) :].triu(len(head) + 1).any()


def stock_run(loaded: Loaded, folder: Path, pictures: list[Image.Image], **options: Any) -> Any:
    """Return the token ids and the last token's logits by stock code alone."""
    processor = AutoProcessor.from_pretrained(folder)
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": QUESTIONS[0]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(
        images=[pictures], text=[text], add_special_tokens=False, return_tensors="pt", **options
    )
    with torch.no_grad():
        return inputs["input_ids"][0].tolist(), loaded.model(**inputs).logits[0, -1]


def our_run(loaded: Loaded, pictures: list[Image.Image]) -> Any:
    (tokens,) = loaded.prompts.questions([QUESTIONS[0]], [[picture.size for picture in pictures]])
    with torch.no_grad():
        batch = Batch.of([(asked,) for asked in groups("ab", [tokens])])
        return list(tokens.ids), loaded.family.logits(loaded.model, batch, loaded.encode(pictures))[0]


PICTURES = [image(0, (50, 120)), image(1)]  # the first is wide enough for two crops


def test_crops_of_pan_and_scan_are_further_images(folder: Path) -> None:
    loaded = load(folder)
    crops = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 24}
    loaded.processor.images_kwargs = loaded.processor.images_kwargs | crops
    assert [loaded.prompts.placement(picture.size).runs for picture in PICTURES] == [(16,) * 3, (16,)]
    stock_ids, stock_logits = stock_run(loaded, folder, PICTURES, **crops)
    ids, logits = our_run(loaded, PICTURES)
    assert ids == stock_ids
    torch.testing.assert_close(logits, stock_logits)


def test_the_processor_overrules_the_image_processor(folder: Path, tmp_path: Path) -> None:
    loaded = load(folder)
    loaded.processor.image_processor.do_pan_and_scan = True
    loaded.processor.image_processor.pan_and_scan_min_crop_size = 24
    loaded.processor.image_processor.pan_and_scan_max_num_crops = 4
    loaded.processor.image_processor.pan_and_scan_min_ratio_to_activate = 1.2
    loaded.processor.save_pretrained(tmp_path)
    stock_ids, stock_logits = stock_run(loaded, tmp_path, PICTURES)
    ids, logits = our_run(loaded, PICTURES)
    assert ids == stock_ids
    torch.testing.assert_close(logits, stock_logits)
