"""reproduce: published claims against runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clbench.cli.console import messages, plain, screen
from clbench.cli.options import (
    Json,
    Quiet,
    config_options,
)
from clbench.cli.options import seconds as read_seconds
from clbench.cli.options import seeds as read_seeds
from clbench.config.errors import LONGEST, ConfigError, MissingDataError, RunError, one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from clbench.cli.claim_runs import Needed
    from clbench.many.planned import Outcome
    from clbench.reports.published import Claim
    from clbench.reports.reproduction import Judgement, Measured


# The columns of the table of verdicts, the most telling first, with the width of their longest word.
TELLING = {"claim": 25, "verdict": 14, "published": 10, "ours": 7, "n": 8, "difference": 10, "allowed": 7, "TOST p": 7}
TELLING |= {"paired difference": 10, "naive": 5}
TO_RUN = "claims by name, --table, --tier A or --budget 10m run some, and --dry-run says how long that takes"


@config_options("device", "compile", "data_root", "offline")
def reproduce_verb(
    fields: dict[str, Any],
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Claims, or what their ids begin with; without any limit, the kept results are shown."),
    ] = None,
    tier: Annotated[
        str | None,
        typer.Option(help="Only claims of this tier: A, B or C (default: every tier)."),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(metavar="PAPER/SCENARIO", help="Every claim of a published table, shown cell by cell."),
    ] = None,
    submit: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Check finished runs from elsewhere, and add them to the results."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Run what fits into a time such as 10m, by estimate; of every tier."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="A number of seeds, or the seeds: 0,1,2 (default: each claim's own number).")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    results: Annotated[
        Path | None, typer.Option(help="Folder of claims.md, claims.csv and runs.csv (default: OUT/reproduction).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would run, and how long; reads no data.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run published claims, compare, and give a verdict; what is done already is not run again.

    It shows the results that are kept with clbench where no claim, --table, --tier, --budget or --submit is given.
    """
    from clbench.cli.claim_runs import needed, startable, within
    from clbench.reports import reproduction
    from clbench.reports.published import chosen, claims_of_table

    folder = results or out / "reproduction"
    if submit is not None:
        _submit(submit, folder, as_json, given=(names, tier, table, budget, seeds, dry_run, fields))
        return
    if not names and tier is None and table is None and budget is None and not dry_run:
        if seeds is not None or jobs != 1 or fields:
            raise ConfigError(f"reproduce is not told what to run; {TO_RUN}")
        kept = reproduction.known_claims(reproduction.committed())
        judgements = reproduction.judge_all(kept)
        shown = [reproduction.summary(reproduction.judge_all(kept, chosen([]))), *reproduction.provenance(kept), TO_RUN]
        _judged(judgements, shown, as_json)
        return
    limit = None if budget is None else read_seconds(budget)
    if table is None:
        wanted = chosen(names or [], tier or ("A" if not names and budget is None else None))
    elif names or tier:
        raise ConfigError(f"--table {table} takes every claim of the table; leave out the names and --tier")
    else:
        wanted = claims_of_table(table)
    written = reproduction.written(folder)
    runs, refused = needed(
        wanted, out=out, seeds=None if seeds is None else read_seeds(seeds), written=written, **fields
    )
    console = messages(quiet or as_json)
    if dry_run:
        todo = runs if limit is None else within(runs, limit, jobs)
    else:
        runs, todo, without = startable(runs, limit, jobs)
        refused |= without
    if not any(role == "claim" for run in runs for _, role in run.serves):
        kept = reproduction.committed()
        lacking = [why for why in refused.values() if isinstance(why, MissingDataError)]
        if not kept or not lacking:
            raise next(iter(refused.values()))
        _say_why(console, refused)
        console.print("none can run here; these are the results that are kept with the code", markup=False)
        _judged(reproduction.judge_all(kept, wanted), reproduction.provenance(kept), as_json)
        if names:
            raise ConfigError(
                f"{' '.join(names)}: none can run here, for want of data; --data-root accepts a folder that holds them"
            )
        return
    _say_why(console, refused)
    rows_of_plan = _plan_rows(wanted, runs, todo)
    left = sum(run.seconds for run in todo) / jobs
    if not as_json:
        screen().print(_plan_table(rows_of_plan, left, jobs))
    if dry_run:
        if as_json:
            print(json.dumps({"seconds": left, "jobs": jobs, "claims": rows_of_plan}))
        return
    from clbench.many.execution import raise_first_failure, run_shown

    serves = {run.planned.folder: run.serves for run in runs}
    ready = [run for run in runs if run in todo or not run.seconds]
    outcomes: list[Outcome] = []
    rows: list[Measured] = [row for run in ready for row in run.measured]
    # A claim that can't run here keeps what the results hold of it.
    rows += [row for row in written if row.claim in refused and row not in rows]
    ready = [run for run in ready if not run.measured]
    for outcome in run_shown([run.planned for run in ready], jobs=jobs, quiet=quiet or as_json):
        outcomes.append(outcome)
        if (result := outcome.result) is not None:
            rows += [reproduction.measure(c, role, result) for c, role in serves[outcome.planned.folder]]
            # After each run: what takes days is looked at, or killed, on the way.
            _write_results(rows, folder)
    _write_results(rows, folder)
    judgements = reproduction.judge_all(rows, wanted)
    notes = [reproduction.summary(judgements), *reproduction.provenance(rows)]
    if table is None or as_json:
        _judged(judgements, [*notes, f"table: {folder / 'claims.md'}"], as_json)
    else:
        _tabled(table, judgements, notes, folder)
    raise_first_failure(outcomes)
    if differ := [j.claim.id for j in judgements if j.verdict == "differs" and not j.provisional]:
        raise RunError(f"{len(differ)} of {len(judgements)} claims differ: {', '.join(differ)}")


