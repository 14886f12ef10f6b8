"""Naive fine-tuning."""

from clbench.learning.strategy import Strategy, Traits


class Naive(Strategy):
    """Naive fine-tuning: go on training on each new task as if it were the first; with a memory, on task and exemplars.

    It is the lower reference line.
    """

    traits = Traits(family="reference", seeds_together=True, on_features=True, mixes=True, needs_boundaries=False)
