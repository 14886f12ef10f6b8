"""The comparison as LaTeX tables, for a paper that uses booktabs."""

from collections.abc import Sequence

from clbench.reports.columns import Column, columns_of
from clbench.reports.comparison import Comparison
from clbench.reports.differences import competitors
from clbench.reports.strategy_runs import StrategyRuns

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{character: "\\" + character for character in "{}$&#_%"},
}


def to_latex(parts: Sequence[Comparison]) -> str:
    r"""Return a table for each scenario and setting: percent, mean \pm sd, best competitor bold, second underlined.

    All text is escaped.
    """
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs}; made by clbench from finished runs.",
            *(_table(part) for part in parts),
        ]
    )


def escape(text: str) -> str:
    """Return text that LaTeX prints as it is."""
    return "".join(SPECIAL.get(character, character) for character in text if character.isprintable())


def _table(part: Comparison) -> str:
    shown = columns_of(part, "latex")
    counts = sorted({row.n for row in part.rows})
    runs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    short = "; ".join(f"{row.title} {row.count}" for row in part.rows if row.n < len(row.runs))
    finished = f" Finished runs: {escape(short)}." if short else ""
    marks = [_marks(part, column) for column in shown]
    lines = [
        _name(row)
        + (r"$^\dagger$ & " if row.is_reference else " & ")
        + " & ".join(_cell(row, *cell) for cell in zip(shown, marks, strict=True))
        + r" \\"
        for row in part.rows
    ]
    split = sum(row.is_reference for row in part.rows)
    rule = [r"\midrule"] if 0 < split < len(lines) else []
    return "\n".join(
        [
            *(f"% {text}" for text in part.unfinished.values()),
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(part.title)}. Percent, mean $\pm$ standard deviation ($n-1$) over {runs} runs; the "
            rf"best competitor is bold, the second underlined. $^\dagger$Reads the data of all tasks.{finished}}}",
            r"\begin{tabular}{l" + "r" * len(shown) + "}",
            r"\toprule",
            "Strategy & " + " & ".join(column.titles["latex"] for column in shown) + r" \\",
            r"\midrule",
            *lines[:split],
            *rule,
            *lines[split:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _name(row: StrategyRuns) -> str:
    """Return the strategy as papers write it, and the rest of its label in small letters."""
    name, beside = map(escape, row.name)
    return name + (rf" {{\footnotesize {beside.strip()}}}" if beside else "")


def _marks(part: Comparison, column: Column) -> dict[str, str]:
    """Return the command for the printed numbers of the best and the second competitor; equal ones share it."""
    rows = [row for row in competitors(part.rows) if row.spread(column.number).n]
    printed = {column.text(row.spread(column.number).mean or 0.0) for row in rows if row.learns}
    ordered = sorted(printed, key=float, reverse=not column.lower_is_better)
    return dict(zip(ordered, (r"\mathbf", r"\underline"), strict=False)) if len(rows) > 1 else {}


def _cell(row: StrategyRuns, column: Column, marks: dict[str, str]) -> str:
    mean, sd, n = row.spread(column.number)
    if mean is None:
        return "--"
    text = column.text(mean)
    competes = row.is_headline and row.learns and not row.is_line
    command = marks.get(text) if competes else None
    text = f"{command}{{{text}}}" if command else text
    spread = "" if sd is None else rf" \pm {column.text(sd)}"
    return f"${text}{spread}$" + ("" if n == row.n else f" ($n={n}$)")
