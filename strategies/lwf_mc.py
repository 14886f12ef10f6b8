"""LwF.MC, the baseline of the iCaRL paper."""

from typing import Literal

from torch import Tensor

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario
from clbench.learning.strategy import Traits
from clbench.strategies._teacher import Taught


class LwFMC(Taught):
    """LwF.MC, the baseline of the iCaRL paper. Rebuffi et al. 2017, arXiv:1611.07725, section 4.1.

    L = mean over batch and outputs of BCE(sigmoid(z), target): the target is the old network's sigmoid for the outputs
    of earlier tasks and one-hot for the others (algorithm 3). There are no exemplars, and the class is that of the
    largest output.

    reduction: "sum" adds over the outputs in place of the mean.
    """

    traits = Traits(
        family="distillation",
        paper="Rebuffi et al. 2017, arXiv:1611.07725, section 4.1",
        seeds_together=True,
        settings=("class", "task"),
        memory="none",
        on_features=True,
    )

    reduction: Literal["mean", "sum"] = "mean"

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Sigmoid outputs do not compete, so there is no loss over the new ones alone, and nothing to smooth."""
        if config.training.label_smoothing:
            raise ConfigError(
                f"label_smoothing={config.training.label_smoothing:g} has no meaning for the sigmoid loss of lwf-mc; "
                "0 is accepted"
            )
        if config.training.loss_outputs == "new":
            raise ConfigError("lwf-mc has no use for loss_outputs='new'; 'seen' and 'all' are accepted")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Algorithm 3 without exemplars."""
        return self.sigmoid_loss(self.model(batch.images), batch, self.reduction)
