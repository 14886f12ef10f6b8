"""sweep: any grid of runs."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clbench.cli.console import screen
from clbench.cli.options import (
    Force,
    Json,
    Quiet,
    Track,
)
from clbench.cli.requests import check_tracker
from clbench.config.errors import ConfigError, RunError, unknown

if TYPE_CHECKING:
    from clbench.many.planned import Outcome, PlannedRun
    from clbench.results.result import Result

# Configurations up to which a sweep ends with the report of a comparison too.
MOST_IN_REPORT = 30


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
        from clbench.many.cluster import require_ray

        require_ray()
    elif address is not None or gpus_per_run is not None:
        raise ConfigError("--address and --gpus-per-run are for --backend ray; give it too")
    check_tracker(track)
    from clbench.many.cluster import Cluster
    from clbench.many.execution import raise_first_failure, recorded, run_shown
    from clbench.many.sweeps import plan_sweep

    cluster = Cluster(address, gpus_per_run or 0.0) if backend == "ray" else None
    planned = plan_sweep(grid, out=out, shard=None if shard is None else _shard(shard), cluster=cluster)
    if not planned and not as_json:
        # A job array may well have more parts than there are runs.
        print(f"shard {shard} holds no run of the grid; there is nothing to do")
        return
    if dry_run:
        _show_runs(planned, as_json)
        return
    how = {"jobs": jobs or 1, "force": force, "track": track, "cluster": cluster}
    outcomes = list(run_shown(planned, quiet=quiet or as_json, **how))
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
        # Other parts of the grid write there too.
        if shard is None:
            _report([result for item in planned if (result := recorded(item)) is not None], out / "report")
    raise_first_failure(outcomes)


def _report(results: "list[Result]", folder: Path) -> None:
    """Print the table of a sweep, and write its report."""
    from clbench.reports import sweep as report
    from clbench.reports import write_report

    done = [result for result in results if result.status == "done"]
    if not done:
        return
    found = report.points(done)
    stdout = screen()
    stdout.print(report.render(found))
    try:
        report.write_sweep(done, folder)
    except OSError as error:
        raise RunError(f"{folder}: {error.strerror or error}; the runs themselves are kept") from None
    stdout.print(f"sweep: {folder / 'sweep.md'}", soft_wrap=True, highlight=False, markup=False)
    if len(found) <= MOST_IN_REPORT:
        write_report(results, folder)
        stdout.print(f"report: {folder / 'report.html'}", soft_wrap=True, highlight=False, markup=False)


def _shard(text: str) -> tuple[int, int]:
    k, _, n = text.partition("/")
    if not (text.isascii() and k.isdecimal() and n.isdecimal()):
        raise ConfigError(f"--shard {text}: K/N such as 1/10 is accepted")
    return int(k), int(n)


def _show_runs(planned: "Sequence[PlannedRun]", as_json: bool) -> None:
    from clbench.many.execution import run_status

    rows = [_run_row(item) | {"status": run_status(item)} for item in planned]
    if as_json:
        print(json.dumps(rows))
        return
    from clbench.support.fitted import Column, Fitted

    names = [name for name in rows[0] if name != "folder"]
    same = {name: rows[0][name] for name in names if len({row[name] for row in rows}) == 1 and name != "status"}
    keep = {"strategy": 9, "seed": 8, "status": 7}
    columns = [
        Column(name, [str(row[name]) for row in rows], keep.get(name, 6), wraps=name == "strategy")
        for name in names
        if name not in same
    ]
    columns.append(Column("folder", [row["folder"] for row in rows]))
    title = ", ".join(f"{name} {value}" for name, value in same.items())
    screen().print(Fitted(columns, title=title, more="--json has every column"))
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
