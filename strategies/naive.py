"""Naive fine-tuning: the lower reference line."""

from clbench.learning.strategy import Strategy, Traits


class Naive(Strategy):
    """Go on training on each new task as if it were the first; with a memory, on the task and its exemplars."""

    traits = Traits(family="reference", seeds_together=True)
