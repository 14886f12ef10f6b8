"""report.html: one file without a network, rebuilt from finished runs alone, in which a person looks for the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from markupsafe import Markup

from clbench.metrics import DEFINITIONS
from clbench.reports import page_charts, page_panels, provenance, svg
from clbench.reports.cells import Cell, Column, Figure, Table, bounds, is_line, metric, named, role
from clbench.reports.svg import Style
from clbench.reports.tables import MATRICES, Comparison
from clbench.reports.tables import _is_best as is_best
from clbench.reports.tables import _words as words
from clbench.result import MatrixName

if TYPE_CHECKING:
    from jinja2 import Environment

# Strategies up to which all are drawn at first; the legend switches the others on.
MOST_DRAWN = 12


@dataclass(frozen=True)
class Entry:
    """A strategy in the legend."""

    row: int
    label: str
    style: Style
    role: str
    drawn: bool


@dataclass
class Section:
    """What the page shows of one comparison."""

    anchor: str
    title: str
    verdict: str
    about: str
    notes: Sequence[str]
    legend: Sequence[Entry]
    table: Table
    references: Table
    main: Sequence[Figure]
    tasks: Sequence[Figure]
    confusion: Sequence[Figure]
    within: Sequence[Figure]
    within_table: Table | None
    training: Sequence[Figure]
    ledger: Table
    runs: Table
    orders: Sequence[tuple[str, str]]
    differing: Table | None
    common: Sequence[tuple[str, str]]
    commands: Sequence[tuple[int, str, str]]
    environment: Sequence[tuple[str, Sequence[str]]]
    omitted: Sequence[str]


def render(parts: Sequence[Comparison]) -> str:
    """Return the page of these comparisons as HTML; text from runs stands in it as text, whatever it holds."""
    shown = sections(parts)
    shades = "".join(
        f".h{i}{{background:{colour};color:{'#000' if i >= page_panels.BLACK_FROM else '#fff'}}}"
        for i, colour in enumerate(page_panels.SHADES)
    )
    runs = [run for part in parts for row in part.rows if row.is_headline for run in row.runs]
    return (
        _environment()
        .get_template("page.html")
        .render(
            sections=shown,
            shades=Markup(shades),
            definitions=[(words(name), text) for name, text in DEFINITIONS.items()],
            n_runs=len(runs),
            versions=sorted({run.version for run in runs}),
        )
    )


def sections(parts: Sequence[Comparison]) -> list[Section]:
    """Return what the page shows of each comparison; a strategy looks the same in all of them."""
    labels = list(dict.fromkeys(row.label for part in parts for row in part.rows if not is_line(row)))
    styles = {label: svg.style(i) for i, label in enumerate(labels)}
    return [_section(part, f"s{i + 1}", styles) for i, part in enumerate(parts)]


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = resources.files("clbench.reports")

    def source(name: str) -> str:
        return folder.joinpath(name).read_text("utf-8")

    environment = Environment(
        loader=FunctionLoader(source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["style_sheet"] = Markup(source("page.css"))
    environment.globals["script"] = Markup(source("page.js"))
    return environment


def _section(part: Comparison, anchor: str, styles: Mapping[str, Style]) -> Section:
    looks = [svg.UPPER if row.is_reference else svg.LOWER if is_line(row) else styles[row.label] for row in part.rows]
    omitted: list[str] = []
    competitors, references = _comparison_tables(part, looks)
    differing, common = provenance.configs(part)
    runs, orders = provenance.runs(part)
    within, within_table = page_panels.within_tasks(part, looks)
    legend = [
        Entry(i, row.label, look, role(row), is_line(row) or i - sum(map(is_line, part.rows[:i])) < MOST_DRAWN)
        for i, (row, look) in enumerate(zip(part.rows, looks, strict=True))
    ]
    rule = "the outputs of all tasks seen so far compete"
    if part.headline == "task_aware":
        rule = "the task is known and only its own outputs compete"
    return Section(
        anchor=anchor,
        title=part.title,
        verdict=_verdict(part),
        about=f"The headline is the {MATRICES[part.headline]} average accuracy: {rule}.",
        notes=part.notes,
        legend=legend,
        table=competitors,
        references=references,
        main=[
            page_charts.average_accuracy(part, looks),
            page_charts.plasticity(part, looks),
            page_charts.cost(part, looks, "extra_bytes", "bytes stored beside the model", "B"),
            page_charts.cost(part, looks, "seconds", "seconds for the whole run", "s"),
            page_charts.stored(part, looks),
        ],
        tasks=page_panels.matrices(part, looks, omitted),
        confusion=page_panels.confusions(part, looks, omitted),
        within=within,
        within_table=within_table,
        training=page_panels.training(part, looks),
        ledger=_ledger(part),
        runs=runs,
        orders=orders,
        differing=differing,
        common=common,
        commands=[(i, row.label, provenance.command(row)) for i, row in enumerate(part.rows) if row.is_headline],
        environment=provenance.machines(part),
        omitted=omitted,
    )


def _verdict(part: Comparison) -> str:
    ranked = [row for row in part.rows if not row.is_reference]
    best = max(ranked, key=lambda row: row.spread("average_accuracy").mean or 0.0, default=None)
    if best is None:
        return "There are references alone, nothing to compare."
    return f"{best.label} has the highest mean accuracy."


def _comparison_tables(part: Comparison, looks: Sequence[Style]) -> tuple[Table, Table]:
    """Return the table of the competitors and that of the references, with the same columns."""
    other: MatrixName = "task_aware" if part.headline == "class_incremental" else "class_incremental"
    first = ["average_accuracy", "forgetting", f"{other}_accuracy", "average_incremental_accuracy"]
    names = [*first, "seconds", "extra_bytes", *(name for name in DEFINITIONS if name not in first)]
    names = [name for name in names if any(row.spread(name).n for row in part.rows)]
    titles = {
        "average_accuracy": f"{MATRICES[part.headline]} accuracy %",
        f"{other}_accuracy": f"{MATRICES[other]} accuracy %",
        "average_incremental_accuracy_without_first": "average incremental without first %",
        "seconds": "seconds",
        "extra_bytes": "kB stored",
    }
    ends = [b for row in part.rows for b in bounds(row, "average_accuracy") if b is not None]
    scale = svg.axis("", [min(max(100 * b, 0.0), 100.0) for b in ends])
    columns = [Column("strategy", text=True), Column("n", note="runs")]
    for name in names:
        columns.append(Column(titles.get(name, f"{words(name)} %"), note=DEFINITIONS.get(name, "")))
        if name == "average_accuracy":
            columns.append(
                Column(f"{max(scale.low, 0):.0f} to {min(scale.high, 100):.0f} %", text=True, note="95 % interval")
            )
    tables: tuple[list[tuple[int, str, list[Cell]]], ...] = ([], [])
    for i, (row, look) in enumerate(zip(part.rows, looks, strict=True)):
        cells = [named(row, look), Cell(str(len(row.runs)), len(row.runs))]
        for name in names:
            cells.append(metric(row, name, best=is_best(part, row, name)))
            if name == "average_accuracy":
                low, high = bounds(row, name)
                mean = row.spread(name).mean
                drawn = [100 * (mean or 0.0) if v is None else 100 * v for v in (low, mean, high)]
                cells.append(Cell(svg.interval(look, drawn[0], drawn[1], drawn[2], scale), mean))
        tables[is_line(row)].append((i, "", cells))
    return Table(columns, tables[0]), Table(columns, tables[1])


def _ledger(part: Comparison) -> Table:
    """Return items and bytes of what each strategy keeps from task to task, the most after any task."""
    items = [name.removesuffix("_items") for name in part.names("_items")]
    kinds = [name.removesuffix("_bytes") for name in part.names("_bytes")]
    kinds = [*dict.fromkeys(kind for kind in [*kinds, *items] if kind != "extra"), "extra"]
    columns = [Column("strategy", text=True)]
    for kind in kinds:
        if kind in items:
            columns.append(Column(f"{words(kind)}, items"))
        columns.append(Column("all but the model, bytes" if kind == "extra" else f"{words(kind)}, bytes"))
    rows = []
    for i, row in enumerate(part.rows):
        if not row.is_headline:
            continue
        cells = [Cell(row.label)]
        for kind in kinds:
            for name in ([f"{kind}_items"] if kind in items else []) + [f"{kind}_bytes"]:
                mean = row.spread(name).mean
                cells.append(Cell("-" if mean is None else f"{mean:,.0f}", mean))
        rows.append((i, "", cells))
    return Table(columns, rows)
