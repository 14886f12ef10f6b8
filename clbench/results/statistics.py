"""Statistics across runs: spreads, intervals, paired tests, ranks. Missing values (None, NaN) are left out."""

import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from math import inf, isfinite, isnan, sqrt
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, shown
from clbench.config.plain import plain

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Seed and class order of a run.
Key = TypeVar("Key", bound=tuple[Hashable, Hashable])

# With fewer pairs no two-sided exact test reaches 0.05: two of the 2^5 sign patterns of five pairs are 0.0625.
FEWEST_PAIRS = 6
# The t interval of two values is 12.7 times as wide as they lie apart, which says nothing of a share.
FEWEST_IN_BOUNDS = 3
# Demsar 2006, sec. 3.2.2: with fewer than five data sets the assumed distribution of mean ranks does not hold.
FEWEST_SCENARIOS = 5
# The bootstrap has enough values to draw from when there are this many; docs/statistics.md shows what t and BCa cover.
BOOTSTRAP_FROM = 20
# Efron & Tibshirani 1993, sec. 14.3: about 2,000 resamples for BCa.
RESAMPLES = 2000
# Up to EXACT_UP_TO pairs the test counts all sign patterns; beyond, it draws FLIPS of them.
EXACT_UP_TO = 17
FLIPS = 99_999


class Spread(NamedTuple):
    """Mean, sample standard deviation (n-1) and number of the values; an undefined one is None."""

    mean: float | None
    sd: float | None
    n: int


class Interval(NamedTuple):
    """Confidence interval of a mean, and how it was made: `t`, `logit` (t on the logit scale) or `BCa`."""

    low: float
    high: float
    method: str


class Paired(NamedTuple):
    """Ours minus theirs over the pairs that both have; an undefined value is None.

    difference: the mean. effect_size: mean / sd of the differences (Cohen's d_z, paired).
    p: of the sign-flip permutation test, which reports use. wilcoxon_p: of the signed-rank test.
    probability_of_improvement: share of pairs in which ours is higher, ties counting half.
    reason: why there is no test, or None.
    """

    n: int
    difference: float | None
    interval: Interval | None
    p: float | None
    wilcoxon_p: float | None
    effect_size: float | None
    probability_of_improvement: float | None
    reason: str | None


class Ranks(NamedTuple):
    """Mean ranks over n scenarios, best (lowest) first, and the distance from which two of them differ.

    groups: the largest sets of strategies that do not differ, each from best to worst.
    p: of Friedman's test that all are equal; None for two strategies.
    """

    mean: dict[str, float]
    critical_difference: float
    groups: list[list[str]]
    p: float | None
    n: int


class Variances(NamedTuple):
    """The variance of one run's value in parts: class order, initialisation (the seed), the rest with interaction."""

    class_order: float
    initialisation: float
    rest: float
    n_orders: int
    n_initialisations: int


@checked
def spread(values: Iterable[float | None]) -> Spread:
    """Return the spread of the values that are neither None nor NaN; one value has no standard deviation."""
    defined = _defined(values)
    return Spread(
        mean=fmean(defined) if defined else None,
        sd=stdev(defined) if len(defined) > 1 else None,
        n=len(defined),
    )


