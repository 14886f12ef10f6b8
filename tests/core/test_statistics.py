"""Statistics across seeds: against values that R printed, published tables, brute force and hand derivations."""

import itertools
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clbench.config.errors import ConfigError
from clbench.results import statistics
from clbench.results.statistics import (
    Spread,
    holm,
    interval,
    mean_ranks,
    paired,
    runs_needed,
    smallest_p,
    spread,
    variances,
)

NAN = float("nan")
# Student's sleep data, as R ships them (`sleep`).
SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def runs(values, order="one"):
    return {(seed, order): value for seed, value in enumerate(values)}


def test_spread_by_hand():
    """Mean of 2, 4, 9 is 5; squared deviations 9 + 1 + 16 = 26, over n - 1 = 2 is 13."""
    assert spread([2, 4, 9]) == (5, pytest.approx(13**0.5), 3)


def test_spread_of_one_value_has_no_deviation():
    assert spread([0.7]) == Spread(mean=0.7, sd=None, n=1)


@pytest.mark.parametrize("values", [[], [None], [NAN, None]])
def test_spread_of_nothing(values):
    assert spread(values) == Spread(mean=None, sd=None, n=0)


def test_spread_skips_what_is_not_defined():
    assert spread([2, None, 4, NAN, 9]) == spread([2, 4, 9])


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.randoms(use_true_random=False))
def test_spread_agrees_with_numpy_in_any_order(values, random):
    shuffled = random.sample(values, len(values))
    assert spread(shuffled) == spread(values)
    assert spread(values).mean == pytest.approx(np.mean(values), abs=1e-12)
    assert spread(values).sd == pytest.approx(np.std(values, ddof=1), abs=1e-7)


def test_equal_values_have_a_deviation_of_exactly_zero():
    assert spread(np.full(7, 0.1)).sd == 0


def test_the_t_interval_is_that_of_R():
    """R's help page of t.test: `t.test(extra ~ group, sleep, paired = TRUE)` gives -2.4598858 to -0.7001142."""
    found = interval(np.subtract(SLEEP_1, SLEEP_2))
    assert found == (pytest.approx(-2.4598858, abs=5e-8), pytest.approx(-0.7001142, abs=5e-8), "t")


def test_the_interval_of_two_values_by_hand():
    """t with one degree of freedom is Cauchy: its 97.5 % quantile is tan(.475 pi) = 12.7062; mean 1, sd/sqrt(2) = 1."""
    assert interval([0, None, 2, NAN]) == (pytest.approx(1 - 12.7062, abs=1e-4), pytest.approx(13.7062, abs=1e-4), "t")


@pytest.mark.parametrize("values", [[], [0.5], [0.5, None], [NAN]])
def test_fewer_than_two_values_have_no_interval(values):
    assert interval(values) is None


def test_equal_values_have_an_interval_of_no_width():
    assert interval([0.3] * 3) == (0.3, 0.3, "t")
    assert interval([0.3] * 20) == (0.3, 0.3, "BCa")


def test_from_twenty_values_on_the_interval_is_BCa_as_worked_out_from_its_formulas():
    """Efron & Tibshirani 1993, eq. 14.9 to 14.15, with 40,000 resamples of another generator; skewed values."""
    values = np.random.default_rng(3).exponential(size=25)
    random = np.random.default_rng(4)
    means = np.sort(random.choice(values, (40_000, 25)).mean(axis=1))
    normal = NormalDist()
    shift = normal.inv_cdf(float((means < values.mean()).mean()))
    left_out = (values.sum() - values) / 24
    deviation = left_out.mean() - left_out
    acceleration = (deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5)
    ends = []
    for z in (normal.inv_cdf(0.025), normal.inv_cdf(0.975)):
        level = normal.cdf(shift + (shift + z) / (1 - acceleration * (shift + z)))
        ends.append(means[int(level * 40_000)])
    low, high, method = interval(values)
    assert method == "BCa"
    assert (low, high) == pytest.approx(ends, abs=0.03)
    assert high - values.mean() > 1.1 * (values.mean() - low), "skewed, as the values are"
    assert interval(values[::-1]) == (low, high, method), "the same in any order"
    assert interval(values[:19]).method == "t"


