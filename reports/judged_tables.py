"""Strategies judged on scenarios that no search has seen, as judged.json holds it: a table, a CSV file and a chart."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from clbench.config.errors import ConfigError
from clbench.reports.chart import Axis, Chart, Look, Series, shortened
from clbench.reports.markdown import code, escape
from clbench.support.files import expanded, read_small
from clbench.support.fitted import Column, Fitted

if TYPE_CHECKING:
    from rich.console import RenderableType

FIELDS = (
    *(
        "judged",
        "tuned",
        "scenario",
        "protocol",
        "tasks_read",
        "strategy",
        "rank",
        "accuracy",
        "sd",
        "low",
        "high",
        "n",
    ),
    *("values", "runs", "seconds", "images", "error"),
)


def load_judged(folders: Sequence[str | os.PathLike[str]]) -> dict[Path, dict[str, Any]]:
    """Read the judged.json files in and below folders; raises ConfigError for one that is none."""
    found = {}
    # The search for runs refuses what is no folder, or a name that no system takes.
    places = [place for place in map(expanded, folders) if os.path.isdir(place)]
    for place in places:
        for file in sorted(place.rglob("judged.json")):
            try:
                record = json.loads(read_small(file))
                to_csv(record), to_markdown(record)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                reason = f"{type(error).__name__}: {error}"
                raise ConfigError(f"{file}: {reason}; what clbench tune --judge-on wrote is accepted") from None
            found[file] = record
    return found


def render_judged(record: Mapping[str, Any]) -> Group:
    """Return a table for each judged scenario: its ranking, the values, what tuning cost, and the other rankings."""
    parts: list[RenderableType] = []
    for part in record["judged"]:
        main, *others = part["ways"]
        ranks = [{row["strategy"]: row for row in way["ranking"]} for way in others]
        rows = main["ranking"]
        parts.append(
            Fitted(
                [
                    Column("rank", [_rank(row) for row in rows], keep=9, align="right"),
                    Column("strategy", [row["strategy"] for row in rows], keep=9),
                    Column("accuracy %", [_percent(row) for row in rows], keep=8, align="right"),
                    *(
                        Column(
                            f"rank ({way['name']})",
                            [f"{_rank(of[row['strategy']])}: {_percent(of[row['strategy']])}" for row in rows],
                            keep=7,
                            align="right",
                        )
                        for way, of in zip(others, ranks, strict=True)
                    ),
                    Column("values", [_values(row) for row in rows], keep=6, wraps=True),
                    *(
                        Column(name, [f"{row[name]:,.0f}" if name in row else "-" for row in rows], align="right")
                        for name in ("runs", "seconds", "images")
                    ),
                ],
                title=_title(record, part),
                caption="Mean over the seeds [95 % interval]; runs, seconds and images are those of the search.",
                more="judged.csv",
            )
        )
        parts += [Text(text) for text in sentences(part)]
        parts.append(Text(""))
    return Group(*parts[:-1])


def sentences(part: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a reader of the rankings of a judged scenario should know: protocols, costs, agreement, warnings."""
    for way in part["ways"]:
        sums = {name: sum(row.get(name, 0) for row in way["ranking"]) for name in ("runs", "seconds", "images")}
        order = " > ".join(row["strategy"] for row in way["ranking"] if row["rank"] is not None)
        yield (
            f"{way['name']}: {order or 'nothing could be ranked'}; tuned on {way['tasks_read']} tasks of "
            f"{way['scenario']} by validation images in {sums['runs']:,} runs, {sums['seconds']:,.0f} s and "
            f"{sums['images']:,} images."
        )
    for pair in part["agreement"]:
        tau = "undefined" if pair["tau"] is None else f"{pair['tau']:.2f}"
        yield f"Kendall's tau of the rankings of {pair['ways'][0]} and of {pair['ways'][1]}: {tau} (n = {pair['n']})."
    yield from (f"note: {text}" for text in part["warnings"])


