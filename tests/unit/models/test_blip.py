"""BLIP's prompts, and groups that cannot share a row of its cross attention."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizer, BlipProcessor

from radloop import models
from radloop.config import ModelConfig
from radloop.errors import ModelError
from radloop.inference import Engine
from radloop.models import packing
from radloop.models.blip import Blip
from radloop.models.loading import Loaded
from radloop.models.packing import Batch, Row
from radloop.models.prompts import Prompts
from tests.unit.models.test_families import picture, relative_error

IMAGES = {"a": picture(0, (60, 40)), "b": picture(1, (48, 48)), "c": picture(2, (30, 90))}
WORDS = [
    "is",
    "there",
    "a",
    "pleural",
    "effusion",
    "?",
    "which",
    "side",
    "left",
    "upper",
    "lobe",
    "yes",
    ",",
    "##s",
    "##es",
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("blip")
    Blip().tiny(folder)
    return models.load(ModelConfig(family="blip", base=str(folder)))


def test_prompts_of_a_bert_tokenizer_begin_and_end_as_generate_has_them(loaded: Loaded) -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate([*names, *WORDS])})
    prompts = Prompts.of(Blip(), BlipProcessor(loaded.processor.image_processor, tokenizer), loaded.model)
    begin, end = (getattr(loaded.model.config.text_config, f"{name}_token_id") for name in ("bos", "sep"))
    (pair,) = prompts.pairs(["Which sides?"], ["Left, upper lobe"], [[(60, 40)]])
    words = tokenizer.convert_ids_to_tokens(pair.tail[:-1])
    assert words == ["which", "side", "##s", "?", "left", ",", "upper", "lobe"]
    assert (pair.head.ids, pair.tail[-1], pair.num_answer) == ((begin,), end, 5)
    assert prompts.questions(["Which sides?"], [[(1, 1)]])[0].tail == pair.tail[:4]
    assert prompts.answer(pair.tail[4:-1]) == "left, upper lobe"


@pytest.mark.parametrize("number", [0, 2])
def test_a_question_about_no_image_or_several_is_refused(loaded: Loaded, number: int) -> None:
    with pytest.raises(ModelError, match=f"question about {number} images, but BLIP takes exactly one"):
        loaded.prompts.questions(["Why?"], [[(60, 40)] * number])


def test_logits_are_in_the_order_of_the_batch_however_groups_share_rows(loaded: Loaded) -> None:
    groups = [
        packing.groups([name], loaded.prompts.pairs(questions, ["left"] * len(questions), [[(9, 9)]] * 3))[0]
        for name, questions in zip(
            IMAGES, (["Why?", "Which side?", "Where?"], ["Is there a nodule?"] * 3, ["No?"] * 3), strict=True
        )
    ]

    def logits(rows: list[Row]) -> torch.Tensor:
        features = loaded.encode([IMAGES[group.image_ids[0]] for row in rows for group in row])
        with torch.no_grad():
            return loaded.family.logits(loaded.model, Batch.of(rows), features)

    alone = [(replace(group, tails=(tail,)),) for group in groups for tail in group.tails]
    expected = torch.cat([logits([row]) for row in alone])
    for rows in ([tuple(groups)], [(groups[0],), tuple(groups[1:])], [(group,) for group in groups]):
        assert relative_error(logits(rows), expected) < 1e-5


def test_the_loss_is_that_of_stock_with_the_question_left_out_of_its_labels(loaded: Loaded) -> None:
    (pair,) = loaded.prompts.pairs(["Which side?"], ["left, right"], [[(60, 40)]])
    pixels = loaded.family.read(loaded.processor, IMAGES["a"])["pixel_values"]
    ids = torch.tensor([pair.ids])
    labels = ids.clone()
    labels[:, : -pair.num_answer] = -100
    batch = Batch.of([(packing.Group(("a",), pair.head, (pair,), (0,)),)])
    with torch.no_grad():
        expected = loaded.model(pixel_values=pixels, input_ids=ids, labels=labels).loss
        logits = loaded.family.logits(loaded.model, batch, loaded.encode([IMAGES["a"]]))
    loss = torch.nn.functional.cross_entropy(logits, batch.targets)
    assert relative_error(loss, expected) < 1e-5


def test_later_tokens_come_in_the_precision_of_the_model(tmp_path: Path) -> None:
    Blip().tiny(tmp_path)
    engine = Engine(ModelConfig(family="blip", base=str(tmp_path), precision="bf16"))
    states: list[torch.Tensor] = []
    decoder = engine._loaded.model.text_decoder
    decoder.register_forward_pre_hook(
        lambda _module, _inputs, kwargs: states.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    engine.answer_one(IMAGES["a"], "which side?", max_new_tokens=2)
    assert [(state.shape[1] > 0, state.dtype) for state in states[:2]] == [
        (True, torch.bfloat16),
        (False, torch.bfloat16),
    ]