def test_a_wider_level_gives_a_wider_interval_and_none_is_refused():
    low, high, _ = interval(SLEEP_1, level=0.99)
    assert low < interval(SLEEP_1).low < interval(SLEEP_1).high < high
    for level in (0, 1, 95, NAN):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            interval(SLEEP_1, level=level)


def test_a_paired_comparison_by_hand_and_R():
    """R: mean of the differences -1.58; effect size t / sqrt(n) = -4.0621 / sqrt(10) = -1.28456.

    Of ten differences nine are negative and one is 0, so that ours is higher in (0 + 1/2) of 10 pairs, and of 2^10 sign
    patterns 2 * 2 are as extreme (the sign of the 0 is free): p = 4 / 1024. Ranks of one sign: 2 / 2^9, the same.
    """
    found = paired(runs(SLEEP_1), runs(SLEEP_2))
    assert (found.n, found.reason) == (10, None)
    assert found.difference == pytest.approx(-1.58)
    assert found.interval[:2] == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)
    assert found.effect_size == pytest.approx(-4.0621 / 10**0.5, abs=1e-4)
    assert found.probability_of_improvement == pytest.approx(0.05)
    assert found.p == 4 / 1024
    assert found.wilcoxon_p == pytest.approx(2 / 2**9)


def test_the_signed_rank_test_is_that_of_R():
    """R's help page of wilcox.test, depression data (Hollander & Wolfe 1973, p. 29): V = 40, one-sided p = 0.01953."""
    first = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    second = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    assert paired(runs(first), runs(second)).wilcoxon_p / 2 == pytest.approx(0.01953, abs=5e-6)


@pytest.mark.parametrize("n", [7, 12])
def test_the_permutation_test_is_that_of_scipy(n):
    """Several columns at once, ties among them."""
    from scipy import stats

    columns = np.random.default_rng(n).integers(-3, 6, (n, 4)) / 10
    expected = stats.permutation_test((columns,), np.mean, permutation_type="samples", axis=0).pvalue
    assert statistics.sign_flip(columns) == pytest.approx(expected)


@pytest.mark.parametrize("n", [6, 9, 13])
def test_the_permutation_test_counts_out_every_sign(n):
    """By brute force over all 2^n sign patterns."""
    differences = np.random.default_rng(n).normal(0.4, 1, n)
    means = np.array(list(itertools.product((1, -1), repeat=n))) @ differences
    expected = (np.abs(means) >= abs(differences.sum()) - 1e-12).mean()
    assert paired(runs(differences), runs([0.0] * n)).p == pytest.approx(expected)


def test_with_many_pairs_signs_are_drawn_the_same_each_time():
    """For 30 pairs the exact p is near that of the t test, known in closed form."""
    from scipy import stats

    differences = np.random.default_rng(1).normal(0.4, 1, 30)
    theirs = runs([0.0] * 30)
    found = paired(runs(differences), theirs).p
    assert found == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)
    statistics._signs.cache_clear()
    assert paired(runs(differences), theirs).p == found


@pytest.mark.parametrize("n", range(1, 6))
def test_there_is_no_test_below_six_pairs_and_the_reason_is_given(n):
    """The most extreme of 2^n sign patterns and its mirror image: 0.0625 with five."""
    found = paired(runs(SLEEP_2[:n]), runs(SLEEP_1[:n]))
    assert (found.p, found.wilcoxon_p, found.n) == (None, None, n)
    assert found.difference is not None
    assert f"{2 / 2**n:g}" in found.reason
    assert paired(runs(range(1, 7)), runs([0] * 6)).p == 2 / 2**6
    assert smallest_p(5) == 0.0625


