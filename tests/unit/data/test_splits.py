from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radloop.data.splits import SPLITS, assign, merge

names = st.lists(st.text(max_size=8), unique=True, max_size=40)
seeds = st.integers(0, 2**31 - 1)
shares = st.floats(0, 0.5)


@given(names, seeds, shares, shares)
def test_each_group_has_one_split_and_it_is_the_same_again(
    groups: list[str], seed: int, validation: float, test: float
) -> None:
    found = assign(groups, seed, validation, test)
    assert set(found) == set(groups)
    assert set(found.values()) <= set(SPLITS)
    assert assign(reversed(groups), seed, validation, test) == found


@given(names, names, seeds)
def test_new_groups_never_move_old_ones(old: list[str], new: list[str], seed: int) -> None:
    before = assign(old, seed, 0.1, 0.2)
    after = assign([*new, *old], seed, 0.1, 0.2)
    assert {group: after[group] for group in old} == before


@given(names, seeds)
def test_a_larger_test_share_keeps_the_old_test_groups(groups: list[str], seed: int) -> None:
    small, large = assign(groups, seed, 0.1, 0.2), assign(groups, seed, 0.1, 0.4)
    assert {g for g in groups if small[g] == "test"} <= {g for g in groups if large[g] == "test"}


def test_shares_are_about_right_and_seeds_independent() -> None:
    groups = [f"image-{number}" for number in range(5000)]
    first, second = assign(groups, 7, 0.1, 0.2), assign(groups, 8, 0.1, 0.2)
    counts = {name: sum(split == name for split in first.values()) for name in SPLITS}
    assert abs(counts["test"] - 1000) < 120  # four standard deviations
    assert abs(counts["validation"] - 500) < 90
    both = sum(first[group] == second[group] == "test" for group in groups)
    assert 140 < both < 260  # 200 expected of independent draws


@pytest.mark.parametrize(("validation", "test"), [(0.6, 0.5), (-0.1, 0.2), (float("nan"), 0.2)])
def test_impossible_shares_are_refused(validation: float, test: float) -> None:
    with pytest.raises(ValueError, match="shares"):
        assign(["a"], 7, validation, test)


def test_groups_that_share_a_picture_are_joined_in_chains() -> None:
    joined = merge([("c", ["1"]), ("b", ["1", "2"]), ("a", ["2"]), ("d", ["3"]), ("c", ["4"]), ("e", [])])
    assert joined == {"a": "a", "b": "a", "c": "a", "d": "d", "e": "e"}


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.lists(st.sampled_from("123456"), max_size=3))))
def test_joined_groups_share_no_picture(memberships: list[tuple[str, list[str]]]) -> None:
    joined = merge(memberships)
    owner: dict[str, str] = {}
    for group, pictures in memberships:
        assert joined[joined[group]] == joined[group] <= group
        for picture in pictures:
            assert owner.setdefault(picture, joined[group]) == joined[group]
    assert merge(reversed(memberships)) == joined
