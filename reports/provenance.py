"""The sources of a comparison's numbers: each run, configurations, commands to repeat them, environments."""

import shlex
import string
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from clbench.config.errors import ConfigError
from clbench.config.registry import entry_point_names, parse_spec
from clbench.config.run import IN_FILES, INTERNAL, NOT_IDENTITY, fields, without_removed
from clbench.reports.chart import Cell, Heading, NumberTable
from clbench.reports.columns import columns_of
from clbench.reports.comparison import Comparison
from clbench.reports.strategy_runs import StrategyRuns
from clbench.results.result import Result
from clbench.support.text import printable


def runs(part: Comparison) -> tuple[NumberTable, list[tuple[str, str]]]:
    """Return the table of the single runs, and the class orders by the letters that it calls them."""
    orders: dict[tuple[int, ...], str] = {}
    lines = []
    shown = columns_of(part, "runs")
    for i, row in enumerate(part.rows):
        for run, numbers in zip(row.runs, row.numbers, strict=True):
            letter = orders.setdefault(tuple(run.recorded.class_order), _letter(len(orders)))
            values = [(column, numbers.get(column.number)) for column in shown]
            cells = [
                Cell(row.title),
                Cell(str(run.seed), run.seed),
                Cell(letter),
                *(Cell("-" if value is None else column.text(value), value) for column, value in values),
                Cell(printable(run.recorded.created)[:19]),
                Cell(printable(run.recorded.identity)[:16]),
            ]
            lines.append((i, cells))
    headings = [
        *(Heading("strategy", text=True), Heading("seed"), Heading("class order", text=True)),
        *(Heading(column.titles["runs"]) for column in shown),
        *(Heading("started", text=True), Heading("identity", text=True)),
    ]
    named = [(letter, ", ".join(map(str, order))) for order, letter in orders.items()]
    return NumberTable(headings, lines), named


def configs(part: Comparison) -> tuple[NumberTable | None, list[tuple[str, str]]]:
    """Return the fields of the configurations that differ between strategies as a table, and those that do not."""
    rows = [(i, row) for i, row in enumerate(part.rows) if row.is_headline]
    fields = [key for key in _fields(row.runs for _, row in rows) if key not in ("strategy", "label", "seed")]
    values = {key: [_values(row.runs, key) for _, row in rows] for key in fields}
    differing = [key for key in fields if len(set(values[key])) > 1]
    common = [(key, values[key][0]) for key in fields if key not in differing]
    if not differing:
        return None, common
    body = []
    for place, (i, row) in enumerate(rows):
        cells = [Cell(row.title), Cell(", ".join(str(run.seed) for run in row.runs))]
        for key in differing:
            if key == "strategy_options":
                cells.append(Cell(_own_options(row, [other for _, other in rows])))
                continue
            value = values[key][place]
            usual = max(values[key], key=values[key].count)
            marked = value != usual and values[key].count(usual) > len(rows) / 2
            cells.append(Cell(value, css="differs" if marked else ""))
        body.append((i, cells))
    columns = [Heading("strategy", text=True), Heading("seeds", text=True)]
    return NumberTable([*columns, *(Heading(printable(key), text=True) for key in differing)], body), common


def _own_options(row: StrategyRuns, rows: Sequence[StrategyRuns]) -> Markup:
    """Return the options of a row's strategy; marked is what another row of the same strategy has differently."""
    options = [one.runs[0].config.get("strategy_options") or {} for one in (row, *rows)]
    same = [of for of, one in zip(options[1:], rows, strict=True) if _strategy(one) == _strategy(row)]
    texts = []
    for key, value in options[0].items():
        text = escape(f"{printable(str(key))}={_shown(value)}")
        texts.append(text if all(of.get(key) == value for of in same) else Markup("<mark>{}</mark>").format(text))
    return Markup(", ").join(texts) or Markup("none")


def _strategy(row: StrategyRuns) -> str:
    return row.runs[0].recorded.strategy.name


def _fields(runs: Iterable[Sequence[Result]]) -> list[str]:
    return list(dict.fromkeys(key for group in runs for run in group for key in run.config))


def _values(runs: Sequence[Result], key: str) -> str:
    """Return the value of a field, or all its values where repetitions of a run differ in it."""
    found = list(dict.fromkeys(_shown(run.config.get(key)) for run in runs))
    return found[0] if len(found) == 1 else f"{len(found)} values: {'; '.join(found)}"[:400]


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{printable(str(k))}={_shown(v)}" for k, v in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(_shown, value))
    return "none" if value is None else printable(str(value))


