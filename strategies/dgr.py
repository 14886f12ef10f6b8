"""Deep generative replay."""

import copy
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from clbench.config.errors import ConfigError, RunError
from clbench.config.run import RunConfig
from clbench.config.space import Choices
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.learning.losses import cross_entropy, distillation
from clbench.learning.strategy import Strategy, Traits
from clbench.models.vae import VAE


class DGR(Strategy):
    """Deep generative replay. Shin et al. 2017, arXiv:1705.08690.

    As in van de Ven, Tuytelaars & Tolias 2022, doi:10.1038/s42256-022-00568-3: a generator of the earlier tasks makes
    up as many samples as each step has current ones, and the model as it was before the task labels them. With N tasks
    so far, L = 1/N L(current) + (1 - 1/N) L(replayed) for the classifier, whose L is cross-entropy, and for the
    generator, whose L is that of a VAE. In the task-incremental setting the old model answers for each earlier task,
    and the losses are averaged.

    targets: the old model's most likely class ("hard"), or its probabilities ("soft": DGR+distill).
    temperature: what the logits of soft targets are divided by.
    hidden: the number of units of the generator's hidden layers.
    latent: the number of the generator's latent variables.
    """

    traits = Traits(family="replay", paper="Shin et al. 2017, arXiv:1705.08690", memory="none")

    targets: Literal["hard", "soft"] = "hard"
    temperature: Annotated[float, Field(gt=0)] = 2.0
    hidden: Annotated[int, Field(ge=1)] = 400
    latent: Annotated[int, Field(ge=1), Choices(5, 20, 100)] = 100

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Replayed samples can be of any class seen so far, and their pixels are between 0 and 1."""
        if config.training.loss_outputs != "seen":
            raise ConfigError(f"dgr can't work with loss_outputs={config.training.loss_outputs!r}; 'seen' is accepted")
        if not scenario.of_images:
            raise ConfigError("dgr generates images of bytes, and the samples are floats; images are accepted")

    def begin_run(self) -> None:
        """Draw the generator."""
        with self.seeded("generator"):
            self.generator = VAE(self._context.scenario.image_shape, self.hidden, self.latent).to(self.device)

    def begin_task(self, task: Task) -> None:
        """Freeze copies of the model and of the generator."""
        self.teacher = self.frozen_copy()
        self.old_generator: VAE | None = None
        if self.teacher is not None:
            self.old_generator = copy.deepcopy(self.generator).eval().requires_grad_(False)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Classifier and generator learn side by side; they share no parameters."""
        n, pixels, images = len(batch), batch.originals / 255, batch.images
        share = 1 / (self.progress.task + 1)
        if self.old_generator is not None:
            replayed = self.old_generator.generate(self._noise("replay", n))
            pixels = torch.cat([pixels, replayed])
            images = torch.cat([images, self.normalize(255 * replayed)])
        logits = self.model(images)
        elbo = self.generator.loss(pixels, self._noise("latent", len(pixels)))
        terms = {
            "classification": share * self.classification_loss(logits[:n], batch),
            "generator": share * elbo[:n].mean(),
        }
        if self.old_generator is not None:
            terms["replay"] = (1 - share) * self._replay_loss(logits[n:], images[n:], batch)
            terms["generator_replay"] = (1 - share) * elbo[n:].mean()
        return terms

    def _replay_loss(self, logits: Tensor, images: Tensor, batch: Batch) -> Tensor:
        if self.teacher is None:
            raise RunError("there is no model to replay from before the first task is over")
        with torch.no_grad():
            answers = self.teacher(images)
        old = self.old_task_outputs
        groups = old if self.setting == "task" else [slice(0, old[-1].stop)]
        losses = []
        for group in groups:
            active = group if self.setting == "task" else batch.active
            if self.targets == "hard":
                labels = answers[:, group].argmax(1) + group.start
                smoothing = self.config.training.label_smoothing
                losses.append(cross_entropy(logits, labels, active, label_smoothing=smoothing))
            else:
                student = logits[:, active]
                # The old model gives no probability to the new classes.
                teacher = F.pad(answers[:, group], (0, student.shape[1] - (group.stop - group.start)), value=-1e4)
                losses.append(distillation(student, teacher, self.temperature))
        return torch.stack(losses).mean()

    def _noise(self, name: str, n: int) -> Tensor:
        return torch.randn(n, self.latent, generator=self.rng(name)).to(self.device, non_blocking=True)