def _submit(source: Path, folder: Path, as_json: bool, given: "Sequence[object]") -> None:
    """Add finished runs to the results, and say of each other run in the folder why it is refused."""
    from clbench.cli.submitting import submitted
    from clbench.reports import reproduction

    if any(given):
        raise ConfigError(f"--submit {source} takes every run in the folder; it goes with --results, --out and --json")
    written = reproduction.written(folder)
    rows, refused = submitted(source, written)
    n_runs = len({row.identity for row in rows})
    for place, why in refused:
        messages(as_json).print(one_line(f"{place} is refused: {why}", LONGEST), markup=False, soft_wrap=True)
    if rows:
        _write_results(rows, folder)
        wanted = {row.claim for row in rows}
        all_rows = reproduction.written(folder)
        judgements = [j for j in reproduction.judge_all(all_rows) if j.claim.id in wanted]
        fresh = len({row.identity for row in rows if row not in written})
        notes = [
            f"runs added: {fresh}, there already: {n_runs - fresh}; {folder / 'claims.md'}",
            *reproduction.provenance(rows),
        ]
        _judged(judgements, notes, as_json)
    if refused:
        raise RunError(f"runs refused: {len(refused)} of {len(refused) + n_runs}")


def _tabled(name: str, judgements: "Sequence[Judgement]", notes: list[str], folder: Path) -> None:
    """Print a published table cell by cell, and write it with its figure."""
    from rich.table import Table

    from clbench.reports import published_table
    from clbench.reports.figures import draw
    from clbench.support.files import write_atomically

    found = published_table.published_table(name, judgements)
    head, *lines = found.lines("\n")
    shown = Table(title=f"{name}: published, ours, verdict", show_lines=True)
    for column in head:
        shown.add_column(column, overflow="fold")
    for line in lines:
        shown.add_row(*map(plain, line))
    stdout = screen()
    stdout.print(shown)
    stem = folder / name.replace("/", "-")
    drawing = published_table.chart(found)
    files: dict[str, str | bytes] = {"md": published_table.to_markdown(found), "csv": published_table.to_csv(found)}
    files |= {} if drawing.is_empty else draw(drawing, drawing.title)
    try:
        for kind, content in files.items():
            write_atomically(stem.with_name(f"{stem.name}.{kind}"), content)
    except OSError as error:
        raise RunError(f"{folder}: {error.strerror or error}; the runs themselves are kept") from None
    for note in [*notes, f"written: {stem}.{{{','.join(files)}}}"]:
        stdout.print(note, soft_wrap=True, highlight=False, markup=False)