@checked
def interval(
    values: Iterable[float | None], level: float = 0.95, bounds: tuple[float, float] | None = None
) -> Interval | None:
    """Return the confidence interval of the mean: Student's t, from n = 20 on BCa bootstrap; None below n = 2.

    BCa (Efron 1987, JASA 82:171) draws 2,000 resamples with a fixed seed, so that the same values, in any order, give
    the same interval.

    level: the share of such intervals that are to contain the mean.
    bounds: the least and the largest value that there can be, such as (0, 1) of accuracies. The interval lies within
        them: t is worked out on the logit scale of the mean m, where the standard error is that of m over m (1 - m), by
        the delta method. Below n = 3 there is none.

    Raises ConfigError for a level outside (0, 1), for bounds in the wrong order, and for values outside them.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level={level!r}: a number between 0 and 1, such as 0.95, is accepted")
    defined = sorted(_defined(values))
    least, most = bounds or (-inf, inf)
    if not least < most:
        raise ConfigError(f"bounds={bounds!r}: the least and the largest value, such as (0, 1), are accepted")
    if defined and not least <= defined[0] <= defined[-1] <= most:
        raise ConfigError(f"values from {defined[0]:g} to {defined[-1]:g}: within bounds={bounds!r} is accepted")
    if len(defined) < (2 if bounds is None else FEWEST_IN_BOUNDS):
        return None
    mean, sd = fmean(defined), stdev(defined)
    method = "BCa" if len(defined) >= BOOTSTRAP_FROM else "t" if bounds is None else "logit"
    if sd == 0:
        return Interval(mean, mean, method)
    if method == "BCa":
        low, high = _bootstrap(tuple(defined), level)
        if isfinite(low) and isfinite(high):
            return Interval(low, high, method)
        method = "t"  # BCa is undefined if the values differ only by rounding
    half = half_width(sd, len(defined), level)
    if method == "t":
        return Interval(max(mean - half, least), min(mean + half, most), method)
    from scipy.special import expit, logit

    share = (mean - least) / (most - least)
    # Values that differ from a bound by rounding alone have their mean on it.
    centre, half = float(logit(share)), half / (most - least) / (share * (1 - share)) if 0 < share < 1 else 0.0
    low, high = (least + (most - least) * float(expit(end)) for end in (centre - half, centre + half))
    return Interval(low, high, method)


@checked
def half_width(sd: float, n: int, level: float = 0.95) -> float:
    """Return half the width of Student's t interval of the mean of n values with this standard deviation.

    Raises ConfigError below two values, for a negative standard deviation and for a level outside (0, 1).
    """
    from scipy.special import stdtrit

    if n < 2 or not sd >= 0 or not 0 < level < 1:
        raise ConfigError(f"n={n}, sd={sd!r}, level={level!r}: accepted are n >= 2, sd >= 0 and a level in (0, 1)")
    return float(stdtrit(n - 1, (1 + level) / 2)) * sd / sqrt(n)


@checked
def paired(
    ours: Mapping[Key, float | None],
    theirs: Mapping[Key, float | None],
    bounds: tuple[float, float] | None = None,
) -> Paired:
    """Compare two strategies by the differences of their runs with the same key, (seed, class order).

    bounds: the least and the largest difference that there can be, such as (-1, 1) of accuracies; see `interval`.

    Runs of one class order are not independent: if there are several orders, the mean difference of each counts as
    one pair. p is exact for up to 17 pairs and from 99,999 random flips (fixed seed) beyond. Below six pairs there
    is no test, because with five the smallest exact two-sided p is 0.0625.
    """
    _check_keys(ours, theirs)
    by_order: dict[Hashable, list[float]] = {}
    for key, own in ours.items():
        other = theirs.get(key)
        if own is not None and other is not None and _is_defined(own) and _is_defined(other):
            by_order.setdefault(key[1], []).append(float(own - other))
    clusters = list(by_order.values())
    differences = clusters[0] if len(clusters) == 1 else [fmean(of_order) for of_order in clusters]
    mean, sd, n = spread(differences)
    reason = None
    if n < FEWEST_PAIRS:
        pairs = "pair is" if n == 1 else "pairs are"
        reason = f"{n} {pairs} too few for a test: it takes {FEWEST_PAIRS}"
        reason += f"; the smallest p that an exact test of {n} can give is {smallest_p(n):g}" if n else ""
        reason += "" if n else f", and {_why_no_pair(ours, theirs)}"
    return Paired(
        n=n,
        difference=mean,
        interval=interval(differences, bounds=bounds),
        p=None if reason else _flipped(tuple(sorted(differences if (mean or 0.0) > 0 else (-d for d in differences)))),
        wilcoxon_p=None if reason else _wilcoxon(differences),
        # There is none if the differences vary only by rounding.
        effect_size=mean / sd if mean is not None and sd and abs(mean) < 1e9 * sd else None,
        probability_of_improvement=fmean(1.0 if d > 0 else 0.0 if d else 0.5 for d in differences) if n else None,
        reason=reason,
    )


def _why_no_pair(ours: Mapping[Key, float | None], theirs: Mapping[Key, float | None]) -> str:
    """Return what is missing where no key has a value on both sides."""
    seeds = [{seed for (seed, _), value in of.items() if _defined([value])} for of in (ours, theirs)]
    if not all(seeds):
        return "one side has no value at all"
    lacking = "the seeds differ" if not seeds[0] & seeds[1] else "with the same seed the class orders differ"
    return f"no seed and class order is common to both: {lacking}"


def sign_flip(differences: "npt.ArrayLike") -> "npt.NDArray[np.float64]":
    """Return the two-sided p [...] of the mean of paired differences [n, ...] when each sign is as likely as the other.

    Fisher 1935, The Design of Experiments, sec. 21. It equals scipy's permutation_test, but is about fifty times as
    fast, because each pattern serves all columns. Drawn patterns include the observed one (Phipson & Smyth 2010).
    """
    import numpy as np

    try:
        columns = np.asarray(plain(differences), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        columns = np.empty(0)
    if columns.ndim < 1 or not len(columns) or not np.isfinite(columns).all():
        raise ConfigError(f"differences={shown(differences)} given; one or more finite numbers [n, ...] are accepted")
    signs = _signs(len(columns))
    # Sums that differ only by rounding count as equally extreme.
    observed = np.abs(columns.sum(axis=0)) * (1 - 1e-9)
    extreme = np.zeros(observed.shape)
    for start in range(0, len(signs), 4096):
        sums = np.tensordot(signs[start : start + 4096].astype(np.float64), columns, axes=1)
        extreme += (np.abs(sums) >= observed).sum(axis=0)
    drawn = len(columns) > EXACT_UP_TO
    return np.asarray((extreme + drawn) / (len(signs) + drawn))


@checked
def smallest_p(n: int, tests: int = 1) -> float:
    """Return the smallest p that `paired` can give for n pairs, after Holm's correction for `tests` tests."""
    if n < 1 or tests < 1:
        raise ConfigError(f"n={n} pairs and {tests} tests given; 1 or more of each are accepted")
    return min(1.0, tests * (2 / 2**n if n <= EXACT_UP_TO else 1 / (FLIPS + 1)))


