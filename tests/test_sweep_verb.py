"""clbench sweep: what it prints, refuses and leaves behind, alone and beside others in the same folder."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from clbench.cli import main

CLBENCH = str(Path(sys.executable).parent / "clbench")
GRID = """
scenario = "split-mnist-5k"
strategy = ["naive", "fails.py:Fails"]
seeds = 2
limit = 5
epochs = 1
tasks = 2
lr = [0.001, 0.01]
"""
FAILS = """
from clbench import Strategy, Traits


class Fails(Strategy):
    traits = Traits(family="replay")

    def begin_task(self, task):
        raise ZeroDivisionError("oops")
"""


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    Path("grid.toml").write_text(GRID)
    Path("fails.py").write_text(FAILS)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def call(capsys: pytest.CaptureFixture[str], line: str) -> tuple[Any, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    return ended.value.code, *capsys.readouterr()


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--json"], ["--dry-run", "--json"]])
def test_a_shard_without_a_run_has_nothing_to_do(capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    code, out, err = call(capsys, " ".join(["sweep grid.toml --shard 99/100", *more]))
    assert (code, err) == (0, "")
    assert out == ("[]\n" if "--json" in more else "shard 99/100 holds no run of the grid; there is nothing to do\n")


def test_a_dry_run_prints_the_runs_and_does_none(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "sweep grid.toml --dry-run")
    assert (code, err) == (0, "")
    assert "naive[lr=0.001]" in out
    assert "8 runs, 8 to do" in out
    rows = json.loads(call(capsys, "sweep grid.toml --dry-run --json --shard 2/3")[1])
    assert [(row["strategy"], row["seed"], row["status"]) for row in rows] == [
        ("naive[lr=0.001]", 1, "missing"),
        ("fails.py:Fails[lr=0.001]", 0, "missing"),
        ("fails.py:Fails[lr=0.01]", 1, "missing"),
    ]
    assert not list(Path("runs").rglob("run.json"))


def test_a_failed_run_costs_the_exit_code_and_no_other_run(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "sweep grid.toml")
    lines = err.splitlines()
    assert code == 1
    begin = "clbench: 4 of 8 runs failed; fails.py:Fails[lr=0.001], seed 0: ZeroDivisionError: oops (task 0, Fails."
    assert lines[-1].startswith(begin)
    learnt = [r"naive\[lr=0.001\], seed 0: task \d \(\d of 2\) learnt in .* s, average accuracy \d+\.\d %"] * 2
    done = r"naive\[lr=0.001\], seed 0: done, \d+\.\d % .*1 of 8 done.*"
    assert all(map(re.fullmatch, [*learnt, done], lines)), lines[:3]
    assert out.startswith("8 runs in runs: 4 done now, 4 failed")
    before = {file: file.stat().st_mtime_ns for file in Path("runs/split-mnist-5k/naive").rglob("*")}
    assert len(before) >= 4 * 4
    code, out, err = call(capsys, "sweep grid.toml --json")
    assert code == 1
    assert Counter((row["status"], row["source"]) for row in json.loads(out)) == {
        ("done", "before"): 4,
        ("failed", "here"): 4,
    }
    assert {file: file.stat().st_mtime_ns for file in Path("runs/split-mnist-5k/naive").rglob("*")} == before


@pytest.mark.parametrize(
    ("line", "fragments"),
    [
        ("nowhere.toml", ["nowhere.toml", "No such file"]),
        ("grid.toml --shard 3", ["--shard 3", "K/N"]),
        ("grid.toml --shard 4/3", ["4/3", "K from 1 to N"]),
        ("grid.toml --backend slurm", ["'slurm'", "ray"]),
        ("grid.toml --jobs 0", ["--jobs", "1"]),
        ("grid.toml --address auto", ["--address", "--backend ray"]),
        ("grid.toml --gpus-per-run 1", ["--gpus-per-run", "--backend ray"]),
        ("grid.toml --backend ray --jobs 3", ["--jobs 3", "processes"]),
        ("grid.toml --epochs 3", ["--epochs"]),
    ],
)
def test_what_cannot_be_met_is_refused_in_one_line(
    line: str, fragments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, f"sweep {line}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("clbench: ")
    assert len(err) < 300
    for fragment in fragments:
        assert fragment in err
    assert not Path("runs").exists()


def test_without_ray_the_way_to_install_it_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "clbench.many.cluster", raising=False)
    code, _, err = call(capsys, "sweep grid.toml --backend ray")
    assert (code, err.count("\n")) == (2, 1)
    assert "pip install 'clbench[ray]'" in err


@pytest.mark.slow
def test_two_sweeps_at_once_do_no_run_twice_and_lose_none() -> None:
    """Each run is done by exactly one of them, and both know of all runs in the end."""
    Path("grid.toml").write_text(
        GRID.replace('["naive", "fails.py:Fails"]', '"naive"').replace("seeds = 2", "seeds = 4")
    )
    both = [
        subprocess.Popen([CLBENCH, "sweep", "grid.toml", "--json"], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    sources: dict[str, list[str]] = {}
    for out in outs:
        for row in json.loads(out):
            assert row["status"] == "done"
            sources.setdefault(row["folder"], []).append(row["source"])
    assert len(sources) == 8
    assert {tuple(sorted(pair)) for pair in sources.values()} <= {("before", "here"), ("elsewhere", "here")}
    assert not list(Path("runs").rglob(".lease*"))


@pytest.mark.slow
def test_a_sweep_goes_on_where_a_killed_one_ended(capsys: pytest.CaptureFixture[str]) -> None:
    Path("grid.toml").write_text(GRID.replace("epochs = 1", "epochs = 30").replace(', "fails.py:Fails"', ""))
    with subprocess.Popen([CLBENCH, "sweep", "grid.toml"], stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: finished() >= 2, process)
        process.kill()
    before = {
        file: file.stat().st_mtime_ns for file in Path("runs").rglob("run.json") if "done" in file.read_text()[:200]
    }
    code, out, _ = call(capsys, "sweep grid.toml --json")
    assert code == 0
    sources = Counter(row["source"] for row in json.loads(out))
    assert sources == {"before": len(before), "here": 4 - len(before)}
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_sweep_leaves_no_process_behind(number: signal.Signals, code: int) -> None:
    """Ctrl-C goes from the terminal to the whole group, SIGTERM from Slurm to the one process that it knows."""
    Path("grid.toml").write_text(GRID.replace("epochs = 1", "epochs = 100000").replace(', "fails.py:Fails"', ""))
    process = subprocess.Popen(
        [CLBENCH, "sweep", "grid.toml", "--jobs", "2"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: len(list(Path("runs").rglob("run.json"))) == 2, process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    if number is signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert re.fullmatch("clbench: .*\n", err)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_an_interrupted_sweep_says_so_and_its_pool_nothing(tmp_path: Path) -> None:
    """A thread of the pool may fail because workers are gone; here it always does."""
    script = tmp_path / "falls.py"
    script.write_text(
        textwrap.dedent("""
        from joblib.externals.loky.process_executor import _ExecutorManagerThread as Pool
        from clbench.cli import main

        ends = Pool.terminate_broken

        def falls(pool, why):
            ends(pool, why)
            raise KeyError("popitem(): dictionary is empty")

        Pool.terminate_broken = falls
        main(["sweep", "grid.toml", "--jobs", "2", "--out", "runs"])
        """)
    )
    Path("grid.toml").write_text(GRID.replace("epochs = 1", "epochs = 100000").replace(', "fails.py:Fails"', ""))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(Path("runs").rglob("run.json"))) == 2, process)
    process.terminate()
    _, err = process.communicate(timeout=60)
    sentence = (
        "clbench: terminated; what was saved is kept and can be continued: clbench sweep grid.toml --jobs 2 --out runs"
    )
    assert (process.returncode, err) == (143, f"{sentence}\n")


def test_workers_tell_of_a_run_that_begins_again_as_one_process_does(capsys: pytest.CaptureFixture[str]) -> None:
    Path("stops.py").write_text(
        textwrap.dedent("""
        from pathlib import Path
        from clbench import Strategy, Traits

        class Stops(Strategy):
            traits = Traits(family="reference")

            def begin_task(self, task):
                if not Path("go").exists():
                    raise KeyboardInterrupt
        """)
    )
    Path("grid.toml").write_text(
        GRID.replace('["naive", "fails.py:Fails"]', '"stops.py:Stops"').replace("[0.001, 0.01]", "0.001")
    )
    assert call(capsys, "sweep grid.toml")[0] == 130
    Path("go").touch()
    command = [CLBENCH, "sweep", "grid.toml", "--jobs", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    told = [line for line in ended.stderr.splitlines() if not re.match(r"stops.py:Stops, seed \d: ", line)]
    assert len(told) == 1
    assert re.fullmatch(r"note: runs/.*: nothing had been saved to continue from; the run begins again", told[0])


def finished() -> int:
    return sum('"status": "done"' in file.read_text()[:200] for file in Path("runs").rglob("run.json"))


def wait_for(condition: Any, process: "subprocess.Popen[Any]") -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
