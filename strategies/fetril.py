"""FeTrIL."""

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from clbench.config.space import Log
from clbench.data.batches import gathered
from clbench.data.scenario import Task
from clbench.strategies._frozen import FrozenBackbone


class FeTrIL(FrozenBackbone):
    """FeTrIL. Petit et al. 2023, arXiv:2211.13131.

    Of an earlier class c only the mean is kept. Its features are made up from those of the class n of this task whose
    mean is nearest: phi(x) - mean_n + mean_c. A linear support vector machine for each class against all others, with
    a squared hinge loss, is fitted to all features, scaled to length 1. The authors' code (GregoirePetit/FeTrIL) is
    followed: Euclidean distances and LinearSVC, whose solution does not depend on a learning rate, as that of a layer
    trained by gradients does. It leaves the first 512 features unscaled, which is taken for a slip; the version in
    dipamgoswami/FeCAM compares means by the cosine. The features come from given weights, or from the first task, on
    which the backbone trains before it is frozen.

    cost: the weight C of the loss against the squared norm of the weights, of the bias too.
    """

    traits = replace(FrozenBackbone.traits, paper="Petit et al. 2023, arXiv:2211.13131")

    cost: Annotated[float, Field(gt=0), Log(1e-2, 1e2)] = 1.0

    def end_task(self, task: Task) -> None:
        """Keep the features of the task for as long as the classifiers are fitted."""
        features = gathered((h for h, _ in self.represented(task.train)), len(task.train))
        self.present = features, task.train.labels
        super().end_task(task)
        del self.present

    def classifier(self) -> tuple[Tensor, Tensor]:
        """Fit a support vector machine for each class."""
        from sklearn.svm import LinearSVC

        h, labels = self._features_of_all()
        scaled = F.normalize(h).numpy()
        weight, bias = torch.zeros_like(self.sums), torch.zeros_like(self.counts)
        for c in labels.unique().tolist():
            if (labels != c).any():
                machine = LinearSVC(C=self.cost, dual=False, tol=1e-4).fit(scaled, (labels == c).numpy())
                weight[c], bias[c] = torch.from_numpy(machine.coef_[0]), float(machine.intercept_[0])
        return weight, bias

    def classify(self, h: Tensor) -> Tensor:
        """The scores of features that are scaled to length 1."""
        return super().classify(F.normalize(h))

    def _features_of_all(self) -> tuple[Tensor, Tensor]:
        """Return features, float64 [N, M], and labels [N] of all classes so far; those of earlier ones are made up."""
        h, labels = self.present
        new, means = labels.unique(), self.means()
        current = torch.stack([h[labels == n].mean(0) for n in new.tolist()])
        made, known = [], torch.nonzero(self.counts).flatten()
        for c, nearest in zip(known.tolist(), torch.cdist(means[known], current).argmin(1).tolist(), strict=True):
            shift = means[c] - current[nearest]
            made.append(h[labels == new[nearest]] + shift)
        return torch.cat(made), torch.cat([torch.full((len(m),), c) for c, m in zip(known.tolist(), made, strict=True)])
