"""Locks that keep other processes, here and on other hosts that see the same files, out of a run folder."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import SoftFileLease, Timeout

from clbench.config.errors import ConfigError

# The lease is a file that is created exclusively, which works on network file systems, where flock may not. It holds
# host, pid and start of the process, and a thread renews it. On its own host it is free as soon as the process is gone.
# On any host it is free once an observer saw it unchanged for this long by its own clock, so clocks need not agree.
# NFS may show an old state for a minute, so this is longer. A process that was stopped for longer may overlap with its
# successor; both compute the same numbers, and every file is replaced in one step.
LEASE_SECONDS = 180.0
# Seconds after which an empty lease is given up: its holder was killed before it wrote who it was.
EMPTY_SECONDS = 5.0
NAME = ".lease"


class InUseError(ConfigError):
    """Another process holds the folder."""


def lease(folder: str | os.PathLike[str]) -> SoftFileLease:
    """Return the lock of a run folder, not held yet; `acquire` raises filelock.Timeout while another holds it."""
    return SoftFileLease(Path(folder) / NAME, lease_duration=LEASE_SECONDS, timeout=0, thread_local=False)


def is_held(folder: str | os.PathLike[str]) -> bool:
    """Whether a process holds the folder, or died while it did."""
    return (Path(folder) / NAME).exists()


def seems_held(folder: str | os.PathLike[str]) -> bool:
    """Whether a process seems to hold the folder, judged by its lease alone; changes nothing."""
    lock = lease(folder)
    try:
        # The file system's clock may differ from ours, but hardly by minutes.
        age = time.time() - os.stat(lock.lock_file).st_mtime
        owner = lock.owner
    except OSError:
        return False
    if age > LEASE_SECONDS:
        return False
    # A host name with a mark of its own belongs to a container, whose processes we can't see.
    return owner is None or owner.hostname != socket.gethostname() or psutil.pid_exists(owner.pid)


@contextmanager
def held(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold an existing folder; raises InUseError if another process holds it, OSError if it can't be written."""
    lock = lease(folder)
    try:
        lock.acquire()
    except Timeout:
        owner = lock.owner
        by = "another process" if owner is None else f"process {owner.pid} on {owner.hostname.partition('?')[0]}"
        raise InUseError(
            f"{folder} is in use by {by}; wait for it, name another folder, or remove its {NAME} if it is dead"
        ) from None
    try:
        yield
    finally:
        # In a folder that has become read-only the lease stays, and is free once this process is gone.
        with suppress(OSError):
            lock.release()


class Watched:
    """A folder that another process holds, checked until it is free."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        # This object remembers since when it has seen the lease unchanged.
        self._lease = lease(folder)
        self._empty_since: float | None = None

    def is_free(self) -> bool:
        """Whether the folder is free now; raises OSError if it can't be read."""
        try:
            with self._lease:
                return True
        except Timeout:
            self._give_up_empty()
            return False

    def _give_up_empty(self) -> None:
        file = Path(self._lease.lock_file)
        try:
            empty = file.stat().st_size == 0
        except OSError:
            empty = False
        if not empty:
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = time.monotonic()
        elif time.monotonic() - self._empty_since > EMPTY_SECONDS:
            # filelock takes an empty file for a lock of its old versions and waits, but takes over a malformed one.
            with file.open("ab") as unfinished:
                unfinished.write(b"?")
