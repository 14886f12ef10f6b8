"""One run: from a request to its config, the engine, its checkpoints, its record, its folder, those who look on.

It must not know that there are other runs.
"""
