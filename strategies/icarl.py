"""iCaRL: Rebuffi et al. 2017, arXiv:1611.07725."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.learning.losses import binary_cross_entropy, distillation
from clbench.learning.strategy import Strategy, Traits


class ICaRL(Strategy):
    """Train on the task and the exemplars, distil the old outputs, classify by the nearest mean of the exemplars.

    loss_form: "sigmoid", as published: L = mean over batch and outputs of BCE(sigmoid(z), target), the target of an
    old output being the old model's sigmoid and one-hot otherwise (reduction="sum" adds over the outputs instead);
    or "softmax": L = CE + KL(old model || model; temperature) over the old outputs. distillation: off gives the
    paper's hybrid2. teacher_temperature: what the old model's logits are divided by before the sigmoid (1 in the paper;
    2 in the code of van de Ven et al. 2022, doi:10.1038/s42256-022-00568-3). classifier: the headline one; both are
    always reported. flip_means: a class mean is that of exemplars and their mirror images, as in the authors' code.
    """

    traits = Traits(
        family="replay",
        paper="Rebuffi et al. 2017, arXiv:1611.07725",
        settings=("class", "task"),
        needs_memory=True,
        not_applicable={"neutral_at_zero": "it distils the old model also without a memory"},
    )

    loss_form: Literal["sigmoid", "softmax"] = "sigmoid"
    reduction: Literal["mean", "sum"] = "mean"
    distillation: bool = True
    temperature: Annotated[float, Field(gt=0)] = 2.0
    teacher_temperature: Annotated[float, Field(gt=0)] = 1.0
    classifier: Literal["nearest_mean", "linear"] = "nearest_mean"
    flip_means: bool = False

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Sigmoid outputs do not compete, so there is no loss over the new ones alone, and nothing to smooth."""
        if self.loss_form == "sigmoid" and config.label_smoothing:
            raise ConfigError(
                "label_smoothing has no meaning for icarl's sigmoid loss; icarl[loss_form=softmax] has one"
            )
        if self.loss_form == "softmax" and self.teacher_temperature != 1:
            raise ConfigError("icarl[teacher_temperature] is for loss_form=sigmoid; the softmax form has temperature")
        if config.loss_outputs == "new":
            raise ConfigError("icarl has no use for loss_outputs='new'; 'seen' and 'all' are accepted")

    def begin_task(self, task: Task) -> None:
        """Keep the old model as the teacher."""
        self.teacher: nn.Module | None = self.frozen_copy() if self.distillation else None
        if task.index == 0:
            self.means: Tensor | None = None

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Algorithm 3, or its softmax form."""
        logits, old = self.model(batch.images), None
        if self.teacher is not None:
            # A full head has outputs that are not old, too.
            with torch.no_grad():
                old = self.teacher(batch.images)[:, : self.old_task_outputs[-1].stop]
        if self.loss_form == "sigmoid":
            old = None if old is None else old / self.teacher_temperature
            outputs = batch.active if self.setting == "class" else slice(0, self.outputs_of(self.progress.task).stop)
            return {"bce": binary_cross_entropy(logits[:, outputs], batch.labels, old, reduction=self.reduction)}
        terms = {"classification": self.classification_loss(logits, batch)}
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
            # A class without an exemplar (a zero mean) is never the nearest.
            known = F.normalize(features.float()) @ self.means.T
            known = known.masked_fill(~self.means.any(1), -torch.inf)
            nearest = F.pad(known, (0, linear.shape[1] - known.shape[1]), value=-torch.inf)
        both = {"nearest_mean": nearest, "linear": linear}
        return {self.classifier: both[self.classifier]} | both