def _say_why(console: "Console", refused: "Mapping[str, ConfigError]") -> None:
    """Say once for each reason which claim, or how many, it stops."""
    stopped: dict[str, list[str]] = {}
    for claim, why in refused.items():
        stopped.setdefault(str(why), []).append(claim)
    for reason, of in stopped.items():
        text = f"{of[0] if len(of) == 1 else f'{len(of)} claims'} can't run here: {reason}"
        console.print(one_line(text, LONGEST), markup=False, highlight=False, soft_wrap=True)


def _plan_rows(
    wanted: "Sequence[Claim]", runs: "Sequence[Needed]", todo: "Sequence[Needed]"
) -> list[dict[str, str | int | float]]:
    """Return for each claim how many runs it needs, how many are done and to do, and the seconds of the latter."""
    rows: list[dict[str, str | int | float]] = []
    for claim in wanted:
        own = [run for run in runs if any(c.id == claim.id for c, _ in run.serves)]
        coming = [run for run in own if run in todo and run.seconds]
        done = sum(not run.seconds for run in own)
        seconds = sum(run.seconds for run in coming)
        rows.append({"claim": claim.id, "runs": len(own), "done": done, "to do": len(coming), "seconds": seconds})
    return rows


def _plan_table(rows: list[dict[str, str | int | float]], left: float, jobs: int) -> "Table":
    from rich.table import Table

    from clbench.support.text import duration

    listed = [row for row in rows if row["to do"]] or rows
    rest = len(rows) - len(listed)
    caption = "a run that several claims share stands in each of their rows, and is done once"
    if rest:
        caption += f"; claims that are done, can't run here or do not fit into the budget: {rest}"
    table = Table(title=f"about {duration(left)} to go with {jobs} job(s), by estimate", caption=caption)
    table.add_column("claim", overflow="fold")
    for column in ("runs", "done", "to do", "time"):
        table.add_column(column, justify="right", overflow="fold")
    for row in listed:
        claim, *counts, seconds = row.values()
        table.add_row(str(claim), *map(str, counts), duration(float(seconds)))
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
        print(json.dumps([reproduction.numbers(j) for j in judgements]))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    stdout = screen()
    # A terminal shows the columns that it has room for without cutting a word, the most telling ones first.
    room, shown = stdout.width, set[str]()
    for column, least in TELLING.items():
        room -= least + 3
        if room >= 0:
            shown.add(column)
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    columns = [column for column in reproduction.COLUMNS if column in shown]
    for column in columns:
        left = column in ("claim", "verdict")
        table.add_column(column, justify="left" if left else "right", overflow="fold", width=TELLING[column])
    for judgement in judgements:
        row = dict(zip(reproduction.COLUMNS, reproduction.cells(judgement), strict=True))
        # The parts of an id stand below one another, so that none is cut in the middle.
        row["claim"] = row["claim"].replace("/", "/\n")
        table.add_row(*(plain(row[column]) for column in columns))
    stdout.print(table)
    notes = [
        *(f"{j.claim.id}: no verdict yet, {j.reason}" for j in judgements if j.verdict == "not run" and j.n),
        *notes,
    ]
    if len(shown) < len(reproduction.COLUMNS):
        hidden = ", ".join(column for column in reproduction.COLUMNS if column not in shown)
        notes = [f"a wider terminal shows more: {hidden}", *notes]
    for note in notes:
        stdout.print(note, soft_wrap=True, highlight=False, markup=False)
