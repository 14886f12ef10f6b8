"""A published table beside ours: its methods and settings cell by cell, as text and as a chart."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from clbench.reports.chart import Chart, Look, Series, axis, names_axis
from clbench.reports.names import PAPER_NAMES
from clbench.reports.reproduction import Judgement, ours_text, published_text

# As papers order the settings.
SETTINGS = {"task": "task-incremental", "domain": "domain-incremental", "class": "class-incremental"}


@dataclass(frozen=True)
class PublishedTable:
    """The verdicts on the claims of a table, in its order: rows are methods, columns are settings or protocols."""

    name: str
    columns: dict[str, str]
    cells: dict[str, dict[str, Judgement]]

    def lines(self, between: str) -> list[list[str]]:
        """Return the table as text, a list for each line: published number, ours and verdict, each after `between`."""
        head = ["method", *self.columns.values()]
        return [head, *([row, *(self._cell(row, column, between) for column in self.columns)] for row in self.cells)]

    def _cell(self, row: str, column: str, between: str) -> str:
        j = self.cells[row].get(column)
        return "" if j is None else between.join((published_text(j.claim), ours_text(j), j.verdict))

    def in_order(self) -> list[tuple[str, Judgement]]:
        """Return the cells column by column, each with its name."""
        return [
            (f"{row}, {column}", self.cells[row][column])
            for column in self.columns
            for row in self.cells
            if column in self.cells[row]
        ]


def published_table(name: str, judgements: Sequence[Judgement]) -> PublishedTable:
    """Arrange verdicts as the table does; where two are of the same method and setting, protocols are the columns."""
    by_setting = [(j, str(j.claim.fields.get("setting", "class"))) for j in judgements]
    keyed = by_setting
    if len({(j.claim.name, setting) for j, setting in by_setting}) < len(by_setting):
        keyed = [(j, j.claim.protocol) for j in judgements]
    found = dict.fromkeys(column for _, column in keyed)
    columns = {column: title for column, title in SETTINGS.items() if column in found}
    columns |= {column: column for column in found if column not in columns}
    names = sorted(dict.fromkeys(j.claim.name for j in judgements), key=_place)
    cells = {name: {column: j for j, column in keyed if j.claim.name == name} for name in names}
    return PublishedTable(name, columns, {PAPER_NAMES.get(name, name): of for name, of in cells.items()})


def _place(name: str) -> tuple[int, str]:
    """Return the order of methods: the references first, as in the tables of papers."""
    return ("naive", "joint", "independent").index(name) if name in ("naive", "joint", "independent") else 3, name


def to_markdown(table: PublishedTable) -> str:
    """Return the table as Markdown."""
    head, *lines = table.lines("<br>")
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def to_csv(table: PublishedTable) -> str:
    """Return a line for each cell, every digit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("method", "column", "claim", "published", "published_sem", "ours", "interval", "n", "verdict"))
    for row, of in table.cells.items():
        for column in (column for column in table.columns if column in of):
            j = of[column]
            c = j.claim
            writer.writerow((row, column, c.id, c.value, c.sem or None, j.mean, j.interval, j.n, j.verdict))
    return text.getvalue()


def chart(table: PublishedTable) -> Chart:
    """Draw by how much ours differs from each published number, with half the 95 % intervals of both."""
    drawn = [(name, j) for name, j in table.in_order() if j.difference is not None]
    names = [f"{name} ({j.claim.value:g})" for name, j in drawn]
    ours = [math.nan if j.difference is None else j.difference for _, j in drawn]
    intervals = [j.interval or 0.0 for _, j in drawn]
    errors = [1.96 * j.claim.sem for _, j in drawn]
    ends = [sign * error for error in errors for sign in (-1, 1)]
    ends += [value + sign * half for value, half in zip(ours, intervals, strict=True) for sign in (-1, 1)]
    places = range(len(drawn))
    return Chart(
        f"{table.name}: ours beside the published numbers",
        "points",
        axis("difference from the published mean (points)", ends),
        names_axis(names),
        [
            Series("published", Look("competitor", 1), [0.0] * len(drawn), [at - 0.15 for at in places], errors),
            Series("ours", Look("competitor"), ours, [at + 0.15 for at in places], intervals),
        ],
        runs="whisker: 95 % interval",
        unit=" points",
    )
