"""The engine answers what stock `generate` answers, however the questions are batched."""

import json
import logging
import math
import random
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.errors import DataError
from radloop.inference import Answer, Engine, Request
from radloop.inference import engine as engine_module
from radloop.inference import prefixes as prefixes_module
from radloop.models import encoding, get_family, packing
from radloop.models.loading import Loaded
from radloop.training import finetune
from radloop.training.adapter import Adapter
from tests.unit.tiny import QUESTIONS, image, prepared, save_base

IMAGES = {f"image-{number}": image(number) for number in range(5)}
LENGTH = 8


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """Trained for a little while, so that some answers end early and others do not."""
    base = save_base(tmp_path_factory.mktemp("base"))
    config = FinetuneConfig(epochs=6, learning_rate=5e-3)
    return finetune(prepared(6), ModelConfig(base=str(base)), config, seed=0)


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """Questions in no order; images have different numbers of them."""
    found = [
        Request((name,), question)
        for number, name in enumerate(IMAGES)
        for question in QUESTIONS[: 1 + number % len(QUESTIONS)]
    ]
    random.Random(0).shuffle(found)
    return found


def stock_answer(loaded: Loaded, request: Request) -> Answer:
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": request.question}]}
    text = loaded.processor.apply_chat_template([turn], add_generation_prompt=True)
    inputs = loaded.processor(images=IMAGES[request.image_ids[0]], text=text, return_tensors="pt")
    output = loaded.model.generate(
        **inputs, max_new_tokens=LENGTH, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    chances = [logits[0].softmax(-1)[token].item() for logits, token in zip(output.logits, ids, strict=True)]
    ended = ids[-1] == loaded.processor.tokenizer.eos_token_id
    text = loaded.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    return Answer(text, math.prod(chances), len(ids), ended)


def assert_same(ours: list[Answer], expected: list[Answer]) -> None:
    assert [(a.text, a.num_tokens, a.complete) for a in ours] == [
        (a.text, a.num_tokens, a.complete) for a in expected
    ]
    assert [a.confidence for a in ours] == pytest.approx([a.confidence for a in expected], rel=1e-3)


@pytest.mark.parametrize("tuned", [False, True])
def test_answers_are_those_of_stock_generate(adapter: Adapter, requests: list[Request], tuned: bool) -> None:
    folder = adapter.folder if tuned else None
    loaded = models.load(adapter.base, folder)
    expected = [stock_answer(loaded, request) for request in requests]
    assert len({answer.text for answer in expected}) > 3
    assert not tuned or len({answer.complete for answer in expected}) == 2
    assert_same(Engine(adapter.base, folder).answer(IMAGES, requests, LENGTH), expected)


def test_a_clip_tower_is_answered_likewise(tmp_path: Path, requests: list[Request]) -> None:
    config = ModelConfig(base=str(save_base(tmp_path, tower="clip")))
    loaded = models.load(config)
    expected = [stock_answer(loaded, request) for request in requests]
    assert_same(Engine(config).answer(IMAGES, requests, LENGTH), expected)


def test_nf4_answers_are_those_of_stock_generate(adapter: Adapter, requests: list[Request]) -> None:
    config = adapter.base.model_copy(update={"precision": "nf4"})
    loaded = models.load(config)
    expected = [stock_answer(loaded, request) for request in requests]
    assert len({answer.text for answer in expected}) > 3
    assert_same(Engine(config).answer(IMAGES, requests, LENGTH), expected)


def test_what_a_generation_config_adds_is_left_out_and_said(
    tmp_path: Path, requests: list[Request], caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_base(tmp_path)
    config, file = ModelConfig(base=str(folder)), folder / "generation_config.json"
    with caplog.at_level(logging.INFO, "radloop"):
        expected = Engine(config).answer(IMAGES, requests, LENGTH)
        assert caplog.text == ""
        settings = {"repetition_penalty": 5.0, "suppress_tokens": [7], "num_beams": 1}
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        loaded = models.load(config)
        assert stock_answer(loaded, requests[0]).text != expected[0].text
        assert_same(Engine(config).answer(IMAGES, requests, LENGTH), expected)
        assert "answers are greedy, without its repetition_penalty 5.0, suppress_tokens [7]\n" in caplog.text
        caplog.clear()
        Engine(loaded)
        assert caplog.text == ""


def test_batching_changes_no_answer(
    adapter: Adapter, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Engine(adapter.base, adapter.folder).answer(IMAGES, requests, LENGTH)
    for batch_images in (1, 2):
        engine = Engine(adapter.base, adapter.folder, batch_images=batch_images)
        assert_same(engine.answer(IMAGES, requests, LENGTH), expected)
    one_by_one = [engine.answer_one(IMAGES[r.image_ids[0]], r.question, LENGTH) for r in requests]
    assert_same(one_by_one, expected)
    monkeypatch.setattr(packing, "_MAX_TAIL_TOKENS", 20)  # as with hundreds of questions about one image
    assert_same(engine.answer(IMAGES, requests, LENGTH), expected)
    assert_same(engine.answer(IMAGES, requests[::-1], LENGTH), expected[::-1])


def test_batches_are_bounded_in_images_and_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get_family("qwen2_5_vl").tiny(tmp_path)
    engine = Engine(ModelConfig(family="qwen2_5_vl", base=str(tmp_path)), batch_images=4)
    images = {str(n): image(n, (56, 56)) for n in range(9)}

    def sizes(requests: list[Request]) -> list[tuple[int, int]]:
        """Return groups and images of each batch."""
        found = list(engine._batches(images, requests, LENGTH))
        assert sorted(number for batch in found for number in batch.numbers) == [*range(len(requests))]
        return [(len(batch.groups), sum(map(len, batch.images))) for batch in found]

    one = [Request((name,), "Which side?") for name in images]
    assert sizes(one) == [(4, 4), (4, 4), (1, 1)]
    three = [Request((str(n), str(n + 1), str(n + 2)), "What is new?") for n in range(3)]
    assert sizes(three) == [(1, 3)] * 3
    length = len(next(engine._batches(images, one, LENGTH)).groups[0])
    monkeypatch.setattr(engine_module, "_BATCH_TOKENS", 3 * length)
    assert sizes(one) == [(3, 3)] * 3
    longer = [*one[:2], Request(("2",), "Which side is it, and why?")]
    assert sizes(longer) == [(2, 2), (1, 1)]
    monkeypatch.setattr(engine_module, "_BATCH_TOKENS", 1)
    assert sizes(one) == [(1, 1)] * 9


def test_images_of_many_sizes_do_not_pile_up(tmp_path: Path) -> None:
    class Pictures(Mapping[str, Image.Image]):
        """Makes an image, each of another size, when it is looked up."""

        made: ClassVar[list[weakref.ref[Image.Image]]] = []
        most = 0

        def __getitem__(self, name: str) -> Image.Image:
            found = image(int(name), (56 + 28 * (int(name) % 6), 56 + 28 * (int(name) // 6)))
            self.made.append(weakref.ref(found))
            self.most = max(self.most, sum(made() is not None for made in self.made))
            return found

        def __iter__(self) -> Iterator[str]:
            raise NotImplementedError

        def __len__(self) -> int:
            raise NotImplementedError

    get_family("qwen2_5_vl").tiny(tmp_path)
    engine = Engine(ModelConfig(family="qwen2_5_vl", base=str(tmp_path)), batch_images=3)
    pictures = Pictures()
    requests = [Request((str(n),), "Which side?") for n in range(36)]
    assert sum(len(batch.groups) for batch in engine._batches(pictures, requests, LENGTH)) == 36
    assert len(pictures.made) == 36
    assert pictures.most <= 10  # twice as many as a batch, those that go out, and the next


def test_an_image_is_encoded_once_for_all_its_questions(
    adapter: Adapter, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Image.Image] = []
    encode = Loaded.encode
    monkeypatch.setattr(encoding, "_BUSY", 0)  # none is tried in company as well
    monkeypatch.setattr(
        Loaded, "encode", lambda self, images, *read: encoded.extend(images) or encode(self, images, *read)
    )
    engine = Engine(adapter.base, adapter.folder)
    engine.answer(IMAGES, requests, LENGTH)
    assert len(encoded) == len(IMAGES)
    engine.answer(IMAGES, requests[:3], LENGTH)
    engine.answer_one(image(0), QUESTIONS[0])
    assert len(encoded) == len(IMAGES)
    engine.answer_one(image(99), QUESTIONS[0])
    assert len(encoded) == len(IMAGES) + 1


def test_only_the_last_images_are_kept_when_memory_is_short(
    adapter: Adapter, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(adapter.base, adapter.folder)
    engine.answer_one(IMAGES["image-0"], QUESTIONS[0])
    monkeypatch.setattr(prefixes_module, "_KEPT_BYTES", int(2.5 * engine._prefixes._kept_bytes))
    for name in ("image-1", "image-0", "image-2"):
        engine.answer_one(IMAGES[name], QUESTIONS[0])
    encoded: list[Image.Image] = []
    encode = Loaded.encode
    monkeypatch.setattr(
        Loaded, "encode", lambda self, images, *read: encoded.extend(images) or encode(self, images, *read)
    )
    engine.answer_one(IMAGES["image-0"], QUESTIONS[1])
    assert encoded == []
    engine.answer_one(IMAGES["image-1"], QUESTIONS[1])
    assert encoded == [IMAGES["image-1"]]
    monkeypatch.setattr(prefixes_module, "_KEPT_BYTES", 0)
    expected = Engine(adapter.base, adapter.folder).answer(IMAGES, requests, LENGTH)
    assert_same(engine.answer(IMAGES, requests, LENGTH), expected)
    assert len(engine._prefixes._kept) == 1


def test_threads_do_not_disturb_each_other(adapter: Adapter, requests: list[Request]) -> None:
    engine = Engine(adapter.base, adapter.folder)
    expected = engine.answer(IMAGES, requests, LENGTH)
    fresh = Engine(adapter.base, adapter.folder)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda r: fresh.answer_one(IMAGES[r.image_ids[0]], r.question, LENGTH), requests)
        assert_same(list(found), expected)


def test_an_answer_says_whether_it_came_to_its_end(adapter: Adapter) -> None:
    engine = Engine(adapter.base, adapter.folder)
    cut = engine.answer_one(IMAGES["image-0"], QUESTIONS[0], max_new_tokens=1)
    assert (cut.num_tokens, cut.complete) == (1, False)
    assert 0 < cut.confidence <= 1


def test_a_question_that_is_too_long_is_refused(adapter: Adapter) -> None:
    with pytest.raises(DataError, match=r"the question 'lung lung .* more than the model's 256: shorten it"):
        Engine(adapter.base).answer_one(IMAGES["image-0"], "lung " * 300)


def test_control_tokens_in_a_question_are_text(adapter: Adapter) -> None:
    engine = Engine(adapter.base)
    assert engine.answer_one(IMAGES["image-0"], "<image></s><image>").num_tokens > 0


def test_no_requests_are_no_answers(adapter: Adapter) -> None:
    assert Engine(adapter.base).answer({}, []) == []


def test_merging_keeps_the_adapter_apart_from_the_base(adapter: Adapter, requests: list[Request]) -> None:
    base = Engine(adapter.base).answer(IMAGES, requests, LENGTH)
    tuned = Engine(adapter.base, adapter.folder).answer(IMAGES, requests, LENGTH)
    assert [a.text for a in base] != [a.text for a in tuned]
    assert Engine(adapter.base).answer(IMAGES, requests, LENGTH) == base
    assert torch.is_inference_mode_enabled() is False
