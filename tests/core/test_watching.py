"""`clbench watch` shows runs in any state, reads only their files, and changes nothing."""

import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import clbench
from clbench import Observer
from clbench.cli import main
from clbench.many.watching import Watch, counts
from clbench.support.locks import LEASE_SECONDS, lease

FAST: dict[str, Any] = {"limit": 5, "epochs": 1, "model": "mlp:8", "threads": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run of five tasks."""
    folder = tmp_path_factory.mktemp("watched")
    clbench.run("split-mnist-5k", "naive", out=folder / "one", seed=3, **FAST)
    return folder


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


def changed(folder: Path, **fields: Any) -> dict[str, Any]:
    """Write a copy of the run with other fields."""
    record: dict[str, Any] = json.loads((folder.parent / "one" / "run.json").read_text())
    record |= fields
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record))
    return record


def mark(folder: Path, owner: int, host: str = "", *, age: float = 0.0) -> None:
    """Leave a lease as a process of that host would have, some seconds ago."""
    lock = lease(folder)
    with lock:
        text = (folder / ".lease").read_text()
    text = re.sub(r"pid=\d+", f"pid={owner}", re.sub(r"start=\d+\n", "", text))
    if host:
        text = re.sub("host=.*", f"host={host}", text)
    (folder / ".lease").write_text(text)
    os.utime(folder / ".lease", (time.time() - age,) * 2)


def files(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """The file times that a write would change; reading may change the other times."""
    return {f: (at.st_ino, at.st_size, at.st_mtime_ns) for f in folder.rglob("*") if (at := f.stat())}


def test_what_a_finished_run_shows_is_what_it_holds(runs: Path) -> None:
    result = clbench.Result.load(runs / "one")
    (run,) = Watch(runs).look()
    assert (run.status, run.scenario, run.strategy, run.seed) == ("done", "split-mnist-5k", "naive", 3)
    assert (run.tasks_done, run.n_tasks) == (5, 5)
    assert run.average_accuracy == result.metrics["average_accuracy"]
    assert run.seconds == pytest.approx(sum(result.seconds.values()))


def test_a_run_under_way_is_seen_from_outside_and_left_alone(tmp_path: Path) -> None:
    """Watched from inside the run, after three of five tasks: this process holds the lease, as a sweep would."""
    seen: list[Any] = []

    class Look(Observer):
        def begin(self, config: Any, scenario: Any, first_task: int) -> None:
            seen.append(Watch(tmp_path).look())

        def task(self, task: int, row: Any) -> None:
            if task == 2:
                before = files(tmp_path)
                seen.append(Watch(tmp_path).look())
                assert files(tmp_path) == before
                assert seen[-1][0].average_accuracy == pytest.approx(sum(row[:3]) / 3)

    clbench.run("split-mnist-5k", "naive", out=tmp_path / "scenario" / "naive" / "7-abc", observer=Look(), **FAST)
    (first,), (third,) = seen
    # Nothing is written yet: the path says which run it is.
    assert (first.status, first.strategy, first.seed, first.n_tasks) == ("running", "naive", 7, None)
    assert (third.status, third.tasks_done, third.n_tasks) == ("running", 3, 5)
    assert third.seconds > 0
    assert Watch(tmp_path).look()[0].status == "done"


def test_states_are_told_apart(runs: Path) -> None:
    nobody = 2**22 - 1  # above the largest process id that Linux gives by default
    for name, status in (("stopped", "running"), ("dead", "running"), ("here", "running"), ("there", "running")):
        changed(runs / name, status=status)
    changed(runs / "failed", status="failed", error="RuntimeError: \x1b[31mboom")
    changed(runs / "again", status="failed", error="boom")
    changed(runs / "silent", status="running")
    mark(runs / "dead", nobody)
    mark(runs / "here", os.getpid())
    mark(runs / "there", nobody, "another-host")
    mark(runs / "again", os.getpid())
    mark(runs / "silent", nobody, "another-host", age=LEASE_SECONDS + 10)
    (runs / "empty-lease").mkdir()
    (runs / "empty-lease" / ".lease").touch()
    (runs / "planned").mkdir()
    (runs / "planned" / ".clbench").touch()
    found = {Path(run.folder).name: run.status for run in Watch(runs).look()}
    assert found == {
        "one": "done", "stopped": "left", "dead": "left", "here": "running", "there": "running", "failed": "failed",
        "again": "running", "silent": "left", "empty-lease": "running", "planned": "left",
    }  # fmt: skip
    assert socket.gethostname() != "another-host"


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "7", "[" * 100_000, '{"status": "done"}', '{"status": ["done"], "config": {}}',
        "\x00\xff", '{"status": "done", "config": {"seed": "x"}, "metrics": [], "tasks": 1, "scenario": 0}',
    ],
)  # fmt: skip
def test_a_damaged_run_never_stops_it(text: str, runs: Path) -> None:
    (runs / "bad").mkdir()
    (runs / "bad" / "run.json").write_text(text, encoding="latin-1")
    (runs / "bad" / ".clbench").write_text(text, encoding="latin-1")
    watch = Watch(runs)
    assert {run.status for run in watch.look()} == {"done", "damaged"}
    # Written whole in the meantime.
    changed(runs / "bad")
    assert [run.status for run in watch.look()] == ["done", "done"]


def test_half_of_a_real_run_is_damaged_and_a_folder_in_place_of_the_file_too(runs: Path) -> None:
    whole = (runs / "one" / "run.json").read_bytes()
    (runs / "half").mkdir()
    (runs / "half" / "run.json").write_bytes(whole[: len(whole) // 2])
    (runs / "odd" / "run.json").mkdir(parents=True)
    assert counts(Watch(runs).look()) == {"done": 1, "running": 0, "failed": 0, "left": 0, "damaged": 1}


def test_what_is_planned_is_left_under_its_own_name(tmp_path: Path) -> None:
    """Before the first of three runs begins, all three can be seen, those of one strategy by their brackets."""
    from clbench.many.compare import plan
    from clbench.many.execution import run_planned

    strategies = ["er[memory_size=10]", "er[memory_size=20]", "naive"]
    planned = plan("split-mnist-5k", strategies, seeds=1, out=tmp_path, references=False, **FAST)
    outcomes = run_planned(planned)
    next(outcomes)
    found = Watch(tmp_path).look()
    assert sorted((run.status, run.strategy) for run in found) == [
        ("done", "er[memory_size=10]"),
        ("left", "er[memory_size=20]"),
        ("left", "naive"),
    ]
    assert {run.seed for run in found} == {0}
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert counts(Watch(tmp_path).look())["done"] == 3


def test_a_snapshot_off_a_terminal_and_as_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(runs / "failed", status="failed", error="RuntimeError: \x1b[31mboom")
    for options in ([], ["--once"]):
        with pytest.raises(SystemExit) as ended:
            main(["watch", str(runs), *options])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert "1 done, 0 running, 1 failed, 0 left" in shown
        assert "5/5" in shown
        assert "\x1b" not in shown
        assert "RuntimeError: ?[31mboom" in shown
    with pytest.raises(SystemExit):
        main(["watch", str(runs), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert {key: told[key] for key in ("done", "running", "failed", "left")} == {
        "done": 1, "running": 0, "failed": 1, "left": 0,
    }  # fmt: skip
    assert {run["status"] for run in told["runs"]} == {"done", "failed"}
    with pytest.raises(SystemExit) as ended:
        main(["watch", str(runs / "nowhere"), "--once"])
    assert ended.value.code == 2
    assert "no such folder" in capsys.readouterr().err


def on_a_terminal(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    reading, writing = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "clbench", "watch", str(folder)],
        stdout=writing, stderr=subprocess.PIPE, env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
    )  # fmt: skip
    os.close(writing)
    return process, reading


def read_until(reading: int, text: str, seconds: float = 60.0) -> str:
    """Read what is on the terminal until it holds a text."""
    shown, end = "", time.monotonic() + seconds
    while text not in shown and time.monotonic() < end:
        if select.select([reading], [], [], 0.2)[0]:
            try:
                shown += os.read(reading, 65536).decode()
            except OSError:  # Linux raises it when no process writes there any more
                break
    return shown


def test_ctrl_c_ends_the_looking_with_130(runs: Path) -> None:
    changed(runs / "under-way", status="running")
    mark(runs / "under-way", os.getpid())
    process, reading = on_a_terminal(runs)
    shown = read_until(reading, "1 done, 1 running")
    assert "1 done, 1 running" in shown
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    assert errors == "clbench: no longer watching; the runs go on\n"
    # The cursor, hidden meanwhile, is shown again.
    assert "\x1b[?25h" in read_until(reading, "\x1b[?25h", 5)
    os.close(reading)


def test_it_ends_when_everything_is_done(runs: Path) -> None:
    process, reading = on_a_terminal(runs)
    read_until(reading, "1 done, 0 running")
    assert process.wait(30) == 0
    os.close(reading)
