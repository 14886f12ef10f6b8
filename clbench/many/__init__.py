"""Many runs: comparisons, sweeps, worker processes, clusters, seeds trained together.

It must not know how they are reported.
"""
