"""The differences of van de Ven & Tolias 2019's protocols from the methods: arXiv:1904.07734."""

from torch import Tensor

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario
from clbench.strategies.icarl import ICaRL
from clbench.strategies.lwf import LwF


class LwFByShare(LwF):
    """LwF, weighted by tasks: L = CE / N + (1 - 1/N) strength KL in the N-th task. The options are those of LwF.

    In the task-incremental setting KL is the mean over the old tasks, and not their sum.
    """

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return LwF's terms, weighted by the share of the present task and by that of the earlier ones."""
        terms, n = super().loss(batch), self.progress.task + 1
        if self.teacher is not None:
            n_sums = len(self.groups) if self.groups else 1
            terms = {
                "classification": terms["classification"] / n,
                "distillation": (1 - 1 / n) * terms["distillation"] / n_sums,
            }
        return terms


class ICaRLWithSoftTargets(ICaRL):
    """iCaRL with softened targets: those of old outputs are sigmoid(z / 2), as in the authors' code.

    The options are those of iCaRL.
    """

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Raise ConfigError for the softmax form, which has no such targets."""
        super().check(config, scenario)
        if self.loss_form == "softmax":
            raise ConfigError(f"{config.strategy} is for loss_form=sigmoid; the softmax form has temperature")

    def old_logits(self, batch: Batch) -> Tensor | None:
        """Return the teacher's logits, halved."""
        old = super().old_logits(batch)
        return None if old is None else old / 2