def command(row: StrategyRuns) -> str:
    """Return the commands that make the row's runs again, every option spelled out, one a line.

    With everything given, no preset and no other version's default can change them.
    """
    lines: dict[str, list[str]] = {}
    for run in row.runs:
        lines.setdefault(_without_seed(run), []).append(str(run.seed))
    texts = [
        f"{text} --seed {seeds[0]}"
        if len(set(seeds)) == 1
        else f'for seed in {" ".join(dict.fromkeys(seeds))}; do {text} --seed "$seed"; done'
        for text, seeds in lines.items()
    ]
    run = row.runs[0]
    if fingerprint := run.config.get("data_fingerprint"):
        texts.insert(0, f"# needs the data whose fingerprint is {printable(str(fingerprint))}")
    if ".py:" not in run.recorded.strategy.name and run.recorded.strategy.name not in entry_point_names(
        "clbench.strategies"
    ):
        name = printable(run.recorded.strategy.name)
        texts.insert(
            0, f"# {name} is not registered here: it needs its package, or clbench.run and the class in Python"
        )
    unoptioned = [
        key for key in sorted(IN_FILES - {"strategy_options"}) if run.config.get(key) not in (None, _default(key))
    ]
    if unoptioned:
        texts.insert(0, f"# {' and '.join(unoptioned)}: no option has it, so add --config with the run.json of the run")
    return "\n".join(texts)


def _default(key: str) -> object:
    return fields()[key].default


def _without_seed(run: Result) -> str:
    config, strategy = without_removed(run.config), run.recorded.strategy.name
    try:
        in_brackets = parse_spec(run.strategy)[1] if run.strategy.startswith(f"{strategy}[") else {}
    except ConfigError:
        in_brackets = {}
    given = ["clbench", "run", str(config.get("scenario")), run.strategy if in_brackets else strategy]
    for key, value in (config.get("strategy_options") or {}).items():
        if key not in in_brackets:
            given += ["-p", f"{key}={_typed(value)}"]
    skipped = {*INTERNAL, "seed", *NOT_IDENTITY, *in_brackets}
    for key, value in config.items():
        if key in skipped or value is None:
            continue
        option = key.replace("_", "-")
        given += [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", _typed(value)]
    return " ".join(shlex.quote(printable(word)) for word in given)


def _typed(value: object) -> str:
    """Return a value as the command line takes it."""
    if isinstance(value, list | tuple):
        return ",".join(map(_typed, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value)


def made(runs: Sequence[Result]) -> str:
    """Return in a sentence how many runs there are, from when, on what machine and by which code of clbench."""

    def each(values: Iterable[object]) -> str:
        return ", ".join(dict.fromkeys(printable(str(value)) for value in values if value))

    days = sorted({run.recorded.created[:10] for run in runs})
    when = f" of {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "") if days else ""
    where = each(run.environment.get("device") for run in runs)
    source = each(run.recorded.source for run in runs)
    told = [f"{len(runs)} run{'' if len(runs) == 1 else 's'}{printable(when)}{f' on {where}' if where else ''}"]
    told += [f"made by clbench {each(run.recorded.clbench for run in runs)}", f"source {source}" if source else ""]
    return f"{', '.join(filter(None, told))}."


def tasks(part: Comparison) -> tuple[list[tuple[int, str]], str]:
    """Return the number of each task with the names of its classes, and a remark where the runs' orders differ."""
    runs = [run for row in part.rows for run in row.runs]
    names = runs[0].class_names
    orders = {tuple(run.recorded.class_order) for run in runs}
    said = f"The runs have {len(orders)} class orders; this is that of seed {runs[0].seed}." if len(orders) > 1 else ""
    return [
        (task, ", ".join(printable(names[c]) for c in classes)) for task, classes in enumerate(runs[0].task_classes)
    ], said


def machines(part: Comparison) -> list[tuple[str, Sequence[str]]]:
    """Return each fact of the environments with its values, the number of runs beside them where they differ."""
    runs = [run for row in part.rows if row.is_headline for run in row.runs]
    facts: dict[str, dict[str, int]] = {"clbench": {}, "source": {}}
    for run in runs:
        of_clbench = {"clbench": run.recorded.clbench, "source": run.recorded.source or "unknown"}
        for name, value in (of_clbench | run.environment).items():
            counts = facts.setdefault(printable(name), {})
            counts[printable(value)] = counts.get(printable(value), 0) + 1
    return [
        (name, [v if n == len(runs) else f"{v} ({n} of {len(runs)} runs)" for v, n in counts.items()])
        for name, counts in facts.items()
    ]


def _letter(index: int) -> str:
    """Return A, B, ..., Z, AA, AB, ... for 0, 1, ..."""
    letters = ""
    while True:
        letters = string.ascii_uppercase[index % 26] + letters
        index = index // 26 - 1
        if index < 0:
            return letters
