"""Statistics across seeds: how far the values of several runs lie apart."""

from collections.abc import Iterable
from math import isnan
from statistics import fmean, stdev
from typing import NamedTuple


class Spread(NamedTuple):
    """Mean, sample standard deviation (n-1) and number of the values; what is not defined is None."""

    mean: float | None
    sd: float | None
    n: int


def spread(values: Iterable[float | None]) -> Spread:
    """Return the spread of the values that are neither None nor NaN; one value has no standard deviation."""
    defined = [float(v) for v in values if v is not None and not isnan(v)]
    return Spread(
        mean=fmean(defined) if defined else None,
        sd=stdev(defined) if len(defined) > 1 else None,
        n=len(defined),
    )
