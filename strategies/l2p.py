"""Learning to prompt."""

from dataclasses import replace
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.config.space import Log
from clbench.data.scenario import Scenario
from clbench.learning.strategy import Strength
from clbench.models.prompts import Prompts
from clbench.strategies._prompts import Prompted


class L2P(Prompted):
    """Learning to prompt. Wang et al. 2022, arXiv:2112.08654.

    L = CE(task's outputs) - pull * sum over the chosen keys of cos(q(x), k), means over the batch (eq. 5). A pool of
    prompts is shared by all tasks. The prompts of an image are those whose keys k are nearest to its query q(x), and
    the features are the mean of their tokens behind the last block. Each image chooses for itself, as in the paper; the
    authors' JAX code and its ports let a batch vote. Keys and prompts begin uniform in [-1, 1] and `pull` is 0.1, as in
    the PyTorch port l2p-pytorch (JAX: [0, 0.01], 1); prompts get no position, as in JAX (port: the class token's).
    There is no penalty on prompts that are chosen often, which both leave out.

    pool: the number of prompts.
    length: the tokens of a prompt.
    top: the prompts that an image is given.
    pull: the weight of drawing the chosen keys to the queries.
    """

    traits = replace(Prompted.traits, paper="Wang et al. 2022, arXiv:2112.08654")
    pooled = "prompts"
    n_blocks = 1

    pool: Annotated[int, Field(ge=1)] = 10
    length: Annotated[int, Field(ge=1)] = 5
    top: Annotated[int, Field(ge=1)] = 5
    pull: Annotated[Strength, Log(0.01, 1)] = 0.1

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """An image can't be given more prompts than there are."""
        super().check(config, scenario)
        if self.top > self.pool:
            raise ConfigError(f"l2p[top={self.top},pool={self.pool}] given; a top of at most the pool is accepted")

    def begin_run(self) -> None:
        """Draw the pool and its keys."""
        self.prompts = self.drawn("prompts", self.pool, self.length, self.model.feature_dim)
        self.keys = self.drawn("keys", self.pool, self.model.feature_dim)

    def learning(self) -> list[nn.Parameter]:
        """All of the pool."""
        return [self.prompts, self.keys]

    def prompt(self, queries: Tensor, *, training: bool) -> tuple[Prompts, dict[str, Tensor]]:
        """The prompts with the nearest keys, as tokens before the first block."""
        nearness = F.normalize(queries, dim=1) @ F.normalize(self.keys, dim=1).T
        cosines, chosen = nearness.topk(self.top, dim=1)
        return Prompts(tokens={0: self.prompts[chosen].flatten(1, 2)}), {"pull": -self.pull * cosines.sum(1).mean()}
