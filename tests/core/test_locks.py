"""Leases on run folders: who holds them, and when they are taken over, on this host and from another one."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clbench.running.folder import RunFolder
from clbench.support import locks

# The code of another process; the third argument is the name of its host, if it isn't this one.
HOLDER = """
    import os, socket, sys, time
    folder, seconds, host, end = sys.argv[1:]
    if host:
        socket.gethostname = lambda: host
    from clbench.support import locks
    locks.LEASE_SECONDS = float(seconds)
    lease = locks.lease(folder)
    lease.acquire()
    print("held", flush=True)
    if end == "exit":
        os._exit(0)
    time.sleep(600)
"""


@contextmanager
def holder(folder: Path, seconds: float, host: str = "", end: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder), str(seconds), host, end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        if end:
            process.wait(30)
        try:
            yield process
        finally:
            process.kill()


def taken_within(folder: Path, seconds: float) -> float | None:
    """Watch a folder as a waiting sweep does; return after how many seconds it was free."""
    watched = locks.Watched(folder)
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if watched.is_free():
            return time.monotonic() - started
        time.sleep(0.05)
    return None


def test_a_lease_names_process_and_host_and_is_gone_afterwards(tmp_path: Path) -> None:
    with holder(tmp_path, 180) as process, pytest.raises(locks.InUseError) as refused, locks.held(tmp_path):
        pass
    assert f"process {process.pid} on {os.uname().nodename}" in str(refused.value)
    with locks.held(tmp_path):
        assert locks.is_held(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_on_this_host_is_followed_at_once(tmp_path: Path) -> None:
    """The lease of three minutes has not run out, but it is enough that the process is gone."""
    with holder(tmp_path, locks.LEASE_SECONDS) as process:
        assert taken_within(tmp_path, 0.3) is None
        process.kill()
        process.wait(30)
        assert locks.is_held(tmp_path)
        assert taken_within(tmp_path, 10) is not None


def test_a_living_holder_on_another_host_keeps_it_beyond_its_lease(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.6)
    with holder(tmp_path, 0.6, "elsewhere"):
        assert taken_within(tmp_path, 2.5) is None


@pytest.mark.parametrize("skew", [-3600, 0, 3600])
def test_a_dead_holder_on_another_host_is_followed_when_its_lease_was_seen_to_run_out(
    skew: float, tmp_path: Path, monkeypatch
) -> None:
    """The other host's clock does not matter: a slow one makes it no earlier, and a fast one does not prevent it."""
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.6)
    with holder(tmp_path, 0.6, "elsewhere", "exit"):
        now = time.time() + skew
        os.utime(tmp_path / locks.NAME, (now, now))
        seconds = taken_within(tmp_path, 10)
    assert seconds is not None
    assert seconds >= 0.6


def test_a_holder_that_was_killed_before_it_wrote_its_name_is_followed(tmp_path: Path, monkeypatch) -> None:
    """The file is as a kill between creating and writing leaves it."""
    monkeypatch.setattr(locks, "EMPTY_SECONDS", 0.5)
    (tmp_path / locks.NAME).touch()
    seconds = taken_within(tmp_path, 20)
    assert seconds is not None
    assert seconds >= 0.5
    assert not locks.is_held(tmp_path)


def test_a_run_folder_that_another_process_holds_is_refused_as_that(tmp_path: Path) -> None:
    """Not as a folder that can't be written: a comparison waits for the one and fails for the other."""
    with holder(tmp_path, 180), pytest.raises(locks.InUseError), RunFolder(tmp_path).lock():
        pass


@pytest.mark.parametrize("left", [False, True])
def test_a_folder_that_was_made_for_nothing_is_gone_afterwards(left: bool, tmp_path: Path) -> None:
    """As after a request that is refused; a run that has begun leaves its files."""
    with RunFolder(tmp_path / "run").lock():
        if left:
            (tmp_path / "run" / "run.json").write_text("{}")
    assert (tmp_path / "run").exists() == left
