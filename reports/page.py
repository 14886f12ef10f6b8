"""report.html: one self-contained page, made from finished runs, that needs no network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup, escape

from clbench.reports import provenance, svg
from clbench.reports.chart import Cell, Chart, Heading, HeatMap, NumberTable, Panels, axis
from clbench.reports.charts import CHARTS, critical_difference, spread_text
from clbench.reports.columns import FIRST_ON_PAGE, Column, columns_of, percent, signed, words
from clbench.reports.comparison import SETTING_NAMES, Comparison
from clbench.reports.markdown import digits, rank_sentence
from clbench.reports.strategy_runs import StrategyRuns
from clbench.reports.templates import environment, source
from clbench.reports.verdict import all_ranks, verdict
from clbench.results.metrics import METRICS

# Strategies up to which all are drawn at first; the legend switches the others on.
MOST_DRAWN = 12
# Charts that stand before the table: those of the accuracy and of the forgetting.
LEADING = 2
# Notes that stand above the numbers; the others are folded, but none on runs that are not finished.
MOST_NOTES = 6
# Cells that a section's heat maps of one kind may have in all, so that the page stays small.
MOST_CELLS = 40_000
# Points of a curve of the training, or of evaluations within tasks.
MOST_POINTS = 80


@dataclass(frozen=True)
class Figure:
    """A chart or a heat map as the page shows it, with its caption and the table of its numbers."""

    title: str
    drawing: Markup | None
    caption: str
    numbers: NumberTable
    is_heat_map: bool = False
    row: int = -1
    key: Markup | None = None

    @property
    def heat(self) -> str:
        """The CSS classes of its table as a heat map: whether it needs a row of its own, and whether it has numbers."""
        columns = len(self.numbers.headings) - 1
        return f"heat{' wide' if columns > svg.MOST_NARROW else ''}{' dots' if columns > svg.MOST_PRINTED else ''}"


@dataclass(frozen=True)
class Group:
    """The figures of one kind, one a strategy, and the part of the page that they make up.

    tasks: the strokes that stand for tasks, with their names; with many tasks some of them.
    """

    name: str
    about: Panels
    table: NumberTable | None
    figures: Sequence[Figure]
    tasks: Sequence[tuple[Markup, str]]


@dataclass(frozen=True)
class Section:
    """One comparison with the tables and figures that the page shows of it; the template adds texts of its own.

    table, references: the competitors and the references, with the same columns; more: the other columns of all rows.
    lead: the figures that stand before the table, main: the others of all strategies. hidden: rows that the legend
    leaves out of the charts at first. left_out: what there is no room for, a sentence each.
    """

    anchor: str
    part: Comparison
    table: NumberTable
    references: NumberTable
    more: NumberTable | None
    lead: Sequence[Figure]
    main: Sequence[Figure]
    groups: Sequence[Group]
    hidden: Sequence[int]
    left_out: Sequence[str]


def render(parts: Sequence[Comparison]) -> str:
    """Return the page of these comparisons as HTML; text from runs is escaped."""
    shades = "".join(
        f".h{i}{{background:{colour};color:{'#000' if i >= svg.BLACK_FROM else '#fff'}}}"
        for i, colour in enumerate(svg.SHADES)
    )
    runs = [run for part in parts for row in part.rows if row.is_headline for run in row.finished]
    shared = {"style_sheet": Markup(source("page.css")), "script": Markup(source("page.js")), "shades": Markup(shades)}
    tables = {
        "verdict": partial(verdict, as_typed=False),
        "differences": differences,
        "ledger": ledger,
        "provenance": provenance,
    }
    template = environment(escaped=True).get_template("page.html")
    return template.render(
        shared | tables | {"key": svg.key, "role": role, "words": words},
        sections=sections(parts),
        metrics=METRICS,
        ranks=_ranks(parts),
        made=provenance.made(runs),
        most_notes=MOST_NOTES,
    )


def sections(parts: Sequence[Comparison]) -> list[Section]:
    """Return the page's section of each comparison."""
    return [_section(part, f"s{i + 1}") for i, part in enumerate(parts)]


def _section(part: Comparison, anchor: str) -> Section:
    main: list[Figure] = []
    groups: list[Group] = []
    left_out: list[str] = []
    for name, definition in CHARTS.items():
        drawing = definition.make(part) if definition.on_page else None
        if isinstance(drawing, Chart):
            main.append(_figure(drawing))
        elif drawing and drawing.panels:
            figures = _within_limit(drawing, left_out)
            table = drawing.table and _marked(part, drawing.table)
            groups.append(Group(name, drawing, table, figures, _task_keys(drawing)))
    competing = [i for i, row in enumerate(part.rows) if not row.is_line]
    tables, hidden = _comparison_tables(part), competing[MOST_DRAWN:]
    return Section(anchor, part, *tables, main[:LEADING], main[LEADING:], groups, hidden, left_out)


