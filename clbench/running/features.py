"""The features of a frozen network, computed once for a run and all others that need the same."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from clbench.data.batches import Features
from clbench.data.scenario import Images, Scenario
from clbench.data.sources import some
from clbench.learning.flops import Flops
from clbench.learning.strategy import Context, Strategy, eval_mode
from clbench.models.features import FrozenFeatures
from clbench.models.pretrained import Pretrained
from clbench.running.process import device_name
from clbench.support.cores import cores

# Images whose features are timed for a plan.
TIMED = 8


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

    told: is called with the numbers of features that are done and of all, while they are computed and at the end.

    Returns the digests of the features of training and test images, or None. Raises ConfigError where they can't be
    kept.
    """
    if not stays_as_given(context, strategy):
        return None
    config, wanted = context.config, _wanted(context.scenario)
    total, before = sum(len(ids) for _, ids in wanted.values()), 0

    def tell_of_all(done: int | None, _: int) -> None:
        told(None if done is None else before + done, total)

    digests, found = {}, {}
    frozen = _frozen(context, strategy, tell_of_all)
    for split, (images, ids) in wanted.items():
        what = f"{split} of {context.scenario.name} by {config.model.name}, weights {config.model.weights}"
        values, digests[split] = frozen.of(some(images.images, ids), what)
        found[split] = _instead(values, images, ids, context.device)
        before += len(ids)
    told(total, total)
    context.pipeline.train_features, context.pipeline.test_features = found["train"], found["test"]
    return digests


def flops_of_feature(context: Context, strategy: Strategy) -> int:
    """Return the floating-point operations in which the frozen network makes the features of one image."""
    image = context.pipeline.normalize(context.scenario.train.images[:1].to(context.device))
    flops = Flops()
    with torch.inference_mode(), eval_mode(strategy), context.autocast(), flops:
        strategy.model.features(image)
    return flops.training


def stand_in(context: Context, strategy: Strategy, scenario: Scenario) -> tuple[int, float]:
    """Let the pipeline give out noise where a run would have kept features, for a rehearsal.

    scenario: of the run, of which the rehearsal may test on some images alone.

    Returns how many of the features are not kept yet, and about how many seconds they take.
    """
    if not stays_as_given(context, strategy):
        return 0, 0.0
    frozen, wanted = _frozen(context, strategy, lambda done, total: None), _wanted(scenario)
    lacking = sum(frozen.lacking(some(images.images, ids)) for images, ids in wanted.values())
    # As many parts as there are cores would take too long, so one is timed and the cores share the work.
    few = scenario.train.images[wanted["train"][1][:TIMED]]
    seconds = lacking * frozen.seconds(few) / (cores() if context.device.type == "cpu" else 1) if lacking else 0.0
    noise = torch.randn(TIMED, strategy.model.feature_dim, generator=torch.Generator().manual_seed(0))
    made = {
        split: _instead(noise, images, ids, context.device, torch.arange(len(ids)) % TIMED)
        for split, (images, ids) in wanted.items()
    }
    context.pipeline.train_features, context.pipeline.test_features = made["train"], made["test"]
    return lacking, seconds


def _wanted(scenario: Scenario) -> dict[str, tuple[Images, Tensor]]:
    """Return the images of both splits with the ids of those that tasks use.

    The ids are in the order of the files, so that class orders and ways of cutting tasks share the features.
    """
    trained = torch.cat([data.ids for task in scenario.tasks for data in (task.train, task.validation)])
    tested = torch.cat([task.test.ids for task in scenario.tasks])
    return {"train": (scenario.train, trained.unique()), "test": (scenario.test, tested.unique())}


def _frozen(context: Context, strategy: Strategy, told: Callable[[int | None, int], None]) -> FrozenFeatures:
    config = context.config
    settings = {
        "model": config.model.name,
        "code": str(sorted(config.code.values())),
        "device": f"{device_name(config.engine.device)} {torch.backends.cpu.get_cpu_capability()}",
        "precision": config.engine.precision,
    }
    network = cast(Pretrained, strategy.model)
    return FrozenFeatures(network, context.pipeline.normalize, settings, context.autocast, told)


def _instead(values: Tensor, images: Images, ids: Tensor, device: torch.device, rows: Tensor | None = None) -> Features:
    """Return features in the place of images; `rows`: those of the ids, by default in order."""
    rows = torch.arange(len(ids)) if rows is None else rows
    places = torch.full((len(images.labels),), -1).index_copy(0, ids, rows)
    return Features(values.to(device), places.to(device))
