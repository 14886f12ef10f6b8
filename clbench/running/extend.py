"""Extension: a finished run goes on with further tasks, as if it had been one run over all of them from the start."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from clbench.config.arguments import checked
from clbench.config.classes import is_known
from clbench.config.errors import ConfigError, shown, unknown
from clbench.config.run import NOT_IDENTITY, RunConfig, excludes, make_config
from clbench.data.batches import normalisation
from clbench.data.scenario import Scenario, Task
from clbench.data.sources import same_samples
from clbench.learning.strategy import Traits
from clbench.results.record import MATRICES, AccuracyRecord, EvaluationRecord
from clbench.results.result import Result
from clbench.running.checkpoint import Checkpoint
from clbench.running.display import Display, Named
from clbench.running.folder import RunFolder, default_folder
from clbench.running.group import follows
from clbench.running.observer import Observer
from clbench.running.recorder import new_record
from clbench.running.resolve import as_name, find_device, prepare, scenario_class
from clbench.running.run import execute
from clbench.running.using import Finished, finished_run
from clbench.running.warned import warning
from clbench.support.surroundings import undisturbed

# The facts about the samples of a view.
FACTS = ("labels", "classes", "tasks")
# Fields of the run that may be others from here on: they change no number.
FREE = tuple(sorted(NOT_IDENTITY - {"label", "tuned_by"}))


@checked
def extend(
    run: str | os.PathLike[str] | Result,
    scenario: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    force: bool = False,
    observer: Observer | None = None,
    track: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> Result:
    """Continue a finished run with further tasks in a new folder, and return the result over all of its tasks.

    It is the result of one run over all tasks from nothing, to the byte. `run` stays as it is.

    run: the run's folder, or its Result; it must have kept its state.
    scenario: the data that come next, by name, perhaps with options in brackets, or a path; the new run's scenario is
        the stream of the run's own and these. Without it the scenario stays, and `options` say what changes.
    out: the new run's folder; by default runs/SCENARIO/STRATEGY/SEED-HASH of the new run.
    resume, force, observer, track, quiet: see run().
    options: options of the scenario, such as tasks=20, and fields that change no number, such as data_root.

    Raises ConfigError where the run's tasks are not the first ones of the new scenario, or where something that they
    were learnt with depends on the tasks to come; RunError when the training fails.
    """
    with undisturbed():
        before = finished_run(run)
        config, tasks = prepare(_asked(before, as_name(scenario), options))
        begun, whole = beginning(before, config, tasks)
        default = default_folder(config)
        # A run of all tasks from nothing has evaluations that this one can't have, and is not to be taken for it.
        place = RunFolder(out or (default if whole else default.with_name(f"{default.name}-extended")))
        if place.path.resolve() == before.folder.resolve():
            raise ConfigError(f"{place} is the folder of the run that is continued, which stays; name another one")
        with Display({place.path: Named(config.label, config.seed)}, quiet=quiet or follows()):
            return execute(
                config, tasks, place, resume=resume, force=force, observer=observer, track=track, begun=begun
            )


def _asked(before: Finished, scenario: str | None, options: dict[str, Any]) -> RunConfig:
    """Return the config of the new run, still without the digest of its data; raises ConfigError."""
    config = before.config
    found = is_known("scenario", config.scenario) or os.path.exists(config.scenario)
    kind = scenario_class(config.scenario) if found else None
    # An object that was handed over has the setting for its only option, and perhaps the name of another scenario.
    if kind is None or (len(kind._options.model_fields) > 1 and config.scenario_options.keys() <= {"setting"}):
        raise ConfigError(
            f"the scenario {config.scenario!r} of {before.folder} was handed over as an object, or is gone; a run of "
            "one by name, or of files that are there, can go on"
        )
    given = {name: value for name, value in options.items() if value is not None}
    free = {name: given.pop(name) for name in FREE if name in given}
    if scenario is None:
        name, kept = config.scenario, dict(config.scenario_options)
        if not given:
            raise ConfigError(
                f"{before.folder} is to go on with nothing new; a scenario or a path is accepted, or an option of "
                f"{name} such as tasks={len(before.record.scenario.tasks) + 1}"
            )
    else:
        normalised = config.data.normalize != "none"
        own = kind(config.scenario, config.scenario_options)
        name, kept = own.followed_by(config.scenario, scenario, normalised)
        kind = scenario_class(name)
    known = kind._options.model_fields
    for key in given:
        if key not in known:
            raise unknown(f"option of {name} with which a run can go on", key, [*known, *FREE])
    kept = {k: v for k, v in kept.items() if not any(excludes(k, key, kind.pairs()) for key in given)}
    cut = {"scenario": name, "scenario_options": kind(name, kept | given).options, "data_fingerprint": None}
    return make_config(config.values() | free | cut | {"device": find_device(config.engine.device)})


def beginning(before: Finished, config: RunConfig, scenario: Scenario) -> tuple[Checkpoint, bool]:
    """Return the state from which a run of more tasks goes on where a finished one ended.

    Also returns whether its record is that of a run of all tasks; it is not where such a run would have tested new
    tasks before they came. Raises ConfigError where the first tasks are not those of the finished run, to the byte.
    """
    old, now = before.record, before.config
    n = len(old.scenario.tasks)
    known, first = prepare(now.replace(device=config.engine.device, data_root=config.data.root))
    if known.data_fingerprint != now.data_fingerprint:
        raise ConfigError(f"the data of {before.folder} are not those that it was trained on; restore them")
    refused = f"{before.folder} can't go on as {scenario.name} with {len(scenario.tasks)} tasks"
    if difference := next(_differences(now, before.kind.traits, first, scenario), ""):
        raise ConfigError(f"{refused}: {difference}")
    new = new_record(config, scenario, before.kind(**config.strategy_options))
    learnt = {name: getattr(old, name) for name in ("clbench", "source", "environment", "strategy", "headline")}
    learnt |= {name: getattr(old, name) for name in ("tasks", "training", "ledger", "resumes", "confusion")}
    learnt |= {name: getattr(old, name) for name in ("averages", "metrics", "metrics_task_aware")}
    learnt |= {"anytime": old.anytime} if old.anytime else {}
    more, alone = len(scenario.tasks) - n, config.evaluation.evaluate == "current"
    learnt["classifiers"] = {name: _wider(accuracies, more, alone) for name, accuracies in old.classifiers.items()}
    learnt["accuracy"] = learnt["classifiers"].get(old.headline.classifier) or _wider(old.accuracy, more, alone)
    learnt["correct"] = {
        name: rows if alone else [_padded(row, more) for row in rows] for name, rows in old.correct.items()
    }
    learnt["evaluations"] = [
        EvaluationRecord(**vars(e) | {matrix: _padded(e[matrix], more) for matrix in MATRICES}) for e in old.evaluations
    ]
    rules = {told.rule for told in new.warnings}
    told = [*new.warnings, *(other for other in old.warnings if other.rule not in rules)]
    # Outputs of theirs existed before these tasks came.
    early = [t.index for t in scenario.tasks[n:] if t.outputs.stop <= scenario.seen_outputs(n - 1)]
    whole = config.evaluation.evaluate != "all" or not early
    if not whole:
        text = (
            f"the run was continued after task {n - 1}, and later tasks were not tested before then; these accuracies "
            "are left out, and so is what a metric would make of them"
        )
        told.append(warning(config, "extended", text))
    place = {"run": str(before.folder), "identity": old.identity, "tasks": n}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    record = new.model_copy(update=learnt | {"warnings": told, "extends": place, "created": created})
    plain = record.model_dump(mode="json", exclude_unset=True)
    return Checkpoint(config.identity(), plain, n, before.final.learnt), whole


def _padded(row: list[Any] | None, more: int) -> list[Any] | None:
    return None if row is None else [*row, *[None] * more]


def _wider(accuracies: AccuracyRecord, more: int, alone: bool) -> AccuracyRecord:
    """Return matrices and untrained accuracies with so many tasks more, which were not evaluated.

    alone: each row holds the accuracy on its own task and no other.
    """
    rows = {name: accuracies[name] for name in MATRICES}
    n = max(len(of) for of in rows.values() if of is not None) + more
    added = [[None] * (1 if alone else n) for _ in range(more)]
    wide = {
        name: None if of is None else [*(of if alone else (_padded(row, more) for row in of)), *added]
        for name, of in rows.items()
    }
    before = {name: _padded(accuracies.untrained[name], more) for name in MATRICES}
    return AccuracyRecord.model_validate(wide | {"untrained": before})


def _differences(config: RunConfig, traits: Traits, old: Scenario, new: Scenario) -> Iterator[str]:
    """Yield in what a run of the new scenario would have learnt the tasks of the old one otherwise, in words."""
    n, training = len(old.tasks), config.training
    if len(new.tasks) <= n:
        yield f"it has learnt {n} tasks; more are accepted"
    if traits.foresees:
        yield f"what {config.strategy} learns in a task depends on how many tasks there are; run it anew"
    if training.budget_in("flops") is not None:
        yield "its budget of flops is shared over all tasks (budget); run it anew"
    if training.schedule_scope == "run" and (training.schedule != "constant" or training.lr_warmup):
        yield "its learning rate follows a schedule over all tasks (schedule_scope=run); run it anew"
    if config.model.head == "full" and new.n_outputs != old.n_outputs:
        yield f"its head has had {old.n_outputs} outputs from the start (head=full), not {new.n_outputs}; run it anew"
    for what, there, here in (
        ("setting", old.setting, new.setting),
        ("the shape of its images", str(list(old.image_shape)), str(list(new.image_shape))),
        ("the type of its samples", str(old.train.images.dtype), str(new.train.images.dtype)),
    ):
        if there != here:
            yield f"{what} is {there} there and {here} here"
    for one, other in zip(old.tasks, new.tasks, strict=False):
        if tuple(one.classes) != tuple(other.classes):
            pair = f"{shown(list(one.classes))} there and {shown(list(other.classes))} here"
            yield f"task {one.index} has the classes {pair}"
        if one.outputs != other.outputs:
            yield f"task {one.index} has other outputs of the head"
    names = ("scale", "shift")
    for name, mine, others in zip(names, normalisation(old, config), normalisation(new, config), strict=True):
        if not torch.equal(mine, others):
            yield (
                f"normalize={config.data.normalize} takes its {name} from all data ({_first(mine)} there, "
                f"{_first(others)} here); runs with --normalize none go on, and so does a stream with statistics=first"
            )
    for one, other in zip(old.tasks, new.tasks, strict=False):
        yield from _other_images(one, other, old, new)


def _first(values: Tensor) -> str:
    return f"{float(values.flatten()[0]):.4g}"


def _other_images(one: Task, other: Task, old: Scenario, new: Scenario) -> Iterator[str]:
    """Yield which images of a task differ, or their labels; exemplars are kept by the ids of training images."""
    if not torch.equal(one.train.ids, other.train.ids):
        yield f"task {one.index} has other training images, or the same in other places"
    for part, sources in (
        ("train", (old.train, new.train)),
        ("validation", (old.train, new.train)),
        ("test", (old.test, new.test)),
    ):
        views = getattr(one, part), getattr(other, part)
        if len(views[0]) != len(views[1]):
            yield f"task {one.index} has {len(views[0])} {part} images there and {len(views[1])} here"
        elif not all(torch.equal(getattr(views[0], name), getattr(views[1], name)) for name in FACTS):
            yield f"task {one.index} has other labels of its {part} images"
        elif not same_samples(sources[0].images, sources[1].images, views[0].ids, views[1].ids):
            yield f"task {one.index} has other {part} images"
