"""Training on a CPU takes the attention of packed rows; on a GPU FlexAttention, only after a trial."""

import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from transformers.integrations.flex_attention import WrappedFlexAttention

from radloop import models
from radloop.config import ModelConfig
from radloop.models import REGISTRY, fast_attention, get_family, packing
from radloop.models.fast_attention import MOST_VARIANTS, use_fast_attention
from radloop.models.loading import Loaded
from radloop.models.packing import Batch
from radloop.training.batching import split_passes
from tests.unit.tiny import ANSWERS, QUESTIONS, image, save_base


@pytest.fixture
def loaded(tmp_path: Any) -> Loaded:
    return models.load(ModelConfig(base=str(save_base(tmp_path))))


def kinds(loaded: Loaded) -> tuple[str, str]:
    config = loaded.model.config
    return config.text_config._attn_implementation, config.vision_config._attn_implementation


def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loaded, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_a_cpu_gets_its_own_for_the_language_model(loaded: Loaded) -> None:
    use_fast_attention(loaded.family, loaded.model, loaded.device)
    assert kinds(loaded) == ("radloop_prefix", "sdpa")


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("name", ["attention_dropout", "dropout"])
def test_a_model_with_attention_dropout_keeps_the_stock_attention(
    loaded: Loaded, name: str, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gpu:
        pretend_gpu(monkeypatch)
    monkeypatch.setattr(fast_attention, "_try_out", lambda *arguments: None)
    setattr(loaded.model.config.text_config, name, 0.1)  # Mllama's is the second
    use_fast_attention(loaded.family, loaded.model, loaded.device)
    assert kinds(loaded) == ("sdpa", "sdpa")


def test_a_gpu_gets_it_for_the_language_model_after_a_trial(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []
    pretend_gpu(monkeypatch)
    monkeypatch.setattr(fast_attention, "_try_out", lambda *arguments: tried.append(arguments))
    use_fast_attention(loaded.family, loaded.model, loaded.device)
    assert (kinds(loaded), len(tried)) == (("flex_attention", "sdpa"), 1)


def test_where_the_trial_fails_all_stays_as_it_was(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("no compiler")

    pretend_gpu(monkeypatch)
    monkeypatch.setattr(fast_attention, "_try_out", fail)
    with caplog.at_level(logging.INFO):
        use_fast_attention(loaded.family, loaded.model, loaded.device)
    assert kinds(loaded) == ("sdpa", "sdpa")
    assert "no FlexAttention here (no compiler), sdpa is used" in caplog.text


def test_a_family_with_dense_masks_gets_its_own_on_a_cpu_and_stays_stock_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = {name for name in REGISTRY if not get_family(name).flex}
    assert dense == {"blip", "gemma3", "mllama"}
    get_family("mllama").tiny(tmp_path)
    mllama = models.load(ModelConfig(family="mllama", base=str(tmp_path)))
    with monkeypatch.context() as patch:
        patch.setattr(fast_attention, "_try_out", lambda *arguments: None)
        pretend_gpu(patch)
        use_fast_attention(mllama.family, mllama.model, mllama.device)
    assert kinds(mllama) == ("sdpa", "sdpa")
    use_fast_attention(mllama.family, mllama.model, mllama.device)
    assert kinds(mllama) == ("radloop_prefix", "sdpa")


@pytest.mark.parametrize("limit", [8, 1000])
def test_it_may_be_compiled_for_all_shapes_of_a_run(
    loaded: Loaded, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch)
    monkeypatch.setattr(fast_attention, "_try_out", lambda *arguments: None)
    with torch._dynamo.config.patch(recompile_limit=limit):
        use_fast_attention(loaded.family, loaded.model, loaded.device)
        assert torch._dynamo.config.recompile_limit == max(limit, MOST_VARIANTS)


def test_a_run_needs_far_fewer_variants_of_the_kernel_than_it_may_have(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the compiler is real: what PyTorch takes for new shapes is counted, and run as it stands."""
    compiled: list[Any] = []
    stock = torch.compile

    def backend(graph: Any, _inputs: Any) -> Any:  # one for all, as PyTorch compiles anew for another one
        compiled.append(graph)
        return graph.forward

    def counted(function: Any, **_: Any) -> Any:
        return stock(function, backend=backend)

    monkeypatch.setattr(torch, "compile", counted)
    monkeypatch.setattr(WrappedFlexAttention, "_is_flex_compiled", False)
    loaded.model.config.get_text_config()._attn_implementation = "flex_attention"
    loaded.model.requires_grad_(False)
    features = loaded.encode([image(0)])[0]
    draw = random.Random(0)
    counts = []
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=MOST_VARIANTS):
        for _epoch in range(5):
            for training, num_steps in ((True, 8), (False, 4)):
                loaded.model.train(training)
                for _step in range(num_steps):
                    groups = []
                    for number in range(draw.randint(1, 4)):
                        many = [f"is {'it ' * draw.randint(1, 12)}?" for _ in range(draw.randint(1, 9))]
                        pairs = loaded.prompts.pairs(many, ["yes"] * len(many), [[image(0).size]] * len(many))
                        groups += packing.groups([str(number)], pairs)
                    for rows in split_passes(groups, draw.choice([150, 4096]), "shared rows"):
                        with torch.set_grad_enabled(training):
                            num_images = sum(map(len, rows))
                            loaded.family.logits(loaded.model, Batch.of(rows), [features] * num_images)
            counts.append(len(compiled))
    torch._dynamo.reset()
    assert 1 < counts[-1] <= MOST_VARIANTS // 4
    assert counts[-1] == counts[-2]  # there is an end to it


CASES = [(name, "flex_attention") for name in REGISTRY if get_family(name).flex]
CASES += [(name, get_family(name).packed_attention) for name in REGISTRY]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_packed_rows_have_the_same_logits_with_it(name: str, kind: str, tmp_path: Path) -> None:
    family = get_family(name)
    family.tiny(tmp_path)
    loaded = models.load(ModelConfig(family=name, base=str(tmp_path)))
    images = [image(0), image(1, (72, 48))]
    groups = []
    for number, shown in enumerate(images):
        tokens = loaded.prompts.pairs(QUESTIONS[:3], ANSWERS[:3], [[shown.size]] * 3)
        groups += packing.groups([str(number)], tokens)
    batch = Batch.of([tuple(groups), tuple(groups[:1])])
    features = loaded.encode([*images, images[0]])
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = family.logits(loaded.model, batch, features)
        loaded.model.config.get_text_config()._attn_implementation = kind
        found = family.logits(loaded.model, batch, features)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
