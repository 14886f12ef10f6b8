"""Dark experience replay."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.config.space import Log
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.learning.memory import MEMORIES
from clbench.learning.strategy import Stage, Strategy, Strength, Traits


class DER(Strategy):
    """Dark experience replay. Buzzega et al. 2020, arXiv:2004.07211.

    L = CE(current batch) + alpha * mean over samples and outputs of (z - h(x))^2, the replayed batch being as large. z
    are the logits of the sample's augmented view when it last passed by, before the weights moved; the replayed view is
    augmented anew (algorithm 1). The paper's head has all outputs from the start, and those of classes to come learn to
    be low. Where the head grows, an output that is added later has the sample's lowest logit in z.

    alpha: the weight of the distance from the stored logits.
    """

    traits = Traits(
        family="replay",
        paper="Buzzega et al. 2020, arXiv:2004.07211",
        memory="replayed",
        needs_memory=True,
        memory_policy="reservoir",
        on_features=True,
        needs_boundaries=False,
    )

    alpha: Annotated[Strength, Log(0.01, 2)] = 0.3

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Logits are stored as samples pass by, so that is when the memory has to choose."""
        if config.memory.policy is not None and not MEMORIES[config.memory.policy].streaming:
            raise ConfigError(
                f"{config.strategy} stores logits on the way, but memory_policy={config.memory.policy!r} chooses at "
                "the end of a task; 'reservoir' and 'balanced' are accepted"
            )

    def begin_run(self) -> None:
        """Before the first task nothing is stored."""
        self.ids = torch.empty(0, dtype=torch.int64)
        self.logits = torch.empty(0, 0, device=self.device)
        self.answers: Tensor | None = None

    def stages(self, task: Task) -> list[Stage]:
        """Extend what is stored by the outputs that are new."""
        if len(self.ids):
            n_new = self.model.head.out_features - self.logits.shape[1]
            self.logits = torch.cat([self.logits, self.logits.amin(1, keepdim=True).expand(-1, n_new)], 1)
        return super().stages(task)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy on the current batch, and the distance from the stored logits."""
        logits = self.model(batch.images)
        self.answers = logits.detach().float()
        terms = {"classification": self.classification_loss(logits, batch)}
        replayed = self.replay(len(batch)) if self.alpha else None
        if replayed is not None:
            stored = self.logits[positions(replayed.ids, self.ids).to(self.device, non_blocking=True)]
            terms["distillation"] = self.alpha * F.mse_loss(self.model(replayed.images).float(), stored)
        return terms

    def after_step(self, batch: Batch) -> None:
        """Store the logits of those samples of the batch that are in the memory now."""
        if self.memory is not None and self.answers is not None:
            known = self.logits if len(self.ids) else self.answers[:0]
            rows = positions(self.memory.ids, torch.cat([batch.ids, self.ids])).to(self.device, non_blocking=True)
            self.logits, self.ids = torch.cat([self.answers, known])[rows], self.memory.ids
        self.answers = None


def positions(ids: Tensor, among: Tensor) -> Tensor:
    """Return where each of `ids` is first found in `among`, int64 [n]; all of them are there."""
    ordered, order = among.sort(stable=True)
    return order[torch.searchsorted(ordered, ids)]
