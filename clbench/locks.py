"""Holding a run folder against other processes, here and on other hosts that see the same files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

from clbench.errors import ConfigError

# A file that is created exclusively works on network file systems, where flock may not. It carries host, pid and the
# start of the process; a thread renews it. On its own host it is free as soon as the process is gone; anywhere, once it
# was seen unchanged for this long, by the clock of who looks on: clocks of hosts need not agree. NFS may show an old
# state for a minute, so it is longer. A process that was stopped for longer may overlap with its successor: both
# compute the same numbers, and every file is replaced in one step.
LEASE_SECONDS = 180.0
NAME = ".lease"


class InUseError(ConfigError):
    """Another process holds the folder."""


def lease(folder: str | os.PathLike[str]) -> SoftFileLease:
    """Return the lock of a run folder, not held yet; `acquire` raises filelock.Timeout while another holds it."""
    return SoftFileLease(Path(folder) / NAME, lease_duration=LEASE_SECONDS, timeout=0, thread_local=False)


def is_held(folder: str | os.PathLike[str]) -> bool:
    """Whether a process holds the folder, or died while it did."""
    return (Path(folder) / NAME).exists()


@contextmanager
def held(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder that exists; raises InUseError when another process does, OSError where a lease can't be written."""
    lock = lease(folder)
    try:
        lock.acquire()
    except Timeout:
        owner = lock.owner
        by = "another process" if owner is None else f"process {owner.pid} on {owner.hostname.partition('?')[0]}"
        raise InUseError(
            f"{folder} is in use by {by}; wait for it, name another folder, or remove its {NAME} if that one is dead"
        ) from None
    try:
        yield
    finally:
        lock.release()
