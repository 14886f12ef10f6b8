"""Supervised contrastive replay."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.config.space import Log
from clbench.data.augment import AUGMENTATIONS
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.learning.losses import supervised_contrastive
from clbench.learning.strategy import Strategy, Traits
from clbench.strategies._nearest import exemplar_means, nearest_mean


class SCR(Strategy):
    """Supervised contrastive replay. Mai et al. 2021, arXiv:2103.13885.

    L = mean over i of -1 / |P(i)| sum over p in P(i) of log(exp(z_i.z_p / T) / sum over a != i of exp(z_i.z_a / T)),
    over the current and the replayed images and a changed view of each (equation 1). P(i) are the others of the class
    of i, T is the temperature, and z is the normalised output of a projection head on the features. The class is that
    of the nearest mean of exemplars, in features without the projection head. The head with the outputs does not learn.

    replayed: the exemplars drawn at each step (100 in the paper).
    temperature: what similarities are divided by.
    projected: the outputs of the projection head, whose hidden layer is as wide as the features.
    view: the change of the second view, named as those of `augment`. The paper's is a resized crop with a flip, which
        suits photos; digits are told apart by their sides, so that crop suits them.
    colours: whether brightness, contrast and saturation of the second view change, too.
    """

    traits = Traits(
        family="replay",
        paper="Mai et al. 2021, arXiv:2103.13885",
        settings=("class", "task"),
        memory="replayed",
        needs_memory=True,
        memory_policy="reservoir",
        needs_boundaries=False,
        not_applicable={"neutral_at_zero": "it classifies by its exemplars, so it refuses to run without a memory"},
    )

    replayed: Annotated[int, Field(ge=1)] = 100
    temperature: Annotated[float, Field(gt=0), Log(0.03, 0.5)] = 0.07
    projected: Annotated[int, Field(ge=1)] = 128
    view: Literal["none", "crop-flip", "crop", "flip", "resized-crop-flip"] = "resized-crop-flip"
    colours: bool = True

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """There are exemplars to compare with, and pixels to change."""
        if not config.memory.budget:
            raise ConfigError("scr classifies by its exemplars; give memory_size or memory_per_class, 1 or more")
        if self.changes() and not scenario.of_images:
            raise ConfigError(
                "scr changes images, and the samples are floats; scr[view=none,colours=false] is accepted"
            )

    def begin_run(self) -> None:
        """The projection head, and no means of exemplars yet."""
        width = self.model.feature_dim
        with self.seeded("projection"):
            layers = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.projected)
        self.projection = nn.Sequential(*layers).to(self.device)
        self.means: Tensor | None = None

    def loss(self, batch: Batch) -> Tensor:
        """The contrastive loss of both views; a first batch, beside which nothing is replayed, learns too."""
        replayed = self.replay(self.replayed)
        both = [batch] if replayed is None else [batch, replayed]
        images, labels = torch.cat([b.images for b in both]), torch.cat([b.labels for b in both])
        changed, generator = torch.cat([b.originals for b in both]), self.rng("view")
        for change in self.changes():
            changed = change(changed, generator)
        # One forward pass for each view, as in the authors' code.
        views = [self.projection(self.model.features(view)) for view in (images, self.normalize(changed))]
        return supervised_contrastive(F.normalize(torch.cat(views).float()), labels.repeat(2), self.temperature)

    def changes(self) -> list[Callable[[Tensor, torch.Generator], Tensor]]:
        """Return the changes of the second view, in turn."""
        wanted = AUGMENTATIONS[self.view], AUGMENTATIONS["colour-jitter"] if self.colours else None
        return [change for change in wanted if change is not None]

    def after_step(self, batch: Batch) -> None:
        """The means of exemplars are those of earlier weights now."""
        self.means = None

    def end_task(self, task: Task) -> None:
        """The mean of each class's exemplars."""
        self.model.eval()
        self.means = exemplar_means(self)

    def scores(self, images: Tensor, task: int | None = None) -> dict[str, Tensor]:
        """The nearest mean, which is computed anew where the weights have moved; before training the bare head."""
        features = self.model.features(images)
        if self.means is None:
            self.means = exemplar_means(self)
        if self.means is None:
            return {"nearest_mean": self.model.head(features)}
        return {"nearest_mean": nearest_mean(self, self.means, features)}
