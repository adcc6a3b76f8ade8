"""What `radloop check` says of tokens, time and the first batch, and that it leaves no trace."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.errors import ConfigError, DataError, ModelError, RadloopError
from radloop.inference import Engine
from radloop.models import REGISTRY, get_family
from radloop.models.packing import Batch
from radloop.training import examples, finetune, preview, rehearsal, savings
from radloop.training.rehearsal import TokenCounts, count_tokens, read_row
from tests.unit.tiny import prepared, save_base
from tests.unit.training.test_estimate import setting

SHORT = FinetuneConfig(max_steps=3, images_per_step=2, rank=2)
DATA = prepared(6, validation=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(base=str(save_base(tmp_path_factory.mktemp("base"))))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def lines(model: ModelConfig, config: FinetuneConfig = SHORT, data: PreparedData = DATA) -> list[str]:
    return list(preview.preview(data, model, config, seed=3))


def test_a_run_after_a_rehearsal_is_the_same_bit_for_bit(base: ModelConfig, home: Path) -> None:
    config = SHORT.model_copy(update={"dropout": 0.1, "neftune_alpha": 5.0})
    before = finetune(DATA, base, config, seed=3)
    shutil.rmtree(home / "training")  # else the second is made of the first one's checkpoint
    files = sorted(home.rglob("*"))
    said = lines(base, config)
    assert sorted(home.rglob("*")) == files
    after = finetune(DATA, base, config, seed=3)
    assert after.sha256 == before.sha256
    assert f"{before.record['parameters']['trained']:,} are trained" in said[1]
    assert f"{before.record['parameters']['total']:,}" in said[1]


def test_a_rehearsal_writes_nothing(base: ModelConfig, home: Path) -> None:
    lines(base)
    assert not home.exists()


def test_the_lines_are_short_and_in_order(base: ModelConfig) -> None:
    said = lines(base, FinetuneConfig(images_per_step=4))
    assert max(map(len, said)) <= 110
    heads = [line.split(":")[0] for line in said if not line.startswith(" ")]
    assert heads == ["base", "parameters", "memory", "tokens per sample", "first batch", "time"]
    assert any(line.startswith("    ") and " steps of " in line and "samples/s" in line for line in said)


def test_tokens_are_those_of_the_samples_and_of_an_epoch(base: ModelConfig) -> None:
    config = FinetuneConfig(images_per_step=2)
    found = setting(base, config, DATA)
    tokens = count_tokens(found)
    prompts = found.sketch.prompts
    rows = DATA.split("train").to_pylist()
    pairs = prompts.pairs(
        [row["prompt"] for row in rows], [row["answers"][0] for row in rows], [[(48, 48)] for _ in rows]
    )
    lengths = [len(pair) for pair in pairs]
    assert sorted(tokens.lengths) == sorted(lengths)
    assert tokens.plain == sum(lengths) - len(lengths)
    assert lengths[[row["id"] for row in rows].index(tokens.longest)] == max(lengths)
    assert tokens.image_share == pytest.approx(16 * len(rows) / sum(lengths))
    history: list[dict[str, float]] = []
    finetune(DATA, base, config.model_copy(update={"epochs": 1}), 0, history.append)
    assert len(history) == found.batches.steps_per_epoch
    assert tokens.epoch == sum(len(group) for s in found.train.sets for group in s.groups) < tokens.plain


def test_the_histogram_counts_each_sample_once() -> None:
    for lengths in ([5], [5, 6], [1, 2, 3, 100], list(range(1000))):
        bars = TokenCounts(np.array(lengths), "", 0.0, 1).bars()
        assert len(bars) <= 10
        for first, last, number in bars:
            assert number == sum(first <= length <= last for length in lengths)
        assert sum(number for _, _, number in bars) == len(lengths)


@pytest.mark.parametrize("name", REGISTRY)
def test_what_is_shown_with_a_loss_is_what_has_one(name: str, tmp_path: Path) -> None:
    get_family(name).tiny(tmp_path)
    found = setting(ModelConfig(family=name, base=str(tmp_path)), FinetuneConfig(), DATA)
    row = found.batches.of(1).shares[0][0][0]
    head, *tails = read_row(found, row)
    assert not any(part.has_loss for part in head)
    assert len(tails) == len(row[0].tails)
    targets = Batch.of([row[:1]]).targets
    texts = "".join(part.text for tail in tails for part in tail if part.has_loss)
    tokenizer = found.sketch.processor.tokenizer
    assert texts.replace(" ", "") == tokenizer.decode(targets).replace(" ", "")
    for tail, pair in zip(tails, row[0].tails, strict=True):
        assert [part.has_loss for part in tail] == [False, True]
        whole = "".join(part.text for part in tail)
        assert whole.replace(" ", "") == tokenizer.decode(list(pair.tail)).replace(" ", "")


def test_a_head_that_ends_within_a_character_is_shown_up_to_it(tmp_path: Path) -> None:
    get_family("qwen2_vl").tiny(tmp_path)  # of bytes
    questions = ["左肺正常吗", "巧合吗", "巨大吗"]
    assert len({question.encode()[:1] for question in questions}) == 1
    data = prepared(1)
    (row,) = data.samples.to_pylist()
    rows = [row | {"id": text, "question": text, "prompt": text} for text in questions]
    data = replace(data, samples=pa.Table.from_pylist(rows, schema=data.samples.schema))
    found = setting(ModelConfig(family="qwen2_vl", base=str(tmp_path)), FinetuneConfig(), data)
    head, *tails = read_row(found, found.batches.of(1).shares[0][0][0])
    assert not head[-1].text.endswith("\ufffd")
    assert all(text in tail[0].text for text, tail in zip(questions, tails, strict=True))


def test_the_first_batch_is_shown_as_the_model_reads_it(base: ModelConfig) -> None:
    said = lines(base)
    start = next(number for number, line in enumerate(said) if line.startswith("first batch"))
    assert said[start + 1].strip() == "USER: <image> x 16 \\n"  # with which all questions begin
    assert said[start + 2].endswith("</s>]")
    assert "ASSISTANT:[" in said[start + 2]


def test_long_texts_lose_their_middle() -> None:
    part = rehearsal.Part
    shown = preview._shown([part("question " * 500, False), part("answer " * 500, True)])
    assert len(shown) <= 100
    assert shown.startswith("question ")
    assert shown.endswith("answer ]")
    assert preview._shown([part("a", False), part("b", True)]) == "a[b]"


def test_what_does_not_fit_says_what_would_help(base: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radloop.training.estimate._free_bytes", lambda: -(10**12))
    said = "\n".join(lines(base, FinetuneConfig(images_per_step=6)))
    assert "warning: that does not fit" in said
    assert "time: not measured, because it does not fit in one process; 3 steps" in said


@pytest.mark.parametrize(
    ("kind", "precision", "is_warned"),
    [("FSDP", "fp32", False), ("FSDP", "nf4", True), ("MULTI_GPU", "fp32", True)],
)
def test_processes_that_divide_the_base_are_not_warned_of_its_size(
    base: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    precision: str,
    is_warned: bool,
) -> None:
    base = base.model_copy(update={"precision": precision})
    monkeypatch.setattr("radloop.training.estimate._free_bytes", lambda: -(10**12))
    launch = tmp_path / "launch.yaml"
    launch.write_text(f"{{distributed_type: {kind}, num_processes: 2, fsdp_config: {{fsdp_version: 2}}}}")
    config = SHORT.model_copy(update={"launch": launch})
    said = "\n".join(lines(base, config))
    words = "which the processes divide" if not is_warned else "in each process"
    assert words in savings.estimate_in_words(DATA, base, config, 0)
    assert ("warning: that does not fit" in said) == is_warned
    assert ("each of the processes needs this" in said) == is_warned
    assert ("of one whole copy, which the processes divide" in said) != is_warned


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU quantises weights as they come")
@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_what_loading_a_quantised_base_takes_is_said(base: ModelConfig, precision: str) -> None:
    found = setting(base.model_copy(update={"precision": precision}), SHORT, DATA)
    said = "\n".join(preview._of_memory(found, preview.estimate_memory(found)))
    assert ("more while the base is loaded" in said) == (precision == "nf4")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not YAML"),
        ("3", "no distributed_type"),
        ("a: b", "no distributed_type"),
        ("distributed_type: null", "no distributed_type"),
        ("distributed_type: NONSENSE", "refused by accelerate: 'NONSENSE' is not a valid DistributedType"),
        ("{distributed_type: NO, processes: 2}", r"refused by accelerate: .*unknown keys \(\['processes'\]"),
        ("{distributed_type: NO, num_processes: 2}", "num_processes: 2 with distributed_type: NO, which is"),
        ("{distributed_type: MULTI_GPU, num_processes: 0}", "num_processes: 0; needed is"),
        ("{distributed_type: MULTI_GPU, num_processes: many}", "num_processes: many; needed is"),
        ("distributed_type: MULTI_GPU", "num_processes: None; needed is"),
        ("{distributed_type: FSDP, num_processes: 2}", "fsdp_version: 1; set it to 2"),
        (
            "{distributed_type: FSDP, num_processes: 2, fsdp_config: {fsdp_version: two}}",
            "fsdp_version: two; set it to 2",
        ),
    ],
)
def test_a_launch_file_that_is_none_of_accelerates_is_named(
    base: ModelConfig, tmp_path: Path, content: str, words: str
) -> None:
    launch = tmp_path / "launch.yaml"
    launch.write_text(content)
    with pytest.raises(ConfigError, match=words):
        preview.require_trainable(base, SHORT.model_copy(update={"launch": launch}))


def test_random_numbers_go_on_as_without_a_rehearsal(base: ModelConfig) -> None:
    before = torch.get_rng_state()
    lines(base, SHORT.model_copy(update={"dropout": 0.1}))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("best_by", ["last", "exact_match"])
def test_answering_is_part_of_the_time(
    base: ModelConfig, monkeypatch: pytest.MonkeyPatch, best_by: str
) -> None:
    """By its first batch, of two images of four here, and two times: 3 steps are two epochs' ends."""
    data = prepared(4, validation=4)
    asked = []
    stock = Engine.answer

    def answer(engine: Engine, images: Any, requests: list[Any], length: int) -> list[Any]:
        asked.append(len(images))
        time.sleep(1.0)
        return stock(engine, images, requests, length)

    monkeypatch.setattr(Engine, "answer", answer)
    said = lines(base, SHORT.model_copy(update={"best_by": best_by}), data)
    is_asked = best_by == "exact_match"
    assert asked == [2] * is_asked
    seconds = float(said[-1].split(";")[1].split()[0])
    assert (seconds > 2.5) == is_asked
    assert ("with its answers" in said[-1]) == is_asked


