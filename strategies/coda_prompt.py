"""CODA-Prompt: prompts that are sums of components, weighted by attention."""

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.scenario import Scenario, Task
from clbench.learning.strategy import Strength
from clbench.models.prompts import Prompts, transformer
from clbench.strategies._prompts import Prompted


class CODAPrompt(Prompted):
    """CODA-Prompt. Smith et al. 2023, arXiv:2211.13218.

    p = sum_m cos(q(x) * A_m, K_m) P_m is the prefix of keys and values that each of the first blocks reads (eq. 3-5);
    L = CE(task's outputs) + orthogonality * sum over the blocks and over B in {P, K, A} of mean((B B^T - I)^2) (eq. 6).
    Each task adds components P with keys K and attention vectors A, those of earlier tasks are frozen. The new ones
    begin orthonormal and orthogonal to the earlier ones, as in the authors' code; that runs Gram-Schmidt once along
    the earlier ones, which have ceased to be orthogonal in training, and is exact here. The authors' code has an
    `orthogonality` of 0 by default (the paper: 0.1).

    components: those that a task adds to each block.
    blocks: the number of first blocks with a prefix.
    length: the keys of a prefix, and the values.
    orthogonality: the weight of the penalty.
    """

    traits = replace(Prompted.traits, paper="Smith et al. 2023, arXiv:2211.13218")

    components: Annotated[int, Field(ge=1)] = 10
    blocks: Annotated[int, Field(ge=1)] = 5
    length: Annotated[int, Field(ge=1)] = 4
    orthogonality: Strength = 0.0

    @property
    def n_blocks(self) -> int:
        """Those with a prefix."""
        return self.blocks

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """There can't be more orthogonal vectors than dimensions."""
        super().check(config, scenario)
        n_tasks, width = len(scenario.tasks), transformer(config, scenario).num_features
        if n_tasks * self.components > width:
            most = width // n_tasks
            raise ConfigError(
                f"coda-prompt[components={self.components}] given: {n_tasks} tasks have more components than the "
                f"{width} dimensions that they are orthogonal in; "
                + (f"at most {most} is accepted" if most else f"at most {width} tasks are accepted")
            )

    def begin_run(self) -> None:
        """Before the first task there are no components."""
        self.parts, self.keys, self.attention = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()

    def begin_task(self, task: Task) -> None:
        """Add the task's components, orthonormal, [blocks, components, dimensions] of each kind."""
        width = self.model.feature_dim
        for name, kept, dim in (
            ("parts", self.parts, 2 * self.length * width),
            ("keys", self.keys, width),
            ("attention", self.attention, width),
        ):
            new = torch.randn(self.blocks, self.components, dim, generator=self.rng(name))
            rows = torch.cat([*(old.detach().cpu() for old in kept), new], 1)
            orthonormal = torch.linalg.qr(rows.mT).Q.mT[:, -self.components :]
            kept.append(nn.Parameter(orthonormal.contiguous().to(self.device)))

    def learning(self) -> list[nn.Parameter]:
        """The components of the task."""
        return [self.parts[-1], self.keys[-1], self.attention[-1]]

    def prompt(self, queries: Tensor, *, training: bool) -> tuple[Prompts, dict[str, Tensor]]:
        """The weighted sums of the components, and the penalty."""
        parts, keys, attention = (torch.cat(list(kept), 1) for kept in (self.parts, self.keys, self.attention))
        # cos(q * A, K) without the product q * A, which has a vector for each image and component.
        lengths = (queries.square() @ attention.square().mT).sqrt().clamp(min=1e-12)
        weights = queries @ (attention * F.normalize(keys, dim=-1)).mT / lengths
        prefixes = (weights @ parts).unflatten(-1, (2, self.length, -1))
        terms: dict[str, Tensor] = {}
        if self.orthogonality:
            eye = torch.eye(parts.shape[1], device=self.device)
            spread = [((b @ b.mT - eye) ** 2).mean((1, 2)).sum() for b in (parts, keys, attention)]
            terms["orthogonality"] = self.orthogonality * torch.stack(spread).sum()
        return Prompts(prefixes=dict(enumerate(prefixes.unbind()))), terms
