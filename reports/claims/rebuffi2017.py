"""The differences of Rebuffi et al. 2017's protocol from the methods: arXiv:1611.07725.

The paper leaves these points open; they are as in the authors' code, github.com/srebuffi/iCaRL.
"""

from torch import nn

from clbench.learning.memory import Memory
from clbench.learning.strategy import Strategy
from clbench.strategies.icarl import ICaRL
from clbench.strategies.lwf_mc import LwFMC


class BiasesDoNotDecay(Strategy):
    """Weight decay acts on weights and on the factors of batch norm, but on no bias."""

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Spare the biases, those of normalisation layers included."""
        return not name.endswith("bias")


class ICaRLAsReleased(BiasesDoNotDecay, ICaRL):
    """iCaRL with a memory that rounds up: each of n classes keeps ceil(size / n) exemplars, so it can exceed its size.

    Biases do not decay. The options are those of iCaRL.
    """

    def new_memory(self, kind: type[Memory], size: int | None, per_class: int | None) -> Memory:
        """Round the exemplars of each class up."""
        return kind(size, per_class, rounding="ceil")


class Finetuning(BiasesDoNotDecay, ICaRL):
    """The loss of iCaRL without distillation, to be trained without exemplars; biases do not decay.

    The options are those of iCaRL.
    """

    distillation: bool = False


class LwFMCAsReleased(BiasesDoNotDecay, LwFMC):
    """LwF.MC whose biases do not decay. The options are those of LwF.MC."""
