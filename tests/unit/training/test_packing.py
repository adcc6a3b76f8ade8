"""Packed questions are trained and answered exactly as if each had its own sequence."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.models.loading import Loaded
from radloop.models.prompts import Tokens
from radloop.training import packing
from radloop.training.adapter import with_lora
from radloop.training.loop import token_losses
from radloop.training.packing import HEAD, PADDING, Batch, block_mask
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
    """One to three images, each with pairs of random tokens and lengths behind one head."""
    ids = st.integers(4, 290)
    head = (*draw(st.lists(ids, max_size=4)), *[IMAGE] * 16)
    pair = st.builds(
        lambda question, answer: Tokens(head, (*question, *answer), len(answer)),
        st.lists(ids, min_size=1, max_size=9),
        st.lists(ids, min_size=1, max_size=6),
    )
    return draw(st.lists(st.lists(pair, min_size=1, max_size=8), min_size=1, max_size=3))


def loss_and_gradients(loaded: Loaded, rows: list[packing.Row]) -> tuple[torch.Tensor, torch.Tensor]:
    def features(image_ids: list[str]) -> torch.Tensor:
        return torch.stack(
            [torch.randn(16, 16, generator=torch.Generator().manual_seed(int(i))) for i in image_ids]
        )

    loaded.model.zero_grad()
    loss = token_losses(loaded, features, rows).mean()
    loss.backward()
    gradients = [p.grad.flatten() for p in loaded.model.parameters() if p.requires_grad]
    return loss.detach(), torch.cat(gradients)


@settings(max_examples=25, deadline=None)
@given(images=images_with_pairs(), limit=st.sampled_from([12, 40, 10_000]))
def test_packed_rows_give_loss_and_gradients_of_plain_rows(
    loaded: Loaded, images: list[list[Tokens]], limit: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_MAX_TAIL_TOKENS", limit)
        packed = [row for n, pairs in enumerate(images) for row in packing.rows(str(n), pairs)]
    plain = [row for n, pairs in enumerate(images) for row in packing.rows(str(n), pairs, share_prefix=False)]
    assert len(plain) == sum(map(len, images))
    loss, gradients = loss_and_gradients(loaded, packed)
    expected, expected_gradients = loss_and_gradients(loaded, plain)
    assert torch.allclose(loss, expected, rtol=1e-5, atol=0)
    assert (gradients - expected_gradients).norm() < 1e-5 * expected_gradients.norm()


@settings(max_examples=50, deadline=None)
@given(images=images_with_pairs(), limit=st.sampled_from([1, 12, 40, 10_000]))
def test_rows_hold_every_pair_once_and_stay_below_the_limit(images: list[list[Tokens]], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_MAX_TAIL_TOKENS", limit)
        for pairs in images:
            rows = packing.rows("i", pairs)
            numbers = [number for row in rows for number in row.numbers]
            assert sorted(numbers) == list(range(len(pairs)))
            for row in rows:
                assert row.tails == tuple(pairs[number] for number in row.numbers)
                assert len(row.tails) == 1 or sum(len(tail.tail) for tail in row.tails) <= limit


def test_pairs_with_other_heads_get_rows_of_their_own() -> None:
    question_first = [
        Tokens((5, IMAGE), (7, 8), 1),
        Tokens((6, IMAGE), (7, 8), 1),
        Tokens((5, IMAGE), (9, 8), 1),
    ]
    assert [row.numbers for row in packing.rows("i", question_first)] == [(0, 2), (1,)]


@settings(max_examples=50, deadline=None)
@given(
    segments=st.lists(st.integers(PADDING, 3), min_size=1, max_size=12),
    queries=st.integers(1, 12),
)
def test_a_token_sees_the_head_and_its_own_segment_up_to_itself(segments: list[int], queries: int) -> None:
    queries = min(queries, len(segments))
    first = len(segments) - queries
    keys = torch.tensor([segments])
    mask = block_mask(keys[:, first:], keys)[0, 0]
    for query in range(queries):
        for key, segment in enumerate(segments):
            sees = key <= first + query and segment in (HEAD, segments[first + query])
            assert mask[query, key] == sees
    assert mask.any(dim=1).all()


def test_a_batch_restarts_positions_and_predicts_answers_only() -> None:
    pairs = [Tokens((1, IMAGE), (10, 11, 12), 1), Tokens((1, IMAGE), (20, 21, 22, 23), 2)]
    rows = [*packing.rows("a", pairs), *packing.rows("b", pairs[:1])]
    batch = Batch.of(rows)
    assert batch.input_ids[0].tolist() == [1, IMAGE, 10, 11, 12, 20, 21, 22, 23]
    assert batch.segments.tolist() == [[0, 0, 1, 1, 1, 2, 2, 2, 2], [0, 0, 1, 1, 1, -1, -1, -1, -1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3, 4, 5], [0, 1, 2, 3, 4, 0, 0, 0, 0]]
    assert batch.predicts.nonzero().tolist() == [[0, 3], [0, 6], [0, 7], [1, 3]]
    assert batch.targets.tolist() == [12, 22, 23, 12]


def test_questions_without_answers_predict_after_their_last_token() -> None:
    rows = packing.rows("a", [Tokens((1, IMAGE), (10, 11)), Tokens((1, IMAGE), (20,))])
    batch = Batch.of(rows, with_head=False)
    assert batch.input_ids.tolist() == [[10, 11, 20]]
    assert batch.position_ids.tolist() == [[2, 3, 2]]
    assert batch.predicts.tolist() == [[False, True, True]]


def test_a_packed_row_is_much_shorter_than_its_pairs(tmp_path: Path) -> None:
    prompts = models.load(ModelConfig(base=str(save_base(tmp_path)))).prompts
    pairs = prompts.pairs(["Which side?"] * 7, ["left"] * 7)
    assert Batch.of(packing.rows("a", pairs)).input_ids.numel() < 0.6 * sum(map(len, pairs))
