"""A run whose tasks Avalanche's own loop learns, behind the interface of every run."""

import warnings
from typing import Any, ClassVar

import torch

from clbench.avalanche.learner import TaskOutputs, experience, learner_of, optimizer_of, seeded, unprotected
from clbench.avalanche.recorder import Recorder, kept_exemplars, told
from clbench.data.scenario import Task
from clbench.models.network import Network
from clbench.results.record import EpochRecord
from clbench.running.run import Run
from clbench.support.streams import stream_seed


class AvalancheRun(Run):
    """Learns each task by Avalanche's loop; its state can't be saved, so such a run is begun again, not continued."""

    continues: ClassVar[bool] = False

    def train(self, task: Task) -> tuple[int, list[EpochRecord]]:
        """Let Avalanche learn the task; return its images, and a record per epoch."""
        strategy: Any = self.strategy
        config, progress = self.config, self.context.progress
        progress.stage = "train"
        recorder = Recorder(strategy, self.after_step, self.after_epoch)
        seed = stream_seed(config.seed, "avalanche", task.index)
        # Notes on its own deprecated functions get past any filter; they are recorded, and dropped.
        with seeded(seed, strategy.device), warnings.catch_warnings(record=True), told(strategy):
            warnings.simplefilter("ignore")
            if task.index == 0:
                strategy.learner = learner_of(strategy, strategy.template)
                if text := unprotected(strategy):
                    self.trainer.remarks.append(("is-fine-tuning", text))
            learner = strategy.learner
            learner.plugins.insert(0, recorder)
            if task.index > 0 and config.training.optimizer_state == "reset":
                learner.optimizer, learner.optimized_param_id = optimizer_of(strategy), None
            loader = {"drop_last": True} if config.training.drop_last else {}
            learner.train(experience(strategy, task), eval_streams=[], **loader)
        learner.plugins.remove(recorder)
        trained = learner.model
        trained = trained.network if isinstance(trained, TaskOutputs) else trained
        if isinstance(trained, Network):
            # Some train a copy.
            strategy.model = trained
        if strategy.memory is not None:
            # For the record.
            kept, classes = kept_exemplars(learner, self.scenario)
            strategy.memory.ids = torch.tensor(kept, dtype=torch.int64)
            strategy.memory.classes = torch.tensor(classes, dtype=torch.int64)
            strategy.memory.seen = dict.fromkeys(dict.fromkeys(classes), 0)
        return len(task.train), recorder.records
