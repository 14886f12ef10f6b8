"""Strategies: one file a method, found through the entry points of the group clbench.strategies."""
