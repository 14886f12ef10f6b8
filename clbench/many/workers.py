"""Planned runs in worker processes on one machine."""

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
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

# Seconds between two looks of a worker at whether its parent lives, and those that it has to end when it does not.
LOOK_EVERY = 0.5
ORPHANS_END = 5.0


def in_processes(items: Sequence[PlannedRun], work: Sequence[Callable[[], Outcome]], jobs: int) -> Iterator[Outcome]:
    """Do the work in `jobs` processes and yield outcomes as they come; a killed process costs only its own run."""
    _start_trackers()
    left = dict(zip((item.folder for item in items), work, strict=True))
    named = {item.folder: item for item in items}
    # The command line shows warnings as notes, and so do its workers.
    noted = warnings.showwarning.__module__.startswith("clbench.")

    def start(folders: list[Path]) -> Iterator[Outcome]:
        parallel = Parallel(
            n_jobs=jobs,
            backend="loky",
            return_as="generator_unordered",
            pre_dispatch="all",
            batch_size=1,
            initializer=_end_with,
            initargs=(os.getpid(),),
        )
        # A worker that Ctrl-C reached while it was starting would end with a traceback.
        with interruptible(False):
            outcomes: Generator[Outcome, None, None] = parallel(
                delayed(_in_worker)(left[folder], os.getcwd(), noted) for folder in folders
            )
        try:
            for outcome in outcomes:
                yield outcome.of(named[outcome.planned.folder])
        finally:
            with warnings.catch_warnings():
                # joblib warns of the work that an interruption leaves undone.
                warnings.simplefilter("ignore")
                outcomes.close()

    with _without_words_of_joblib():
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
                    f"{' and '.join(given)} can't be sent to worker processes, which import classes from where they "
                    "are defined; a module that can be imported, or jobs=1, is accepted"
                ) from None


@contextmanager
def _without_words_of_joblib() -> Iterator[None]:
    """Hold back what joblib says of a worker that was killed; it is said again in a sentence that names the run."""
    log = logging.getLogger("concurrent.futures")
    log.addFilter(_is_of_others)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="A worker stopped while some jobs", category=UserWarning)
            yield
    finally:
        log.removeFilter(_is_of_others)


def _is_of_others(record: logging.LogRecord) -> bool:
    """Whether a line of the log is none of joblib's about a pool that is broken, which ends in a sentence of ours."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, BrokenProcessPool)


def _in_worker(do: Callable[[], Outcome], place: str, noted: bool) -> Outcome:
    # A worker outlives the call that started it, and the caller may stand in another folder now.
    os.chdir(place)
    if noted:
        warnings.showwarning = note
    # The notes about the data came when the runs were planned.
    warnings.filterwarnings("ignore", module=r"clbench\.scenarios\.")
    with interruptible(True):
        return do().without_classes()


def _end_with(parent: int) -> None:
    """End this process soon after its parent is gone, which may have been killed: by a signal, so that a run is saved.

    On Windows, where a process keeps the number of its parent, it does nothing.
    """
    threading.Thread(target=_look_after, args=(parent,), daemon=True).start()


def _look_after(parent: int) -> None:
    while os.name != "posix" or os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
    # A step that takes longer is given up.
    time.sleep(ORPHANS_END)
    os._exit(128 + signal.SIGTERM)


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