def to_markdown(record: Mapping[str, Any]) -> str:
    """Return the tables and the sentences of all judged scenarios as Markdown."""
    lines = []
    for place, part in enumerate(record["judged"]):
        ways = part["ways"]
        ranks = [{row["strategy"]: row for row in way["ranking"]} for way in ways]
        heads = [escape(way["name"]) for way in ways]
        lines += [f"## {escape(_title(record, part))}", ""]
        lines += [f"| strategy | {' | '.join(heads)} | values ({heads[0]}) |", "|---" * (len(ways) + 2) + "|"]
        for row in ways[0]["ranking"]:
            cells = [f"{_rank(of[row['strategy']])}: {_percent(of[row['strategy']])}" for of in ranks]
            lines.append(f"| {code(row['strategy'])} | {' | '.join(cells)} | {escape(_values(row))} |")
        lines += ["", "Rank: average accuracy in percent, mean over the seeds [95 % interval].", ""]
        lines += [f"- {escape(text)}" for text in sentences(part)]
        lines += ["", *([f"![ranks](ranks-{place}.png)", ""] if len(ways) > 1 else [])]
    return "\n".join(lines)


def to_csv(record: Mapping[str, Any]) -> str:
    """Return a row for each judged scenario, way of tuning and strategy; accuracies are shares."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for part in record["judged"]:
        for way in part["ways"]:
            for row in way["ranking"]:
                values = json.dumps(row["values"]) if "values" in row else ""
                of = {"judged": part["scenario"], "tuned": way["name"], "accuracy": row["mean"], "values": values}
                writer.writerow(way | row | of)
    return text.getvalue()


def rank_slopes(part: Mapping[str, Any]) -> Chart:
    """Draw the place of each strategy under each way of tuning: lines that cross are rankings that differ."""
    ways = part["ways"]
    labels = sorted({row["strategy"] for way in ways for row in way["ranking"]})
    by_way = [{row["strategy"]: row["rank"] for row in way["ranking"]} for way in ways]
    return rank_lines(
        part["scenario"], [way["name"] for way in ways], {name: [of[name] for of in by_way] for name in labels}
    )


def rank_lines(scenario: str, ways: Sequence[str], ranks: Mapping[str, Sequence[int | None]]) -> Chart:
    """Draw the places of strategies, those of each way of tuning above each other, the first at the top."""
    n = len(ranks)
    series = [
        Series(
            name, Look("competitor", i), range(len(ways)), [float("nan") if r is None else n + 1 - r for r in places]
        )
        for i, (name, places) in enumerate(ranks.items())
    ]
    return Chart(
        f"Ranking on {scenario} by the data that were tuned on",
        "lines",
        Axis("tuned on", -0.2, len(ways) - 0.8, list(enumerate(map(_two_lines, ways)))),
        Axis("rank", 0.5, n + 0.5, [(n + 1 - rank, str(rank)) for rank in range(1, n + 1)], whole=True),
        series,
        "Rank in average accuracy, 1 is the highest; where lines cross, the order depends on the tuning.",
        unit="",
    )


def _title(record: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    return (
        f"tuned on {record['tuned_on']}, judged on {part['scenario']}, {record['setting']}-incremental, "
        f"{record['tasks']} tasks"
    )


def _two_lines(way: str) -> str:
    """Return a way of tuning with its scenario, shortened, above what is read of it."""
    scenario, _, read = way.rpartition(", ")
    return f"{shortened(scenario, 16)},\n{read}"


def _rank(row: Mapping[str, Any]) -> str:
    return "-" if row["rank"] is None else str(row["rank"])


def _percent(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return "failed"
    within = "" if row["low"] is None else f" [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return f"{100 * row['mean']:.1f}{within}"


def _values(row: Mapping[str, Any]) -> str:
    if "values" not in row:
        return str(row.get("error", ""))
    if isinstance(row["values"], list):
        return "another for each task"
    return ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in row["values"].items())
