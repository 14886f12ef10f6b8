"""The command line: verbs only. torch is imported by the verbs that train, and by no other."""

import contextlib
import inspect
import json
import os
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from clbench.errors import ConfigError, RunError, one_line, unknown
from clbench.options import (
    DESCRIBED,
    Force,
    Json,
    Like,
    Params,
    Quiet,
    ScenarioName,
    StrategyNames,
    Track,
    config_options,
    over,
    pairs,
    text_of,
)
from clbench.options import seconds as read_seconds
from clbench.options import seeds as read_seeds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from clbench.execution import Outcome, PlannedRun
    from clbench.reports.published import Claim
    from clbench.reports.reproduction import Judgement, Measured, Needed
    from clbench.result import Result

# Seconds in which worker processes may save what they are at when they are interrupted; Slurm gives 30 by default.
WORKERS_END = 20

app = typer.Typer(
    help="Which continual-learning strategy forgets least, by how much, and can the number be trusted?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        print(f"clbench {metadata.version('clbench')}")
        raise typer.Exit


@app.callback()
def _front(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command("run")
@config_options()
def run_verb(
    fields: dict[str, Any],
    scenario: ScenarioName = None,
    strategy: Annotated[str | None, typer.Argument(help="A strategy, such as lwf or er\\[memory_size=500].")] = None,
    like: Like = None,
    param: Params = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run (default: runs/SCENARIO/STRATEGY/SEED-HASH).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")] = False,
    force: Force = False,
    explain_on_cpu: Annotated[
        bool, typer.Option("--explain-on-cpu", help="After a device error: replay on the CPU, and say what it says.")
    ] = False,
    overfit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only check that N images can be learnt by heart.")
    ] = None,
    track: Track = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run one strategy on one scenario."""
    if resume and force:
        raise ConfigError("--resume and --force exclude each other; give one of them")
    if overfit is not None and (out or resume or force or explain_on_cpu or track):
        raise ConfigError(
            "--overfit leaves no run behind; give it without --out, --resume, --force, --explain-on-cpu, --track"
        )
    _check_tracker(track)
    from clbench.resolve import prepare, resolve
    from clbench.runner import execute
    from clbench.store import RunFolder, default_folder

    scenario, names, fields = _begin(like, scenario, [] if strategy is None else [strategy], fields, pairs(param))
    if len(names) > 1:
        raise ConfigError(f"{' '.join(names)}: with --like one strategy or none is accepted; compare takes several")
    config, tasks = prepare(resolve(scenario, names[0], fields))
    if overfit is not None:
        from clbench.overfit import learn_by_heart

        learnt = learn_by_heart(config, tasks, overfit)
        print(
            json.dumps(learnt)
            if as_json
            else f"{learnt['images']} images are learnt by heart after {learnt['epochs']} epochs ({learnt['steps']} "
            f"steps): all are right, at learning rate {learnt['learning_rate']:g}: loss {learnt['loss']:.4f}"
        )
        return
    folder = RunFolder(out or default_folder(config))
    console = _console(quiet or as_json)
    try:
        with _Progress(console) as progress:
            result = execute(
                config, tasks, folder, resume=resume, force=force, observer=progress.observer(), track=track
            )
    except Exception as error:
        from clbench.explain import explain, is_device_error

        if not is_device_error(error):
            raise
        hint = "--resume --explain-on-cpu replays it on the CPU, where errors are clear"
        raise RunError(explain(folder.path) if explain_on_cpu else f"{str(error).splitlines()[0]}; {hint}") from error
    if as_json:
        print(json.dumps(result.record))
        return
    from clbench.reports.run_tables import render_run

    stdout = _stdout()
    stdout.print(render_run(result))
    stdout.print(f"run folder: {folder.path}", soft_wrap=True, highlight=False, markup=False)


@app.command("compare")
@config_options(without=("seed",))
def compare_verb(
    fields: dict[str, Any],
    scenario: ScenarioName = None,
    strategies: StrategyNames = None,
    like: Like = None,
    seeds: Annotated[
        str | None, typer.Option(help="A number of seeds, or the seeds: 0,1,2 (default: 5, or the --config file's).")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    param: Params = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs; the report goes to OUT/report.")] = Path("runs"),
    references: Annotated[
        bool,
        typer.Option("--references/--no-references", help="Add naive and joint where they are not named."),
    ] = True,
    force: Force = False,
    track: Track = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare strategies over seeds: a table on screen, a report on disk."""
    _check_tracker(track)
    from clbench.comparison import plan
    from clbench.execution import raise_first_failure, run_planned

    scenario, names, fields = _begin(like, scenario, strategies or [], fields, pairs(param))
    wanted = _given_seeds(seeds, fields)
    planned = plan(scenario, names, seeds=wanted, out=out, references=references, **fields)
    outcomes: list[Outcome] = []
    with _Progress(_console(quiet or as_json), planned) as progress:
        for outcome in run_planned(
            planned, jobs=jobs, force=force, observer=progress.observer() if jobs == 1 else None, track=track
        ):
            outcomes.append(outcome)
            progress.finished(outcome)
    found = {outcome.planned.folder: outcome.result for outcome in outcomes}
    results = [result for item in planned if (result := found[item.folder]) is not None]
    if results:
        _report(results, out / "report", as_json)
    raise_first_failure(outcomes)


@app.command("crosscheck")
@config_options(without=("seed", "memory_per_class", "memory_policy"))
def crosscheck_verb(
    fields: dict[str, Any],
    methods: Annotated[list[str], typer.Argument(help="Methods: naive lwf ewc er icarl si.")],
    scenario: Annotated[str, typer.Option(help="The scenario of both.")] = "split-mnist-5k",
    seeds: Annotated[str | None, typer.Option(help="A number of seeds, or the seeds: 0,1,2 (default: 5).")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train our implementation of a method and Avalanche's on the same scenario, and show how far they are apart."""
    from clbench.crosscheck import as_dict, plan_crosscheck, rows
    from clbench.execution import raise_first_failure, run_planned

    wanted = _given_seeds(seeds, fields)
    planned = plan_crosscheck(methods, scenario, seeds=wanted, out=out, **fields)
    every = [run for ours, theirs in planned.values() for run in (*ours, *theirs)]
    outcomes: list[Outcome] = []
    with _Progress(_console(quiet or as_json), every) as progress:
        for outcome in run_planned(every, jobs=jobs, force=force):
            outcomes.append(outcome)
            progress.finished(outcome)
    raise_first_failure(outcomes)
    found = [as_dict(row) for row in rows(planned)]
    if as_json:
        print(json.dumps(found))
        return
    from rich.table import Table

    table = Table(
        title=f"average accuracy on {scenario} in %, ours minus Avalanche's with 95 % interval", show_lines=True
    )
    for column in ("method", "n", "ours", "Avalanche", "difference", "where definitions differ"):
        table.add_column(column, overflow="fold")
    for row in found:
        interval = "" if row["low"] is None else f" [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        difference = f"{100 * row['difference']:+.1f}{interval}"
        means = [f"{100 * row[name]:.1f}" for name in ("ours", "avalanche")]
        table.add_row(row["method"], str(row["n"]), *means, _plain(difference), row["differs"])
    _stdout().print(table)


@app.command("sweep")
def sweep_verb(
    grid: Annotated[Path, typer.Argument(metavar="FILE.toml", help="The grid of runs; docs/sweeps.md shows one.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    jobs: Annotated[int | None, typer.Option(min=1, help="Worker processes (default: 1).")] = None,
    shard: Annotated[str | None, typer.Option(metavar="K/N", help="Only the K-th of N parts, K from 1 to N.")] = None,
    backend: Annotated[str, typer.Option(metavar="processes|ray", help="Where the runs are done.")] = "processes",
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ray: the cluster (default: RAY_ADDRESS, or this machine).")
    ] = None,
    gpus_per_run: Annotated[
        float | None, typer.Option(min=0, help="Ray: GPUs of a run, such as 0.25 (default: 0).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check and print the runs.")] = False,
    force: Force = False,
    track: Track = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Do any grid of runs, on this machine or a cluster; what is done already is left alone."""
    if backend not in ("processes", "ray"):
        raise unknown("backend", backend, ("processes", "ray"))
    if backend == "ray":
        if jobs is not None:
            raise ConfigError(f"--jobs {jobs} is for --backend processes; a Ray cluster does as many as fit on it")
        from clbench.cluster import require_ray

        require_ray()
    elif address is not None or gpus_per_run is not None:
        raise ConfigError("--address and --gpus-per-run are for --backend ray; give it too")
    _check_tracker(track)
    from clbench.execution import Cluster, raise_first_failure, run_planned
    from clbench.sweeps import plan_sweep

    cluster = Cluster(address, gpus_per_run or 0.0) if backend == "ray" else None
    planned = plan_sweep(grid, out=out, shard=None if shard is None else _shard(shard), cluster=cluster)
    if dry_run:
        _show_runs(planned, as_json)
        return
    outcomes: list[Outcome] = []
    with _Progress(_console(quiet or as_json), planned) as progress:
        one = progress.observer() if (jobs or 1) == 1 and cluster is None else None
        for outcome in run_planned(planned, jobs=jobs or 1, force=force, observer=one, track=track, cluster=cluster):
            outcomes.append(outcome)
            progress.finished(outcome)
    n = Counter("failed" if outcome.error is not None else outcome.source for outcome in outcomes)
    if as_json:
        print(json.dumps([_outcome_row(outcome) for outcome in outcomes]))
    else:
        told = [
            f"{n[key]} {text}"
            for key, text in (
                ("here", "done now"),
                ("before", "done before"),
                ("elsewhere", "done by others meanwhile"),
                ("failed", "failed"),
            )
            if n[key]
        ]
        print(f"{len(outcomes)} runs in {out}: {', '.join(told)}; clbench report {out} makes the tables")
    raise_first_failure(outcomes)


def _shard(text: str) -> tuple[int, int]:
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal()):
        raise ConfigError(f"--shard {text}: K/N such as 1/10 is accepted")
    return int(k), int(n)


def _show_runs(planned: "Sequence[PlannedRun]", as_json: bool) -> None:
    from clbench.execution import run_status

    rows = [_run_row(item) | {"status": run_status(item)} for item in planned]
    if as_json:
        print(json.dumps(rows))
        return
    from rich.table import Table

    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(_plain(str(value)) for value in row.values()))
    stdout = _stdout()
    stdout.print(table)
    print(f"{len(rows)} runs, {sum(row['status'] != 'done' for row in rows)} to do")


def _run_row(item: "PlannedRun") -> dict[str, Any]:
    config = item.config
    return {
        "scenario": config.scenario,
        "setting": config.setting,
        "strategy": config.label,
        "seed": config.seed,
        "folder": str(item.folder),
    }


def _outcome_row(outcome: "Outcome") -> dict[str, Any]:
    status = "done" if outcome.error is None else "failed"
    return _run_row(outcome.planned) | {"status": status, "source": outcome.source, "error": outcome.error}


@app.command("reproduce")
@config_options("device", "data_root", "offline")
def reproduce_verb(
    fields: dict[str, Any],
    names: Annotated[
        list[str] | None, typer.Argument(help="Claims, or what their ids begin with (default: those of tier A).")
    ] = None,
    tier: Annotated[str | None, typer.Option(help="Only claims of this tier: A, B or C.")] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Run what fits into a time such as 10m, by estimate.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="So many seeds, instead of each claim's own number.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    results: Annotated[
        Path | None, typer.Option(help="Folder of claims.md, claims.csv and runs.csv (default: OUT/reproduction).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run, and how long.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run published claims, compare, and give a verdict; what is done already is not run again."""
    from clbench.reports import reproduction
    from clbench.reports.published import chosen

    limit = None if budget is None else read_seconds(budget)
    wanted = chosen(names or [], tier or ("A" if not names and budget is None else None))
    runs, refused = reproduction.needed(wanted, out=out, seeds=seeds, **fields)
    console = _console(quiet or as_json)
    for claim, reason in refused.items():
        console.print(f"{claim} can't run here: {reason}", markup=False, highlight=False, soft_wrap=True)
    if not runs:
        kept = reproduction.committed()
        if not kept:
            raise ConfigError(next(iter(refused.values())))
        console.print("none can run here; these are the results that are kept with the code", markup=False)
        _judged(reproduction.judge_all(kept, wanted), reproduction.provenance(kept), as_json)
        return
    todo = runs if limit is None else reproduction.within(runs, limit, jobs)
    if not as_json:
        _stdout().print(_plan_table(wanted, runs, todo, jobs))
    if dry_run:
        return
    from clbench.execution import raise_first_failure, run_planned

    serves = {run.planned.folder: run.serves for run in runs}
    ready = [run for run in runs if run in todo or not run.seconds]
    outcomes: list[Outcome] = []
    rows: list[Measured] = []
    folder = results or out / "reproduction"
    with _Progress(console, [run.planned for run in ready]) as progress:
        observer = progress.observer() if jobs == 1 else None
        for outcome in run_planned([run.planned for run in ready], jobs=jobs, observer=observer):
            outcomes.append(outcome)
            progress.finished(outcome)
            if (result := outcome.result) is not None:
                rows += [reproduction.measure(c, role, result) for c, role in serves[outcome.planned.folder]]
                # After each run: what takes days is looked at, or killed, on the way.
                _write_results(rows, folder)
    judgements = reproduction.judge_all(rows, wanted)
    _judged(judgements, [*reproduction.provenance(rows), f"table: {folder / 'claims.md'}"], as_json)
    raise_first_failure(outcomes)
    if differ := [j.claim.id for j in judgements if j.verdict == "differs" and not j.provisional]:
        raise RunError(f"{len(differ)} of {len(judgements)} claims differ: {', '.join(differ)}")


@app.command("plan")
@config_options()
def plan_verb(
    fields: dict[str, Any],
    scenario: ScenarioName = None,
    strategies: StrategyNames = None,
    like: Like = None,
    param: Params = None,
    as_json: Json = False,
) -> None:
    """Tell updates, exemplars, time and bytes of runs before training, from a few timed steps."""
    from clbench.plan import plan_run
    from clbench.resolve import prepare, resolve
    from clbench.text import duration

    scenario, names, fields = _begin(like, scenario, strategies or [], fields, pairs(param))
    configs = [resolve(scenario, name, fields) for name in names]
    plans = [plan_run(*prepare(config)) for config in configs]
    if as_json:
        print(json.dumps(plans))
        return
    from rich.table import Table

    for plan in plans:
        table = Table(title=_plain(f"{plan['strategy']} on {plan['scenario']}, {plan['setting']}-incremental"))
        for column in ("task", "classes", "images", "updates", "exemplars", "a class", "time"):
            table.add_column(column, justify="right")
        for task in plan["tasks"]:
            fewest, most = task["exemplars_per_class"]
            counts = (task["task"], len(task["classes"]), task["images"], task["updates"], task["exemplars"])
            each = str(most) if fewest == most else f"{fewest}-{most}"
            table.add_row(*map(str, counts), each, duration(task["seconds"]))
        stdout = _stdout()
        stdout.print(table)
        held = ", ".join(f"{name} {_megabytes(n)}" for name, n in plan["bytes"].items() if n)
        stdout.print(
            f"in all {plan['updates']} updates, about {duration(plan['seconds'])} on {plan['device']}; "
            f"holds at most {_megabytes(plan['peak_bytes'])} beside the activations of a step: {held}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


@app.command("pretrain")
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
    from clbench.resolve import parse_fields, prepare, resolve
    from clbench.runner import execute
    from clbench.store import RunFolder, default_folder, make_folder
    from clbench.weights import save_backbone

    one_task = {"setting": "class", "tasks": 1, **parse_fields({"class_order": classes})}
    if not isinstance(one_task["class_order"], list):
        raise ConfigError(f"--classes {classes}: classes such as 0,1,2 are accepted")
    config, tasks = prepare(resolve(scenario, "naive", {**fields, **one_task}))
    if os.path.isdir(out):
        raise ConfigError(f"--out {out}: this is a folder; the file of the weights is accepted")
    make_folder(out.parent)
    folder = RunFolder(default_folder(config))
    with _Progress(_console(quiet or as_json)) as progress:
        result = execute(config, tasks, folder, resume=not force, force=force, observer=progress.observer())
    save_backbone(folder.path / "model.pt", out)
    accuracy = result.metrics["average_accuracy"]
    if as_json:
        print(json.dumps({"weights": str(out), "run": str(folder.path), "accuracy": accuracy}))
        return
    assert accuracy is not None
    n = len(tasks.class_order)
    print(
        f"{out}: a backbone for --model {config.model}, trained on {n} classes to {100 * accuracy:.1f} % on their test"
    )


@app.command("tune")
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
    from clbench.tuning import tune

    console = _console(quiet or as_json)
    with _Progress(console) as progress:
        found = tune(
            scenario,
            strategy,
            protocol=protocol,
            first_tasks=first_tasks,
            trials=trials,
            space=space,
            out=out,
            observer=progress.observer(),
            told=lambda trial: console.print(trial_line(trial), markup=False, highlight=False, soft_wrap=True),
            strategy_options=fields.pop("strategy_options", {}) | pairs(param),
            **fields,
        )
    if as_json:
        print(json.dumps(found.record))
        return
    stdout = _stdout()
    stdout.print(render_search(found.record))
    stdout.print(f"for --config: {found.folder / 'best.toml'}", soft_wrap=True, highlight=False, markup=False)


@app.command("report")
def report_verb(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.")],
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
    figure: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Write this figure alone, such as average_accuracy; repeatable."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--format", metavar="pdf|svg|png", help="Format of --figure (default: pdf).")
    ] = None,
    style: Annotated[
        str | None, typer.Option(metavar="paper|talk|screen", help="Size and letters of --figure (default: paper).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make tables and plots from finished runs, without torch."""
    from clbench.result import load_results

    if not figure and (kind or style):
        raise ConfigError("--format and --style are for --figure NAME; give it too")
    if figure and as_json:
        raise ConfigError("--json prints the table, which --figure leaves out; give one of them")

    results = load_results(folders)
    if not results:
        raise ConfigError(
            f"{', '.join(map(str, folders))}: no finished run there; folders with a run.json are accepted"
        )
    if figure:
        from clbench.reports import write_figures

        try:
            paths = write_figures(results, out, figure, kind=kind or "pdf", style=style or "paper")
        except OSError as error:
            raise RunError(f"{out}: {error.strerror or error}") from None
        print(*paths, sep="\n")
        return
    _report(results, out, as_json)


@app.command("watch")
def watch_verb(
    folder: Annotated[Path, typer.Argument(help="Folder of the runs.")] = Path("runs"),
    once: Annotated[bool, typer.Option("--once", help="Print the runs as they are now, and end.")] = False,
    as_json: Json = False,
) -> None:
    """Show runs under way, here or on other machines that see the folder; Ctrl-C ends the looking, not the runs."""
    from dataclasses import asdict

    from clbench.watching import Watch, counts, follow, render

    watch = Watch(folder)
    runs = watch.look()
    if as_json:
        print(json.dumps({**counts(runs), "runs": [asdict(run) for run in runs]}))
        return
    stdout = _stdout()
    if once or not stdout.is_terminal:
        stdout.print(render(runs, folder))
        return
    try:
        follow(watch, stdout)
    except KeyboardInterrupt:
        _end("no longer watching; the runs go on", 130)


@app.command("describe")
@config_options(*DESCRIBED)
def describe_verb(
    scenario: Annotated[str, typer.Argument(help="A scenario, an .npz file or a folder of images.")],
    fields: dict[str, Any],
    as_json: Json = False,
) -> None:
    """Show the tasks of a scenario: original classes, head outputs, numbers of images."""
    from clbench.resolve import prepare, resolve

    _, made = prepare(resolve(scenario, "naive", fields))
    rows = made.describe()
    if as_json:
        print(json.dumps({"scenario": made.name, "setting": made.setting, "tasks": rows}))
        return
    from rich.table import Table

    table = Table(title=f"{made.name}, {made.setting}-incremental, images {'x'.join(map(str, made.image_shape))}")
    for column in ("task", "original classes", "head outputs", "train", "validation", "test"):
        table.add_column(column, justify="left" if "s" in column[-1:] else "right")
    for row in rows:
        named = [c if str(c) == n else f"{c} ({n})" for c, n in zip(row["classes"], row["names"], strict=True)]
        outputs = f"{row['outputs'][0]}-{row['outputs'][-1]}" if len(row["outputs"]) > 1 else str(row["outputs"][0])
        others = f" ({n} of other tasks)" if (n := row["n_train_of_other_tasks"]) else ""
        counts = (f"{row['n_train']}{others}", row["n_validation"], row["n_test"])
        table.add_row(str(row["task"]), _plain(", ".join(map(str, named))), outputs, *map(str, counts))
    _stdout().print(table)


@app.command("check")
def check_verb(
    strategies: Annotated[list[str], typer.Argument(help="Strategies by name, or path/to/file.py:Class.")],
    as_json: Json = False,
) -> None:
    """Check a strategy, built-in or your own, against the conformance kit."""
    from dataclasses import asdict

    from clbench.testing import check_strategy

    found = {name: check_strategy(name) for name in strategies}
    if as_json:
        print(json.dumps({name: [asdict(outcome) for outcome in outcomes] for name, outcomes in found.items()}))
    else:
        for name, outcomes in found.items():
            for outcome in outcomes:
                reason = f": {outcome.reason}" if outcome.reason else ""
                print(f"{name}: {outcome.check.replace('_', ' ')}: {outcome.status}{reason}")
    failed = [f"{name}: {o.check}" for name, outcomes in found.items() for o in outcomes if o.status == "failed"]
    if failed:
        raise RunError(f"{len(failed)} checks failed: {', '.join(failed)}")


@app.command("list")
def list_verb(
    what: Annotated[
        str | None, typer.Argument(help="strategies, scenarios, models or claims; all but claims by default.")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Only strategies of this family.")] = None,
    setting: Annotated[
        str | None, typer.Option(help="Only strategies for this setting: class, task or domain.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List what is installed: strategies, scenarios, models; and published claims."""
    kinds = ("strategies", "scenarios", "models", "claims")
    if what is not None and what not in kinds:
        raise unknown("list", what, kinds)
    if (family is not None or setting is not None) and what != "strategies":
        raise ConfigError("--family and --setting are for strategies; clbench list strategies is accepted")
    found = {kind: _LISTINGS[kind]() for kind in kinds if what == kind or (what is None and kind != "claims")}
    if family is not None:
        families = list(dict.fromkeys(row["family"] for row in found["strategies"]))
        if family not in families:
            raise unknown("family", family, families)
        found["strategies"] = [row for row in found["strategies"] if row["family"] == family]
    if setting is not None:
        if setting not in ("class", "task", "domain"):
            raise unknown("setting", setting, ("class", "task", "domain"))
        found["strategies"] = [row for row in found["strategies"] if setting in row["settings"]]
    if as_json:
        print(json.dumps(found))
        return
    from rich.table import Table

    for kind, rows in found.items():
        table = Table(title=kind)
        for column in rows[0] if rows else ():
            table.add_column(
                column.replace("_bytes", " kB").replace("_", " "), overflow="fold", no_wrap=column == "name"
            )
        for row in rows:
            table.add_row(*(_plain(_listed(name, value)) for name, value in row.items()))
        _stdout().print(table)
        if kind == "strategies":
            _stdout().print(
                "extra kB: kept beside the network after 5 tasks of split-mnist-5k (mlp:400-400, 200 exemplars); "
                "per task: what each further task adds; both measured\n"
                "avalanche:NAME is Avalanche's own strategy, such as avalanche:LwF\\[alpha=1,temperature=2]",
                highlight=False,
            )


def _listed(name: str, value: Any) -> str:
    if name.startswith("extra_bytes"):
        return "" if value is None else f"{value / 1000:,.1f}"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _list_strategies() -> list[dict[str, Any]]:
    import csv
    from importlib import resources

    from clbench.registry import entry_point_names
    from clbench.resolve import strategy_class

    measured = resources.files("clbench.strategies").joinpath("storage.csv").read_text("utf-8").splitlines()
    storage = {row["strategy"]: row for row in csv.DictReader(measured)}
    rows = []
    for name in entry_point_names("clbench.strategies"):
        cls = strategy_class(name)
        # Of a strategy from elsewhere nothing was measured.
        kept = storage.get(name)
        rows.append(
            {
                "name": name,
                "family": cls.family,
                "settings": list(cls.settings),
                "memory": {"none": "no", "joined": "optional", "replayed": "yes"}[cls.memory_use]
                if not cls.needs_memory
                else "yes",
                "data": cls.data_access,
                "extra_bytes": None if kept is None else int(kept["extra_bytes"]),
                "extra_bytes_per_task": None if kept is None else int(kept["extra_bytes_per_task"]),
                "options": [f"{k}={text_of(v.default)}" for k, v in cls._options.model_fields.items()],
                "paper": cls.paper,
            }
        )
    return rows


def _list_scenarios() -> list[dict[str, Any]]:
    from clbench.registry import entry_point_names
    from clbench.resolve import scenario_spec

    names = entry_point_names("clbench.scenarios")
    return [{"name": name, "summary": scenario_spec(name).summary} for name in names]


def _list_models() -> list[dict[str, Any]]:
    from clbench.registry import entry_point_names, load_entry_point

    rows = []
    for name in entry_point_names("clbench.models"):
        model: Any = load_entry_point("clbench.models", "model", name)
        parameters = [p for p in inspect.signature(model).parameters.values() if p.kind is p.KEYWORD_ONLY]
        rows.append(
            {
                "name": name,
                "options": [f"{p.name}={text_of(p.default)}" for p in parameters],
                "summary": (inspect.getdoc(model) or "").split("\n")[0],
            }
        )
    return rows


def _list_claims() -> list[dict[str, Any]]:
    from clbench.reports.published import chosen

    return [
        {
            "claim": c.id,
            "tier": c.tier,
            "metric": c.metric,
            "published": c.value,
            "error": f"{c.error:g} {c.error_kind}" if c.error else "",
            "tolerance": c.tolerance,
            "seeds": c.seeds,
            "cost": c.cost,
            "citation": c.citation,
        }
        for c in chosen([])
    ]


_LISTINGS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "strategies": _list_strategies,
    "scenarios": _list_scenarios,
    "models": _list_models,
    "claims": _list_claims,
}


def _begin(
    like: str | None, scenario: str | None, strategies: list[str], fields: dict[str, Any], params: dict[str, str]
) -> tuple[str, list[str], dict[str, Any]]:
    """Return scenario, strategies and options as given, or those of a claim under what was given.

    With a claim the first argument names a strategy too; the claim's own strategy has the claim's options.
    """
    given = {**fields.pop("strategy_options", {}), **params}
    if like is None:
        if scenario is None or not strategies:
            raise ConfigError("a scenario and a strategy are needed, such as split-mnist-5k lwf, or --like CLAIM")
        return scenario, strategies, {**fields, "strategy_options": given}
    from clbench.registry import parse_spec
    from clbench.reports.published import claim
    from clbench.resolve import strategy_class

    start = claim(like)
    names = [name for name in (scenario, *strategies) if name is not None] or [start.strategy]
    kept = start.run_fields()
    if not any(strategy_class(parse_spec(name)[0]).needs_memory for name in names):
        kept = start.naive_fields()
    own = {name: text_of(value) for name, value in start.options.items() if name not in given}
    for index, spec in enumerate(names):
        name, bracket = parse_spec(spec)
        if name == start.strategy and (own or bracket):
            texts = ",".join(f"{k}={v if ',' not in v else f'[{v}]'}" for k, v in (own | bracket).items())
            names[index] = f"{name}[{texts}]"
    return start.scenario, names, {**over(kept, fields), "strategy_options": given}


def _check_tracker(track: str | None) -> None:
    if track is not None:
        from clbench.tracking import require_tracker

        require_tracker(track)


def _plan_table(wanted: "Sequence[Claim]", runs: "Sequence[Needed]", todo: "Sequence[Needed]", jobs: int) -> "Table":
    from rich.table import Table

    from clbench.text import duration

    left = sum(run.seconds for run in todo)
    table = Table(title=f"about {duration(left / jobs)} to go with {jobs} job(s), by estimate")
    for column, justify in (
        ("claim", "left"),
        ("runs", "right"),
        ("done", "right"),
        ("to do", "right"),
        ("time", "right"),
    ):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for claim in wanted:
        own = [run for run in runs if any(c.id == claim.id for c, _ in run.serves)]
        coming = [run for run in own if run in todo and run.seconds]
        done = sum(not run.seconds for run in own)
        time = duration(sum(run.seconds for run in coming))
        table.add_row(claim.id, str(len(own)), str(done), str(len(coming)), time)
    return table


def _write_results(rows: "list[Measured]", folder: Path) -> None:
    from clbench.reports import reproduction

    try:
        reproduction.write_results(rows, folder)
    except OSError as error:
        raise RunError(f"{folder}: {error.strerror or error}; the runs themselves are kept") from None


def _judged(judgements: "Sequence[Judgement]", notes: list[str], as_json: bool) -> None:
    from clbench.reports import reproduction

    if as_json:
        print(json.dumps([dict(zip(reproduction.COLUMNS, reproduction.cells(j), strict=True)) for j in judgements]))
        return
    from rich.table import Table

    table = Table()
    for column in reproduction.COLUMNS:
        table.add_column(
            column, justify="left" if column in ("target", "claim", "verdict") else "right", overflow="fold"
        )
    for judgement in judgements:
        table.add_row(*map(_plain, reproduction.cells(judgement)))
    stdout = _stdout()
    stdout.print(table)
    for note in notes:
        stdout.print(note, soft_wrap=True, highlight=False, markup=False)


def _report(results: "list[Result]", folder: Path, as_json: bool) -> None:
    from clbench.reports import tables, write_comparisons

    parts = tables.compare(results)
    try:
        write_comparisons(parts, folder)
    except OSError as error:
        raise RunError(f"{folder}: {error.strerror or error}; the runs themselves are kept") from None
    if as_json:
        print(tables.comparison(parts).to_json(orient="records"))
        return
    stdout = _stdout()
    stdout.print(tables.render(parts))
    stdout.print(f"report: {folder / 'report.html'}", soft_wrap=True, highlight=False, markup=False)


def _megabytes(n: int) -> str:
    return f"{n / 1e6:,.1f} MB"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _console(quiet: bool) -> "Console":
    from rich.console import Console

    return Console(stderr=True, quiet=quiet)


def _stdout() -> "Console":
    from rich.console import Console

    console = Console()
    # A file or a pipe has no width of its own; tables must not be cut to 80 columns there.
    return console if console.is_terminal else Console(width=max(console.width, 120))


class _Progress:
    """Progress on stderr: what became of the runs, and task, epoch, loss, images/s of one in this process.

    Off a terminal there is a line for each run that ends, and no bar.
    """

    def __init__(self, console: "Console", planned: "Sequence[PlannedRun]" = ()) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from clbench.progress import RunCount, TimeLeft

        self.console = console
        self.count = RunCount(planned)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeLeft(),
            console=console,
            transient=True,
            disable=not console.is_terminal or console.quiet,
        )
        self.runs = self.bars.add_task("runs", total=len(planned), count=self.count) if len(planned) > 1 else None

    def __enter__(self) -> "_Progress":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def observer(self) -> Any:
        from clbench.progress import BarObserver

        return None if self.bars.disable else BarObserver(self.bars)

    def finished(self, outcome: "Outcome") -> None:
        self.count.finished(outcome)
        if self.runs is not None:
            self.bars.advance(self.runs)
        if outcome.source == "before":
            return
        config, result = outcome.planned.config, outcome.result
        average = None if result is None else result.metrics.get("average_accuracy")
        text = outcome.error if result is None else "no accuracy" if average is None else f"{100 * average:.1f} %"
        where = ", by another process" if outcome.source == "elsewhere" else ""
        self.console.print(
            f"{config.label}, seed {config.seed}: {text}{where} ({self.count})",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _given_seeds(text: str | None, fields: dict[str, Any]) -> int | list[int]:
    """Return the seeds asked for; a seed in a --config file counts where the command line names none."""
    seed = fields.pop("seed", None)
    return read_seeds(text) if text is not None else 5 if seed is None else [seed]


class _Terminated(BaseException):
    """SIGTERM, as Slurm and Ray send it before they kill."""


def _interrupt(number: int, _: object) -> NoReturn:
    # Worker processes go first: waiting for one that was interrupted itself can take for ever.
    import psutil

    workers = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("popen_loky" in word for word in child.cmdline()):
                # It saves where it is after the step that it is at.
                child.terminate()
                workers.append(child)
    for child in psutil.wait_procs(workers, timeout=WORKERS_END)[1]:
        with contextlib.suppress(psutil.Error):
            child.kill()
    raise _Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _check_arguments(command: Any, given: Sequence[str]) -> None:
    """Refuse what click would take in silence: an empty text, as of a variable that is not set, and an option twice."""
    verb = command.commands.get(given[0]) if given else None
    once = {name for p in verb.params if not p.multiple for name in p.opts} if verb is not None else set()
    names = [text.partition("=")[0] for text in given if text.startswith("--")]
    for text in given:
        if not text or (text.startswith("--") and text.endswith("=")):
            what = f"{text} without a value" if text else f"an empty argument in: {' '.join(given)}"
            raise ConfigError(f"{what}; give a value or leave it out")
    for name in names:
        if name in once and names.count(name) > 1:
            raise ConfigError(f"{name} is given twice; once is accepted")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 a run failed, 2 the request can't be met, 130/143 interrupted."""
    # Typer brings its own copy of click, or uses the installed one, by version; the base class tells which.
    click_error = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    command = typer.main.get_command(app)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"note: {message}", file=sys.stderr)
            given = list(sys.argv[1:] if arguments is None else arguments)
            _check_arguments(command, given)
            code = command.main(args=given, prog_name="clbench", standalone_mode=False)
        # Typer turns Ctrl-C into this code.
        if code == 130:
            raise KeyboardInterrupt
        sys.exit(0)
    except (typer.Abort, KeyboardInterrupt):
        _end("interrupted; what was saved is kept and can be continued", 130)
    except _Terminated:
        _end("terminated; what was saved is kept and can be continued", 143)
    except ConfigError as error:
        _end(str(error), 2)
    except RunError as error:
        _end(str(error), 1)
    except SystemExit as ended:
        # Typer and rich end with 1 when nobody reads what is printed any more.
        sys.exit(0 if isinstance(ended.__context__, BrokenPipeError) else ended.code)
    except Exception as error:
        if not isinstance(error, click_error):
            if os.environ.get("CLBENCH_TRACEBACK"):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            _end(
                f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno}); "
                "CLBENCH_TRACEBACK=1 shows where it came from",
                1,
            )
        message: str = error.format_message()  # type: ignore[attr-defined]
        # No arguments at all: click raises the help text as an error.
        if error.__class__.__name__ == "NoArgsIsHelpError":
            print(message)
            sys.exit(0)
        _end(str(ConfigError(message)), 2)


def _end(message: str, code: int) -> NoReturn:
    print(f"clbench: {one_line(message, 1500)}", file=sys.stderr)
    sys.exit(code)
