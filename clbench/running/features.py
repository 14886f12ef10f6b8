"""The features of a frozen network, computed once for a run and all others that need the same."""

from collections.abc import Callable

import torch

from clbench.data.batches import Features
from clbench.learning.strategy import Context, Strategy
from clbench.models.features import FrozenFeatures
from clbench.models.pretrained import Pretrained
from clbench.running.process import device_name


def stays_as_given(context: Context, strategy: Strategy) -> bool:
    """Whether every image has one and the same features all through the run, those of given weights."""
    config, network = context.config, strategy.model
    of_pretrained = isinstance(network, Pretrained) and type(network).features is Pretrained.features
    given = config.model.weights is not None and config.data.normalize == "none"
    # Another value of an option may train more.
    changing = any(values.keys() - {"lr"} for values in config.per_task or [])
    asked = config.engine.cache_features and of_pretrained and given and not changing
    return asked and strategy.frozen_features(config)


def use_kept_features(
    context: Context, strategy: Strategy, told: Callable[[int | None, int], None]
) -> dict[str, str] | None:
    """Let the pipeline give out kept features in the place of images where that is the same; see stays_as_given().

    told: is called with the numbers of features that are done and of all, while they are computed.

    Returns the digests of the features of training and test images, or None. Raises ConfigError where they can't be
    kept.
    """
    if not stays_as_given(context, strategy):
        return None
    config, scenario, pipeline, network = context.config, context.scenario, context.pipeline, strategy.model
    trained = torch.cat([data.ids for task in scenario.tasks for data in (task.train, task.validation)])
    tested = torch.cat([task.test.ids for task in scenario.tasks])
    # In the order of the files, so that class orders and ways of cutting tasks share them.
    wanted = {"train": (scenario.train, trained.unique()), "test": (scenario.test, tested.unique())}
    total, before = sum(len(ids) for _, ids in wanted.values()), 0
    digests, found = {}, {}
    for split, (images, ids) in wanted.items():
        features = FrozenFeatures(
            network,  # type: ignore[arg-type]
            pipeline.normalize,
            {
                "model": config.model.name,
                "code": str(sorted(config.code.values())),
                "device": f"{device_name(config.engine.device)} {torch.backends.cpu.get_cpu_capability()}",
                "precision": config.engine.precision,
            },
            context.autocast,
            f"{split} of {scenario.name} by {config.model.name}, weights {config.model.weights}",
            lambda done, _, before=before: told(None if done is None else before + done, total),
        )
        values, digests[split] = features.of(images.images[ids])
        places = torch.full((len(images.labels),), -1).index_copy(0, ids, torch.arange(len(ids)))
        found[split] = Features(values.to(context.device), places.to(context.device))
        before += len(ids)
    pipeline.train_features, pipeline.test_features = found["train"], found["test"]
    return digests