def test_pairs_are_matched_by_seed_and_order_and_what_one_lacks_is_left_out():
    ours = {(0, "a"): 0.9, (1, "a"): 0.8, (2, "a"): None, (3, "a"): 0.7, (5, "a"): 0.1}
    theirs = {(3, "a"): 0.5, (0, "a"): 0.6, (2, "a"): 0.1, (1, "a"): NAN, (5, "b"): 0.9}
    found = paired(ours, theirs)
    assert (found.n, found.difference) == (2, pytest.approx(0.25))
    nothing = paired(ours, {})
    assert (nothing.n, nothing.difference, nothing.interval, nothing.probability_of_improvement) == (0, *[None] * 3)
    assert "too few" in nothing.reason


def test_runs_of_one_class_order_count_as_one_pair_where_there_are_several():
    """Two orders with three seeds each: differences 1, 2, 3 and 5, 5, 8 by hand are two pairs, 2 and 6."""
    ours = {(seed, order): v for order, of in (("a", (1, 2, 3)), ("b", (5, 5, 8))) for seed, v in enumerate(of)}
    found = paired(ours, dict.fromkeys(ours, 0))
    assert (found.n, found.difference) == (2, 4)
    assert found.interval == interval([2, 6])


def test_equal_runs_do_not_differ():
    found = paired(runs([0.5] * 7), runs([0.5] * 7))
    assert (found.p, found.wilcoxon_p, found.effect_size, found.probability_of_improvement) == (1, 1, None, 0.5)


def test_holm_by_hand():
    """Sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and the last is raised to .06."""
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == [
        pytest.approx(0.03),
        pytest.approx(0.06),
        None,
        pytest.approx(0.06),
        pytest.approx(0.02),
    ]
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []
    with pytest.raises(ConfigError, match="probabilities"):
        holm([1.5])


def test_the_smallest_p_that_holm_leaves():
    """Ten pairs: 2 / 1024; times 21 tests 0.041; six pairs can reach nothing with two tests. Never above 1."""
    assert smallest_p(10, 21) == pytest.approx(21 * 2 / 1024)
    assert smallest_p(6, 2) == 0.0625
    assert smallest_p(6, 100) == 1
    assert paired(runs(range(1, 21)), runs([0] * 20)).p == smallest_p(20)


@pytest.mark.parametrize(
    ("k", "q"),
    list(enumerate((1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164), start=2)),
)
def test_the_critical_difference_is_demsars(k, q):
    """Demsar 2006, table 5a: q at 0.05 for 2 to 10 classifiers; CD = q sqrt(k (k+1) / (6 N)), eq. in sec. 3.2.2."""
    found = mean_ranks({f"s{i}": range(i, i + 14) for i in range(k)})
    assert found.critical_difference == pytest.approx(q * (k * (k + 1) / 84) ** 0.5, abs=6e-4)


def test_the_critical_difference_of_demsars_example():
    """Demsar 2006, sec. 3.2.2: four classifiers on 14 data sets, 2.569 sqrt(4 * 5 / (6 * 14)) = 1.25."""
    found = mean_ranks({name: range(14) for name in "abcd"})
    assert found.critical_difference == pytest.approx(1.25, abs=0.005)


def test_mean_ranks_by_hand():
    """Five scenarios; a wins three and ties one with b, c is last but in the fourth. A sixth that b lacks is left out.

    Ranks of a: 1 1 1 2 1.5, b: 2 2 2 3 1.5, c: 3 3 3 1 3. Friedman without ties' correction: 12 / (5 * 3 * 4) *
    (6.5^2 + 10.5^2 + 13^2) - 3 * 5 * 4 = 4.3; with it, divided by 1 - 6 / (5 * 24) = .95: 4.5263, p = exp(-4.5263 / 2).
    """
    a, b, c = [0.9, 0.8, 0.9, 0.5, 0.7, 0.9], [0.8, 0.7, 0.8, 0.4, 0.7, None], [0.1, 0.1, 0.1, 0.9, 0.1, 0.99]
    found = mean_ranks({"c": c, "b": b, "a": a})
    assert found.mean == pytest.approx({"a": 1.3, "b": 2.1, "c": 2.6})
    assert list(found.mean) == ["a", "b", "c"]
    assert found.n == 5
    assert found.p == pytest.approx(np.exp(-4.5263 / 2), abs=1e-4)
    assert found.groups == [["a", "b", "c"]]
    reversed_ = mean_ranks({"c": c, "b": b, "a": a}, lower_is_better=True)
    assert reversed_.mean == pytest.approx({"a": 2.7, "b": 1.9, "c": 1.4})


