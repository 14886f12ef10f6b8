"""Test scores -> class-incremental and task-aware accuracies, per task and per class."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clbench.config.errors import RunError
from clbench.data.batches import Batch, gathered
from clbench.data.scenario import Task
from clbench.learning.returned import class_scores, same_classifiers
from clbench.learning.strategy import Context, Strategy, eval_mode, spoilt

MATRICES = ("class_incremental", "task_aware")


@dataclass(frozen=True)
class Counts:
    """Correct answers of one classifier: int64 [tested tasks, classes] for each matrix, None where it can't be defined.

    confusion: int64 [seen outputs, seen outputs], rows the true head output, over the tasks seen so far.
    """

    class_incremental: Tensor | None
    task_aware: Tensor | None
    confusion: Tensor | None


@dataclass(frozen=True)
class Evaluation:
    """One pass over the test images: counts per classifier (the headline one first) and which cells are defined.

    tested: the tasks that were tested; totals: their test images, int64 [tested tasks, classes].
    """

    classifiers: dict[str, Counts]
    tested: list[int]
    totals: Tensor
    defined: dict[str, list[bool]]

    def row(self, classifier: str, matrix: str) -> list[float | None]:
        """Return the accuracy on each task, None where it is not defined or was not evaluated."""
        defined = self.defined[matrix]
        row: list[float | None] = [None] * len(defined)
        counts: Tensor | None = getattr(self.classifiers[classifier], matrix)
        if counts is not None:
            for task, right, total in zip(
                self.tested, counts.sum(1).tolist(), self.totals.sum(1).tolist(), strict=True
            ):
                row[task] = right / total if total and defined[task] else None
        return row

    @property
    def n_images(self) -> int:
        """The number of test images that were scored."""
        return int(self.totals.sum())

    def correct(self, classifier: str, matrix: str) -> list[dict[str, int] | None]:
        """Return for each task how many test images of each original class were right."""
        defined = self.defined[matrix]
        found: list[dict[str, int] | None] = [None] * len(defined)
        counts: Tensor | None = getattr(self.classifiers[classifier], matrix)
        if counts is not None:
            for task, right, total in zip(self.tested, counts, self.totals, strict=True):
                if defined[task]:
                    found[task] = {str(c): int(right[c]) for c in torch.nonzero(total).flatten().tolist()}
        return found


def evaluate(strategy: Strategy, context: Context, after: int) -> Evaluation:
    """Test the strategy after task `after` (the untrained model: the outputs are those of task 0).

    Every test image is scored once. The flags of the modules are put back, and no random stream is touched. Raises
    RunError for scores of another kind or shape than [images, outputs], and for scores by which nothing can be chosen.
    """
    scenario, config = context.scenario, context.config
    n_classes = len(scenario.class_names)
    seen = scenario.seen_outputs(after)
    existing = strategy.model.head.out_features
    # class-incremental: the outputs of a task that is yet to come do not compete, so the cell is not defined.
    defined = {
        "class_incremental": [task.outputs.stop <= seen for task in scenario.tasks],
        "task_aware": [task.outputs.stop <= existing for task in scenario.tasks],
    }
    if (which := config.evaluation.evaluate) != "all":
        first = after if which == "current" else 0
        defined = {name: [d and first <= t <= after for t, d in enumerate(row)] for name, row in defined.items()}
    wanted = [t for t in scenario.tasks if defined["class_incremental"][t.index] or defined["task_aware"][t.index]]
    totals = torch.stack([torch.bincount(task.test.classes, minlength=n_classes) for task in wanted])
    groups = [[task] for task in wanted] if strategy.traits.needs_task_at_test else [wanted]

    tallies: dict[str, _Tally] = {}
    with torch.inference_mode(), eval_mode(strategy), context.autocast():
        for group in groups:
            ids = torch.cat([task.test.ids for task in group])
            for images, labels, index in context.pipeline.test_passes(ids):
                scores = class_scores(strategy, images, group[0].index)
                tallies = tallies or {name: _Tally(context, wanted, after, seen, existing) for name in scores}
                same_classifiers(strategy, scores, tallies)
                for name, values in scores.items():
                    tallies[name].add(values.float(), labels, index)
    for name, tally in tallies.items():
        if (task := tally.undecided()) is not None:
            raise RunError(
                f"scores of the classifier {name!r} for test images of task {task}, in task {after}, are NaN, +inf, or "
                f"-inf for every output; {spoilt(strategy) or 'finite scores, or -inf for some outputs, are accepted'}"
            )
    hidden = strategy.traits.needs_task_at_test
    tested = [task.index for task in wanted]
    return Evaluation({n: t.counts(hidden, defined) for n, t in tallies.items()}, tested, totals, defined)


def online_answers(strategy: Strategy, context: Context, batch: Batch) -> Tensor:
    """Test the new samples of a batch, those of the present task, before it is learnt; nothing waits for the device.

    They are tested as they are, without augmentation, under the rule of the setting's headline matrix, or among all
    outputs where all compete in the loss. Returns how many were right and how many there are, int64 [2] on the device.
    No buffer, flag or weight is changed.
    """
    scenario, config, task = context.scenario, context.config, context.progress.task
    plain = config.data.augment == "none" and not config.data.mixup
    # A sample may be of a class that a later task is for (blurry tasks) where all outputs compete in the loss.
    seen = scenario.n_outputs if config.training.loss_outputs == "all" else scenario.seen_outputs(task)
    competing = scenario.tasks[task].outputs if scenario.setting == "task" else slice(0, seen)
    with torch.inference_mode(), eval_mode(strategy), context.autocast():
        images = batch.images if plain else strategy.normalize(batch.originals)
        scores = next(iter(class_scores(strategy, images, task).values()))[:, competing]
        best, guess = scores.max(1)
        # No output is chosen where all are -inf, though the first would be named.
        right = (guess + competing.start == batch.labels) & (best > -torch.inf)
        new = batch.tasks == task
        return torch.stack([(right & new).sum(), new.sum()])


def accuracy_on_seen(strategy: Strategy, context: Context, seen: Tensor) -> float:
    """Return the share of test images of the outputs seen so far that are right among these outputs.

    seen: bool [outputs], on the CPU. The headline classifier decides. Where a class has images in several tasks, those
    of tasks that have begun are tested. Koh et al. 2022, arXiv:2110.10031, section 3.3.
    """
    scenario, test = context.scenario, context.scenario.test
    begun = [t for t in scenario.tasks if scenario.setting == "class" or t.index <= context.progress.task]
    ids = torch.cat([task.test.ids for task in begun])
    ids = ids[seen[test.labels[ids]]]
    hidden = ~seen.to(context.device)
    right = torch.zeros((), dtype=torch.int64, device=context.device)
    with torch.inference_mode(), eval_mode(strategy), context.autocast():
        for images, labels, _ in context.pipeline.test_passes(ids):
            scores = next(iter(class_scores(strategy, images, 0).values()))
            best, guess = scores.float().masked_fill(hidden[: scores.shape[1]], -torch.inf).max(1)
            right += ((guess == labels) & (best > -torch.inf)).sum()
    return int(right) / len(ids)


def final_scores(strategy: Strategy, context: Context) -> dict[str, Tensor]:
    """Score every test image with the headline classifier, once all tasks are learnt.

    Returns for N images, in order of tasks: scores, float [N, outputs]; labels (head outputs), prediction (the output
    with the largest score), classes (original ones), tasks and ids, int64 [N]. A strategy that needs to know the task
    of an image is told it, and then the scores of other tasks' outputs mean nothing.
    """
    scenario, tasks = context.scenario, context.scenario.tasks
    groups = [[task] for task in tasks] if strategy.traits.needs_task_at_test else [tasks]
    ids = torch.cat([task.test.ids for task in tasks])
    with torch.inference_mode(), eval_mode(strategy), context.autocast():
        scores = (
            next(iter(class_scores(strategy, images, group[0].index).values())).float()
            for group in groups
            for images, *_ in context.pipeline.test_passes(torch.cat([task.test.ids for task in group]))
        )
        found = gathered(scores, len(ids))
    test = scenario.test
    return {
        "scores": found,
        "prediction": found.argmax(1),
        "labels": test.labels[ids],
        "classes": test.classes[ids],
        "tasks": test.tasks[ids],
        "ids": ids,
    }


class _Tally:
    """Counts right answers on the device; nothing is read back before the end."""

    def __init__(self, context: Context, tested: list[Task], after: int, seen: int, existing: int) -> None:
        scenario, device = context.scenario, context.device
        self.seen, self.device, self.tested = seen, device, tested
        self.shape = (len(tested), len(scenario.class_names))
        self.classes, self.tasks = scenario.test.classes.to(device), scenario.test.tasks.to(device)
        self.own = torch.zeros(len(tested), existing, dtype=torch.bool, device=device)
        # The row of each task that is tested.
        self.rows = torch.zeros(len(scenario.tasks), dtype=torch.int64, device=device)
        for row, task in enumerate(tested):
            self.own[row, task.outputs] = True
            self.rows[task.index] = row
        self.counted = torch.tensor([int(task.index <= after) for task in tested], device=device)
        cells = self.shape[0] * self.shape[1]
        self.incremental = torch.zeros(cells, dtype=torch.int64, device=device)
        self.aware = torch.zeros(cells, dtype=torch.int64, device=device)
        self.confusion = torch.zeros(seen * seen, dtype=torch.int64, device=device)
        self.lost = torch.zeros(len(tested), dtype=torch.int64, device=device)

    def add(self, scores: Tensor, labels: Tensor, index: Tensor) -> None:
        tasks = self.rows[self.tasks[index]]
        cell = tasks * self.shape[1] + self.classes[index]
        # The largest score is NaN where one of them is; -inf only where all are.
        self.lost.index_add_(0, tasks, (~scores.amax(1).isfinite()).long())
        guess = scores[:, : self.seen].argmax(1)
        # No output is chosen where all are -inf, though argmax names the first.
        scored = scores.gather(1, labels[:, None])[:, 0] > -torch.inf
        self.incremental.index_add_(0, cell, ((guess == labels) & scored).long())
        masked = scores.masked_fill(~self.own[tasks], -torch.inf)
        self.aware.index_add_(0, cell, ((masked.argmax(1) == labels) & scored).long())
        self.confusion.index_add_(0, labels.clamp(max=self.seen - 1) * self.seen + guess, self.counted[tasks])

    def undecided(self) -> int | None:
        """Return the first task with a test image for which no output can be chosen; None where there is none."""
        found = self.lost.nonzero()
        return self.tested[int(found[0])].index if len(found) else None

    def counts(self, task_given: bool, defined: dict[str, list[bool]]) -> Counts:
        aware = self.aware.view(self.shape).cpu()
        if task_given:
            return Counts(None, aware, None)
        confusion = self.confusion.view(self.seen, self.seen).cpu()
        return Counts(self.incremental.view(self.shape).cpu(), aware, confusion)


def accuracies(evaluation: Evaluation, classifier: str) -> dict[str, Any]:
    """Return both rows of one classifier by matrix name."""
    return {matrix: evaluation.row(classifier, matrix) for matrix in MATRICES}
