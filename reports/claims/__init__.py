"""Published numbers, one TOML file a paper, and beside it what its protocol alone asks of a strategy.

The strategies here are found through the entry-point group `clbench.protocols`: a claim or a user can name them, and no
list shows them. They may import the methods, which the rest of the reports does not know.
"""
