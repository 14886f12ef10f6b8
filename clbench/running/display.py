"""Progress of runs on stderr: live lines on a terminal and in a notebook, elsewhere a line for each task."""

import importlib
import io
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from clbench.running.position import Position, position
from clbench.support.locks import is_held
from clbench.support.text import clock, duration, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

# Seconds between two looks at the files of the runs.
EVERY = 0.5
# Seconds between two lines about what a run does before its first task, where nothing is live.
PREPARING_EVERY = 10.0
# Cells of a bar.
BAR = 12


class Named(NamedTuple):
    """A run, as it is named to people."""

    label: str
    seed: int

    def __str__(self) -> str:
        return f"{printable(self.label)}, seed {self.seed}"


class Display(AbstractContextManager["Display"]):
    """Shows runs while they go on, in this process or in others, from the files in their folders.

    runs: those that are to be done, by their folders; more may begin, and each goes when it is finished.
    total: how many runs there are in all, those that were done before among them.
    """

    def __init__(self, runs: Mapping[Path, Named], *, total: int = 1, quiet: bool = False) -> None:
        self.runs, self.total = dict(runs), total
        self.done = self.failed = 0
        self._began = time.monotonic()
        # Seconds of the runs that were finished here, by label, the most runs that were seen at a time, and when the
        # first one was.
        self._took: dict[str, list[float]] = {}
        self._parallel = 1
        self._since: float | None = None
        # The stamp of each run's file when it was last looked at, and how many of its tasks are told.
        self._told = {folder: (_stamp(folder), len(_tasks(folder))) for folder in self.runs}
        # The last text about a run before its first task, and its time.
        self._preparing: dict[Path, tuple[str, float]] = {}
        self._telling = threading.Lock()
        self._screen: AbstractContextManager[Any] | None = None if quiet else _screen(self)

    def __enter__(self) -> Self:
        if self._screen is not None:
            self._screen.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._screen is not None:
            self.tell_tasks()
            self._screen.__exit__(*error)

    def begins(self, folder: Path, run: Named) -> None:
        """Show a run that was not known before."""
        self._told[folder] = _stamp(folder), len(_tasks(folder))
        self.runs[folder] = run

    def finished(self, folder: Path, text: str = "", *, failed: bool = False, seconds: float | None = None) -> None:
        """Count a run, say what became of it, and remember how long it took where it was done here."""
        self.tell_tasks()
        run = self.runs.pop(folder, None)
        self.done += not failed
        self.failed += failed
        if run is not None and seconds is not None:
            self._took.setdefault(run.label, []).append(seconds)
        if run is not None and text:
            # The live lines count the runs themselves.
            counted = isinstance(self._screen, _Lines) and self.total > 1
            self.say(f"{run}: {text}" + (f" ({self.counts()})" if counted else ""))

    def say(self, text: str) -> None:
        """Print a line; what is live stays below it."""
        if self._screen is not None:
            print(text, file=sys.stderr, flush=True)

    def tell_tasks(self) -> None:
        """Print a line for each task that was learnt since the last look, and for what comes before the first.

        That is where nothing is live.
        """
        if not isinstance(self._screen, _Lines):
            return
        with self._telling:
            for folder, run in list(self.runs.items()):
                self._tell_preparing(folder, run)
                stamp = _stamp(folder)
                before, known = self._told.get(folder, (None, 0))
                if stamp is None or stamp == before:
                    continue
                tasks = _tasks(folder)
                # A run that has begun again has fewer.
                for text in tasks[known if known <= len(tasks) else 0 :]:
                    at = position(folder) if is_held(folder) else None
                    left = "" if at is None or at.seconds_left is None else f", about {clock(at.seconds_left)} to go"
                    self.say(f"{run}: {text}{left}")
                self._told[folder] = stamp, len(tasks)

    def _tell_preparing(self, folder: Path, run: Named) -> None:
        at = position(folder) if is_held(folder) else None
        before, when = self._preparing.get(folder, ("", -PREPARING_EVERY))
        now = time.monotonic()
        if at is not None and at.preparing not in ("", before) and now - when >= PREPARING_EVERY:
            self.say(f"{run}: {at}")
            self._preparing[folder] = at.preparing, now

    def counts(self) -> str:
        """Say how many runs are done, running, failed and left, and how long they take."""
        under_way = self.under_way()
        waiting = self.total - self.done - self.failed - len(under_way)
        told = [f"{self.done} of {self.total} done", f"{len(under_way)} running", f"{waiting} left"]
        if self.failed:
            told.insert(1, f"{self.failed} failed")
        seconds = self.seconds_left(under_way)
        return ", ".join(told if seconds is None else [*told, f"about {clock(seconds)} to go"])

    def under_way(self) -> dict[Path, Position | None]:
        """Return where the runs are that a process is at."""
        found = {folder: position(folder) for folder in list(self.runs) if is_held(folder)}
        self._parallel = max(self._parallel, len(found))
        if found and self._since is None:
            self._since = time.monotonic()
        return found

    def seconds_left(self, under_way: Mapping[Path, Position | None]) -> float | None:
        """Return how long the runs that are left take, by those that are done and under way; None before any is known.

        A run takes as long as others of its label, or as all others where there is none; and what else went by for each
        run that was finished, as for loading its data, is added.
        """
        took = {label: list(seconds) for label, seconds in self._took.items()}
        left: list[float] = []
        for folder, at in under_way.items():
            if at is not None and at.seconds_left is not None and (run := self.runs.get(folder)) is not None:
                left.append(at.seconds_left)
                took.setdefault(run.label, []).append(at.seconds + at.seconds_left)
        waiting = [run for folder, run in list(self.runs.items()) if folder not in under_way]
        if not took or not (left or waiting):
            return None
        each = {label: statistics.fmean(seconds) for label, seconds in took.items()}
        usual = statistics.fmean(each.values())
        coming = sum(each.get(run.label, usual) + self._beside(under_way) for run in waiting)
        return max([(sum(left) + coming) / self._parallel, *left])

    def _beside(self, under_way: Mapping[Path, Position | None]) -> float:
        """Return the seconds that went by for each finished run beside those that it was at work; 0 before any is."""
        finished = [seconds for of_label in self._took.values() for seconds in of_label]
        if self._since is None or not finished:
            return 0.0
        at_work = sum(finished) + sum(at.seconds for at in under_way.values() if at is not None)
        return max(0.0, (time.monotonic() - self._since) * self._parallel - at_work) / len(finished)

    def picture(self, width: int, height: int) -> "RenderableType":
        """Return what is live: how many runs there are, and a line for each that is under way."""
        from rich.cells import cell_len
        from rich.console import Group
        from rich.text import Text

        under_way = {run: at for folder, at in self.under_way().items() if (run := self.runs.get(folder)) is not None}
        parts: list[RenderableType] = []
        if self.total > 1:
            share = (self.done + self.failed + sum(at.share for at in under_way.values() if at)) / self.total
            parts.append(Text(f"{bar(share, 2 * BAR)}  {clock(time.monotonic() - self._began)} so far"))
            parts.append(Text(self.counts()))
        shown = list(under_way.items())[: max(1, (height - 6) // 2)]
        widest = max((cell_len(str(run)) for run, _ in shown), default=0)
        for run, at in shown:
            name = str(run) + " " * (widest - cell_len(str(run)))
            told = [name] if at is None else [f"{name}  {bar(at.share, BAR)}", str(at)]
            # The details have a line of their own where they would be broken.
            fits = sum(map(cell_len, told)) + 2 <= width
            parts.append(Text("  ".join(told) if fits else "\n  ".join(told)))
        if len(shown) < len(under_way):
            parts.append(Text(f"and {len(under_way) - len(shown)} more"))
        if self._since is None:
            parts.append(Text("preparing the data and the network"))
        return Group(*parts)


def bar(share: float, cells: int) -> str:
    """Return a bar of so many cells, of which a share is full."""
    full = round(min(max(share, 0.0), 1.0) * cells)
    return "━" * full + "╌" * (cells - full)


def _screen(display: Display) -> AbstractContextManager[Any]:
    """Return what the display is shown on: a notebook, a terminal, or lines on stderr."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if type(shell).__name__ == "ZMQInteractiveShell":
        return _Notebook(display)
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        return _Lines(display)
    from rich.live import Live

    # A program's output to a file must not come to the terminal.
    return Live(
        console=console,
        get_renderable=lambda: display.picture(console.width, console.height),
        refresh_per_second=1 / EVERY,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )


class _Regularly(AbstractContextManager["_Regularly"]):
    """Does something every now and then in a thread of its own, and a last time."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do, self._ends = do, threading.Event()
        self._thread = threading.Thread(target=self._go, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _go(self) -> None:
        while not self._ends.wait(EVERY):
            self._do()
        self._do()


class _Lines(_Regularly):
    """A line on stderr for each task."""

    def __init__(self, display: Display) -> None:
        super().__init__(display.tell_tasks)


class _Notebook(_Regularly):
    """The live lines in the output of a cell."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._handle: Any = None
        super().__init__(self._show)

    def _show(self) -> None:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=100).print(self._display.picture(100, 30))
        content = {"text/plain": text.getvalue()}
        if self._handle is None:
            self._handle = importlib.import_module("IPython.display").display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


def _stamp(folder: Path) -> tuple[int, int] | None:
    try:
        at = os.stat(folder / "run.json")
    except OSError:
        return None
    return at.st_ino, at.st_mtime_ns


def _tasks(folder: Path) -> list[str]:
    """Say what is known of each task that the run of a folder has learnt; nothing where its file says nothing."""
    try:
        record = json.loads((folder / "run.json").read_bytes())
        headline, n = record["headline"], len(record["scenario"]["tasks"])
        averages = record["averages"].get(headline["classifier"], {}).get(headline["matrix"]) or []
        told = []
        for task in record["tasks"]:
            index, taken = task["task"], duration(sum(task["seconds"].values()))
            average = averages[index] if index < len(averages) else None
            accuracy = "" if average is None else f", average accuracy {100 * average:.1f} %"
            told.append(f"task {index} ({index + 1} of {n}) learnt in {taken}{accuracy}")
        return told
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return []
