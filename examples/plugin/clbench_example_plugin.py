"""A package that brings a strategy and a scenario: after `pip install`, `clbench list` shows both."""

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from clbench import Batch, Scenario, ScenarioSpec, Strategy, Traits
from clbench.config.run import RunConfig
from clbench.scenarios import dataset_from_arrays, split


class NaiveWithNoise(Strategy):
    """Fine-tuning on images with Gaussian noise of standard deviation `strength`."""

    traits = Traits(family="reference")
    strength: Annotated[float, Field(ge=0)] = 0.1

    def loss(self, batch: Batch) -> dict[str, object]:
        """Cross-entropy on noisy images; the noise comes from a named stream, so a run can be repeated."""
        import torch

        noise = torch.randn(batch.images.shape, generator=self.rng("noise")).to(batch.images.device)
        logits = self.model(batch.images + self.strength * noise)
        return {"classification": self.classification_loss(logits, batch)}


class SplitLetters(ScenarioSpec):
    """Six letter-like glyphs of 8x8 pixels, made on the spot, by default 3 tasks of 2."""

    preset: ClassVar = {"tasks": 3, "epochs": 3, "model": "mlp:32", "optimizer": "adam", "lr": 0.01, "batch_size": 16}
    exclusive = (("tasks", "task_sizes"),)

    tasks: Annotated[int, Field(ge=1)] | None = None
    task_sizes: list[int] | None = None
    noise: Annotated[int, Field(ge=1, le=56)] = 56

    def build(self, config: RunConfig) -> Scenario:
        """Draw the glyphs, with noise of 0 to `noise` - 1 on each pixel, and cut the tasks."""
        rng = np.random.default_rng(0)
        glyphs = rng.integers(0, 2, (6, 8, 8)) * 200

        def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
            labels = np.arange(6).repeat(n)
            images = glyphs[labels] + rng.integers(0, self.noise, (len(labels), 8, 8))
            return images.astype(np.uint8), labels

        data = dataset_from_arrays(*draw(50), *draw(20), name="letters")
        return split(data, tasks=self.tasks, task_sizes=self.task_sizes, setting=self.setting, name=config.scenario)
