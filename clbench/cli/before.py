"""plan, pretrain, tune: what comes before the runs that count."""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from clbench.cli.console import megabytes, messages, plain, print_notes, screen
from clbench.cli.options import (
    Force,
    Json,
    Like,
    Params,
    Quiet,
    ScenarioName,
    StrategyNames,
    config_options,
    pairs,
)
from clbench.cli.requests import beginning
from clbench.config.errors import ConfigError, RunError


@config_options()
def plan_verb(
    fields: dict[str, Any],
    scenario: ScenarioName = None,
    strategies: StrategyNames = None,
    like: Like = None,
    param: Params = None,
    as_json: Json = False,
) -> None:
    """Tell updates, exemplars, time and bytes of runs before training, from a few timed steps.

    The words mean what they mean to run for one strategy, and to compare for several.
    """
    from clbench.many.compare import requests
    from clbench.running.resolve import prepare, resolve
    from clbench.support.text import duration
    from clbench.tools.plan import check_plan, plan_run

    scenario, names, fields = beginning(like, scenario, strategies or [], fields, pairs(param))
    if len(names) == 1:
        configs = [resolve(scenario, names[0], fields)]
    else:
        asked = requests(scenario, names, seeds=[fields.pop("seed", 0)], references=False, **fields)
        configs = [resolve(one.scenario, one.strategy, one.options, shared=True) for one in asked]
    # The options that cut a scenario are the same for all of them.
    tasks = prepare(configs[0])[1]
    configs = [config.replace(data_fingerprint=tasks.fingerprint) for config in configs]
    for config in configs:
        check_plan(config, tasks)
    plans = [plan_run(config, tasks) for config in configs]
    if as_json:
        print(json.dumps(plans))
        return
    from rich.table import Table

    for plan in plans:
        table = Table(title=plain(f"{plan['strategy']} on {plan['scenario']}, {plan['setting']}-incremental"))
        for column in ("task", "classes", "images", "updates", "exemplars", "a class", "time"):
            table.add_column(column, justify="right")
        for task in plan["tasks"]:
            fewest, most = task["exemplars_per_class"]
            counts = (task["task"], len(task["classes"]), task["images"], task["updates"], task["exemplars"])
            each = str(most) if fewest == most else f"{fewest}-{most}"
            table.add_row(*map(str, counts), each, duration(task["seconds"]))
        stdout = screen()
        stdout.print(table)
        held = ", ".join(f"{name} {megabytes(n)}" for name, n in plan["bytes"].items() if n)
        stdout.print(
            f"in all {plan['updates']} updates, about {duration(plan['seconds'])} on {plan['device']}; "
            f"holds at most {megabytes(plan['peak_bytes'])} beside the activations of a step: {held}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        print_notes(plan["warnings"])


@config_options(without=("setting", "tasks", "task_sizes", "class_order", "class_order_seed", "weights"))
def pretrain_verb(
    scenario: Annotated[str, typer.Argument(help="A scenario, an .npz file or a folder of images.")],
    fields: dict[str, Any],
    classes: Annotated[str, typer.Option(help="The classes to train on, such as 0,1,2.")],
    out: Annotated[Path, typer.Option(help="File of the backbone's weights, for --weights.")],
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a backbone on some classes as one task, and write its weights."""
    from clbench.models.weights import save_backbone
    from clbench.running.display import Display, Named
    from clbench.running.folder import make_folder
    from clbench.running.resolve import prepare, resolve
    from clbench.running.run import execute, folder_of

    if not re.fullmatch(r"\d+(,\d+)*", classes.replace(" ", "")):
        raise ConfigError(f"--classes {classes}: classes such as 0,1,2 are accepted")
    one_task = {"setting": "class", "tasks": 1, "class_order": classes}
    config, tasks = prepare(resolve(scenario, "naive", {**fields, **one_task}))
    if os.path.isdir(out):
        raise ConfigError(f"--out {out}: this is a folder; the file of the weights is accepted")
    make_folder(out.parent)
    folder = folder_of(config)
    with Display({folder.path: Named(config.label, config.seed)}, quiet=quiet or as_json):
        result = execute(config, tasks, folder, resume=not force, force=force)
    save_backbone(folder.path / "model.pt", out)
    accuracy = result.metrics["average_accuracy"]
    if as_json:
        told = {"warnings": result.record["warnings"]}
        print(json.dumps({"weights": str(out), "run": str(folder), "accuracy": accuracy} | told))
        return
    if accuracy is None:
        raise RunError(f"{folder}: the run has no average accuracy; the weights are in {out}")
    n = len(tasks.class_order)
    print(
        f"{out}: a backbone for --model {config.model.name}, trained on {n} classes to {100 * accuracy:.1f} % "
        "on their test images"
    )
    print_notes(result.record["warnings"])


@config_options(without=("tuned_by",))
def tune_verb(
    scenario: Annotated[str, typer.Argument(help="A scenario, an .npz file or a folder of images.")],
    strategy: Annotated[str, typer.Argument(help="A strategy, such as lwf or er\\[memory_size=500].")],
    fields: dict[str, Any],
    protocol: Annotated[str, typer.Option(help="first-k-tasks, continual or oracle.")] = "first-k-tasks",
    first_tasks: Annotated[int | None, typer.Option(metavar="K", help="Tasks of first-k-tasks (default: 3).")] = None,
    trials: Annotated[int | None, typer.Option(metavar="N", help="Trials, not of continual (default: 20).")] = None,
    space: Annotated[
        str | None, typer.Option(help="What is searched, such as strength=log:0.1:1000,temperature=1|2|4.")
    ] = None,
    param: Params = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the search (default: tuning/SCENARIO/...).")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Choose hyper-parameters on validation images, never on test images."""
    from clbench.reports.search_tables import render_search, trial_line
    from clbench.tools.tune import tune

    console = messages(quiet or as_json)
    found = tune(
        scenario,
        strategy,
        protocol=protocol,
        first_tasks=first_tasks,
        trials=trials,
        space=space,
        out=out,
        told=lambda trial: console.print(trial_line(trial), markup=False, highlight=False, soft_wrap=True),
        quiet=quiet or as_json,
        strategy_options=fields.pop("strategy_options", {}) | pairs(param),
        **fields,
    )
    if as_json:
        print(json.dumps(found.record))
        return
    stdout = screen()
    stdout.print(render_search(found.record))
    print_notes(found.record.get("warnings", []))
    stdout.print(f"for --config: {found.folder / 'best.toml'}", soft_wrap=True, highlight=False, markup=False)
