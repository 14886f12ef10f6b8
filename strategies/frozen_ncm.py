"""Nearest class mean on frozen features."""

from dataclasses import replace

from torch import Tensor

from clbench.strategies._frozen import FrozenBackbone


class FrozenNCM(FrozenBackbone):
    """Nearest class mean on frozen features. Mensink et al. 2013, doi:10.1109/TPAMI.2013.83.

    argmin_c ||phi(x) - mu_c||, mu_c the mean of all features of class c. It is linear, as ||phi||^2 is the same for all
    classes: score_c = mu_c . phi(x) - ||mu_c||^2 / 2. The features come from given weights, or from the first task, on
    which the backbone trains before it is frozen.
    """

    traits = replace(
        FrozenBackbone.traits, paper="Mensink et al. 2013, doi:10.1109/TPAMI.2013.83", needs_boundaries=False
    )

    def classifier(self) -> tuple[Tensor, Tensor]:
        """The class means as weights."""
        means = self.means()
        return means, -means.square().sum(1) / 2
