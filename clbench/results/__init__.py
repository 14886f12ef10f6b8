"""The results of a finished run: its record, and the metrics and statistics computed from it.

It must not know torch or how a run was done: whatever reads `run.json` works with this room alone.
"""
