"""The learning of a task: the contract of a strategy, the trainer, memories, losses, importance, evaluation.

It must not know the run around a task: folders, checkpoints, records.
"""
