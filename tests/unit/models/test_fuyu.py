"""Fuyu's patches and prompts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from radloop import models
from radloop.config import ModelConfig
from radloop.errors import ConfigError, ModelError
from radloop.models.fuyu import Fuyu
from radloop.models.loading import Loaded
from radloop.training import examples
from tests.unit.models.test_families import picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Fuyu().tiny(tmp_path)
    return tmp_path


@pytest.fixture
def loaded(folder: Path) -> Loaded:
    return models.load(ModelConfig(family="fuyu", base=str(folder)))


@pytest.mark.parametrize(("size", "grid"), [((80, 60), (6, 8)), ((35, 12), (2, 4)), ((7, 7), (1, 1))])
def test_patches_are_the_image_row_by_row_padded_at_right_and_below(
    loaded: Loaded, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    image = picture(0, size)
    rows, columns = grid
    padded = Image.new("RGB", (columns * 10, rows * 10), (1, 1, 1))  # stock pads before it scales
    padded.paste(image)
    pixels = np.asarray(padded, dtype=np.float32) / 127.5 - 1
    (features,) = loaded.encode([image])
    expected = [
        pixels[y : y + 10, x : x + 10].ravel()
        for y in range(0, rows * 10, 10)
        for x in range(0, columns * 10, 10)
    ]
    torch.testing.assert_close(features["image"], torch.from_numpy(np.stack(expected)))
    assert loaded.prompts.placement(size).runs == (columns,) * rows


def test_an_image_too_large_is_scaled_down_to_the_limit(loaded: Loaded) -> None:
    assert sum(loaded.prompts.placement((800, 600)).runs) == 48
    loaded.family.limit_pixels(loaded.processor, 2_000)
    placement = loaded.family.placement(loaded.processor, 800, 600)
    assert placement.runs == (4, 4, 4)
    assert len(loaded.family.read(loaded.processor, picture(0, (800, 600)))["pixel_values"]) == 12
    with pytest.raises(ConfigError, match="max_pixels: got 99, but a patch has 10 x 10"):
        loaded.family.limit_pixels(loaded.processor, 99)


def test_answers_end_with_the_tokenizers_end_token_and_stop_at_the_configs_too(folder: Path) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": 0}))
    loaded = models.load(ModelConfig(family="fuyu", base=str(folder)))
    end = loaded.processor.tokenizer.convert_tokens_to_ids("|ENDOFTEXT|")
    assert loaded.prompts.end_ids == (end, 0)
    (pair,) = loaded.prompts.pairs(["Why?"], ["no"], [[(35, 12)]])
    assert pair.tail[-1] == end


def test_the_answer_comes_after_the_token_that_begins_answers(loaded: Loaded) -> None:
    (pair,) = loaded.prompts.pairs(["Is |SPEAKER| here?"], ["no"], [[(35, 12)]])
    tokens = loaded.processor.tokenizer.convert_ids_to_tokens(pair.ids)
    assert tokens[:10] == (["|SPEAKER|"] * 4 + ["|NEWLINE|"]) * 2
    assert tokens[10] == "<s>"
    assert tokens[-pair.num_answer - 2 : -pair.num_answer] == ["Ċ", "<0x04>"]
    assert tokens.count("|SPEAKER|") == 8


@pytest.mark.parametrize("number", [0, 2])
def test_a_question_about_no_image_or_several_is_refused(loaded: Loaded, number: int) -> None:
    with pytest.raises(ModelError, match=f"question about {number} images, but Fuyu takes exactly one"):
        loaded.prompts.questions(["Why?"], [[(60, 40)] * number])


@pytest.mark.parametrize("control", ["|NEWLINE|", "|SPEAKER|", "<0x04>", "<s>", "|ENDOFTEXT|", "<0x00>"])
def test_what_has_a_meaning_to_fuyu_is_only_text_in_a_question(loaded: Loaded, control: str) -> None:
    (hostile,) = loaded.prompts.questions([f"Is {control} here?"], [[(35, 12)]])
    apart = f"Is {control[0]} {control[1:]} here?"
    assert [hostile] == loaded.prompts.questions([apart], [[(35, 12)]])
    tokens = loaded.processor.tokenizer.convert_ids_to_tokens(hostile.tail)
    assert tokens[:2] == ["|NEWLINE|", "<s>"]
    assert tokens[2:].count(control) == (control == "<0x04>")


def test_a_sample_with_too_many_images_is_named(loaded: Loaded) -> None:
    rows = [{"id": name, "prompt": "Why?", "answers": ["no"]} for name in ("first", "second")]
    with pytest.raises(ModelError, match=r"sample second: .* about 2 images, but Fuyu takes exactly one"):
        examples._pairs(loaded.prompts, rows, [[(35, 12)], [(35, 12)] * 2])
