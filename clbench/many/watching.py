"""Watches runs from outside: it reads only their files, needs no torch and changes nothing."""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clbench.config.errors import ConfigError
from clbench.running.folder import MARK
from clbench.running.position import Position, position
from clbench.support.fitted import Column, Fitted
from clbench.support.locks import NAME as LEASE
from clbench.support.locks import seems_held
from clbench.support.text import duration, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# Left: not begun, or interrupted. Damaged: its run.json can't be read.
Status = Literal["running", "failed", "damaged", "left", "done"]
STATUSES: tuple[Status, ...] = ("running", "failed", "damaged", "left", "done")
# Seconds between looks.
EVERY = 1.0


@dataclass(frozen=True)
class RunState:
    """The state of a run, from its files; None for values that they don't give.

    average_accuracy: on the tasks done, in [0, 1], from the headline matrix.
    seconds: of training, evaluation and memory; for a running run, those since its last finished task too.
    place: among the runs that were planned with it; inf where none were.
    position: of a running run.
    """

    folder: str
    status: Status
    scenario: str
    strategy: str
    seed: int | None
    tasks_done: int
    n_tasks: int | None
    average_accuracy: float | None
    seconds: float
    error: str | None = None
    place: float = math.inf
    position: Position | None = None


@dataclass
class Watch:
    """The runs in and below a folder; a file that did not change since the last look is not read again."""

    root: Path
    _read: dict[Path, tuple[tuple[int, int, int], RunState]] = field(default_factory=dict)

    def look(self) -> list[RunState]:
        """Return the runs as they are now, as _ordered() orders them; raises ConfigError if there is no such folder."""
        if not self.root.is_dir():
            raise ConfigError(f"{self.root}: no such folder; a folder of runs is accepted")
        states = [self._state(Path(place), files) for place, files in _run_folders(self.root)]
        return _ordered(states)

    def _state(self, folder: Path, files: set[str]) -> RunState:
        """Return the state of one run; a file that vanishes or is half-written meanwhile is no error."""
        file, known = folder / "run.json", None
        if "run.json" in files:
            try:
                at = os.stat(file)
                stamp = (at.st_ino, at.st_mtime_ns, at.st_size)
                if file not in self._read or self._read[file][0] != stamp:
                    self._read[file] = stamp, _parsed(folder, json.loads(file.read_bytes()))
                known = self._read[file][1]
            except FileNotFoundError:
                pass
            except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
                known = _named_by_place(folder, "damaged")
        held = LEASE in files and seems_held(folder)
        if known is None:
            known = _named_by_place(folder, "running" if held else "left")
            return replace(known, position=position(folder)) if held else known
        if not held or known.status == "done":
            return known
        try:
            since = max(0.0, time.time() - file.stat().st_mtime)
        except OSError:
            since = 0.0
        return replace(known, status="running", seconds=known.seconds + since, error=None, position=position(folder))


def _ordered(runs: Sequence[RunState]) -> list[RunState]:
    """Return runs by status, and those of a scenario together, as they were planned.

    Where several comparisons or sweeps lie in one folder, so that each has a first run, the runs of a strategy come
    together too.
    """
    strategies = [os.path.dirname(run.folder) for run in runs]
    scenarios = [os.path.dirname(folder) for folder in strategies]
    first: dict[str, float] = {}
    for run, *folders in zip(runs, strategies, scenarios, strict=True):
        for folder in folders:
            first[folder] = min(first.get(folder, math.inf), run.place)
    planned = Counter((of, run.place) for run, of in zip(runs, scenarios, strict=True) if run.place < math.inf)
    mixed = {of for (of, _), n in planned.items() if n > 1}

    def key(at: int) -> tuple[Any, ...]:
        run, scenario = runs[at], scenarios[at]
        strategy = strategies[at] if scenario in mixed else scenario
        return (
            STATUSES.index(run.status),
            *(first[scenario], scenario),
            *(first[strategy], strategy),
            *(run.place, run.folder),
        )

    return [runs[at] for at in sorted(range(len(runs)), key=key)]


def counts(runs: Sequence[RunState]) -> dict[str, int]:
    """Return how many runs have each status."""
    number = Counter(run.status for run in runs)
    return {status: number[status] for status in ("done", "running", "failed", "left", "damaged")}