@checked
def holm(pvalues: Sequence[float | None]) -> list[float | None]:
    """Return the p values corrected for the number of tests; None stays None and counts as no test.

    Holm 1979, Scand. J. Statist. 6:65: the k-th smallest of m is multiplied by m - k + 1, and none is below the one
    before it. Raises ConfigError for a value outside [0, 1].
    """
    tested = sorted((p, place) for place, p in enumerate(pvalues) if p is not None)
    corrected: list[float | None] = [None] * len(pvalues)
    largest = 0.0
    for rank, (p, place) in enumerate(tested):
        if not 0 <= p <= 1:
            raise ConfigError(f"p={p!r}: probabilities between 0 and 1 are accepted")
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[place] = largest
    return corrected


@checked
def mean_ranks(
    scores: Mapping[str, Sequence[float | None]], *, lower_is_better: bool = False, alpha: float = 0.05
) -> Ranks:
    """Rank the strategies in each scenario (1 is best; ties share a rank) and return the mean ranks.

    `scores` holds for each strategy one value a scenario, the scenarios in the same order; a scenario in which
    a strategy has none is left out. Critical difference: q sqrt(k (k+1) / (6 n)), Nemenyi's q of k strategies at level
    alpha. Demsar 2006, JMLR 7:1, sec. 3.2.2. Raises ConfigError below five scenarios or two strategies.
    """
    import numpy as np
    from scipy import stats

    if not 0 < alpha < 1:
        raise ConfigError(f"alpha={alpha!r}: a number between 0 and 1 is accepted")
    if len({len(values) for values in scores.values()}) != 1:
        raise ConfigError("mean ranks: one value a scenario for each strategy, all of one length, is accepted")
    known = [[v is not None and _is_defined(v) for v in values] for values in scores.values()]
    table = np.array([list(values) for values in scores.values()])[:, np.array(known).all(axis=0)].astype(float)
    k, n = table.shape
    if k < 2 or n < FEWEST_SCENARIOS:
        raise ConfigError(
            f"mean ranks of {k} strategies over {n} scenarios that all of them have; accepted: at least 2 strategies "
            f"over at least {FEWEST_SCENARIOS} scenarios"
        )
    ranked = stats.rankdata(table if lower_is_better else -table, axis=0).mean(axis=1)
    mean = {name: float(ranked[i]) for i, name in sorted(enumerate(scores), key=lambda item: ranked[item[0]])}
    # The studentised range is that of a difference, the mean ranks are compared by their own error: hence sqrt(2).
    q = float(stats.studentized_range.ppf(1 - alpha, k, np.inf)) / sqrt(2)
    critical = q * sqrt(k * (k + 1) / (6 * n))
    differ = bool((table != table[0]).any())
    p = None if k == 2 else float(stats.friedmanchisquare(*table).pvalue) if differ else 1.0
    return Ranks(mean, critical, _groups(mean, critical), p, n)


