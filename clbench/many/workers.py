"""Planned runs in worker processes on one machine."""

import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import resource_tracker as trackers_of_python
from pathlib import Path

from joblib import Parallel, delayed
from joblib.externals.loky.backend import resource_tracker as trackers_of_loky
from joblib.externals.loky.process_executor import BrokenProcessPool, TerminatedWorkerError

from clbench.config.errors import ConfigError
from clbench.many.planned import Outcome, PlannedRun
from clbench.support.interruption import interruptible
from clbench.support.locks import is_held
from clbench.support.text import note


def in_processes(items: Sequence[PlannedRun], work: Sequence[Callable[[], Outcome]], jobs: int) -> Iterator[Outcome]:
    """Do the work in `jobs` processes and yield outcomes as they come; a killed process costs only its own run."""
    _start_trackers()
    left = dict(zip((item.folder for item in items), work, strict=True))
    named = {item.folder: item for item in items}
    # The command line shows warnings as notes, and so do its workers.
    noted = warnings.showwarning.__module__.startswith("clbench.")

    def start(folders: list[Path]) -> Iterator[Outcome]:
        parallel = Parallel(
            n_jobs=jobs, backend="loky", return_as="generator_unordered", pre_dispatch="all", batch_size=1
        )
        # A worker that Ctrl-C reached while it was starting would end with a traceback.
        with interruptible(False):
            outcomes: Generator[Outcome, None, None] = parallel(
                delayed(_in_worker)(left[folder], noted) for folder in folders
            )
        try:
            for outcome in outcomes:
                yield outcome.of(named[outcome.planned.folder])
        finally:
            with warnings.catch_warnings():
                # joblib warns of the work that an interruption leaves undone.
                warnings.simplefilter("ignore")
                outcomes.close()

    while left:
        try:
            for outcome in start(list(left)):
                del left[outcome.planned.folder]
                yield outcome
        except TerminatedWorkerError:
            # A killed process takes all others with it, so each run that was under way gets a process to itself.
            for folder in [f for f in left if is_held(f)] or list(left)[:1]:
                try:
                    yield from start([folder])
                except TerminatedWorkerError:
                    yield Outcome(named[folder], "its process was killed, as happens when memory runs out")
                del left[folder]
        except BrokenProcessPool:
            given = sorted({cls.__qualname__ for item in items for cls in item.given.values()}) or ["the request"]
            raise ConfigError(
                f"{' and '.join(given)} can't be sent to worker processes, which import classes from where they are "
                "defined; a module that can be imported, or jobs=1, is accepted"
            ) from None


def _in_worker(do: Callable[[], Outcome], noted: bool) -> Outcome:
    if noted:
        warnings.showwarning = note
    with interruptible(True):
        return do().without_classes()


def _start_trackers() -> None:
    """Start the processes that clean up after workers, with their warnings off.

    They outlive this process, and after an interruption they would print warnings below our last line. Python's own
    tracker, which loky starts with the first worker, would also let Ctrl-C through again. Windows has no such trackers.
    """
    if os.name != "posix":
        return
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker"]))
    try:
        trackers_of_python.ensure_running()
        trackers_of_loky.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before
