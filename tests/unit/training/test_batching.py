"""Which pairs a step reads, in which passes, and that the passes do not matter."""

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.models import packing
from radloop.models.family import Features
from radloop.models.loading import Loaded
from radloop.models.packing import Group, Head, Tokens
from radloop.training import finetune
from radloop.training.adapter import with_lora
from radloop.training.batching import Batches, RowLayout, row_length, split_passes
from radloop.training.examples import Examples, ImageSet
from radloop.training.losses import Weighting, summed_loss, total_weight
from tests.unit.tiny import prepared, save_base

IMAGE = 3  # the tiny base's image token


@st.composite
def image_groups(draw: st.DrawFn, max_images: int = 4) -> list[Group]:
    """Groups of random pairs behind heads of one image each."""
    ids = st.integers(4, 290)
    found: list[Group] = []
    for number in range(draw(st.integers(1, max_images))):
        head = Head.counted((*draw(st.lists(ids, max_size=5)), *[IMAGE] * 16))
        pair = st.builds(
            lambda question, answer, head=head: Tokens(head, (*question, *answer), len(answer)),
            st.lists(ids, min_size=1, max_size=8),
            st.lists(ids, min_size=1, max_size=6),
        )
        pairs = draw(st.lists(pair, min_size=1, max_size=6))
        found += packing.groups((str(number),), pairs, share_prefix=draw(st.booleans()))
    return found


def pairs_of(groups: list[Group]) -> list[tuple]:
    return sorted(
        (group.image_ids, number, tail.ids, tail.num_answer)
        for group in groups
        for number, tail in zip(group.numbers, group.tails, strict=True)
    )


LAYOUTS: tuple[RowLayout, ...] = get_args(RowLayout)


@settings(max_examples=100, deadline=None)
@given(groups=image_groups(), limit=st.none() | st.integers(1, 400), layout=st.sampled_from(LAYOUTS))
def test_passes_hold_every_pair_once_and_are_bounded(
    groups: list[Group], limit: int | None, layout: RowLayout
) -> None:
    passes = split_passes(groups, limit, layout)
    found = [group for rows in passes for row in rows for group in row]
    assert sorted(pairs_of(found)) == sorted(pairs_of(groups))
    if limit is None:
        assert len(passes) == 1
    else:
        for rows in passes:
            padded = len(rows) * max(map(row_length, rows))
            assert padded <= limit or [len(group.tails) for row in rows for group in row] == [1]
    if layout == "rows":
        assert all(len(row) == 1 for rows in passes for row in rows)
    if layout == "one row":
        assert all(len(rows) == 1 for rows in passes)


def test_rows_are_shared_up_to_the_longest() -> None:
    head = Head.counted((IMAGE,) * 4)
    long, *short = (
        packing.groups((str(n),), [Tokens(head, (9,) * length, 1)])[0]
        for n, length in enumerate((13, 5, 4, 3))
    )
    (rows,) = split_passes([*short, long], None, "shared rows")
    assert sorted(map(row_length, rows), reverse=True) == [16, 15, 6]


def test_a_group_is_taken_apart_behind_its_head() -> None:
    head = Head.counted((IMAGE,) * 4)
    (group,) = packing.groups(("a",), [Tokens(head, (n, 9), 1) for n in range(5)])
    parts = packing.split_group(group, 6)
    assert [part.numbers for part in parts] == [(0, 1), (2, 3), (4,)]
    assert all(part.head is head and len(part) <= 6 for part in parts)
    assert [part.numbers for part in packing.split_group(group, 1)] == [(n,) for n in range(5)]
    assert packing.split_group(group, 9) == [group]


