"""iCaRL."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.learning.losses import distillation
from clbench.learning.strategy import Traits
from clbench.strategies._teacher import Taught


class ICaRL(Taught):
    """iCaRL, incremental classifier and representation learning. Rebuffi et al. 2017, arXiv:1611.07725.

    L = mean over batch and outputs of BCE(sigmoid(z), target), the target of an old output being the old model's
    sigmoid and one-hot otherwise (algorithm 3), on the task and the exemplars. The class is that of the nearest mean of
    exemplars.

    loss_form: "sigmoid", as published, or "softmax": L = CE + KL(old model || model; temperature) over the old outputs.
    reduction: "sum" adds the sigmoid form over the outputs in place of the mean.
    distillation: whether the old outputs are distilled; off gives the paper's hybrid2.
    temperature: what the logits of both models are divided by in the softmax form.
    classifier: the headline one; both are always reported.
    flip_means: whether a class mean is that of exemplars and their mirror images, as in the authors' code.
    """

    traits = Traits(
        family="replay",
        paper="Rebuffi et al. 2017, arXiv:1611.07725",
        settings=("class", "task"),
        needs_memory=True,
        on_features=True,
        not_applicable={"neutral_at_zero": "it distils the old model also without a memory"},
    )

    loss_form: Literal["sigmoid", "softmax"] = "sigmoid"
    reduction: Literal["mean", "sum"] = "mean"
    distillation: bool = True
    temperature: Annotated[float, Field(gt=0)] = 2.0
    classifier: Literal["nearest_mean", "linear"] = "nearest_mean"
    flip_means: bool = False

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Sigmoid outputs do not compete, so there is no loss over the new ones alone, and nothing to smooth."""
        if self.loss_form == "sigmoid" and config.training.label_smoothing:
            raise ConfigError(
                "label_smoothing has no meaning for icarl's sigmoid loss; icarl[loss_form=softmax] has one"
            )
        if config.training.loss_outputs == "new":
            raise ConfigError("icarl has no use for loss_outputs='new'; 'seen' and 'all' are accepted")
        if self.flip_means and not scenario.of_images:
            raise ConfigError("icarl[flip_means=true] mirrors images, and the samples are floats; false is accepted")

    def begin_run(self) -> None:
        """Before the first task there are no class means."""
        self.means: Tensor | None = None

    def begin_task(self, task: Task) -> None:
        """Keep the old model as the teacher, where it is distilled."""
        self.teacher = self.frozen_copy() if self.distillation else None

    def frozen_features(self, config: RunConfig) -> bool:
        """A mirror image has features of its own."""
        return super().frozen_features(config) and not self.flip_means

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Algorithm 3, or its softmax form."""
        logits = self.model(batch.images)
        if self.loss_form == "sigmoid":
            return self.sigmoid_loss(logits, batch, self.reduction)
        terms, old = {"classification": self.classification_loss(logits, batch)}, self.old_logits(batch)
        if old is not None:
            terms["distillation"] = distillation(logits, old, self.temperature)
        return terms

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """The mean of each class's exemplars, in normalised features, normalised again (section 3.1)."""
        self.model.eval()
        data = self.exemplars()
        sums = torch.zeros(self.model.head.out_features, self.model.feature_dim, device=self.device)
        for batch in self.passes(data):
            features = F.normalize(self.features(batch.images).float())
            if self.flip_means:
                features = features + F.normalize(self.features(batch.images.flip(-1)).float())
            sums.index_add_(0, batch.labels, features)
        self.means = F.normalize(sums) if len(data) else None

    def scores(self, images: Tensor, task: int | None = None) -> dict[str, Tensor]:
        """Nearest mean (the dot product of unit vectors orders classes as the distance does) and linear head."""
        features = self.model.features(images)
        linear = self.model.head(features)
        if self.memory is None:
            return {"linear": linear}
        nearest = linear
        if self.means is not None:
            # A class without an exemplar is never the nearest; one whose features are all zero may be.
            held = torch.zeros(len(self.means), dtype=torch.bool).index_fill(0, self.exemplars().labels, True)
            known = F.normalize(features.float()) @ self.means.T
            known = known.masked_fill(~held.to(self.device, non_blocking=True), -torch.inf)
            nearest = F.pad(known, (0, linear.shape[1] - known.shape[1]), value=-torch.inf)
        both = {"nearest_mean": nearest, "linear": linear}
        return {self.classifier: both[self.classifier]} | both
