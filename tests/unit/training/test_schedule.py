"""Length of a run, and its learning rate."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radloop.config import FinetuneConfig
from radloop.errors import ConfigError
from radloop.training.schedule import count_steps, rate_factor


@given(
    num_steps=st.integers(1, 300),
    warmup=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_the_rate_rises_to_one_and_then_falls(num_steps: int, warmup: float, schedule: str) -> None:
    config = FinetuneConfig(warmup=warmup, schedule=schedule)
    factors = [rate_factor(step, num_steps, config) for step in range(1, num_steps + 1)]
    top = max(0, math.ceil(Fraction(str(warmup)) * num_steps) - 1)
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert factors[top] == 1


def test_schedules_fall_as_they_are_called() -> None:
    def factors(schedule: str) -> list[float]:
        config = FinetuneConfig(schedule=schedule, warmup_steps=2)
        return [rate_factor(step, 6, config) for step in range(1, 7)]

    assert factors("constant") == [0.5, 1, 1, 1, 1, 1]
    assert factors("linear") == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])
    assert factors("cosine") == pytest.approx([0.5, 1, 1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5])


def test_warmup_steps_go_before_the_share() -> None:
    config = FinetuneConfig(warmup=1.0, warmup_steps=0, schedule="constant")
    assert rate_factor(1, 10, config) == 1


def test_the_length_is_given_in_epochs_or_in_steps() -> None:
    assert count_steps(FinetuneConfig(epochs=2.5), 4) == 10
    assert count_steps(FinetuneConfig(epochs=0.01), 4) == 1
    assert count_steps(FinetuneConfig(epochs=3, max_steps=7), 4) == 7


def test_half_a_step_is_one() -> None:
    assert [count_steps(FinetuneConfig(epochs=0.5), steps) for steps in (1, 3, 5, 7)] == [1, 2, 3, 4]
    assert count_steps(FinetuneConfig(epochs=1.15), 10) == 12  # of which the float is a little less


@pytest.mark.parametrize(("warmup", "rise"), [(0.07, 7), (0.14, 14), (0.28, 28), (0.071, 8), (1e-5, 1)])
def test_a_share_of_steps_is_taken_as_it_is_written(warmup: float, rise: int) -> None:
    config = FinetuneConfig(warmup=warmup, schedule="linear")
    assert [rate_factor(step, 100, config) for step in (1, rise)] == [1 / rise, 1]
    assert rate_factor(rise + 2, 100, config) < 1


def test_a_warm_up_that_never_ends_is_refused() -> None:
    assert count_steps(FinetuneConfig(epochs=1, warmup_steps=4), 4) == 4
    with pytest.raises(ConfigError, match="warmup_steps: got 5, but the run has 4 steps"):
        count_steps(FinetuneConfig(epochs=1, warmup_steps=5), 4)
