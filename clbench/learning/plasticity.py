"""Measures whether a network can still learn: dead units, effective rank of the features, norm of the weights."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from clbench.data.scenario import Task
from clbench.learning.fit import total_norm
from clbench.learning.strategy import Context, Strategy, eval_mode

# Training images of the task on which units and features are looked at, the first of them, without augmentation.
SAMPLES = 500


def measure(strategy: Strategy, context: Context, task: Task) -> dict[str, float]:
    """Return what the network is like after a task, in eval mode; nothing of it is changed.

    dead_units: the share of the units of all blocks (entries of the first dimension of a block's output, channels for
        convolutions) that are 0 for each sample, as in Dohare et al. 2024, doi:10.1038/s41586-024-07711-7.
    effective_rank: that of the features, see effective_rank().
    weight_norm: the 2-norm of all parameters of the network together.
    """
    model = strategy.model
    features = list[Tensor]()
    # For each block, which of its units have answered so far.
    alive: dict[int, Tensor] = {}

    def look(place: int, block: object, given: object, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() > 1:
            used = (output != 0).transpose(0, 1).flatten(1).any(1)
            alive[place] = alive[place] | used if place in alive else used

    hooks = [block.register_forward_hook(partial(look, place)) for place, block in enumerate(model.blocks())]
    few = task.train.subset(torch.arange(min(SAMPLES, len(task.train))))
    try:
        with torch.inference_mode(), eval_mode(strategy), context.autocast():
            features += [model.features(batch.images).float() for batch in strategy.passes(few)]
    finally:
        for hook in hooks:
            hook.remove()
    measured = {"effective_rank": effective_rank(torch.cat(features))}
    if alive:
        measured["dead_units"] = 1 - float(torch.cat([*alive.values()]).float().mean())
    return measured | {"weight_norm": float(total_norm([p.detach() for p in model.parameters()]))}


def effective_rank(features: Tensor) -> float:
    """Return exp(H(p)), p the singular values of a matrix, float [N, D], over their sum; 0 of a matrix of zeros.

    Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality", definition 1 (EUSIPCO).
    """
    values = torch.linalg.svdvals(features.double().cpu())
    if not values.sum():
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())