@given(num_images=st.integers(1, 20), images_per_step=st.integers(1, 9), seed=st.integers(0, 2**31 - 1))
def test_every_epoch_has_every_image_once_in_its_own_order(
    num_images: int, images_per_step: int, seed: int
) -> None:
    (group,) = packing.groups(("a",), [Tokens(Head.counted((IMAGE,)), (9, 9), 1)])
    examples = Examples([ImageSet([group], [str(n)]) for n in range(num_images)], num_images, 0)
    batches = Batches(examples, images_per_step, None, "shared rows", seed)
    assert batches.steps_per_epoch == math.ceil(num_images / images_per_step)

    def epoch(number: int) -> list[str]:
        first = number * batches.steps_per_epoch + 1
        steps = range(first, first + batches.steps_per_epoch)
        assert {batches.epoch_of(step) for step in steps} == {number}
        return [name for step in steps for found in batches.of(step).sets for name in found.sample_ids]

    epochs = [epoch(number) for number in (2, 0, 3, 1)]  # in whichever order a step is asked for
    assert all(sorted(found) == sorted(str(n) for n in range(num_images)) for found in epochs)
    assert epochs == [epoch(number) for number in (2, 0, 3, 1)]
    assert num_images < 10 or len(set(map(tuple, epochs))) > 1


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A base with LoRA layers that already do something; in fp64, whose rounding cannot be mistaken."""
    torch.manual_seed(0)
    base = models.load(ModelConfig(base=str(save_base(tmp_path_factory.mktemp("base")))))
    loaded = with_lora(base, FinetuneConfig(rank=2))
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    loaded.model.double()
    return loaded


def features(image_ids: list[str]) -> list[Features]:
    seeds = [torch.Generator().manual_seed(int(name)) for name in image_ids]
    return [{"image": torch.randn(16, 16, generator=seed).double()} for seed in seeds]


def loss_and_gradients(
    loaded: Loaded, groups: list[Group], limit: int | None, layout: RowLayout, weighting: Weighting
) -> tuple[float, torch.Tensor]:
    loaded.model.zero_grad()
    passes = split_passes(groups, limit, layout)
    weight = sum(total_weight(rows, weighting) for rows in passes)
    total = 0.0
    for rows in passes:
        loss = summed_loss(loaded, features, rows, weighting) / weight
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in loaded.model.parameters() if p.requires_grad])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(groups=image_groups(3), limit=st.integers(1, 200), weighting=st.sampled_from(["token", "answer"]))
def test_loss_and_gradients_do_not_depend_on_passes_or_packing(
    loaded: Loaded, groups: list[Group], limit: int, weighting: Weighting
) -> None:
    plain = [part for group in groups for part in packing.split_group(group, 1)]
    expected, expected_gradients = loss_and_gradients(loaded, plain, None, "rows", weighting)
    for arranged, layout in (
        (groups, "shared rows"),
        (groups, "rows"),
        (groups, "one row"),
        (plain, "one row"),
    ):
        loss, gradients = loss_and_gradients(loaded, arranged, limit, layout, weighting)
        assert loss == pytest.approx(expected, rel=1e-6)
        assert (gradients - expected_gradients).norm() < 1e-6 * expected_gradients.norm()


def test_every_token_or_every_answer_weighs_the_same(loaded: Loaded) -> None:
    head = Head.counted((IMAGE,) * 16)
    short, long = Tokens(head, (5, 6, 7), 1), Tokens(head, (5, 8, 9, 10, 11), 3)
    means = {
        num: summed_loss(loaded, features, [tuple(packing.groups(("0",), [pair]))], "token").item() / num
        for num, pair in ((1, short), (3, long))
    }
    rows = [tuple(packing.groups(("0",), [short, long]))]
    assert (total_weight(rows, "token"), total_weight(rows, "answer")) == (4, 2)
    by_token = summed_loss(loaded, features, rows, "token").item() / 4
    by_answer = summed_loss(loaded, features, rows, "answer").item() / 2
    assert by_token == pytest.approx((means[1] + 3 * means[3]) / 4, rel=1e-5)
    assert by_answer == pytest.approx((means[1] + means[3]) / 2, rel=1e-5)
    assert abs(by_token - by_answer) > 1e-3


@pytest.mark.parametrize("loss", ["token", "answer"])
def test_a_run_does_not_depend_on_its_passes(tmp_path: Path, loss: str) -> None:
    base = ModelConfig(base=str(save_base(tmp_path)))
    histories = [
        finetune(
            prepared(6, 2),
            base,
            FinetuneConfig(epochs=2, images_per_step=3, rank=4, loss=loss, tokens_per_pass=limit),
            seed=0,
        ).record["history"]
        for limit in (None, 100, 1)
    ]
    for entries in zip(*histories, strict=True):
        for name in {"loss", "grad_norm", "validation_loss"} & set(entries[0]):
            values = [entry[name] for entry in entries]
            assert values == pytest.approx([values[0]] * 3, rel=1e-5)
    assert "validation_loss" in histories[0][-1]
    assert histories[0][0]["loss"] == pytest.approx(histories[2][0]["loss"], rel=1e-6)
