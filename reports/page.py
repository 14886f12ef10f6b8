"""report.html: one file without a network, rebuilt from finished runs alone, in which a person looks for the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from markupsafe import Markup

from clbench.reports import page_charts, page_panels, provenance, svg
from clbench.reports.cells import Cell, Column, Figure, Table, is_line, metric, named, role
from clbench.reports.differences import all_ranks, verdict
from clbench.reports.svg import Style
from clbench.reports.tables import SETTINGS, Comparison, Row, is_best, percent, rule, words
from clbench.results.metrics import DEFINITIONS
from clbench.results.record import MatrixName

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
    differences: Table | None
    tested: str
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
            ranks=_ranks(parts),
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
    differing_pairs, tested = _differences(part)
    differing, common = provenance.configs(part)
    runs, orders = provenance.runs(part)
    within, within_table = page_panels.within_tasks(part, looks)
    legend = [
        Entry(i, row.label, look, role(row), is_line(row) or i - sum(map(is_line, part.rows[:i])) < MOST_DRAWN)
        for i, (row, look) in enumerate(zip(part.rows, looks, strict=True))
    ]
    return Section(
        anchor=anchor,
        title=part.title,
        verdict=verdict(part),
        about=f"The headline is the {part.matrix(part.headline)} average accuracy: {rule(part)}",
        notes=part.notes,
        legend=legend,
        table=competitors,
        references=references,
        differences=differing_pairs,
        tested=tested,
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


def _comparison_tables(part: Comparison, looks: Sequence[Style]) -> tuple[Table, Table]:
    """Return the table of the competitors and that of the references, with the same columns."""
    other: MatrixName = "task_aware" if part.headline == "class_incremental" else "class_incremental"
    first = ["average_accuracy", "forgetting", f"{other}_accuracy", "average_incremental_accuracy"]
    names = [*first, "seconds", "extra_bytes", *(name for name in DEFINITIONS if name not in first)]
    names = [name for name in names if any(row.spread(name).n for row in part.rows)]
    titles = {
        "average_accuracy": f"{part.matrix(part.headline)} accuracy %",
        f"{other}_accuracy": f"{part.matrix(other)} accuracy %",
        "average_incremental_accuracy_without_first": "average incremental without first %",
        "seconds": "seconds",
        "extra_bytes": "kB stored",
    }
    ends = [_ends(row) for row in part.rows]
    scale = svg.axis("", [min(max(value, 0.0), 100.0) for of_row in ends for value in of_row])
    columns = [Column("strategy", text=True), Column("n", note="runs")]
    for name in names:
        columns.append(Column(titles.get(name, f"{words(name)} %"), note=DEFINITIONS.get(name, "")))
        if name == "average_accuracy":
            columns.append(
                Column(f"{max(scale.low, 0):.0f} to {min(scale.high, 100):.0f} %", text=True, note="95 % interval")
            )
    tables: tuple[list[tuple[int, list[Cell]]], ...] = ([], [])
    for i, (row, look) in enumerate(zip(part.rows, looks, strict=True)):
        cells = [named(row, look), Cell(str(len(row.runs)), len(row.runs))]
        for name in names:
            cells.append(metric(row, name, best=is_best(part, row, name)))
            if name == "average_accuracy":
                cells.append(Cell(svg.interval(look, *ends[i], scale), row.spread(name).mean))
        tables[is_line(row)].append((i, cells))
    return Table(columns, tables[0]), Table(columns, tables[1])


def _ends(row: Row) -> tuple[float, float, float]:
    """Return the interval of the average accuracy in percent, with the mean in its middle."""
    mean, ends = row.spread("average_accuracy").mean or 0.0, row.interval("average_accuracy")
    return (100 * mean,) * 3 if ends is None else (100 * ends.low, 100 * mean, 100 * ends.high)


def _differences(part: Comparison) -> tuple[Table | None, str]:
    """Return each competitor minus the best one and minus naive, and what is to say about the tests."""
    found = part.differences
    index = {row.label: i for i, row in enumerate(part.rows)}
    rows = []
    for one in (*found.against_best, *found.against_naive):
        pair = one.paired
        ends = "" if pair.interval is None else f"{percent(pair.interval.low)} to {percent(pair.interval.high)}"
        difference = "-" if pair.difference is None else f"{round(100 * pair.difference, 1) + 0.0:+.1f}"
        cells = [
            Cell(one.ours.label),
            Cell(one.theirs.label),
            Cell(str(pair.n), pair.n),
            Cell(difference, pair.difference, ends, "best" if one.is_real else ""),
            Cell("-" if one.p is None else f"{one.p:.2g}", one.p),
            Cell("-" if pair.effect_size is None else f"{pair.effect_size:.1f}", pair.effect_size),
            Cell(
                "-" if pair.probability_of_improvement is None else f"{pair.probability_of_improvement:.0%}",
                pair.probability_of_improvement,
            ),
            Cell("-" if one.runs_needed is None else str(one.runs_needed), one.runs_needed),
        ]
        rows.append((index[one.ours.label], cells))
    columns = [
        Column("strategy", text=True),
        Column("minus", text=True),
        Column("n", note="pairs of runs of the same seed and class order"),
        Column("difference", note="of average accuracy, percentage points, with its 95 % interval"),
        Column("p", note="two-sided sign-flip permutation test, corrected by Holm"),
        Column("effect size", note="mean over standard deviation of the differences"),
        Column("ahead in", note="share of the pairs in which the strategy is ahead"),
        Column("runs needed", note="pairs that would find a difference of this size (power 0.8)"),
    ]
    said = [found.note] if found.note else []
    if found.smallest_p is not None and not found.note:
        said.append(f"Holm's correction counts {found.tests} pairs; the smallest p possible is {found.smallest_p:.2g}.")
    return (Table(columns, rows) if rows else None), " ".join(said)


def _ranks(parts: Sequence[Comparison]) -> list[tuple[str, str, Table]]:
    """Return the mean ranks of each setting with scenarios enough: a title, what is to say, the table."""
    made = []
    for setting, found in all_ranks(parts).items():
        groups = "; ".join(", ".join(group) for group in found.groups) or "none"
        friedman = "" if found.p is None else f" Friedman's test that all are equal: p = {found.p:.2g}."
        text = (
            f"By average accuracy, 1 is best. Ranks nearer than {found.critical_difference:.2f} (Nemenyi, 0.05; Demsar "
            f"2006) are not told apart: {groups}.{friedman}"
        )
        rows = [(-1, [Cell(label), Cell(f"{rank:.2f}", rank)]) for label, rank in found.mean.items()]
        title = f"Mean ranks over {found.n} scenarios, {SETTINGS[setting]}"
        made.append((title, text, Table([Column("strategy", text=True), Column("mean rank")], rows)))
    return made


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
        rows.append((i, cells))
    return Table(columns, rows)
