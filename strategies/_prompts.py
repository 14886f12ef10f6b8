"""Shared parts of the strategies that learn prompts for a frozen vision transformer."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.learning.strategy import Stage, Strategy, Terms, Traits
from clbench.models.prompts import Prompts, prompted_features, transformer


class Prompted(Strategy, ABC):
    """Prompts are learnt, and the rows of the head; the transformer that reads the prompts is frozen.

    The transformer's own features of an image, made without prompts and once a batch, are the query q(x) that its
    prompts are chosen by. In training only the outputs of the task compete (the authors' masked logits). The
    transformer has given weights, or trains on the first task in a stage before that of the prompts.
    """

    traits = Traits(family="pretrained", memory="none", needs_transformer=True, through_features=False)
    pooled: ClassVar[Literal["image", "prompts"]] = "image"

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """The blocks that are given prompts have to be there, and outputs to come can't compete."""
        depth = len(transformer(config, scenario).blocks)
        if self.n_blocks > depth:
            fewer = " and ".join(f"{n}={getattr(self, n)}" for n in self._options.model_fields if n.endswith("blocks"))
            raise ConfigError(
                f"{config.strategy} gives prompts to {self.n_blocks} blocks, and model={config.model.name!r} has "
                f"{depth}; a deeper one is accepted{f', or less than {fewer}' if fewer else ''}"
            )
        if config.training.loss_outputs == "all":
            raise ConfigError(
                f"{config.strategy} lets the outputs of the task alone compete, not loss_outputs='all'; 'seen' and "
                "'new' are accepted"
            )

    @property
    @abstractmethod
    def n_blocks(self) -> int:
        """The number of blocks that have to be there."""

    @abstractmethod
    def learning(self) -> list[nn.Parameter]:
        """Return the parameters of prompts that the task trains."""

    @abstractmethod
    def prompt(self, queries: Tensor, *, training: bool) -> tuple[Prompts, dict[str, Tensor]]:
        """Return the prompts for queries, float [B, D], and the terms of the loss beside the cross-entropy."""

    def stages(self, task: Task) -> list[Stage]:
        """The prompts and the head; in the first task the transformer before them, unless its weights were given."""
        prompts = Stage(task.train, "prompts", [*self.learning(), *self.model.head.parameters()])
        if task.index or self.config.model.weights is not None:
            return [prompts]
        return [Stage(task.train, "backbone", list(self.model.parameters()), loss=super().loss), prompts]

    def loss(self, batch: Batch) -> Terms:
        """Cross-entropy over the outputs of the task, and what the choice of prompts adds."""
        logits, terms = self.prompted(batch.images, training=True)
        own = self.outputs_of(self.progress.task)
        return {"classification": self.classification_loss(logits, batch, own)} | terms

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        """The head's logits of the features with prompts."""
        return self.prompted(images, training=False)[0]

    def prompted(self, images: Tensor, *, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits of images, float [B, outputs], with prompts, and the terms that come with these."""
        with torch.no_grad():
            queries = self.model.features(images)
        with torch.autocast(images.device.type, enabled=False):
            prompts, terms = self.prompt(queries.to(self.model.head.weight.dtype), training=training)
        logits: Tensor = self.model.head(prompted_features(self.model, images, prompts, self.pooled))
        return logits, terms

    def drawn(self, name: str, *shape: int) -> nn.Parameter:
        """Return a new parameter, uniform in [-1, 1], from the stream `name`."""
        return nn.Parameter(torch.empty(shape).uniform_(-1, 1, generator=self.rng(name)).to(self.device))
