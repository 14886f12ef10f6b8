"""SIGTERM and Ctrl-C under training: they wait until the run is where it can be continued."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def interruptible(now: bool) -> Iterator[None]:
    """Let Ctrl-C through, or let it wait, in this thread and in the processes that it starts inside."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK if now else signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Interruption:
    """Inside it, SIGTERM and SIGINT are noted, and passed on where the run allows it; a second Ctrl-C at once.

    In a thread other than the main one, which gets no signals, nothing happens. An ignored signal stays ignored.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        # Whether the last one was Ctrl-C.
        self._interrupted = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                    self._handlers[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        noted, self.signal, self._interrupted = self.signal, None, False
        if noted is not None:
            signal.raise_signal(noted)

    def pass_on(self) -> None:
        """Let the noted signal do what it would have done; usually it ends the run."""
        self.__exit__()
        self.__enter__()

    def _note(self, number: int, _: FrameType | None) -> None:
        again = number == signal.SIGINT and self._interrupted
        self._interrupted = number == signal.SIGINT
        # SIGTERM ends a worker process, which Ctrl-C may not.
        if self.signal != signal.SIGTERM:
            self.signal = number
        if again:
            self.pass_on()
