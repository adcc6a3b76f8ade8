"""Packed questions are trained and answered exactly as if each had its own sequence."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_mask

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.models import packing
from radloop.models.family import Features
from radloop.models.loading import Loaded
from radloop.models.packing import (
    HEAD,
    PADDING,
    Batch,
    Head,
    Row,
    Tokens,
    block_mask,
    flex_mask,
)
from radloop.training.adapter import with_lora
from radloop.training.losses import token_losses
from tests.unit.tiny import save_base

IMAGE = 3  # the tiny base's image token


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A base with LoRA layers that already do something."""
    base = models.load(ModelConfig(base=str(save_base(tmp_path_factory.mktemp("base")))))
    torch.manual_seed(0)
    loaded = with_lora(base, FinetuneConfig(rank=2, targets=("attention", "mlp", "projector")))
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return loaded


@st.composite
def images_with_pairs(draw: st.DrawFn) -> list[list[Tokens]]:
    """One to three images, each with pairs of random tokens and lengths behind one head.

    What a pair asks begins with a wording that some of them share.
    """
    ids = st.integers(4, 290)
    head = Head.counted((*draw(st.lists(ids, max_size=4)), *[IMAGE] * 16))
    wordings = [(), tuple(draw(st.lists(ids, max_size=6)))]
    pair = st.builds(
        lambda wording, question, answer: Tokens(head, (*wording, *question, *answer), len(answer)),
        st.sampled_from(wordings),
        st.lists(ids, min_size=1, max_size=9),
        st.lists(ids, min_size=1, max_size=6),
    )
    return draw(st.lists(st.lists(pair, min_size=1, max_size=8), min_size=1, max_size=3))


