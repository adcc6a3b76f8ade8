from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radloop.data.splits import SPLITS, connected, stratified

seeds = st.integers(0, 2**31 - 1)
shares = st.floats(0, 0.5)
members = st.lists(
    st.tuples(st.text(max_size=3), st.sampled_from(["closed, CHEST", "open, HEAD", ""])), max_size=40
)
Members = list[tuple[str, str]]


def split(
    found: Members, seed: int, validation: float, test: float, kept: dict[str, str] | None = None
) -> dict[str, str]:
    return stratified([g for g, _ in found], [s for _, s in found], seed, validation, test, kept)


@given(members, seeds, shares, shares, st.randoms())
def test_each_group_has_one_split_whatever_the_order(
    found: Members, seed: int, validation: float, test: float, random: np.random.Generator
) -> None:
    placed = split(found, seed, validation, test)
    assert set(placed) == {group for group, _ in found}
    assert set(placed.values()) <= set(SPLITS)
    random.shuffle(found)  # type: ignore[arg-type]
    assert split(found, seed, validation, test) == placed


@given(members, members, seeds)
def test_groups_that_are_kept_never_move(old: Members, new: Members, seed: int) -> None:
    before = split(old, seed, 0.1, 0.2)
    after = split([*new, *old], seed, 0.1, 0.2, before)
    assert {group: after[group] for group in before} == before


sized = st.lists(
    st.tuples(st.sampled_from(["closed, CHEST", "open, CHEST", "open, HEAD"]), st.integers(1, 8)),
    min_size=1,
    max_size=60,
)


@given(sized, seeds, st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_each_stratum_gets_its_share_to_within_a_group(
    groups: list[tuple[str, int]], seed: int, validation: float, test: float
) -> None:
    found = [(f"g{n}", stratum) for n, (stratum, size) in enumerate(groups) for _ in range(size)]
    placed = split(found, seed, validation, test)
    total, held = Counter(s for _, s in found), Counter((s, placed[g]) for g, s in found)
    for stratum in total:
        largest = max(size for kind, size in groups if kind == stratum)
        for name, share in zip(SPLITS, (1 - validation - test, validation, test), strict=True):
            assert abs(held[stratum, name] - share * total[stratum]) <= largest


def test_mixed_groups_get_close_to_their_shares_and_seeds_are_independent() -> None:
    draw = np.random.default_rng(0)
    kinds = ["closed, CHEST", "open, CHEST", "open, HEAD", "closed, ABD"]
    found = [
        (f"image-{n}", kinds[k]) for n in range(500) for k in draw.choice(4, 7, p=[0.5, 0.3, 0.15, 0.05])
    ]
    first, second = split(found, 7, 0.1, 0.2), split(found, 8, 0.1, 0.2)
    total, held = Counter(s for _, s in found), Counter((s, first[g]) for g, s in found)
    for kind in kinds:
        assert held[kind, "test"] / total[kind] == pytest.approx(0.2, abs=0.01)
        assert held[kind, "validation"] / total[kind] == pytest.approx(0.1, abs=0.01)
    both = sum(first[group] == second[group] == "test" for group in first)
    assert 8 < both < 35  # about 20 expected of independent draws


def test_a_rare_stratum_is_shared_out_as_well_as_a_common_one() -> None:
    for seed in range(8):
        draw = np.random.default_rng(seed)
        found = [
            (f"image-{n}", stratum)
            for n in range(200)
            for stratum in ["common"] * int(draw.integers(1, 21)) + ["rare"] * int(draw.random() < 0.15)
        ]
        placed = split(found, seed, 0.1, 0.2)
        for stratum in ("common", "rare"):
            of_stratum = [placed[group] for group, kind in found if kind == stratum]
            assert abs(of_stratum.count("test") - 0.2 * len(of_stratum)) < 1


def test_large_groups_come_first_so_that_small_ones_even_out() -> None:
    found = [("large", "open")] * 40 + [(f"g{n}", "open") for n in range(60)]
    assert Counter(split(found, 7, 0, 0.4)[group] for group, _ in found) == {"train": 60, "test": 40}


def test_names_may_be_long_and_end_in_anything() -> None:
    names = ["a", "a\0", "a" * 100_000, *(f"g{n}" for n in range(2000))]  # of fixed width: 800 MB
    assert set(stratified(names, ["open"] * len(names), 7, 0.1, 0.2)) == set(names)


def test_no_share_gives_an_empty_split() -> None:
    found = [(f"g{n}", "open") for n in range(50)]
    assert set(split(found, 7, 0, 0).values()) == {"train"}
    assert set(split(found, 7, 0.5, 0.5).values()) == {"validation", "test"}


@pytest.mark.parametrize(("validation", "test"), [(0.6, 0.5), (-0.1, 0.2), (float("nan"), 0.2)])
def test_impossible_shares_are_refused(validation: float, test: float) -> None:
    with pytest.raises(ValueError, match="shares"):
        stratified(["a"], ["open"], 7, validation, test)


def test_samples_that_share_a_key_are_joined_in_chains() -> None:
    joined = connected([["c"], ["b", "c"], ["a", "b"], ["d"], []], alone=["1", "2", "3", "4", "5"])
    assert joined == ["a", "a", "a", "d", "5"]


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=3)))
def test_groups_are_the_smallest_that_share_no_key(some: list[list[str]]) -> None:
    found = connected(some, alone=[f"sample {n}" for n in range(len(some))])
    groups: list[set[str]] = []
    for keys in filter(None, some):  # oracle: merge sets one by one
        apart = [group for group in groups if not group & {*keys}]
        groups = [*apart, {*keys}.union(*(group for group in groups if group & {*keys}))]
    for number, keys in enumerate(some):
        assert found[number] == next((min(group) for group in groups if group & {*keys}), f"sample {number}")
