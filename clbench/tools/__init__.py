"""Tools for a strategy beside running it: tuning, rehearsing, explaining, checking, cross-checking.

It must not know the command line.
"""