def loss_and_gradients(loaded: Loaded, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    def features(image_ids: list[str]) -> list[Features]:
        seeds = [torch.Generator().manual_seed(int(name)) for name in image_ids]
        return [{"image": torch.randn(16, 16, generator=seed)} for seed in seeds]

    loaded.model.zero_grad()
    loss = token_losses(loaded, features, rows).mean()
    loss.backward()
    gradients = [p.grad.flatten() for p in loaded.model.parameters() if p.requires_grad]
    return loss.detach(), torch.cat(gradients)


@settings(max_examples=25, deadline=None)
@given(
    images=images_with_pairs(),
    limit=st.sampled_from([12, 40, 10_000]),
    row_tokens=st.sampled_from([1, 60, 200]),
    lengthen_heads=st.booleans(),
)
def test_packed_rows_give_loss_and_gradients_of_plain_rows(
    loaded: Loaded,
    images: list[list[Tokens]],
    limit: int,
    row_tokens: int,
    lengthen_heads: bool,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_MAX_TAIL_TOKENS", limit)
        packed = [
            group
            for n, pairs in enumerate(images)
            for group in packing.groups((str(n),), pairs, lengthen_heads=lengthen_heads)
        ]
    plain = [
        (group,)
        for n, pairs in enumerate(images)
        for group in packing.groups((str(n),), pairs, share_prefix=False)
    ]
    assert len(plain) == sum(map(len, images))
    loss, gradients = loss_and_gradients(loaded, packing.fill_rows(packed, row_tokens))
    expected, expected_gradients = loss_and_gradients(loaded, plain)
    assert torch.allclose(loss, expected, rtol=1e-5, atol=0)
    assert (gradients - expected_gradients).norm() < 1e-5 * expected_gradients.norm()


@settings(max_examples=50, deadline=None)
@given(images=images_with_pairs(), limit=st.sampled_from([1, 12, 40, 10_000]))
def test_groups_hold_every_pair_once_and_stay_below_the_limit(images: list[list[Tokens]], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_MAX_TAIL_TOKENS", limit)
        for pairs in images:
            groups = packing.groups(("i",), pairs)
            numbers = [number for group in groups for number in group.numbers]
            assert sorted(numbers) == list(range(len(pairs)))
            for group in groups:
                assert group.tails == tuple(pairs[number] for number in group.numbers)
                assert len(group.tails) == 1 or sum(len(tail.read) for tail in group.tails) <= limit


@settings(max_examples=50, deadline=None)
@given(images=images_with_pairs(), max_tokens=st.integers(1, 200))
def test_rows_hold_every_group_once_and_stay_below_the_limit(
    images: list[list[Tokens]], max_tokens: int
) -> None:
    groups = [group for n, pairs in enumerate(images) for group in packing.groups((str(n),), pairs)]
    rows = packing.fill_rows(groups, max_tokens)
    assert sorted(id(group) for row in rows for group in row) == sorted(map(id, groups))
    assert all(len(row) == 1 or sum(map(len, row)) <= max_tokens for row in rows)


@settings(max_examples=100, deadline=None)
@given(images=images_with_pairs())
def test_a_lengthened_head_has_all_that_tails_begin_with_but_what_predicts(
    images: list[list[Tokens]],
) -> None:
    for pairs in images:
        (group,) = packing.groups(("i",), pairs)
        (longer,) = packing.groups(("i",), pairs, lengthen_heads=True)
        assert [pair.ids for pair in longer.tails] == [pair.ids for pair in pairs]
        assert [pair.num_answer for pair in longer.tails] == [pair.num_answer for pair in pairs]
        assert all(pair.head == longer.head for pair in longer.tails)
        assert longer.head.positions == ((*range(len(longer.head)),),)
        assert longer.head.next_position == len(longer.head)
        asked = [len(pair.tail) - pair.num_answer for pair in longer.tails]
        assert min(asked) >= 1
        if len(pairs) == 1:
            assert longer == group
        elif min(asked) > 1:
            assert len({pair.tail[0] for pair in longer.tails}) > 1


def test_a_lengthened_head_counts_on_where_tails_began_on_every_axis() -> None:
    head = Head((1, IMAGE, IMAGE), ((0, 1, 1), (0, 1, 2)), 5)  # an image that takes more room than tokens
    pairs = [Tokens(head, (7, 8, 9, 4), 1), Tokens(head, (7, 8, 5), 1)]
    (group,) = packing.groups(("i",), pairs, lengthen_heads=True)
    assert group.head == Head((1, IMAGE, IMAGE, 7), ((0, 1, 1, 5), (0, 1, 2, 5)), 6)
    assert [pair.tail for pair in group.tails] == [(8, 9, 4), (8, 5)]


def test_a_long_wording_that_all_share_does_not_take_a_group_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MAX_TAIL_TOKENS", 40)
    pairs = [Tokens(Head.counted((1, IMAGE)), (*range(20), 30 + n, 4), 1) for n in range(9)]
    assert len(packing.groups(("i",), pairs)) > 1
    (group,) = packing.groups(("i",), pairs, lengthen_heads=True)
    assert len(group) == 2 + 20 + 9


def test_pairs_with_other_heads_get_groups_of_their_own() -> None:
    question_first = [
        Tokens(Head.counted((5, IMAGE)), (7, 8), 1),
        Tokens(Head.counted((6, IMAGE)), (7, 8), 1),
        Tokens(Head.counted((5, IMAGE)), (9, 8), 1),
    ]
    assert [group.numbers for group in packing.groups(("i",), question_first)] == [(0, 2), (1,)]


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.lists(st.tuples(st.integers(0, 2), st.integers(PADDING, 3)), min_size=1, max_size=12),
    queries=st.integers(1, 12),
)
def test_a_token_sees_its_groups_head_and_its_own_segment_up_to_itself(
    tokens: list[tuple[int, int]], queries: int
) -> None:
    groups = torch.tensor([[group if segment != PADDING else PADDING for group, segment in tokens]])
    segments = torch.tensor([[segment for _, segment in tokens]])
    first = len(tokens) - min(queries, len(tokens))
    nothing = torch.zeros_like(groups)
    seen = Batch(nothing, groups, segments, nothing[None], nothing, nothing, nothing)
    new = replace(seen, input_ids=nothing[:, first:], groups=groups[:, first:], segments=segments[:, first:])
    mask = block_mask(new, seen)[0, 0]
    for query in range(len(tokens) - first):
        group, segment = groups[0, first + query], segments[0, first + query]
        for key in range(len(tokens)):
            its_own = groups[0, key] == group and segments[0, key] in (HEAD, segment)
            assert mask[query, key] == (key <= first + query and its_own)
    assert mask.any(dim=1).all()


def test_a_batch_restarts_positions_and_predicts_answers_whose_ends_it_does_not_read() -> None:
    head = Head.counted((1, IMAGE))
    pairs = [Tokens(head, (10, 11, 12), 1), Tokens(head, (20, 21, 22, 23), 2)]
    (first,), (second,) = packing.groups(("a",), pairs), packing.groups(("b",), pairs[:1])
    batch = Batch.of([(first,), (second, second)])
    assert batch.input_ids.tolist() == [
        [1, IMAGE, 10, 11, 20, 21, 22, 22],  # the last one fills up
        [1, IMAGE, 10, 11, 1, IMAGE, 10, 11],
    ]
    assert batch.groups.tolist() == [[0] * 7 + [-1], [0] * 4 + [1] * 4]
    assert batch.segments.tolist() == [[0, 0, 1, 1, 2, 2, 2, -1], [0, 0, 1, 1] * 2]
    assert batch.position_ids.tolist() == [[[0, 1, 2, 3, 2, 3, 4, 0], [0, 1, 2, 3] * 2]]
    assert batch.predicts.nonzero().tolist() == [[0, 3], [0, 5], [0, 6], [1, 3], [1, 7]]
    assert batch.targets.tolist() == [12, 22, 23, 12, 12]
    assert batch.answers.tolist() == [0, 1, 1, 2, 3]


def test_questions_without_answers_predict_after_their_last_token() -> None:
    head = Head.counted((1, IMAGE))
    groups = packing.groups(("a",), [Tokens(head, (10, 11)), Tokens(head, (20,))])
    batch = Batch.of([(*groups,)], with_head=False)
    assert batch.input_ids.tolist() == [[10, 11, 20]]
    assert batch.position_ids.tolist() == [[[2, 3, 2]]]
    assert batch.predicts.tolist() == [[False, True, True]]


def test_a_packed_row_is_much_shorter_than_its_pairs(tmp_path: Path) -> None:
    prompts = models.load(ModelConfig(base=str(save_base(tmp_path)))).prompts
    pairs = prompts.pairs(["Which side?"] * 7, ["left"] * 7, [[(48, 48)]] * 7)
    (group,) = packing.groups(("a",), pairs)
    assert len(group) < 0.6 * sum(map(len, pairs))


@settings(max_examples=50, deadline=None)
@given(
    images=images_with_pairs(),
    row_tokens=st.sampled_from([1, 60, 200]),
    queries=st.none() | st.integers(1, 30),
)
def test_flex_attention_hides_what_the_dense_mask_hides(
    images: list[list[Tokens]], row_tokens: int, queries: int | None
) -> None:
    groups = [group for n, pairs in enumerate(images) for group in packing.groups((str(n),), pairs)]
    seen = Batch.of(packing.fill_rows(groups, row_tokens))
    last = slice(None) if queries is None else slice(-queries, None)
    new = replace(
        seen,
        input_ids=seen.input_ids[:, last],
        groups=seen.groups[:, last],
        segments=seen.segments[:, last],
    )
    rows, num_new, num_seen = *new.input_ids.shape, seen.input_ids.shape[1]
    mask = flex_mask(new, seen)
    assert mask.shape == (rows, 1, num_new, num_seen)
    dense = create_mask(mask.mask_mod, rows, 1, num_new, num_seen, device="cpu")
    assert torch.equal(dense, block_mask(new, seen))


def test_the_model_decides_which_mask_it_gets(loaded: Loaded) -> None:
    head = Head.counted((1, IMAGE))
    batch = Batch.of([tuple(packing.groups(("a",), [Tokens(head, (10, 11), 1)]))])
    model = loaded.base_model
    assert torch.equal(loaded.family.mask(model, batch, batch), block_mask(batch, batch))
    model.set_attn_implementation({"text_config": "flex_attention"})
    assert isinstance(loaded.family.mask(model, batch, batch), BlockMask)
    assert model.config.vision_config._attn_implementation == "sdpa"
    model.set_attn_implementation({"text_config": "sdpa"})
    assert torch.equal(loaded.family.mask(model, batch, batch), block_mask(batch, batch))
