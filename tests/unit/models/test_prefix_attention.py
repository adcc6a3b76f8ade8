"""Attention that is taken apart by heads and tails gives what a dense mask gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv

from radloop.models import prefix_attention
from radloop.models.packing import PADDING, Batch, Group, Head, Row, Tokens, block_mask
from radloop.models.prefix_attention import _PrefixAttention
from radloop.models.prefix_layout import Layout, Layouts


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    """One to three rows of one to three groups, heads and tails of any length."""

    def group() -> Group:
        head = Head.counted((1,) * draw(st.sampled_from([1, 5, 17])))
        lengths = draw(st.lists(st.sampled_from([2, 3, 9, 40]), min_size=1, max_size=5))
        tails = tuple(
            Tokens(head, (2,) * length, draw(st.integers(1, min(3, length - 1)))) for length in lengths
        )
        return Group((), head, tails, tuple(range(len(tails))))

    return [tuple(group() for _ in range(draw(st.integers(1, 3)))) for _ in range(draw(st.integers(1, 3)))]


def random_tokens(batch: Batch, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Queries with four heads, keys and values with two."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch.input_ids.numel(), heads, 8) for heads in (4, 2, 2)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def dense(batch: Batch, tokens: list[torch.Tensor]) -> torch.Tensor:
    """The same with all scores computed, in double precision."""
    shape = batch.input_ids.shape
    queries, *others = (one.double().view(*shape, -1, 8).transpose(1, 2) for one in tokens)
    keys, values = (repeat_kv(one, 2) for one in others)
    found = scaled_dot_product_attention(queries, keys, values, attn_mask=block_mask(batch, batch))
    return found.transpose(1, 2).reshape(-1, 4, 8)


def require_same(batch: Batch, layer: str, tolerance: float, dtype: torch.dtype) -> None:
    tokens = random_tokens(batch, dtype)
    found = _PrefixAttention.apply(*tokens, getattr(Layouts.of(batch), layer), None)
    expected = dense(batch, tokens)
    read = (batch.predicts if layer == "last" else batch.groups != PADDING).flatten()
    assert (found - expected)[read].abs().max() < tolerance * expected.abs().max()
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)) * read[:, None, None]
    ours = torch.autograd.grad((found * weights).sum(), tokens)
    theirs = torch.autograd.grad((expected * weights).sum(), tokens)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() < tolerance * other.norm() + 1e-12
        assert not one[(batch.groups == PADDING).flatten()].any()


@settings(max_examples=60, deadline=None)
@given(rows=rows())
def test_values_and_gradients_are_those_of_a_dense_mask(rows: list[Row]) -> None:
    batch = Batch.of(rows)
    require_same(batch, "others", 1e-5, torch.float32)
    require_same(batch, "last", 1e-5, torch.float32)


@pytest.mark.parametrize("tails", [1, 3])
def test_it_takes_half_precision(tails: int) -> None:
    head = Head.counted((1,) * 7)
    pairs = tuple(Tokens(head, (2,) * 5, 2) for _ in range(tails))
    batch = Batch.of([(Group((), head, pairs, tuple(range(tails))),)] * 2)
    require_same(batch, "others", 2e-2, torch.bfloat16)
    require_same(batch, "last", 2e-2, torch.bfloat16)


def test_an_only_tail_is_one_piece_with_its_head() -> None:
    head = Head.counted((1,) * 7)
    groups = [Group((), head, (Tokens(head, (2,) * length, 2),), (0,)) for length in (27, 30, 26)]
    layouts = Layouts.of(Batch.of([tuple(groups)]))
    (part,) = layouts.others.heads
    assert (part.queries.places.shape, layouts.others.tails) == ((3, 36), ())


@pytest.mark.parametrize(("lengths", "keeps"), [([12] * 22, True), ([3] * 20 + [15], False)])
def test_what_is_kept_for_the_way_back_is_bounded(lengths: list[int], keeps: bool) -> None:
    head = Head.counted((1,) * 8)
    tails = tuple(Tokens(head, (2,) * length, 2) for length in lengths)
    batch = Batch.of([(Group((), head, tails, tuple(range(len(tails)))),)])
    layout = Layouts.of(batch).others
    assert layout.keeps_taken == keeps
    sizes: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    tokens = random_tokens(batch)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = _PrefixAttention.apply(*tokens, layout, None)
    # The output and its sums, one for each head, are kept as well.
    assert sum(sizes) - out.numel() - out.numel() // 8 <= 2 * 3 * out.numel()


@given(rows=rows())
@settings(max_examples=20, deadline=None)
def test_tokens_that_nobody_reads_have_no_output(rows: list[Row]) -> None:
    batch = Batch.of(rows)
    found = _PrefixAttention.apply(*random_tokens(batch), Layouts.of(batch).last, None)
    assert not found[~batch.predicts.flatten()].any()


def test_less_is_computed_than_with_a_dense_mask() -> None:
    head = Head.counted((1,) * 68)
    tails = tuple(Tokens(head, (2,) * 12, 2) for _ in range(22))
    batch = Batch.of([(Group((), head, tails, tuple(range(22))),)])
    layouts = prefix_attention.arguments(batch)["layouts"]

    def scores(layout: Layout) -> int:
        return sum(
            part.queries.places.numel() * part.keys.places.shape[1] for part in (*layout.heads, *layout.tails)
        )

    assert scores(layouts.others) < 0.25 * batch.input_ids.shape[1] ** 2
    assert scores(layouts.last) < 0.1 * batch.input_ids.shape[1] ** 2
