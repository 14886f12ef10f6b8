"""Shared parts of the strategies that adapt a given backbone by parameters put into it."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.learning.strategy import Stage, Strategy, Traits
from clbench.models import build_model, inserted
from clbench.strategies._frozen import FrozenBackbone

Size = Annotated[int, Field(ge=1)]


def check_kind(config: RunConfig, scenario: Scenario, kind: inserted.Kind) -> None:
    """Raise ConfigError where parameters of a kind can't be put into the run's network."""
    model = build_model(config.model.name, scenario.image_shape, 0, config.code).to("meta")
    with torch.device("meta"):
        inserted.check_insertion(model, kind, scenario.image_shape)


def cosines(features: Tensor, weight: Tensor) -> Tensor:
    """Return the cosine of each feature, float [B, d], with each row of weights, [outputs, d]."""
    return F.linear(F.normalize(features.float()), F.normalize(weight.float()))


class FirstSession(FrozenBackbone):
    """A classifier on frozen features that are adapted to the first task before they are frozen.

    In the first task `adaptation` is trained by the cross-entropy of sigma * cos(phi(x), w_c), sigma learnt, as in the
    authors' code: all weights ("fine-tuning"), or only parameters put into the backbone: adapters beside the
    perceptrons, a scale and a shift behind each layer, or prompts for each block. A backbone without given weights
    trains with them.
    """

    adaptation: Literal["none", "fine-tuning", "adapter", "scale-shift", "prompts"] = "none"
    size: Size | None = None

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """The network has to have a place for what is put in, and the option `size` a meaning."""
        if self.size is not None and self.adaptation not in ("adapter", "prompts"):
            raise ConfigError(
                f"size={self.size} given, and adaptation={self.adaptation} has none; adapter and prompts are accepted"
            )
        if self.adaptation == "none":
            super().check(config, scenario)
        elif self.adaptation != "fine-tuning":
            check_kind(config, scenario, self._kind())
        elif config.training.train == "head":
            raise ConfigError("adaptation=fine-tuning given with train=head; train=all and train=last-N are accepted")

    def begin_run(self) -> None:
        """Put the parameters in."""
        if self.adaptation not in ("none", "fine-tuning"):
            with self.seeded("adaptation"):
                inserted.insert(self.model, self._kind())
        if self.adaptation != "none":
            self.sigma = nn.Parameter(torch.ones(1, device=self.device))
        super().begin_run()

    def frozen_features(self, config: RunConfig) -> bool:
        """Given weights stay as they are where nothing is adapted."""
        return self.adaptation == "none"

    def stages(self, task: Task) -> list[Stage]:
        """Adapt to the first task."""
        if task.index > 0 or self.adaptation == "none":
            return super().stages(task)
        put_in = inserted.parameters(self.model)
        given = put_in and self.config.model.weights is not None
        return [Stage(task.train, parameters=[*put_in, *self.model.head.parameters(), self.sigma] if given else None)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the scaled cosines."""
        if self.adaptation == "none":
            return super().loss(batch)  # type: ignore[return-value]
        return {"classification": self.classification_loss(self._logits(batch.images), batch)}

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        """The closed-form classifier's scores; until the first task is over, the cosines."""
        return super().scores(images) if len(self.bias) or self.adaptation == "none" else self._logits(images)

    def _logits(self, images: Tensor) -> Tensor:
        return self.sigma * cosines(self.model.features(images), self.model.head.weight)

    def _kind(self) -> inserted.Kind:
        if self.adaptation == "adapter":
            return inserted.ParallelAdapters(self.size or 64)
        return inserted.DeepPrompts(self.size or 5) if self.adaptation == "prompts" else inserted.ScaleShift()


class AdaptersForTasks(Strategy):
    """A strategy with adapters for each task beside the perceptrons of a vision transformer; nothing else trains.

    A backbone without given weights trains on the first task, with the first adapters.
    """

    traits = Traits(family="pretrained", settings=("class", "task"), memory="none", needs_transformer=True)

    size: Size = 64

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """A class is in one task."""
        if scenario.blurred:
            raise ConfigError(f"{config.strategy} needs each class in one task, and these tasks are blurry")
        if config.training.loss_outputs == "all":
            raise ConfigError(f"{config.strategy} has no use for loss_outputs='all'; 'seen' and 'new' are accepted")

    def begin_task(self, task: Task) -> None:
        """Put new adapters in."""
        with self.seeded("adapters"):
            inserted.insert(self.model, inserted.ParallelAdapters(self.size))

    def stages(self, task: Task) -> list[Stage]:
        """Train the new adapters and the task's rows of the head."""
        if task.index == 0 and self.config.model.weights is None:
            return [Stage(task.train)]
        of_task = [p for name, p in self.trainable().items() if not name.startswith("model.")]
        new = [*inserted.parameters(self.model, task.index), *self.model.head.parameters(), *of_task]
        return [Stage(task.train, parameters=new, head_rows=task.outputs)]

    def own_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy over the task's own outputs."""
        return self.classification_loss(logits, batch, self.outputs_of(self.progress.task))

    def features_of(self, images: Tensor, index: int) -> Tensor:
        """Return features with the adapters of a task, float32 [B, d]."""
        with inserted.using(self.model, index):
            return self.model.features(images).float()

    def means(self, task: Task, index: int) -> Tensor:
        """Return the mean features of each class of the task with the adapters of a task, float [classes, d]."""
        self.model.eval()
        outputs, width = task.outputs, self.model.feature_dim + 1
        total = torch.zeros(outputs.stop - outputs.start, width, device=self.device)
        for batch in self.passes(task.train):
            features = self.features_of(batch.images, index)
            targets = F.one_hot(batch.labels - outputs.start, outputs.stop - outputs.start).float()
            total += torch.cat([targets.T @ features, targets.sum(0)[:, None]], 1)
        return total[:, :-1] / total[:, -1:]