def _task_keys(drawing: Panels) -> list[tuple[Markup, str]]:
    """Return the strokes and names of the tasks whose lines the panels have, at most ten of them."""
    charts = [one.drawing for one in drawing.panels if isinstance(one.drawing, Chart)]
    named = {one.name: one.look for chart in charts for one in chart.series if one.look.kind == "task"}
    every = max(math.ceil(len(named) / 10), 1)
    return [(svg.task_key(look), name) for k, (name, look) in enumerate(named.items()) if k % every == 0]


def _figure(chart: Chart) -> Figure:
    numbers = chart.numbers
    table = svg.heat_table(numbers) if isinstance(numbers, HeatMap) else numbers
    return Figure(chart.title, None if chart.is_empty else svg.draw(chart), chart.caption, table)


def _within_limit(drawing: Panels, left_out: list[str]) -> list[Figure]:
    """Return the panels that there is room for; say in `left_out` where the others' numbers are."""
    figures: list[Figure] = []
    cells = 0
    for one in drawing.panels:
        chart: Chart | None = None
        numbers: NumberTable | HeatMap
        if isinstance(one.drawing, HeatMap):
            numbers = one.drawing
        else:
            chart = one.drawing.thinned(MOST_POINTS)
            numbers = chart.numbers
        heat = numbers if isinstance(numbers, HeatMap) else None
        cells += heat.values.size if heat else 0
        if figures and cells > MOST_CELLS:
            n = len(drawing.panels) - len(figures)
            left_out.append(
                f"{drawing.title}: there is no room for {n} strategies, whose numbers are in {drawing.file}."
            )
            break
        table = numbers if isinstance(numbers, NumberTable) else svg.heat_table(numbers)
        picture = svg.draw(chart, small=True) if chart else None
        caption = "; ".join(filter(None, (one.caption, chart.caption if chart else "")))
        figures.append(Figure(one.name, picture, caption, table, heat is not None, one.row, svg.key(one.look)))
    return figures


def role(row: StrategyRuns) -> str:
    """Return a description of a reference, and an empty text for a competitor."""
    return "reference: reads the data of all tasks" if row.is_reference else "lower reference" if row.is_naive else ""


def _named(row: StrategyRuns) -> Cell:
    """Return the name of a row with its mark from the charts, and below it the rest of its label and its role."""
    name, beside = row.name
    told = role(row) or row.runs[0].recorded.strategy.family
    return Cell(
        svg.key(row.look) + Markup(" <bdi>{}</bdi>").format(name),
        # A label breaks between its options.
        small=escape(f"{beside.strip()} {told}").replace(",", Markup(",<wbr>")) if beside else told,
    )


def _marked(part: Comparison, table: NumberTable) -> NumberTable:
    """Return a table of strategies with their marks from the charts."""
    return NumberTable(table.headings, [(i, [_named(part.rows[i]), *cells[1:]]) for i, cells in table.lines])


def _number(part: Comparison, row: StrategyRuns, column: Column) -> Cell:
    """Return a number of a row; of a metric with its deviation, and the interval of its mean below."""
    mean, _, n = found = row.spread(column.number)
    if mean is None:
        return Cell("-")
    if column.metric is None:
        return Cell(f"{mean / 1000:,.1f}" if column.unit == "kB" else column.text(mean), mean)
    ends = row.interval(column.number)
    small = "" if ends is None else f"{percent(ends.low)} to {percent(ends.high)}"
    if n < row.n:
        small = f"{small} n={n}".strip()
    return Cell(spread_text(found), mean, small, "best" if column.is_best(part, row) else "")


def _comparison_tables(part: Comparison) -> tuple[NumberTable, NumberTable, NumberTable | None]:
    """Return the table of the competitors, that of the references with the same columns, and that of what is left."""
    shown = _without_copies(part, columns_of(part, "page"))
    first = [column for column in shown if column.lead < len(FIRST_ON_PAGE)]
    others = [column for column in shown if column.lead == len(FIRST_ON_PAGE)]
    ends = [_ends(row) for row in part.rows]
    scale = axis("", [min(max(value, 0.0), 100.0) for of_row in ends for value in of_row or ()])
    headings = [Heading("strategy", text=True), Heading("n", note="runs")]
    for column in first:
        headings.append(_heading(column))
        if column.number == "average_accuracy":
            limits = f"{max(scale.low, 0):.0f} to {min(scale.high, 100):.0f} %"
            headings.append(Heading(limits, text=True, note="95 % interval"))
    lines: tuple[list[tuple[int, list[Cell]]], ...] = ([], [])
    for i, row in enumerate(part.rows):
        cells = [_named(row), Cell(row.count, row.n)]
        for column in first:
            cells.append(_number(part, row, column))
            if column.number == "average_accuracy":
                at = ends[i]
                mark = "-" if at is None else svg.interval(row.look, *at, scale)
                cells.append(Cell(mark, row.spread(column.number).mean))
        lines[row.is_line].append((i, cells))
    more = NumberTable(
        [headings[0], *map(_heading, others)],
        [(i, [_named(row), *(_number(part, row, column) for column in others)]) for i, row in enumerate(part.rows)],
    )
    return NumberTable(headings, lines[0]), NumberTable(headings, lines[1]), more if others else None