def test_savings_are_those_of_the_changed_run(base: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    process = type("Process", (), {"memory_info": lambda self: type("Info", (), {"rss": 0})()})
    monkeypatch.setattr("radloop.training.estimate.psutil.Process", process)
    found = setting(base, FinetuneConfig(images_per_step=6), DATA)
    memory = preview.estimate_memory(found)
    changes = dict(savings.savings(found, memory))
    assert any(name.startswith("finetune.tokens_per_pass") for name in changes)
    assert all(total < memory.total for total in changes.values())


def test_steps_that_would_take_too_long_are_not_taken(
    base: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "_CPU_FLOPS", 1.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "time: not measured; by its operations each of 3 steps" in lines(base)[-1]


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"targets": ("visoin",)}, ConfigError, "unknown group of layers 'visoin'; known: attention, mlp"),
        ({"targets": ("vision",), "cache_features": True}, ConfigError, "finetune.cache_features: got true"),
        ({"launch": Path("none.yaml")}, ConfigError, "finetune.launch: none.yaml is no file"),
        ({"warmup_steps": 9}, ConfigError, "finetune.warmup_steps: got 9, but the run has 3 steps"),
        ({"max_tokens": 20}, DataError, "leaves no room for the answer in 20"),
        ({"max_tokens": 1000}, ConfigError, "got 1000, but the base model takes 256"),
        ({"patience": 1}, ConfigError, "finetune.patience: needs a validation split"),
    ],
)
def test_faults_are_one_message(
    base: ModelConfig, settings: dict[str, Any], kind: type[RadloopError], words: str
) -> None:
    config = SHORT.model_copy(update=settings)
    data = prepared(4) if "patience" in settings else DATA

    def check() -> None:
        preview.require_trainable(base, config)
        lines(base, config, data)

    with pytest.raises(kind) as caught:
        check()
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("family", "model", "finetune_", "words"),
    [
        ("llava", {"precision": "fp16"}, {}, "needs a GPU, and PyTorch finds none"),
        ("gemma3", {"precision": "fp16"}, {}, "model.precision: got 'fp16', but family gemma3 allows"),
        ("llava", {"max_pixels": 100}, {}, "max_pixels: got 100"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_faults_show_without_data(
    tmp_path: Path, family: str, model: dict[str, Any], finetune_: dict[str, Any], words: str
) -> None:
    get_family(family).tiny(tmp_path)
    with pytest.raises(ConfigError) as caught:
        preview.require_trainable(
            ModelConfig(family=family, base=str(tmp_path), **model), FinetuneConfig(**finetune_)
        )
    assert words in caught.value.message


def test_a_missing_optimizer_or_processor_shows_without_data(
    base: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_base(tmp_path / "base")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded"):
        preview.require_trainable(ModelConfig(base=str(folder)), SHORT)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match="adamw_8bit needs bitsandbytes"):
        preview.require_trainable(base, SHORT.model_copy(update={"optimizer": "adamw_8bit"}))


def test_cut_answers_are_said(base: ModelConfig) -> None:
    whole = setting(base, SHORT, DATA)
    longest = max(len(tail) for found in whole.train.sets for group in found.groups for tail in group.tails)
    said = "\n".join(lines(base, SHORT.model_copy(update={"max_tokens": longest - 1})))
    cut = examples.read_examples(DATA, "train", whole.sketch.prompts, True, longest - 1).num_cut
    assert f"the limit is {longest - 1} tokens, {cut} answers are cut" in said
