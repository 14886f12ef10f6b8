"""Confidence intervals of numbers with bounds, such as accuracies: within them, and those of t far from them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clbench.config.errors import ConfigError
from clbench.results.statistics import half_width, interval, paired

SHARES = st.lists(st.floats(0, 1), min_size=3, max_size=40)


def test_by_hand() -> None:
    """Mean .9, sd of (-.05, -.025, .025, .05) and t of three degrees of freedom, 3.182446: the half width h.

    The ends are at logit(.9) = ln 9 minus and plus h / (.9 * .1), turned back by 1 / (1 + exp(-x)).
    """
    values = [0.9 + d for d in (-0.05, -0.025, 0.025, 0.05)]
    sd = math.sqrt((2 * 0.05**2 + 2 * 0.025**2) / 3)
    half = 3.182446 * sd / 2
    expected = [1 / (1 + math.exp(-(math.log(9) + sign * half / 0.09))) for sign in (-1, 1)]
    low, high, method = interval(values, bounds=(0, 1))  # type: ignore[misc]
    assert (low, high) == pytest.approx(expected, abs=1e-6)
    assert method == "logit"


@given(SHARES)
def test_it_is_within_its_bounds_and_holds_the_mean(values: list[float]) -> None:
    found = interval(values, bounds=(0, 1))
    assert found is not None
    assert 0 <= found.low <= np.mean(values) + 1e-9
    assert np.mean(values) - 1e-9 <= found.high <= 1


@given(SHARES)
def test_it_is_mirrored_with_the_values_and_moves_with_the_bounds(values: list[float]) -> None:
    """An error rate is 1 - accuracy; a difference of accuracies has the bounds -1 and 1."""
    values = values[:19]
    one, other = interval(values, bounds=(0, 1)), interval([1 - v for v in values], bounds=(0, 1))
    moved = interval([2 * v - 1 for v in values], bounds=(-1, 1))
    assert one is not None
    assert other is not None
    assert moved is not None
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-6)
    assert (moved.low, moved.high) == pytest.approx((2 * one.low - 1, 2 * one.high - 1), abs=1e-6)


def test_far_from_the_bounds_it_is_that_of_t() -> None:
    values = [0.5, 0.501, 0.502]
    bounded, free = interval(values, bounds=(0, 1)), interval(values)
    assert bounded is not None
    assert free is not None
    assert bounded[:2] == pytest.approx(free[:2], abs=1e-6)


@pytest.mark.parametrize("values", [[0.979, 1.0], [0.1, 0.9], [0.5], [], [0.5, None, float("nan"), 0.6]])
def test_fewer_than_three_accuracies_have_none(values: list[float | None]) -> None:
    """By t 0.979 and 1.0 gave 85.6 to 112.3 %, and 0.1 and 0.9 -458 to 558 %."""
    assert interval(values, bounds=(0, 1)) is None


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_equal_accuracies_have_an_interval_of_no_width(value: float) -> None:
    assert interval([value] * 3, bounds=(0, 1)) == (value, value, "logit")


@pytest.mark.parametrize("values", [[1.0, 1.0, 0.9685], [0.0, 0.0, 1e-300], [1.0, 1.0, 1 - 1e-16], [0, 0, 1]])
def test_values_on_a_bound_are_no_trouble(values: list[float]) -> None:
    found = interval(values, bounds=(0, 1))
    assert found is not None
    assert 0 <= found.low <= found.high <= 1


def test_a_wider_level_is_wider() -> None:
    values = [0.9, 0.95, 0.99]
    narrow, wide = interval(values, 0.9, (0, 1)), interval(values, 0.99, (0, 1))
    assert narrow is not None
    assert wide is not None
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("bounds", [(1, 0), (0.5, 0.5), (0.2, 1), (0, 0.4)])
def test_bounds_in_the_wrong_order_and_values_outside_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="accepted"):
        interval([0.1, 0.2, 0.5], bounds=bounds)


def test_differences_of_accuracies_have_bounds_too() -> None:
    """Differences .9, .5, .1: mean .5, sd .4, and t gives -.49 to 1.49."""
    ours = {(seed, "a"): value for seed, value in enumerate((0.9, 0.6, 0.2))}
    theirs = {(seed, "a"): value for seed, value in enumerate((0.0, 0.1, 0.1))}
    found = paired(ours, theirs, bounds=(-1, 1)).interval
    assert found is not None
    assert -1 < found.low < 0.5 < found.high < 1
    free = paired(ours, theirs).interval
    assert free is not None
    assert free[:2] == pytest.approx((0.5 - 0.99366, 0.5 + 0.99366), abs=1e-4)


def test_half_widths_are_those_of_published_quantiles() -> None:
    """t at 97.5 %: 12.706 (1 degree of freedom), 2.262 (9); at 99.5 %: 3.250 (9)."""
    assert half_width(1, 2) == pytest.approx(12.706 / 2**0.5, abs=1e-3)
    assert half_width(2, 10) == pytest.approx(2 * 2.262 / 10**0.5, abs=1e-3)
    assert half_width(2, 10, 0.99) == pytest.approx(2 * 3.250 / 10**0.5, abs=1e-3)
    assert half_width(0, 3) == 0
    for wrong in ((1, 1), (-1, 3), (float("nan"), 3), (1, 3, 1.0)):
        with pytest.raises(ConfigError, match="accepted"):
            half_width(*wrong)
