"""All that joins clbench with Avalanche: its strategies, its benchmarks as scenarios and back.

Only this room imports Avalanche, and only where one of its strategies or benchmarks is asked for: that takes seconds.
"""
