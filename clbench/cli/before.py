"""plan, pretrain, tune: what comes before the runs that count."""

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clbench.cli.console import megabytes, messages, plain, print_judged, print_notes, screen
from clbench.cli.options import (
    Force,
    Json,
    Like,
    Params,
    Quiet,
    ScenarioName,
    StrategyNames,
    Track,
    config_options,
    pairs,
)
from clbench.cli.options import seeds as read_seeds
from clbench.cli.requests import beginning, check_tracker
from clbench.config.errors import ConfigError, RunError
from clbench.config.registry import comma_parts

if TYPE_CHECKING:
    from clbench.support.fitted import Column

# Seconds that a plan may take in all, however many strategies it is of.
BUDGET = 9.0


@config_options()
def plan_verb(
    fields: dict[str, Any],
    scenario: ScenarioName = None,
    strategies: StrategyNames = None,
    like: Like = None,
    seeds: Annotated[
        str | None, typer.Option(help="As of compare: a number of seeds, or the seeds: 0,1,2 (default: 1).")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="As of compare: worker processes.")] = 1,
    param: Params = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs, of which some may be done.")] = Path("runs"),
    references: Annotated[
        bool, typer.Option("--references/--no-references", help="Plan naive and joint too, which compare adds.")
    ] = False,
    seeds_together: Annotated[
        bool, typer.Option("--seeds-together", help="As of compare; the time is that of one seed after the other.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="As of compare: runs that are done count, too.")] = False,
    track: Track = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Tell updates, exemplars, time and bytes of runs before training, from a few timed steps; in some 15 seconds.

    The words mean what they mean to run for one strategy, and to compare for several.
    """
    check_tracker(track)
    began = time.monotonic()
    from clbench.many.compare import requests
    from clbench.many.execution import run_status, seed_list
    from clbench.many.planned import PlannedRun
    from clbench.running.folder import default_folder
    from clbench.running.resolve import prepare, resolve
    from clbench.support.text import duration
    from clbench.tools.plan import check_plan, plan_run

    scenario, names, fields = beginning(like, scenario, strategies or [], fields, pairs(param))
    wanted = seed_list(read_seeds(seeds) if seeds is not None else [fields.pop("seed", 0)])
    if len(names) == 1 and seeds is None and not references:
        configs = [resolve(scenario, names[0], {**fields, "seed": wanted[0]})]
    else:
        fields.pop("seed", None)
        asked = requests(scenario, names, seeds=[wanted[0]], references=references, **fields)
        configs = [resolve(one.scenario, one.strategy, one.options, shared=True) for one in asked]
    # The options that cut a scenario are the same for all of them.
    tasks = prepare(configs[0])[1]
    configs = [config.replace(data_fingerprint=tasks.fingerprint) for config in configs]
    for config in configs:
        check_plan(config, tasks)
    plans: list[dict[str, Any]] = []
    # The packages are imported and the data loaded, as each command does.
    before = time.monotonic() - began
    ends = time.monotonic() + BUDGET
    with Rehearsing(quiet or as_json) as shown:
        for index, config in enumerate(configs):
            left = max(ends - time.monotonic(), 0.0) / (len(configs) - index)
            try:
                plan = plan_run(config, tasks, seconds=left, told=partial(shown.task, config.label, len(tasks.tasks)))
            except RunError as error:
                plan = {"scenario": tasks.name, "strategy": config.label, "setting": tasks.setting, "error": str(error)}
            runs = [config.replace(seed=seed) for seed in wanted]
            folders = [PlannedRun(run, default_folder(run, out)) for run in runs]
            done = 0 if force else sum(run_status(run) == "done" for run in folders)
            plans.append(plan | {"runs": len(runs), "runs_done": done})
    if as_json:
        print(json.dumps(plans))
    else:
        for plan in plans:
            _show_plan(plan)
        # A note that holds for all strategies is said once.
        print_notes(list({each["text"]: each for plan in plans for each in plan.get("warnings", [])}.values()))
        known = [plan for plan in plans if "error" not in plan]
        left = sum(plan["seconds"] * (plan["runs"] - plan["runs_done"]) for plan in known) / jobs
        n_runs, n_done = (sum(plan[name] for plan in plans) for name in ("runs", "runs_done"))
        start = f"starting and loading the data takes about {duration(before)} more"
        if n_runs > 1:
            of_them = f", {n_done} of them done" if n_done else ""
            how = f"with --jobs {jobs}, if they do not slow each other down"
            print(f"{n_runs} runs{of_them}: about {duration(left)} {how}; {start} in each process")
        else:
            print(start)
    if all("error" in plan for plan in plans):
        raise RunError(f"{plans[0]['strategy']} can't be rehearsed: {plans[0]['error']}")


class Rehearsing:
    """Shows which task of which strategy is rehearsed: on a terminal live, elsewhere a line for each strategy."""

    def __init__(self, quiet: bool) -> None:
        self.console = messages(quiet)
        self.status = self.console.status("") if self.console.is_terminal else nullcontext()

    def __enter__(self) -> "Rehearsing":
        self.status.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.status.__exit__(*error)

    def task(self, label: str, n: int, task: int) -> None:
        """Show that a task is next."""
        if isinstance(self.status, nullcontext):
            if task == 0:
                self.console.print(f"rehearsing {label}", markup=False, highlight=False, soft_wrap=True)
        else:
            self.status.update(plain(f"rehearsing {label}: task {task} ({task + 1} of {n})"))


def _show_plan(plan: dict[str, Any]) -> None:
    from clbench.support.fitted import Column, Fitted
    from clbench.support.text import duration

    stdout = screen()
    title = f"{plan['strategy']} on {plan['scenario']}, {plan['setting']}-incremental"
    if "error" in plan:
        stdout.print(f"{title}\nit can't be rehearsed: {plan['error']}\n", markup=False, highlight=False)
        return

    def column(name: str, keep: int, of: Callable[[dict[str, Any]], Any]) -> "Column":
        return Column(name, [str(of(task)) for task in plan["tasks"]], keep, "right")

    def each(task: dict[str, Any]) -> str:
        fewest, most = task["exemplars_per_class"]
        return str(most) if fewest == most else f"{fewest}-{most}"

    columns = [
        column("task", 9, lambda task: task["task"]),
        column("classes", 3, lambda task: len(task["classes"])),
        column("images", 5, lambda task: task["images"]),
        column("updates", 7, lambda task: task["updates"]),
        column("exemplars", 6, lambda task: task["exemplars"]),
        column("a class", 4, each),
        column("time", 8, lambda task: duration(task["seconds"])),
    ]
    stdout.print(Fitted(columns, title=title, more="--json has them"))
    if n := plan["features"]["images"]:
        # Runs on the same images with the same network share them.
        text = f"features of {n:,} images are computed once, in about {duration(plan['features']['seconds'])}"
        stdout.print(text, markup=False, highlight=False)
    if "preprocessing" in plan:
        words = f"each image is resized and normalised to {plan['preprocessing']}"
        stdout.print(words, markup=False, highlight=False, soft_wrap=not stdout.is_terminal)
    if "training_flops" in plan:
        stdout.print(f"its steps take about {plan['training_flops']:.2e} FLOPs", markup=False, highlight=False)
    held = ", ".join(f"{name} {megabytes(n)}" for name, n in plan["bytes"].items() if n)
    stdout.print(
        f"in all {plan['updates']} updates, about {duration(plan['seconds'])} on {plan['device']}; "
        f"holds at most {megabytes(plan['peak_bytes'])} beside the activations of a step: {held}",
        highlight=False,
        markup=False,
        soft_wrap=not stdout.is_terminal,
    )


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
    strategies: Annotated[
        list[str], typer.Argument(help="A strategy, such as lwf or er\\[memory_size=500]; with --judge-on several.")
    ],
    fields: dict[str, Any],
    protocol: Annotated[
        str | None,
        typer.Option(help="first-k-tasks, continual or oracle (default: first-k-tasks; with --judge-on oracle)."),
    ] = None,
    first_tasks: Annotated[int | None, typer.Option(metavar="K", help="Tasks of first-k-tasks (default: 3).")] = None,
    trials: Annotated[int | None, typer.Option(metavar="N", help="Trials, not of continual (default: 20).")] = None,
    space: Annotated[
        str | None, typer.Option(help="What is searched, such as strength=log:0.1:1000,temperature=1|2|4.")
    ] = None,
    judge_on: Annotated[
        str | None,
        typer.Option(metavar="SCENARIO,...", help="Rank the strategies on other scenarios, which no search sees."),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(metavar="PROTOCOL,...", help="With --judge-on: tune the judged scenarios on themselves too."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="With --judge-on: a number of seeds, or the seeds: 0,1,2 (default: 5).")
    ] = None,
    param: Params = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the search (default: tuning/SCENARIO/...); with --judge-on of all of it."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Choose hyper-parameters on validation images, never on test images."""
    from clbench.reports.search_tables import render_search, trial_line
    from clbench.tools.tune import tune

    console = messages(quiet or as_json)
    strategy_options = fields.pop("strategy_options", {}) | pairs(param)
    options: dict[str, Any] = {"protocol": protocol, "first_tasks": first_tasks, "trials": trials, "space": space}
    options |= {"out": out, "quiet": quiet or as_json, "strategy_options": strategy_options, **fields}
    options["told"] = lambda trial: console.print(trial_line(trial), markup=False, highlight=False, soft_wrap=True)
    if seeds is not None:
        options["seeds"] = read_seeds(seeds)
    if beside is not None:
        options["beside"] = comma_parts(beside)
    if judge_on is not None:
        judged = tune(scenario, strategies, judge_on=comma_parts(judge_on), **options)
        print_judged(judged.record, judged.folder, quiet=as_json)
        if as_json:
            print(json.dumps(judged.record))
        if failures := judged.failures:
            raise RunError(f"{len(failures)} rows of the rankings have failures; the first: {failures[0]}")
        return
    found = tune(scenario, strategies, **options)
    if as_json:
        print(json.dumps(found.record))
        return
    stdout = screen()
    stdout.print(render_search(found.record))
    print_notes(found.record.get("warnings", []))
    stdout.print(f"for --config: {found.folder / 'best.toml'}", soft_wrap=True, highlight=False, markup=False)
