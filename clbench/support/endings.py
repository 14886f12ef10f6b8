"""Signals end the command line with one sentence and an exit code, and no worker process stays behind.

This module imports next to nothing, because `clbench.__main__` uses it to handle signals before the slow imports.
"""

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

# Signals that ask a process to end: kill and Slurm, Ctrl-C, a terminal that goes away, the warnings that Slurm's
# --signal sends. Windows lacks the last three.
SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)

# Seconds that interrupted worker processes have to save their state; Slurm gives 30 by default.
WORKERS_END = 20

# Set where a run of this process or of its workers begins: before that there is nothing to go on from.
BEGUN = threading.Event()

_WORDS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
# The verbs that leave something to go on from when they are given again; `run` needs --resume for that.
_CONTINUED = ("run", "compare", "sweep", "crosscheck", "reproduce", "tune", "pretrain")


def ending(number: int, arguments: Sequence[str], *, begun: bool = True) -> tuple[str, int]:
    """Return the sentence with which a signal ends a command, and the exit code: 128 and the number, as of a shell.

    The sentence ends with the command that goes on, where the verb is one that can.

    begun: whether a run began, so that something may have been saved.
    """
    word = _WORDS.get(number, f"ended by {signal.Signals(number).name}")
    continued = bool(arguments) and arguments[0] in _CONTINUED and "--overfit" not in arguments
    if not begun:
        return word + (" before a run began; nothing was saved" if continued else ""), 128 + number
    text = f"{word}; what was saved is kept and can be continued"
    if continued:
        kept = [one for one in arguments if one not in ("--force", "--resume")]
        text += f": {shlex.join(['clbench', *kept, *(['--resume'] if arguments[0] == 'run' else [])])}"
    return text, 128 + number


def is_ignored(number: int) -> bool:
    """Whether a signal is ignored, as nohup ignores SIGHUP, or has a handler that Python can't put back."""
    return signal.getsignal(number) in (signal.SIG_IGN, None)


class Terminated(BaseException):
    """A signal other than Ctrl-C came; Slurm and Ray send one before they kill."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def take_signals(handler: Callable[[int, FrameType | None], NoReturn]) -> None:
    """Install a handler for the signals that end the command; one that nohup has made ignored stays ignored."""
    for number in SIGNALS:
        if number in _WORDS or not is_ignored(number):
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_taken(handler: Callable[[int, FrameType | None], NoReturn]) -> Iterator[None]:
    """Take the signals for a while, and put the former handlers back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    take_signals(handler)
    try:
        yield
    finally:
        for number, former in before.items():
            if former is not None:
                signal.signal(number, former)


def end_at_once(number: int, _: FrameType | None = None) -> NoReturn:
    """End the process without an exception, where nobody would catch one."""
    with contextlib.suppress(Exception):  # the stream may be half-way through something itself
        sys.stdout.flush()
    text, code = ending(number, sys.argv[1:], begun=BEGUN.is_set())
    os.write(sys.stderr.fileno(), f"clbench: {text}\n".encode())
    os._exit(code)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End the workers, then raise Terminated or KeyboardInterrupt, which ends the command."""
    if _imports(frame):
        # Packages take an exception during their import for a failure of their own, and go on incomplete.
        with contextlib.suppress(Exception):  # psutil may be half-way through something itself
            _end_workers()
        end_at_once(number)
    # The pool's threads and half-closed objects may report errors of their own now, which tell nothing new.
    threading.excepthook = lambda _: None
    sys.unraisablehook = lambda _: None
    _end_workers()
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported below the frame."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end_workers() -> None:
    # Workers go first: waiting for a worker that was interrupted itself can take for ever.
    import psutil

    workers = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("popen_loky" in word for word in child.cmdline()):
                # It saves its state after the current step.
                child.terminate()
                workers.append(child)
    for child in psutil.wait_procs(workers, timeout=WORKERS_END)[1]:
        with contextlib.suppress(psutil.Error):
            child.kill()