def render(runs: Sequence[RunState], root: Path, rows: int | None = None) -> "RenderableType":
    """Return the runs for a terminal: how many there are of each status, and a table of at most `rows` rows."""
    from rich.console import Group
    from rich.text import Text

    number = counts(runs)
    totals = [f"{n} {status}" for status, n in number.items() if n or status != "damaged"]
    shown = runs if rows is None else runs[: max(rows, 1)]
    styles = {"failed": "red", "damaged": "red", "running": "bold", "done": "dim"}

    def column(title: str, keep: int, of: Callable[[RunState], str], **look: Any) -> Column:
        return Column(
            title, [Text(printable(of(run)), style=styles.get(run.status, "")) for run in shown], keep, **look
        )

    def of_position(name: str) -> Callable[[RunState], str]:
        return lambda run: "" if run.position is None else run.position.parts[name]

    scenarios = {run.scenario for run in runs}
    number_of = Counter(_named(run) for run in runs)
    alike = [run for run in runs if number_of[_named(run)] > 1]
    columns = [
        column("status", 9, lambda run: run.status),
        column("scenario", 3, lambda run: run.scenario),
        column("strategy", 10, lambda run: run.strategy, wraps=True),
        column("seed", 8, lambda run: "-" if run.seed is None else str(run.seed), align="right"),
        *([column("folder", 9, lambda run: _beside(run, root, alike), wraps=True)] if alike else []),
        column("task", 7, lambda run: "-" if run.n_tasks is None else f"{run.tasks_done}/{run.n_tasks}", align="right"),
        column("epoch", 4, of_position("epoch"), align="right"),
        column("loss", 2, of_position("loss"), align="right"),
        column("images/s", 1, of_position("images/s"), align="right"),
        column(
            "average accuracy %",
            6,
            lambda run: "-" if run.average_accuracy is None else f"{100 * run.average_accuracy:.1f}",
            align="right",
        ),
        column("time", 3, lambda run: duration(run.seconds) if run.seconds else "-", align="right"),
        column("left", 5, of_position("left"), align="right"),
    ]
    # A column is left out where all rows have the same in it, or none has anything.
    columns = [c for c in columns if c.title != "scenario" or len(scenarios) > 1]
    columns = [c for c in columns if c.title not in ("epoch", "loss", "images/s", "left") or any(map(str, c.cells))]
    of = f" of {printable(next(iter(scenarios)))}" if len(scenarios) == 1 else ""
    lines: list[RenderableType] = [Text(", ".join(totals)), Text(f"{root}{of}"), Fitted(columns)]
    if len(shown) < len(runs):
        lines.append(Text(f"and {len(runs) - len(shown)} more"))
    lines += [
        Text(printable(f"{run.strategy}, seed {run.seed}: {run.error}"), style="red") for run in shown if run.error
    ]
    return Group(*lines)


def follow(watch: Watch, console: "Console") -> None:
    """Show the runs until none runs and none is left."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        while True:
            runs = watch.look()
            # Title, head, rule, "and N more" and errors need lines too.
            errors = sum(2 + len(run.error) // console.width for run in runs if run.error)
            rows = max(3, console.height - 6 - min(errors, console.height // 2))
            live.update(render(runs, watch.root, rows), refresh=True)
            number = counts(runs)
            if runs and not number["running"] and not number["left"]:
                return
            time.sleep(EVERY)


def _named(run: RunState) -> tuple[str, str, int | None]:
    return run.scenario, run.strategy, run.seed


def _beside(run: RunState, root: Path, alike: Sequence[RunState]) -> str:
    """Return what tells a run from those of the same name: its folder's name, or its path where the names are equal."""
    names = {(*_named(one), os.path.basename(one.folder)) for one in alike}
    return os.path.basename(run.folder) if len(names) == len(alike) else os.path.relpath(run.folder, root)


def _run_folders(root: Path) -> Iterator[tuple[str, set[str]]]:
    for place, folders, files in os.walk(root):
        folders.sort()
        names = set(files)
        if names & {"run.json", MARK, LEASE}:
            yield place, names


def _parsed(folder: Path, record: Any) -> RunState:
    """Return the state that a record gives; raises one of several errors if it is no record of a run."""
    config, status = record["config"], record["status"]
    average = record["metrics"].get("average_accuracy")
    return RunState(
        folder=str(folder),
        status={"done": "done", "failed": "failed", "running": "left"}[status],  # type: ignore[arg-type]
        scenario=str(record["scenario"]["name"]),
        strategy=str(record["strategy"]["label"]),
        seed=int(config["seed"]),
        tasks_done=len(record["tasks"]),
        n_tasks=len(record["scenario"]["tasks"]),
        average_accuracy=None if average is None else float(average),
        seconds=float(sum(sum(task["seconds"].values()) for task in record["tasks"])),
        error=str(record["error"]) if status == "failed" else None,
        place=_place(folder),
    )


def _place(folder: Path) -> float:
    try:
        return float(json.loads((folder / MARK).read_bytes())["place"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return math.inf


def _named_by_place(folder: Path, status: Status) -> RunState:
    """Return the state of a run without a run.json, from the mark that names the planned run, or else from its path."""
    try:
        planned = json.loads((folder / MARK).read_bytes())
        scenario, strategy = str(planned["scenario"]), str(planned["strategy"])
        seed: int | None = int(planned["seed"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        number = folder.name.partition("-")[0]
        scenario, strategy = folder.parent.parent.name or "-", folder.parent.name or "-"
        seed = int(number) if number.isdecimal() else None
    return RunState(str(folder), status, scenario, strategy, seed, 0, None, None, 0.0, place=_place(folder))
