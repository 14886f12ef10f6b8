"""What is done with a strategy beside running it: tuning, rehearsing, explaining, checking, cross-checking.

It must not know the command line.
"""
