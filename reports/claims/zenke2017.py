"""The differences of Zenke et al. 2017's protocol from the scenario: arXiv:1703.04200. It imports no torch."""

from typing import TYPE_CHECKING

from clbench.config.run import RunConfig
from clbench.scenarios.registered import SplitMNIST

if TYPE_CHECKING:
    from clbench.data.scenario import Scenario


class SplitMNISTTestedOnTraining(SplitMNIST):
    """MNIST, tested on the training images themselves, as in the authors' notebook."""

    def build(self, config: RunConfig) -> "Scenario":
        """Cut the tasks, and test each of them on its training images."""
        return super().build(config).tested_on_training()
