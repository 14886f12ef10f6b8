"""iCaRL."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.learning.losses import distillation
from clbench.learning.strategy import Traits
from clbench.strategies._nearest import exemplar_means, nearest_mean
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

    def end_task(self, task: Task) -> None:
        """The mean of each class's exemplars."""
        self.model.eval()
        self.means = exemplar_means(self, flip=self.flip_means)

    def scores(self, images: Tensor, task: int | None = None) -> dict[str, Tensor]:
        """Nearest mean of exemplars and linear head."""
        features = self.model.features(images)
        linear = self.model.head(features)
        if self.memory is None:
            return {"linear": linear}
        nearest = linear if self.means is None else nearest_mean(self, self.means, features)
        both = {"nearest_mean": nearest, "linear": linear}
        return {self.classifier: both[self.classifier]} | both
