"""What a finished run holds, and what is computed from it: the record, metrics, statistics.

It must not know torch or how a run was done: whatever reads `run.json` works with this room alone.
"""
