from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radloop.evaluation.statistics import Groups

rows_of_two_systems = st.tuples(st.sampled_from("abcdefgh"), st.floats(0, 1), st.floats(0, 1))
scored = st.lists(rows_of_two_systems, min_size=1, max_size=60)


def groups_of(labels: list[str], resamples: int = 400, confidence: float = 0.95, seed: int = 3) -> Groups:
    return Groups(labels, resamples, confidence, seed)


@settings(max_examples=60, deadline=None)
@given(scored)
def test_an_interval_holds_its_estimate_and_stays_in_bounds(rows: list[tuple[str, float, float]]) -> None:
    labels, ours, theirs = map(list, zip(*rows, strict=True))
    groups = groups_of(labels)
    estimate = groups.mean(ours)
    assert estimate.value == pytest.approx(np.mean(ours))
    assert -1e-12 <= estimate.low <= estimate.value <= estimate.high <= 1 + 1e-12
    comparison = groups.compare(ours, theirs)
    assert comparison.difference == pytest.approx(np.mean(ours) - np.mean(theirs), abs=1e-9)
    assert -1 - 1e-12 <= comparison.low <= comparison.difference <= comparison.high <= 1 + 1e-12
    assert 0 < comparison.p <= 1


@settings(max_examples=30, deadline=None)
@given(scored)
def test_equal_systems_do_not_differ(rows: list[tuple[str, float, float]]) -> None:
    labels, scores, _ = map(list, zip(*rows, strict=True))
    comparison = groups_of(labels).compare(scores, scores)
    assert comparison.difference == 0
    assert comparison.low < 0 < comparison.high
    assert comparison.p == 1


def test_swapping_the_systems_mirrors_the_comparison() -> None:
    rng = np.random.default_rng(0)
    labels = [f"g{number}" for number in rng.integers(0, 30, 200)]
    ours, theirs = rng.integers(0, 2, (2, 200)).astype(float).tolist()
    groups = groups_of(labels, resamples=4000)
    forth, back = groups.compare(ours, theirs), groups.compare(theirs, ours)
    assert forth.difference == -back.difference
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    assert forth.p == back.p


def test_the_same_seed_gives_the_same_interval() -> None:
    labels = [str(number % 20) for number in range(100)]
    scores = [float(number % 3 == 0) for number in range(100)]
    assert groups_of(labels).mean(scores) == groups_of(labels).mean(scores)
    assert groups_of(labels).mean(scores) != groups_of(labels, seed=4).mean(scores)


def test_more_groups_make_it_narrower_and_more_samples_of_a_group_do_not() -> None:
    rng = np.random.default_rng(1)
    by_group = rng.integers(0, 2, 400).astype(float)

    def width(num_groups: int, copies: int) -> float:
        labels = np.repeat(np.arange(num_groups), copies).astype(str).tolist()
        found = groups_of(labels).mean(np.repeat(by_group[:num_groups], copies).tolist())
        return found.high - found.low

    assert width(400, 1) < 0.6 * width(100, 1)
    assert width(100, 10) == pytest.approx(width(100, 1))


def test_groups_that_agree_still_leave_doubt() -> None:
    # Clopper-Pearson for 3 of 3 at 95 %: 0.025 ** (1 / 3).
    perfect = groups_of(["a", "b", "c", "c"]).mean([1, 1, 1, 1])
    assert (perfect.low, perfect.high) == (pytest.approx(0.2924, abs=1e-4), 1)
    lone = groups_of(["a", "a"]).mean([1, 0])
    assert lone.low < 0.02
    assert lone.high > 0.98


@pytest.mark.parametrize(("num_groups", "size"), [(12, 5), (60, 5)])
def test_it_covers_what_it_claims(num_groups: int, size: int) -> None:
    """90 % intervals hold the truth in about 90 % of simulated test sets whose images differ in hardness."""
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(num_groups), size).astype(str).tolist()
    held = 0
    for trial in range(300):
        hardness = rng.beta(1.4, 0.6, num_groups)  # mean 0.7, strongly clustered
        scores = (rng.random((num_groups, size)) < hardness[:, None]).astype(float).ravel()
        found = groups_of(labels, resamples=300, confidence=0.9, seed=trial).mean(scores.tolist())
        held += found.low <= 0.7 <= found.high
    assert 0.85 <= held / 300 <= 0.95


def test_p_is_exact_for_few_groups() -> None:
    # Of the 16 sign patterns of 1 1 1 1, two are as extreme as the observed one.
    assert groups_of(list("abcd")).sign_flip([1, 1, 1, 1]) == 2 / 16
    # Groups that cancel out inside themselves say nothing.
    assert groups_of(list("aabb")).sign_flip([1, -1, 1, -1]) == 1


def test_p_by_random_flips_agrees_with_the_exact_one() -> None:
    from scipy.stats import binomtest

    differences = [1.0] * 16 + [-1.0] * 4
    p = groups_of([str(number) for number in range(20)]).sign_flip(differences)
    assert p == pytest.approx(binomtest(4, 20).pvalue, abs=0.004)


def test_p_is_small_only_as_often_as_it_says() -> None:
    rng = np.random.default_rng(8)
    labels = np.repeat(np.arange(12), 4).astype(str).tolist()
    small = 0
    for trial in range(300):
        effect = rng.normal(size=12)  # systems differ by image, but not on average
        small += groups_of(labels, seed=trial).sign_flip(np.repeat(effect, 4).tolist()) <= 0.1
    assert 0.05 <= small / 300 <= 0.15


def test_many_groups_stay_within_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [str(number) for number in range(500)]
    scores = np.random.default_rng(0).integers(0, 2, 500).astype(float).tolist()
    whole = groups_of(labels).mean(scores)
    monkeypatch.setattr("radloop.evaluation.statistics._CELLS_AT_ONCE", 5000)
    assert groups_of(labels).mean(scores) == whole


def test_no_samples_are_an_error() -> None:
    with pytest.raises(ValueError, match="got no samples"):
        groups_of([])
