"""The comparison as LaTeX tables, for a paper that uses booktabs."""

from collections.abc import Sequence

from clbench.reports.differences import competitors
from clbench.reports.tables import LOWER_IS_BETTER, Comparison, Row
from clbench.results.record import MatrixName

COLUMNS = ("average_accuracy", "other", "average_incremental_accuracy", "forgetting", "learning_accuracy")
TITLES = {
    "average_incremental_accuracy": r"Avg.\ incremental",
    "forgetting": "Forgetting",
    "learning_accuracy": "Learning acc.",
}
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

    Naive is neither, being the lower reference. All text is escaped.
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
    other: MatrixName = "task_aware" if part.headline == "class_incremental" else "class_incremental"
    names = [f"{other}_accuracy" if name == "other" else name for name in COLUMNS]
    titles = TITLES | {
        "average_accuracy": f"{part.matrix(part.headline)} acc.".capitalize(),
        f"{other}_accuracy": f"{part.matrix(other)} acc.".capitalize(),
    }
    names = [name for name in names if any(row.spread(name).n for row in part.rows)]
    counts = sorted({len(row.runs) for row in part.rows})
    runs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    marks = {name: _marks(part, name) for name in names}
    lines = [
        escape(row.label)
        + (r"$^\dagger$ & " if row.is_reference else " & ")
        + " & ".join(_cell(row, name, marks[name]) for name in names)
        + r" \\"
        for row in part.rows
    ]
    split = sum(row.is_reference for row in part.rows)
    rule = [r"\midrule"] if 0 < split < len(lines) else []
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(part.title)}. Percent, mean $\pm$ standard deviation ($n-1$) over {runs} runs; the "
            r"best competitor is bold, the second underlined. $^\dagger$Reads the data of all tasks.}",
            r"\begin{tabular}{l" + "r" * len(names) + "}",
            r"\toprule",
            "Strategy & " + " & ".join(titles[name] for name in names) + r" \\",
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


def _marks(part: Comparison, name: str) -> dict[str, str]:
    """Return the command for the printed numbers of the best and the second competitor; equal ones share it."""
    rows = [row for row in competitors(part) if row.spread(name).n and not row.is_naive]
    printed = {_number(row.spread(name).mean or 0.0) for row in rows}
    if len(rows) < 2:
        return {}
    ordered = sorted(printed, key=float, reverse=name not in LOWER_IS_BETTER)
    return dict(zip(ordered, (r"\mathbf", r"\underline"), strict=False))


def _cell(row: Row, name: str, marks: dict[str, str]) -> str:
    mean, sd, n = row.spread(name)
    if mean is None:
        return "--"
    text = _number(mean)
    command = None if row.is_reference or row.is_naive or not row.is_headline else marks.get(text)
    text = f"{command}{{{text}}}" if command else text
    spread = "" if sd is None else rf" \pm {_number(sd)}"
    return f"${text}{spread}$" + ("" if n == len(row.runs) else f" ($n={n}$)")


def _number(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:.1f}"
