"""Statistics across seeds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clbench.statistics import Spread, spread


def test_spread_by_hand():
    """Mean of 2, 4, 9 is 5; squared deviations 9 + 1 + 16 = 26, over n - 1 = 2 is 13."""
    assert spread([2, 4, 9]) == (5, pytest.approx(13**0.5), 3)


def test_spread_of_one_value_has_no_deviation():
    assert spread([0.7]) == Spread(mean=0.7, sd=None, n=1)


@pytest.mark.parametrize("values", [[], [None], [float("nan"), None]])
def test_spread_of_nothing(values):
    assert spread(values) == Spread(mean=None, sd=None, n=0)


def test_spread_skips_what_is_not_defined():
    assert spread([2, None, 4, float("nan"), 9]) == spread([2, 4, 9])


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.randoms(use_true_random=False))
def test_spread_agrees_with_numpy_in_any_order(values, random):
    shuffled = random.sample(values, len(values))
    assert spread(shuffled) == spread(values)
    assert spread(values).mean == pytest.approx(np.mean(values), abs=1e-12)
    assert spread(values).sd == pytest.approx(np.std(values, ddof=1), abs=1e-7)


def test_equal_values_have_a_deviation_of_exactly_zero():
    assert spread(np.full(7, 0.1)).sd == 0
