"""Class-incremental learning with dual memory."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.data.scenario import ImageSet, Task
from clbench.learning.strategy import Strategy, Traits


class IL2M(Strategy):
    """IL2M, class-incremental learning with dual memory. Belouadah & Popescu 2019, ICCV, doi:10.1109/ICCV.2019.00067.

    Fine-tuning on task and exemplars, and at test time a remedy for the loss of confidence in old classes: where a new
    class has the highest score, an old class i gets p_i * mu_P(i) / mu_N(i) * M_N / M_P (eq. 1). mu is the mean score
    of the class's own images in the model that learnt it (P) and in the present one (N); M is the mean top score of a
    model on images of its new classes. Scores are softmax outputs. Both classifiers are reported.
    """

    traits = Traits(
        family="replay",
        paper="Belouadah & Popescu 2019, ICCV, doi:10.1109/ICCV.2019.00067",
        settings=("class",),
        needs_memory=True,
        on_features=True,
    )

    def begin_run(self) -> None:
        """Before the first task there are no statistics."""
        self.initial = self.confidence = torch.empty(0, device=self.device)

    def begin_task(self, task: Task) -> None:
        """While a task is learnt there is nothing to rectify with."""
        self.seen = task.outputs.stop
        self.factors = torch.empty(0, device=self.device)

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """The second memory: statistics of the scores."""
        self.model.eval()
        old, new = slice(0, task.outputs.start), task.outputs
        mean, confidence = self._statistics(task.train)
        current, _ = self._statistics(self.exemplars())
        factors = self.initial / current[old] * confidence / self.confidence
        # A class that has no exemplar left keeps its score.
        self.factors = torch.where(current[old] > 0, factors, 1.0)
        self.initial = torch.cat([self.initial, mean[new]])
        self.confidence = torch.cat([self.confidence, confidence.expand(len(task.classes))])

    def scores(self, images: Tensor, task: int | None = None) -> dict[str, Tensor]:
        """The logarithms of the rectified scores, and the plain outputs."""
        logits = self.model(images)
        if self.memory is None:
            return {"linear": logits}
        # Logarithms tell small scores apart where their float32 values are all 0.
        scores = logits[:, : self.seen].float().log_softmax(1)
        n_old = len(self.factors)
        is_new = scores.argmax(1, keepdim=True) >= n_old
        rectified = torch.where(is_new, scores[:, :n_old] + self.factors.log(), scores[:, :n_old])
        scores = torch.cat([rectified, scores[:, n_old:]], 1)
        return {"rectified": F.pad(scores, (0, logits.shape[1] - self.seen), value=-torch.inf), "linear": logits}

    def _statistics(self, data: ImageSet) -> tuple[Tensor, Tensor]:
        """The mean score of each class's own images, zero where it has none, and the mean top score."""
        sums = torch.zeros(self.seen, device=self.device)
        counts, top = torch.zeros_like(sums), torch.zeros_like(sums)
        for batch in self.passes(data):
            scores = self.model(batch.images)[:, : self.seen].float().softmax(1)
            own = scores.gather(1, batch.labels[:, None])[:, 0]
            sums.index_add_(0, batch.labels, own)
            counts.index_add_(0, batch.labels, torch.ones_like(own))
            top += scores.max(1).values.sum()
        return sums / counts.clamp(min=1), top[0] / counts.sum().clamp(min=1)
