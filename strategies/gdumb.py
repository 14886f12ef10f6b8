"""GDumb."""

import math
from typing import Annotated

import torch
from pydantic import Field

from clbench.config.errors import ConfigError, RunError
from clbench.config.run import RunConfig
from clbench.data.scenario import Scenario, Task
from clbench.learning.strategy import Stage, Strategy, Traits
from clbench.learning.trainer import refuse_single_image


class GDumb(Strategy):
    """GDumb, the greedy sampler and dumb learner. Prabhu, Torr & Dokania 2020, ECCV, doi:10.1007/978-3-030-58536-5_31.

    A class-balanced sample of the stream is kept, and after each task a fresh model is trained on that sample alone.
    Optimizer and schedule are the run's; the paper's CutMix is left out.

    memory_epochs: the number of passes over the memory (256 in the paper); None takes as many steps as the run's epochs
        have on the task's own data.
    """

    traits = Traits(
        family="replay",
        paper="Prabhu, Torr & Dokania 2020, ECCV, doi:10.1007/978-3-030-58536-5_31",
        memory="own",
        needs_memory=True,
        memory_policy="balanced",
        on_features=True,
        needs_boundaries=False,
        not_applicable={"neutral_at_zero": "it trains on its memory alone, so it refuses to run without one"},
    )

    memory_epochs: Annotated[int, Field(ge=1)] | None = None

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Without a memory there is nothing to train on."""
        if not config.memory.budget:
            raise ConfigError("gdumb trains on its memory alone; give memory_size or memory_per_class, 1 or more")
        if config.memory.policy in ("herding", "herding-argmax"):
            raise ConfigError(
                "gdumb fills its memory before it has features; memory_policy 'balanced', 'random' and "
                "'reservoir' are accepted, not 'herding'"
            )
        if config.training.loss_outputs == "new":
            raise ConfigError("gdumb learns all classes at once, not loss_outputs='new'; 'seen' and 'all' are accepted")
        size, per_class = config.memory.size, config.memory.per_class
        if size == 1 or (per_class == 1 and len(scenario.tasks[0].classes) == 1):
            refuse_single_image(config, scenario, "gdumb trains on its memory alone, which holds one image")

    def begin_task(self, task: Task) -> None:
        """Offer the task's samples to the memory, in random order."""
        if self.memory is None:
            raise RunError("gdumb trains on its memory alone, and has none")
        data = task.train.subset(torch.randperm(len(task.train), generator=self.rng("stream")))
        self.memory.update(data.ids, data.classes, self.rng("memory"))

    def stages(self, task: Task) -> list[Stage]:
        """One stage on the memory, from a fresh model."""
        data = self.exemplars()
        if self.memory_epochs is not None:
            return [Stage(data, epochs=self.memory_epochs, before=self.restart)]
        steps = self.config.training.iterations
        if self.config.training.epochs is not None:
            steps = self.config.training.epochs * math.ceil(len(task.train) / self.config.training.batch_size)
        return [Stage(data, iterations=steps, before=self.restart)]
