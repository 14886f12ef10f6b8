"""run, compare, crosscheck: the verbs that train strategies on a scenario."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from clbench.avalanche.honoured import HONOURED
from clbench.cli.console import plain, print_notes, print_report, screen
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
from clbench.cli.requests import beginning, check_tracker, given_seeds
from clbench.config.errors import ConfigError, RunError
from clbench.config.run import fields as all_fields

# Avalanche's loop has no place for these fields, so a cross-check would always refuse them.
NOT_CROSSCHECKED = [name for name in all_fields() if name not in (*HONOURED, "checkpoint_every")]


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
    check_tracker(track)
    from clbench.running.display import Display, Named
    from clbench.running.group import follows, refuse_many
    from clbench.running.resolve import prepare, resolve
    from clbench.running.run import execute, folder_of

    scenario, names, fields = beginning(like, scenario, [] if strategy is None else [strategy], fields, pairs(param))
    if len(names) > 1:
        raise ConfigError(f"{' '.join(names)}: with --like one strategy or none is accepted; compare takes several")
    config, tasks = prepare(resolve(scenario, names[0], fields))
    if overfit is not None:
        refuse_many("--overfit")
        from clbench.tools.overfit import learn_by_heart

        learnt = learn_by_heart(config, tasks, overfit)
        if as_json:
            print(json.dumps(learnt))
            return
        print(
            f"{learnt['images']} images are learnt by heart after {learnt['epochs']} epochs ({learnt['steps']} "
            f"steps): all are right, at learning rate {learnt['learning_rate']:g}: loss {learnt['loss']:.4f}"
        )
        print_notes(learnt["warnings"])
        return
    folder = folder_of(config, out)
    if resume:
        folder.note_nothing_to_continue()
    try:
        with Display({folder.path: Named(config.label, config.seed)}, quiet=quiet or as_json or follows()):
            result = execute(config, tasks, folder, resume=resume, force=force, track=track)
    except Exception as error:
        from clbench.tools.explain import explain, is_device_error

        if not is_device_error(error):
            raise
        hint = "--resume --explain-on-cpu replays it on the CPU, where errors are clear"
        raise RunError(explain(folder.path) if explain_on_cpu else f"{str(error).splitlines()[0]}; {hint}") from error
    if follows():
        return  # the process that leads says what came of it
    if as_json:
        print(json.dumps(result.record))
        return
    from clbench.reports.run_tables import render_run

    stdout = screen()
    stdout.print(render_run(result))
    stdout.print(f"run folder: {folder}", soft_wrap=True, highlight=False, markup=False)


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
    seeds_together: Annotated[
        bool, typer.Option("--seeds-together", help="Train all seeds of a strategy in one batched model (for GPUs).")
    ] = False,
    force: Force = False,
    track: Track = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare strategies over seeds: a table on screen, a report on disk."""
    check_tracker(track)
    from clbench.many.compare import plan
    from clbench.many.execution import raise_first_failure, recorded, run_shown

    scenario, names, fields = beginning(like, scenario, strategies or [], fields, pairs(param))
    wanted = given_seeds(seeds, fields)
    planned = plan(scenario, names, seeds=wanted, out=out, references=references, **fields)
    shown = run_shown(
        planned, quiet=quiet or as_json, jobs=jobs, force=force, track=track, seeds_together=seeds_together
    )
    outcomes = list(shown)
    errors = {outcome.planned.folder: outcome.error for outcome in outcomes}
    results = [result for item in planned if (result := recorded(item, errors.get(item.folder))) is not None]
    if results:
        print_report(results, out / "report", as_json, runs=out)
    raise_first_failure(outcomes)


@config_options(without=("seed", "memory_per_class", "memory_policy", *NOT_CROSSCHECKED))
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
    from clbench.avalanche.crosscheck import as_dict, plan_crosscheck, rows
    from clbench.many.execution import raise_first_failure, run_shown

    wanted = given_seeds(seeds, fields)
    planned = plan_crosscheck(methods, scenario, seeds=wanted, out=out, **fields)
    # Several methods share their runs of fine-tuning.
    every = list({run.folder: run for of_method in planned.values() for run in of_method.runs}.values())
    raise_first_failure(list(run_shown(every, jobs=jobs, force=force, quiet=quiet or as_json)))
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
        table.add_row(row["method"], str(row["n"]), *means, plain(difference), row["differs"])
    screen().print(table)
