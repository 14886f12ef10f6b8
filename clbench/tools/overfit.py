"""The sanity check before a long run: can this network, at this learning rate, learn a few images by heart?"""

from typing import Any

import torch

from clbench.config.errors import ConfigError, RunError
from clbench.config.run import RunConfig
from clbench.data.batches import Pipeline
from clbench.data.scenario import ImageSet, Scenario
from clbench.learning.schedule import Progressless
from clbench.learning.strategy import Context, Progress, Stage, Strategy, eval_mode, grow_head, new_model
from clbench.learning.trainer import Trainer
from clbench.results.record import EpochRecord
from clbench.running.check import check_model
from clbench.running.process import process_settings
from clbench.running.resolve import strategy_class
from clbench.running.warned import warning
from clbench.support.surroundings import undisturbed

# Given up after so many epochs in all, or so many in a row in which the loss reached no new low.
# A new low is one by at least 0.001.
MOST_EPOCHS, STUCK_EPOCHS = 1000, 100


class _DoneError(Exception):
    """Ends the training from within."""


@undisturbed()
def learn_by_heart(config: RunConfig, scenario: Scenario, n: int) -> dict[str, Any]:
    """Train on n images, spread over the classes of all tasks, until every one of them is right.

    Plain fine-tuning with the network and optimizer of the config, at a constant learning rate, without augmentation,
    smoothing and memory, which only make it harder. Returns images, epochs, steps, loss, learning rate and warnings.
    Raises ConfigError for more images than there are, and RunError saying where the loss got stuck.
    """
    everything = ImageSet(scenario.train, torch.cat([task.train.ids for task in scenario.tasks]))
    if not 2 <= n <= len(everything):
        raise ConfigError(f"overfit={n}: 2 to {len(everything)} training images are accepted")
    plain: dict[str, Any] = {
        "augment": "none",
        "schedule": "constant",
        "lr_warmup": 0,
        "patience": None,
        "label_smoothing": 0.0,
        "train": "all",
        "drop_last": False,
        "loss_outputs": "seen",
        "head": "growing",
    }
    config = config.replace(**plain)
    check_model(config, scenario)
    data = _spread(everything, n)
    device = torch.device(config.engine.device)
    context = Context(
        config, scenario, Pipeline(scenario, config, device), device, Progress(task=len(scenario.tasks) - 1)
    )
    strategy = strategy_class("naive")()
    strategy._context = context
    with process_settings(config):
        strategy.model = grow_head(new_model(context, 0), context, scenario.n_outputs)
        return _train(strategy, context, data)


def _train(strategy: Strategy, context: Context, data: ImageSet) -> dict[str, Any]:
    n, rate, steps, right = len(data), context.config.training.scaled_lr, 0, 0
    waiting, lowest_at = Progressless(0.001), 0
    learnt: dict[str, Any] = {}

    def after_epoch(record: EpochRecord) -> None:
        nonlocal steps, right, lowest_at
        loss, epochs = sum(value or 0.0 for value in record.losses.values()), (record.epoch or 0) + 1
        steps += record.steps or 0
        right = _right(strategy, data)
        if waiting.better(loss):
            lowest_at = epochs
        if right == n:
            learnt.update(images=n, epochs=epochs, steps=steps, loss=loss, learning_rate=rate)
        if learnt or waiting.count >= STUCK_EPOCHS:
            raise _DoneError

    trainer = Trainer(context, strategy)
    remedy = "try another learning rate, then another model"
    try:
        trainer.fit(Stage(data, "overfit", epochs=MOST_EPOCHS), after_epoch=after_epoch)
    except _DoneError:
        pass
    except RunError as error:
        raise RunError(f"{n} images are not learnt by heart: {error}") from None
    if not learnt:
        raise RunError(
            f"{n} images are not learnt by heart: {right} are right after {steps} steps, and the loss is stuck at "
            f"{waiting.lowest:.4g} since epoch {lowest_at} at learning rate {rate:g}; {remedy}"
        )
    return learnt | {"warnings": [warning(context.config, rule, text).model_dump() for rule, text in trainer.remarks]}


def _right(strategy: Strategy, data: ImageSet) -> int:
    """Return the number of images that are right, in eval mode."""
    count = torch.zeros((), dtype=torch.int64, device=strategy.device)
    with torch.no_grad(), eval_mode(strategy):
        for batch in strategy.passes(data):
            logits = strategy.model(batch.images)
            active = torch.zeros_like(logits, dtype=torch.bool)
            if isinstance(batch.active, slice):
                active[:, batch.active] = True
            else:
                active = batch.active
            count += (logits.masked_fill(~active, -torch.inf).argmax(1) == batch.labels).sum()
    return int(count)


def _spread(data: ImageSet, n: int) -> ImageSet:
    """The first n samples, taken from the classes in turn."""
    classes = data.classes
    place = torch.zeros_like(classes)
    for original in classes.unique():
        of_class = classes == original
        place[of_class] = torch.arange(int(of_class.sum()))
    return data.subset(torch.argsort(place, stable=True)[:n])