def _heading(column: Column) -> Heading:
    return Heading(column.titles["page"], note=column.metric.sentence if column.metric else "")


def _without_copies(part: Comparison, shown: Sequence[Column]) -> list[Column]:
    """Leave out the accuracies that are in each row the same number as the headline, which comes first."""

    def means(column: Column) -> list[float | None]:
        found = (row.spread(column.number).mean for row in part.rows)
        return [None if mean is None else round(mean, 9) for mean in found]

    return [
        column for k, column in enumerate(shown) if k == 0 or column.unit != "%" or means(column) != means(shown[0])
    ]


def _ends(row: StrategyRuns) -> tuple[float, float, float] | None:
    """Return the interval of the average accuracy in percent, with the mean in its middle; None where undefined."""
    mean, ends = row.spread("average_accuracy").mean, row.interval("average_accuracy")
    if mean is None:
        return None
    return (100 * mean,) * 3 if ends is None else (100 * ends.low, 100 * mean, 100 * ends.high)


def differences(part: Comparison) -> tuple[NumberTable | None, str]:
    """Return a table of each competitor minus the best one and minus naive, and a remark on the tests."""
    found = part.differences
    index = {row.label: i for i, row in enumerate(part.rows)}
    rows = []
    for one in found.all:
        pair = one.paired
        ends = "" if pair.interval is None else f"{percent(pair.interval.low)} to {percent(pair.interval.high)}"
        numbers = [(one.p, ".2g"), (one.effect_size, ".1f"), (pair.probability_of_improvement, ".0%")]
        cells = [
            *(Cell(one.ours.title), Cell(one.theirs.title), Cell(str(pair.n), pair.n)),
            Cell(signed(pair.difference), pair.difference, ends, "best" if one.is_real else ""),
            Cell(one.standing),
            *(Cell(digits(value, form), value) for value, form in [*numbers, (one.runs_needed, "d")]),
        ]
        rows.append((index[one.ours.label], cells))
    titles = {
        "n": "pairs of runs of the same seed and class order",
        "difference": "of average accuracy, percentage points, with its 95 % interval",
        "verdict": "real: p at most 0.05; clear: too few pairs for that, but 0 is outside of the interval, widened for "
        "all pairs of strategies",
        "p": "two-sided sign-flip permutation test, corrected by Holm",
        "effect size": "mean over standard deviation of the differences, where there is a test",
        "ahead in": "share of the pairs in which the strategy is ahead",
        "runs needed": "pairs that would find a difference of this size (power 0.8)",
    }
    headings = [Heading("strategy", text=True), Heading("minus", text=True)]
    headings += [Heading(title, text=title == "verdict", note=note) for title, note in titles.items()]
    said = [found.note] if found.note else []
    if found.smallest_p is not None and not found.note:
        said.append(f"Holm's correction counts {found.tests} pairs; the smallest p possible is {found.smallest_p:.2g}.")
    return (NumberTable(headings, rows) if rows else None), " ".join(said)


def _ranks(parts: Sequence[Comparison]) -> list[tuple[str, str, Figure]]:
    """Return a title, a sentence and a diagram of the mean ranks for each setting with enough scenarios."""
    return [
        (
            f"Mean ranks over {found.n} scenarios, {SETTING_NAMES[setting]}",
            rank_sentence(found),
            _figure(critical_difference(parts, setting)),
        )
        for setting, found in all_ranks(parts).items()
    ]


def ledger(part: Comparison) -> NumberTable:
    """Return items and bytes of what each strategy keeps from task to task, the most after any task."""
    shown = columns_of(part, "storage")
    lines = []
    for i, row in enumerate(part.rows):
        if row.is_headline:
            means = [row.spread(column.number).mean for column in shown]
            lines.append((i, [Cell(row.title), *(Cell(digits(mean, ",.0f"), mean) for mean in means)]))
    return NumberTable([Heading("strategy", text=True), *(Heading(c.titles["storage"]) for c in shown)], lines)
