"""How SIGTERM and Ctrl-C end the command line: with one sentence and an exit code, and no worker process stays.

It imports next to nothing: `clbench.__main__` takes the signals with it before the imports that take their time.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

# Seconds in which worker processes may save what they are at when they are interrupted; Slurm gives 30 by default.
WORKERS_END = 20

ENDINGS: dict[int, tuple[str, int]] = {
    signal.SIGINT: ("interrupted; what was saved is kept and can be continued", 130),
    signal.SIGTERM: ("terminated; what was saved is kept and can be continued", 143),
}


class Terminated(BaseException):
    """SIGTERM, as Slurm and Ray send it before they kill."""


def take_signals(handler: Callable[[int, FrameType | None], NoReturn]) -> None:
    """Have SIGTERM and Ctrl-C handled so."""
    for number in ENDINGS:
        signal.signal(number, handler)


def end_at_once(number: int, _: FrameType | None = None) -> NoReturn:
    """End the process where nobody would catch what is raised."""
    with contextlib.suppress(Exception):  # the stream may be half-way through something itself
        sys.stdout.flush()
    os.write(sys.stderr.fileno(), f"clbench: {ENDINGS[number][0]}\n".encode())
    os._exit(ENDINGS[number][1])


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End the workers, and the command by what is raised."""
    if _imports(frame):
        # Packages take what is raised in the middle of their import for a fault of theirs, and go on without a part.
        with contextlib.suppress(Exception):  # psutil may be half-way through something itself
            _end_workers()
        end_at_once(number)
    # What their pool's threads, and what is closed half-way, make of it is no news.
    threading.excepthook = lambda _: None
    sys.unraisablehook = lambda _: None
    _end_workers()
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported below the frame."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end_workers() -> None:
    # They go first: waiting for one that was interrupted itself can take for ever.
    import psutil

    workers = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("popen_loky" in word for word in child.cmdline()):
                # It saves where it is after the step that it is at.
                child.terminate()
                workers.append(child)
    for child in psutil.wait_procs(workers, timeout=WORKERS_END)[1]:
        with contextlib.suppress(psutil.Error):
            child.kill()
