"""Signals during training: they wait until the run is at a point from which it can be continued."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from clbench.support.endings import SIGNALS, is_ignored


@contextlib.contextmanager
def interruptible(now: bool) -> Iterator[None]:
    """Let Ctrl-C through (`now`), or hold it back, in this thread and in the processes that it starts inside.

    On a system that can't hold signals back it does nothing.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK if now else signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Interruption:
    """A context that notes SIGNALS and passes them on when the run allows it; a second Ctrl-C at once.

    Outside the main thread, which alone gets signals, it does nothing. An ignored signal stays ignored.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        # Whether a signal is being passed on: what its former handler raises ends the run, SystemExit too.
        self.passing_on = False
        # Whether the last signal was Ctrl-C.
        self._interrupted = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if not is_ignored(number):
                    self._handlers[number] = signal.getsignal(number)
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        noted, self.signal, self._interrupted = self.signal, None, False
        if noted is not None:
            self.passing_on = True
            signal.raise_signal(noted)
            self.passing_on = False

    def pass_on(self) -> None:
        """Raise the noted signal under its former handler, which usually ends the run."""
        self.__exit__()
        self.__enter__()

    def _note(self, number: int, _: FrameType | None) -> None:
        again = number == signal.SIGINT and self._interrupted
        self._interrupted = number == signal.SIGINT
        # The other signals end a worker process and Ctrl-C may not, so Ctrl-C does not replace them.
        if self.signal in (None, signal.SIGINT):
            self.signal = number
        if again:
            self.pass_on()
