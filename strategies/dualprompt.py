"""DualPrompt: a prompt for all tasks beside one for each."""

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.config.space import Log
from clbench.data.scenario import Task
from clbench.learning.strategy import Strength
from clbench.models.prompts import Prompts
from clbench.strategies._prompts import Prompted


class DualPrompt(Prompted):
    """DualPrompt. Wang et al. 2022, arXiv:2204.04799.

    L = CE(task's outputs) - pull * mean over the batch of cos(q(x), k_t) (eq. 7-8). The first blocks read a general
    prefix of keys and values, which all tasks train; those behind them read the expert prefix e_t of the task, which
    begins as that of the task before. At test the expert is that of the task whose key k_t is nearest to the query
    q(x), for each image by itself. This follows the authors' JAX code and its port dualprompt-pytorch but in three
    points: there a test batch votes for one expert, keys of tasks to come take part in the choice, and a reshape
    mixes keys and values of different images, where keys are keys here, as in the paper and in GT-RIPL/CODA-Prompt.

    general_blocks, expert_blocks: the number of first blocks with the general prefix, and of those behind them.
    general_length, expert_length: the keys of a prefix, and the values.
    pull: the weight of drawing the task's key to the queries.
    """

    traits = replace(Prompted.traits, paper="Wang et al. 2022, arXiv:2204.04799")

    general_blocks: Annotated[int, Field(ge=0)] = 2
    expert_blocks: Annotated[int, Field(ge=1)] = 3
    general_length: Annotated[int, Field(ge=1)] = 5
    expert_length: Annotated[int, Field(ge=1)] = 5
    pull: Annotated[Strength, Log(0.1, 10)] = 1.0

    @property
    def n_blocks(self) -> int:
        """Those with either prefix."""
        return self.general_blocks + self.expert_blocks

    def begin_run(self) -> None:
        """Draw the general prefixes; there are no experts yet."""
        width = self.model.feature_dim
        self.general = self.drawn("general", self.general_blocks, 2, self.general_length, width)
        self.experts, self.keys = nn.ParameterList(), nn.ParameterList()

    def begin_task(self, task: Task) -> None:
        """Add the task's expert and its key."""
        width = self.model.feature_dim
        begun = self.experts[-1] if len(self.experts) else None
        expert = self.drawn("expert", self.expert_blocks, 2, self.expert_length, width) if begun is None else begun
        self.experts.append(nn.Parameter(expert.detach().clone()))
        self.keys.append(self.drawn("key", width))

    def learning(self) -> list[nn.Parameter]:
        """The general prefixes, and the expert and key of the task."""
        return [self.general, self.experts[-1], self.keys[-1]]

    def prompt(self, queries: Tensor, *, training: bool) -> tuple[Prompts, dict[str, Tensor]]:
        """The general prefixes, and those of the task's expert, or at test of the nearest one."""
        keys, experts = torch.stack(list(self.keys)), torch.stack(list(self.experts))
        nearness = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T
        expert = experts[-1:] if training else experts[nearness.argmax(1)]
        both = [*self.general[None].unbind(1), *expert.unbind(1)]
        return Prompts(prefixes=dict(enumerate(both))), {"pull": -self.pull * nearness[:, -1].mean()}