def test_groups_of_strategies_that_do_not_differ_by_hand():
    """Sixteen scenarios of one order: CD(4, 16) = 2.569 sqrt(20 / 96) = 1.17, so only neighbours join."""
    found = mean_ranks({name: [level] * 16 for level, name in enumerate("abcd")})
    assert found.groups == [["d", "c"], ["c", "b"], ["b", "a"]]


@pytest.mark.parametrize(
    "scores",
    [
        {"a": [1, 2, 3, 4], "b": [2, 3, 4, 5]},
        {"a": [1, 2, 3, 4, 5], "b": [2, 3, 4, 5, None]},
        {"a": range(9)},
        {},
        {"a": range(9), "b": range(8)},
    ],
)
def test_mean_ranks_of_too_few_scenarios_or_strategies_are_refused(scores):
    with pytest.raises(ConfigError, match="accepted"):
        mean_ranks(scores)


def test_variance_of_a_crossed_design_by_hand():
    """Orders a, b by seeds 0, 1: [[1, 2], [4, 7]]. Mean squares 16 (orders), 4 (seeds), 1 (rest): 15/2, 3/2, 1."""
    crossed = {(0, "a"): 1, (1, "a"): 2, (0, "b"): 4, (1, "b"): 7}
    assert variances(crossed) == (7.5, 1.5, 1, 2, 2)
    assert variances(crossed | {(2, "a"): 9, (2, "b"): None}) == variances(crossed), "a seed that one order lacks"
    assert variances(runs([1, 2, 3])) is None
    assert variances({(0, "a"): 1, (1, "b"): 2}) is None


def test_variances_are_unbiased_over_many_designs():
    """Planted standard deviations 3 (order), 2 (seed) and 1 (rest): the mean over 300 designs of 8 x 8 finds them."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(300):
        table = 3 * random.normal(size=(8, 1)) + 2 * random.normal(size=(1, 8)) + random.normal(size=(8, 8))
        found.append(variances({(s, o): table[o, s] for o in range(8) for s in range(8)})[:3])
    assert np.mean(found, axis=0) == pytest.approx([9, 4, 1], rel=0.1)


@pytest.mark.parametrize(
    ("effect", "power", "n"), [(0.2, 0.8, 199), (0.5, 0.8, 34), (0.8, 0.8, 15), (0.5, 0.95, 54), (9, 0.8, 6)]
)
def test_runs_needed_are_those_of_published_tables(effect, power, n):
    """G*Power 3 and R's power.t.test(type = "paired"), two-sided at 0.05; six at least, as below there is no test."""
    assert runs_needed(2 * effect, 2, power=power) == runs_needed(-effect, 1, power=power) == n


def test_runs_needed_of_a_difference_that_never_varies():
    assert runs_needed(0.1, 0) == runs_needed(-0.5, 6e-17) == 6


@pytest.mark.parametrize("arguments", [(0, 1), (NAN, 1), (1e-17, 1), (1, -1), (1, 1, 1), (1, 1, 0.8, 0)])
def test_runs_needed_refuses_what_has_no_answer(arguments):
    with pytest.raises(ConfigError, match="accepted"):
        runs_needed(*arguments)


def test_values_that_differ_by_rounding_alone_have_an_interval_of_t(recwarn: pytest.WarningsRecorder) -> None:
    """BCa is undefined there; 0.1 + 0.2 and 0.3 are one number to a reader."""
    found = interval([0.3, 0.1 + 0.2] * 50)
    assert found is not None
    assert found.method == "t"
    assert found.low == pytest.approx(0.3)
    assert found.high == pytest.approx(0.3)
    assert not recwarn.list
