"""Continual backpropagation."""

import itertools
import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.config.space import Choices, Log
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario
from clbench.learning.strategy import Strategy, Terms, Traits
from clbench.models.blocks import Layer, block_outputs, chain, check_chain, check_maps


class CBP(Strategy):
    """Continual backpropagation. Dohare et al. 2024, doi:10.1038/s41586-024-07711-7.

    A unit's utility is u <- decay u + (1 - decay) mean |h| sum_k |w_k|, h its answers to a batch and w_k its outgoing
    weights (eq. 1). In each step a share of each layer's units that are older than `maturity` steps is replaced, those
    of the smallest utility: incoming weights are drawn anew as torch initialises a layer, bias, outgoing weights,
    utility and age begin at 0, and so does what the optimizer keeps for these weights. Fractions of a unit add up
    (algorithm 1). Units are those of the hidden layers of a chain, channels for convolutions, whose |h| and |w| are
    means over the places; batch or layer norm of a unit begins anew, too.

    decay: that of the utility.
    maturity: the steps before a unit can be replaced.
    replacement_rate: the share of a layer's mature units that is replaced in a step.
    """

    traits = Traits(
        family="plasticity",
        paper="Dohare et al. 2024, doi:10.1038/s41586-024-07711-7",
        through_features=False,
        mixes=True,
        needs_boundaries=False,
    )

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    maturity: Annotated[int, Field(ge=0), Choices(100, 1000, 10000)] = 100
    replacement_rate: Annotated[float, Field(ge=0, le=1), Log(1e-6, 1e-2)] = 1e-4

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """The model is a chain of layers, all of which train, with a unit for each output of a layer."""
        check_chain(config, scenario)
        check_maps(config, scenario)
        if config.training.train != "all":
            raise ConfigError(f"{config.strategy} draws units of all layers anew; train=all is accepted")

    def begin_run(self) -> None:
        """Before the first step no unit is of use, nor old."""
        layers = chain(self.model)
        self.utility = [torch.zeros(layer.weight.shape[0], device=self.device) for layer in layers]
        self.age = [torch.zeros_like(u, dtype=torch.int64) for u in self.utility]
        # Units of each layer that are due, and the steps in which the young ones were drawn: known to the host.
        self.due = [0.0 for _ in layers]
        self.drawn: list[list[int]] = [[0] * len(u) for u in self.utility]
        self.steps = 0

    def loss(self, batch: Batch) -> Terms:
        """The usual loss; the units' answers are read on the way."""
        outputs = block_outputs(self.model, batch.images)
        with torch.no_grad():
            self.answers = [_by_unit(h.abs().mean(0), len(u)) for h, u in zip(outputs, self.utility, strict=True)]
        return {"classification": self.classification_loss(self.model.head(outputs[-1]), batch)}

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        """Update utilities and ages, and replace the units that are due."""
        self.steps += 1
        layers: list[Layer] = [*chain(self.model), self.model.head]
        for i, (layer, after) in enumerate(itertools.pairwise(layers)):
            u, outgoing = self.utility[i], after.weight.abs().sum(0)
            u.mul_(self.decay).add_(self.answers[i] * _by_unit(outgoing, len(u)), alpha=1 - self.decay)
            self.age[i] += 1
            self.due[i] += self.replacement_rate * sum(self.steps - step > self.maturity for step in self.drawn[i])
            while self.due[i] >= 1:
                self.drawn[i] = [*sorted(self.drawn[i])[1:], self.steps]
                unit = u.masked_fill(self.age[i] <= self.maturity, torch.inf).argmin()[None]
                self._replace(i, unit, layer, after)
                self.due[i] -= 1

    def _replace(self, i: int, unit: Tensor, layer: Layer, after: Layer) -> None:
        """Draw a unit of a layer anew, whose index, int64 [1], stays on the device."""
        shape = (1, *layer.weight.shape[1:])
        bound = 1 / math.sqrt(math.prod(shape))
        # Several units of a step have streams of their own.
        drawn = torch.empty(shape).uniform_(-bound, bound, generator=self.rng(f"unit {i} {int(self.due[i])}"))
        layer.weight.index_copy_(0, unit, drawn.to(self.device, layer.weight.dtype, non_blocking=True))
        zeroed: list[tuple[Tensor | None, int]] = [(layer.bias, 0), (self.utility[i], 0), (self.age[i], 0)]
        zeroed += [(s, 0) for p in (layer.weight, layer.bias) if p is not None for s in self.statistics(p)]
        zeroed += [(_columns(w, len(self.age[i])), 1) for w in (after.weight, *self.statistics(after.weight))]
        for norm in self.model.blocks()[i].modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
                for ones in (norm.weight, getattr(norm, "running_var", None)):
                    if ones is not None:
                        ones.index_fill_(0, unit, 1)
                zeroed += [(norm.bias, 0), (getattr(norm, "running_mean", None), 0)]
                zeroed += [(s, 0) for p in norm.parameters() for s in self.statistics(p)]
        for tensor, dim in zeroed:
            if tensor is not None:
                tensor.index_fill_(dim, unit, 0)


def _by_unit(values: Tensor, units: int) -> Tensor:
    """Return the mean of the values of each unit, which has several where it is a channel; float [units]."""
    return values.flatten().view(units, -1).mean(1)


def _columns(weight: Tensor, units: int) -> Tensor:
    """Return a view of a layer's weights whose second dimension is the units that they come from."""
    return weight if weight.dim() > 2 else weight.view(len(weight), units, -1)