@checked
def places(values: Sequence[float | None]) -> list[int | None]:
    """Return the place of each value, 1 for the largest; equal ones share the better place, None and NaN have none."""
    known = _defined(values)
    return [None if v is None or not _is_defined(v) else 1 + sum(other > v for other in known) for v in values]


@checked
def agreement(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return Kendall's tau-b of two lists of scores of the same things: 1 for one order, -1 for the opposite one.

    Kendall 1945, doi:10.1093/biomet/33.3.239. None below two things, and where all scores of a list are equal.
    """
    from scipy import stats

    if len(ours) != len(theirs):
        raise ConfigError(f"{len(ours)} and {len(theirs)} scores are given; one of each thing in both is accepted")
    if len(set(ours)) < 2 or len(set(theirs)) < 2:
        return None
    return float(stats.kendalltau(ours, theirs).statistic)


@checked
def variances(values: Mapping[Key, float | None]) -> Variances | None:
    """Split the variance of runs with keys (seed, class order); None unless every seed was run with every order.

    Two-way random effects with one run a cell, by the method of moments (Searle, Casella & McCulloch 1992, sec. 4.4);
    a negative estimate becomes 0. A seed that an order lacks is left out; it takes two seeds and two orders.
    """
    import numpy as np

    _check_keys(values)
    defined: dict[tuple[Hashable, Hashable], float] = {
        (seed, order): value for (seed, order), value in values.items() if value is not None and _is_defined(value)
    }
    orders = list(dict.fromkeys(order for _, order in defined))
    seeds = [s for s in dict.fromkeys(seed for seed, _ in defined) if all((s, order) in defined for order in orders)]
    a, b = len(orders), len(seeds)
    if a < 2 or b < 2:
        return None
    table = np.array([[defined[seed, order] for seed in seeds] for order in orders])
    of_orders, of_seeds, mean = table.mean(axis=1), table.mean(axis=0), table.mean()
    square_orders = b * ((of_orders - mean) ** 2).sum() / (a - 1)
    square_seeds = a * ((of_seeds - mean) ** 2).sum() / (b - 1)
    left = table - of_orders[:, None] - of_seeds + mean
    square_rest = (left**2).sum() / ((a - 1) * (b - 1))
    return Variances(
        class_order=max(0.0, float(square_orders - square_rest) / b),
        initialisation=max(0.0, float(square_seeds - square_rest) / a),
        rest=float(square_rest),
        n_orders=a,
        n_initialisations=b,
    )


@checked
def runs_needed(difference: float, sd: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Return the pairs of runs with which a two-sided paired t test at level alpha finds a difference of this size.

    `sd` is that of the differences, in the same unit. The result is at least the six pairs that a test takes. From the
    noncentral t distribution (Cohen 1988, ch. 2). Raises ConfigError for a difference below a thousandth of the sd,
    which millions of runs would not show, a negative sd, or a power or level outside (0, 1).
    """
    from scipy.special import nctdtr, stdtrit

    for name, value in (("power", power), ("alpha", alpha)):
        if not 0 < value < 1:
            raise ConfigError(f"{name}={value!r}: a number between 0 and 1 is accepted")
    if difference == 0 or not isfinite(difference) or not 0 <= sd <= 1000 * abs(difference):
        raise ConfigError(
            f"difference={difference!r}, sd={sd!r}: accepted: a difference other than 0 and an sd of at least 0 and at "
            "most 1,000 times the difference"
        )

    def reaches(n: int) -> bool:
        shift, limit = abs(difference) / sd * sqrt(n), stdtrit(n - 1, 1 - alpha / 2)
        # The probability below -limit is negligible.
        return bool(1 - nctdtr(n - 1, shift, limit) >= power)

    # The distribution can't be computed for an sd that is only rounding.
    if 1000 * sd <= abs(difference) or reaches(FEWEST_PAIRS):
        return FEWEST_PAIRS
    low, high = FEWEST_PAIRS, 2 * FEWEST_PAIRS
    while not reaches(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


@checked
def equivalence(difference: float, error: float, df: float, margin: float) -> float:
    """Return the p value of two one-sided t tests that a difference lies within -margin to margin.

    difference: the measured one, in the unit of the margin.
    error: its standard error.
    df: the degrees of freedom of that error.
    The larger of the two p values. Schuirmann 1987, doi:10.1007/BF01068419. Raises ConfigError for a negative error, a
    margin that is not above 0 and df that are not.
    """
    from scipy.special import stdtr

    if not (isfinite(difference) and 0 <= error < inf and df > 0 and 0 < margin < inf):
        raise ConfigError(
            f"difference={difference!r}, error={error!r}, df={df!r}, margin={margin!r}: accepted are an error of at "
            "least 0, and df and a margin above 0"
        )
    room = margin - abs(difference)
    if error == 0:
        return 0.0 if room > 0 else 1.0
    return float(stdtr(df, -room / error))


def _check_keys(*runs: Mapping[Key, float | None]) -> None:
    for key in (key for values in runs for key in values):
        if not isinstance(key, tuple) or len(key) != 2:
            raise ConfigError(f"the key {shown(key)} of a run is given; (seed, class order) is accepted")


def _defined(values: Iterable[float | None]) -> list[float]:
    return [float(v) for v in values if v is not None and _is_defined(v)]


def _is_defined(value: float) -> bool:
    """Whether a value is a number, and not NaN; raises ConfigError for an infinite one, of which nothing follows."""
    if abs(value) == inf:
        raise ConfigError(f"a value is {value}; finite numbers are accepted, and None or NaN where there is none")
    return not isnan(value)


@lru_cache(maxsize=10_000)
def _bootstrap(values: tuple[float, ...], level: float) -> tuple[float, float]:
    import numpy as np
    from scipy import stats

    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        drawn = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, confidence_level=level, method="BCa", rng=0)
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


@lru_cache(maxsize=2)
def _signs(n: int) -> "npt.NDArray[np.int8]":
    """Return sign patterns [k, n]: up to 17 pairs all of them without mirror images, beyond that random ones."""
    import numpy as np

    if n > EXACT_UP_TO:
        return np.random.default_rng(0).integers(0, 2, (FLIPS, n), dtype=np.int8) * np.int8(2) - np.int8(1)
    bits = np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1
    return (1 - 2 * bits).astype(np.int8)


@lru_cache(maxsize=10_000)
def _flipped(differences: tuple[float, ...]) -> float:
    return float(sign_flip(differences))


def _wilcoxon(differences: Sequence[float]) -> float:
    from scipy import stats

    # If nothing differs, there are no ranks.
    return float(stats.wilcoxon(differences).pvalue) if any(differences) else 1.0


def _groups(mean: Mapping[str, float], critical: float) -> list[list[str]]:
    """Return the longest stretches of at least two strategies, best first, whose first and last do not differ."""
    names, groups, end = list(mean), list[list[str]](), 0
    for start, name in enumerate(names):
        stop = max(i for i, other in enumerate(names) if mean[other] - mean[name] <= critical) + 1
        if stop - start > 1 and stop > end:
            groups.append(names[start:stop])
            end = stop
    return groups
