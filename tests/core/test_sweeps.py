"""Sweeps: the runs of a grid, refused grids, and that no run is lost, repeated or done twice."""

import json
import subprocess
import sys
import textwrap
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

import clbench
from clbench import ConfigError, RunError
from clbench.learning.strategy import Strategy, Traits
from clbench.many.execution import run_planned
from clbench.many.sweeps import expand, plan_sweep
from clbench.support import locks

DIGITS = "split-mnist-5k"
TINY = f"""
scenario = "{DIGITS}"
limit = 5
epochs = 1
model = "mlp:16"
tasks = 2
"""


def runs(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return label and config of every run, in order."""
    planned = plan_sweep(tomllib.loads(TINY + text), out="nowhere-to-be-made")
    return [(item.config.label, item.config.flat()) for item in planned]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_lists_are_multiplied_out() -> None:
    """3 x 2 x 2 runs; the order is the one a person would write down."""
    found = runs('strategy = ["naive", "lwf"]\nlr = [0.1, 0.2, 0.3]\nseeds = 2')
    assert [(label, config["lr"], config["seed"]) for label, config in found] == [
        (f"{name}[lr={lr}]", lr, seed) for name in ("naive", "lwf") for lr in (0.1, 0.2, 0.3) for seed in (0, 1)
    ]
    assert {config["threads"] for _, config in found} == {1}


def test_a_list_of_lists_is_several_values_and_a_list_of_numbers_is_one() -> None:
    one = runs('strategy = "naive"\nseeds = 1\nclass_order = [9,8,7,6,5,4,3,2,1,0]')
    assert [config["class_order"] for _, config in one] == [[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]]
    two = runs('strategy = "naive"\nseeds = 1\nclass_order = [[0,1,2,3], [3,2,1,0]]\nhead = ["growing", "full"]')
    assert [(config["class_order"], config["head"]) for _, config in two] == [
        (order, head) for order in ([0, 1, 2, 3], [3, 2, 1, 0]) for head in ("growing", "full")
    ]
    assert two[0][0] == "naive[class_order=[0,1,2,3],head=growing]"


class OneForAllOrForEach(clbench.Strategy):
    """Takes one strength for all tasks, or a list of one for each."""

    traits = clbench.Traits(family="reference")
    strength: float | list[float] = 1.0


@pytest.mark.parametrize("values", ["[1, 2, 3]", "[1.0, 2.0, 3.0]", "[1, 2.0, 3]"])
def test_where_a_number_is_accepted_any_list_of_numbers_is_an_axis(values: str) -> None:
    def strengths(given: str) -> list[Any]:
        options = f"[strategies.OneForAllOrForEach]\nstrength = {given}"
        grid = tomllib.loads(f"{TINY}\nseeds = 1\n{options}") | {"strategy": OneForAllOrForEach}
        return [item.config.strategy_options["strength"] for item in plan_sweep(grid)]

    assert strengths(values) == [1, 2, 3]
    assert strengths("[[0, 1], [0, 2]]") == [[0, 1], [0, 2]]


def test_a_strategy_has_options_and_training_of_its_own() -> None:
    found = runs(
        """
        strategy = ["naive", "lwf", "er[memory_size=5]", "er"]
        seeds = [3]
        lr = [0.1, 0.2]
        memory_size = 30
        [strategies.lwf]
        strength = [1.0, 2.0]
        lr = 0.5
        """
    )
    assert [
        (label, config["lr"], config["strategy_options"].get("strength"), config["memory_size"])
        for label, config in found
    ] == [
        ("naive[lr=0.1]", 0.1, None, None),
        ("naive[lr=0.2]", 0.2, None, None),
        ("lwf[strength=1.0]", 0.5, 1.0, None),
        ("lwf[strength=2.0]", 0.5, 2.0, None),
        ("er[memory_size=5,lr=0.1]", 0.1, None, 5),
        ("er[memory_size=5,lr=0.2]", 0.2, None, 5),
        ("er[lr=0.1]", 0.1, None, 30),
        ("er[lr=0.2]", 0.2, None, 30),
    ]


def test_what_is_closer_displaces_what_it_excludes() -> None:
    """epochs and iterations exclude each other."""
    found = runs('strategy = ["naive", "lwf"]\nseeds = 1\n[strategies.lwf]\niterations = 3\n')
    assert [(config["epochs"], config["iterations"]) for _, config in found] == [(1, None), (None, 3)]


def test_runs_are_excluded_and_included() -> None:
    found = runs(
        """
        strategy = ["naive", "lwf", "lwf[temperature=4]"]
        seeds = 3
        lr = [0.1, 1.0]
        [[exclude]]
        strategy = "lwf"
        lr = 1
        [[exclude]]
        strategy = "lwf[temperature=4]"
        [[exclude]]
        seed = [1, 2]
        lr = [0.1, 1.0]
        strategy = "lwf"
        [[include]]
        strategy = "ewc"
        seeds = 2
        iterations = 2
        """
    )
    assert [(config["strategy"], config["lr"], config["seed"]) for _, config in found] == [
        *(("naive", lr, seed) for lr in (0.1, 1.0) for seed in (0, 1, 2)),
        ("lwf", 0.1, 0),
        *(("ewc", lr, seed) for lr in (0.1, 1.0) for seed in (0, 1)),
    ]
    assert {(c["epochs"], c["iterations"]) for _, c in found if c["strategy"] == "ewc"} == {(None, 2)}


def test_a_grid_may_be_nothing_but_runs_that_are_listed() -> None:
    found = runs('[[include]]\nstrategy = "naive"\nseeds = [4]\n[[include]]\nstrategy = "lwf"\nseeds = [5]\n')
    assert [(label, config["seed"]) for label, config in found] == [("naive", 4), ("lwf", 5)]


def test_the_same_runs_as_compare() -> None:
    from clbench.many.compare import plan

    options = {"limit": 5, "epochs": 1, "model": "mlp:16", "tasks": 2, "memory_size": 30}
    compared = plan(DIGITS, ["er", "lwf"], seeds=2, references=False, **options)
    swept = plan_sweep({"scenario": DIGITS, "strategy": ["er", "lwf"], "seeds": 2, **options})
    assert [item.config for item in swept] == [item.config for item in compared]


def test_shards_share_the_runs_out() -> None:
    grid = tomllib.loads(TINY + 'strategy = "naive"\nseeds = 7')
    seeds = [[item.config.seed for item in plan_sweep(grid, shard=(k, 3))] for k in (1, 2, 3)]
    assert seeds == [[0, 3, 6], [1, 4], [2, 5]]
    for shard in ((0, 3), (4, 3)):
        with pytest.raises(ConfigError, match="K from 1 to N"):
            plan_sweep(grid, shard=shard)


NAIVE = 'strategy = "naive"\n'
REFUSED = [
    ("", "no strategy"),
    ('strategy = "naiv"', "'naiv'", "'naive'"),
    ("strategy = []", "strategy=[]", "list of names"),
    ("strategy = [3]", "strategy=[3]", "list of names"),
    (NAIVE + "epoch = 3", "'epoch'", "'epochs'"),
    (NAIVE + "seed = 3", "seed=3", "seeds"),
    (NAIVE + 'seeds = "3"', "seeds='3'", "list"),
    (NAIVE + "seeds = [1, 1]", "1,1", "once"),
    (NAIVE + "lr = []", "lr=[]"),
    (NAIVE + "lr = [0.1, -1.0]", "naive[lr=-1.0], seed 0", "lr=-1", "greater than 0"),
    (NAIVE + "lr = [0.1, 0.1]", "same run", "once"),
    (NAIVE + "class_order = [[1, 0], [0, 12]]", "class_order=[0,12]", "class 12", "0..9"),
    (NAIVE + "memory_size = 20", "memory_size", "none of the strategies"),
    (NAIVE + 'head = ["growing", "big"]', "head=big", "'full'"),
    (NAIVE + "strategy_options = 3", "strategy_options=3", "table"),
    (NAIVE + "[strategy_options]\nstrength = 1", "'strength'"),
    (NAIVE + "[strategies.lwf]\nstrength = 1", "'lwf'", "naive"),
    (NAIVE + "[strategies.naive]\nstrength = 1", "'strength'"),
    (NAIVE + "[strategies.naive]\ntasks = 3", "'tasks'"),
    ('strategy = "lwf[strength=1]"\n[strategies.lwf]\nstrength = 2', "given twice", "strength"),
    (NAIVE + "[[exclude]]\nlr = 3", "[[exclude]] 1", "'lr'"),
    (NAIVE + "lr = [0.1, 0.2]\n[[exclude]]\nlr = 0.3", "[[exclude]] 1", "no run"),
    (NAIVE + 'exclude = "naive"', "exclude", "[[exclude]]"),
    (NAIVE + '[[exclude]]\nstrategy = "naive"', "no run is left"),
    (NAIVE + "[[include]]\nlr = -2.0", "[[include]] 1", "lr=-2"),
    (NAIVE + "[[include]]\nepoch = 2", "[[include]] 1", "'epochs'"),
    ('strategy = ["naive", "naive[model=cnv]"]', "model=cnv", "'cnv'", "'conv'"),
    ('strategy = ["naive", "naive[model=mlp:0]"]', "widths=0"),
    ('strategy = ["naive", "naive[train=last-9]"]', "last-9", "last-1"),
    (NAIVE + "seeds = 1000000000", "seeds=1000000000", "100,000"),
    (NAIVE + "seeds = []", "seeds=[]", "at least one"),
    (NAIVE + f"lr = {[0.1] * 299}\nbatch_size = {[1] * 299}", "447,005 runs", "100,000"),
    (NAIVE + f"lr = {'[' * 5000}", "grid.toml", "TOML"),
    (NAIVE + f"lr = {'1' * 10**7}", "grid.toml", "10 MB"),
]


@pytest.mark.parametrize(("text", "fragments"), [(text, rest) for text, *rest in REFUSED])
def test_what_is_wrong_is_named_by_its_place_before_anything_runs(text, fragments, refused) -> None:
    Path("grid.toml").write_text(TINY + text)
    with refused("grid.toml", *fragments):
        clbench.sweep("grid.toml")
    assert not Path("runs").exists()


@pytest.mark.parametrize("text", ["lr = \nepochs = 1\n", "lr = 1\nlr = 2\n\n"])
def test_a_file_that_is_no_toml_is_refused(text, refused) -> None:
    Path("grid.toml").write_text(text)
    with refused("grid.toml", "line", "TOML"):
        clbench.sweep("grid.toml")
    with refused("nowhere.toml", "No such file"):
        clbench.sweep("nowhere.toml")


class Fails(Strategy):
    """Fails while `fail` is there."""

    traits = Traits(family="replay")

    def begin_task(self, task: object) -> None:
        if Path("fail").exists():
            raise ZeroDivisionError("oops")


DIES = """
import os, signal
from clbench import Strategy, Traits


class Dies(Strategy):
    traits = Traits(family="replay")

    def begin_task(self, task):
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
"""


def stamps() -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in Path("runs").rglob("*") if file.is_file()}


def test_finished_runs_are_left_alone_and_failed_ones_tried_again() -> None:
    grid = tomllib.loads(TINY) | {"strategy": [Fails, "naive"], "seeds": 2}
    Path("fail").touch()
    with pytest.raises(RunError, match=r"2 of 4 runs failed; Fails, seed 0: ZeroDivisionError: oops"):
        clbench.sweep(grid)
    before = stamps()
    assert sum(json.loads(f.read_text())["status"] == "done" for f in before if f.name == "run.json") == 2
    Path("fail").unlink()
    results = clbench.sweep(grid)
    assert [(r.strategy, r.seed, r.status) for r in results] == [
        (name, seed, "done") for name in ("Fails", "naive") for seed in (0, 1)
    ]
    after = stamps()
    changed = {file.parts[-3] for file in before if before[file] != after.get(file)}
    assert changed == {"Fails"}
    clbench.sweep(grid)
    assert stamps() == after


def test_an_unfinished_run_is_continued() -> None:
    """A checkpoint after the first of two tasks: only the second is learnt again."""

    class Interrupted(BaseException):
        pass

    class Stop(clbench.Observer):
        def task(self, task: int, row: list[float | None]) -> None:
            raise Interrupted

    planned = plan_sweep(tomllib.loads(TINY) | {"strategy": "naive", "seeds": 1})
    with pytest.raises(Interrupted):
        list(run_planned(planned, observer=Stop()))
    learnt = []

    class Note(clbench.Observer):
        def task(self, task: int, row: list[float | None]) -> None:
            learnt.append(task)

    assert [outcome.source for outcome in run_planned(planned, observer=Note())] == ["here"]
    assert learnt == [1]


def test_a_damaged_run_json_is_one_failed_run() -> None:
    grid = tomllib.loads(TINY) | {"strategy": "naive", "seeds": 2}
    planned = plan_sweep(grid)
    clbench.sweep(grid)
    file = planned[0].folder / "run.json"
    file.write_text(file.read_text()[:-100])
    first, second = sorted(run_planned(planned), key=lambda outcome: outcome.planned.config.seed)
    assert first.error is not None
    assert "damaged" in first.error
    assert second.source == "before"


def test_what_another_process_is_doing_is_left_to_it_and_reported(monkeypatch) -> None:
    """The other sweep is a thread here, because a lease knows its holder by the lease object, not by the process."""
    monkeypatch.setattr("clbench.many.execution._LOOK_EVERY", 0.05)
    planned = plan_sweep(tomllib.loads(TINY) | {"strategy": "naive", "seeds": 3})
    done = next(run_planned(planned[:1]))
    record = done.result.record  # type: ignore[union-attr]
    held = planned[1].folder
    held.mkdir(parents=True)
    lease = locks.lease(held)
    lease.acquire()

    def other() -> None:
        time.sleep(0.7)
        changed = record | {"identity": planned[1].config.identity(), "config": planned[1].config.flat()}
        clbench.Result(changed).write(held)
        lease.release()

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.warns(UserWarning, match="1 runs are being done by other processes"):
        outcomes = list(run_planned(planned))
    thread.join()
    assert [(o.planned.config.seed, o.source) for o in outcomes] == [(0, "before"), (2, "here"), (1, "elsewhere")]


def test_a_run_that_another_finishes_before_it_is_locked_is_done_once(monkeypatch) -> None:
    """Between the check of the folder and its lock this process loads the data, and the other one finishes."""
    planned = plan_sweep(tomllib.loads(TINY) | {"strategy": "naive", "seeds": 1})
    prepare = clbench.many.execution.prepare

    def slow(config: Any) -> Any:
        monkeypatch.setattr(clbench.many.execution, "prepare", prepare)
        assert [outcome.source for outcome in run_planned(planned)] == ["here"]
        return prepare(config)

    monkeypatch.setattr(clbench.many.execution, "prepare", slow)
    (outcome,) = run_planned(planned)
    assert (outcome.source, outcome.error) == ("elsewhere", None)


def test_a_run_whose_host_is_gone_is_taken_over(monkeypatch) -> None:
    monkeypatch.setattr("clbench.many.execution._LOOK_EVERY", 0.05)
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.0)
    (item,) = plan_sweep(tomllib.loads(TINY) | {"strategy": "naive", "seeds": 1})
    item.folder.mkdir(parents=True)
    script = """
        import os, socket, sys
        socket.gethostname = lambda: "elsewhere"
        from clbench.support import locks
        locks.LEASE_SECONDS = 1.0
        lease = locks.lease(sys.argv[1])
        lease.acquire()
        os._exit(0)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(item.folder)], check=True)
    started = time.monotonic()
    with pytest.warns(UserWarning, match="waiting"):
        assert [outcome.source for outcome in run_planned([item])] == ["here"]
    assert time.monotonic() - started > 1
    assert not locks.is_held(item.folder)


@pytest.mark.slow
def test_a_process_that_is_killed_costs_its_run_alone() -> None:
    Path("dies.py").write_text(DIES)
    grid = tomllib.loads(TINY) | {"strategy": ["dies.py:Dies", "naive"], "seeds": 1}
    outcomes = list(run_planned(plan_sweep(grid), jobs=2))
    assert sorted((o.planned.config.label, o.error is None) for o in outcomes) == [
        ("dies.py:Dies", False),
        ("naive", True),
    ]
    assert {o.error for o in outcomes if o.error} == {"its process was killed, as happens when memory runs out"}


def test_a_pool_that_is_left_alone_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    """The state after an interruption between two outcomes; joblib would warn of the runs that it did not do."""
    outcomes = run_planned(plan_sweep(tomllib.loads(TINY) | {"strategy": "naive", "seeds": 9}), jobs=2)
    assert next(iter(outcomes)).error is None
    outcomes.close()  # type: ignore[attr-defined]
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.alone
def test_a_thousand_runs_are_found_in_two_seconds(tmp_path: Path) -> None:
    """Copies of one run.json under the identities that were planned.

    The time is that of the processor, and the best of three turns, since whatever else runs on a shared machine can
    only add to it.
    """
    grid = tomllib.loads(TINY) | {
        "strategy": ["naive", "lwf", "ewc", "er"],
        "seeds": 10,
        "lr": [0.001, 0.002, 0.003, 0.004, 0.005],
        "batch_size": [8, 16, 32, 64, 128],
    }
    planned = plan_sweep(grid)
    record = next(run_planned(planned[:1])).result.record  # type: ignore[union-attr]
    text = json.dumps(record, indent=1) + "\n"
    for item in planned:
        item.folder.mkdir(parents=True, exist_ok=True)
        (item.folder / "run.json").write_text(text.replace(record["identity"], item.config.identity()))
    seconds = []
    for _ in range(3):
        started = time.process_time()
        sources = [outcome.source for outcome in run_planned(plan_sweep(grid))]
        seconds.append(time.process_time() - started)
        assert sources == ["before"] * 1000
    assert min(seconds) < 2


def test_expanding_needs_no_run_to_be_possible() -> None:
    """An impossible run is refused only if it is not excluded: domain-incremental with one class a task is one."""
    text = 'strategy = "naive"\nseeds = 1\nsetting = ["class", "domain"]\ntasks = [5, 10]\nscenario = "split-mnist-5k"'
    excluded = text + '\n[[exclude]]\nsetting = "domain"\ntasks = 10\n'
    assert len(expand(tomllib.loads(text), "grid")) == 4
    assert len(plan_sweep(tomllib.loads(excluded))) == 3
    with pytest.raises(ConfigError, match="one class"):
        plan_sweep(tomllib.loads(text))


@pytest.mark.slow
def test_what_is_left_of_workers_is_cleaned_up_without_a_word() -> None:
    """After Ctrl-C, loky's own process may miss something already gone; a semaphore that never was stands for it."""
    Path("leaks.py").write_text(
        textwrap.dedent(f"""
        import os
        from clbench.many.execution import run_planned
        from clbench.many.sweeps import plan_sweep
        from joblib.externals.loky.backend import resource_tracker

        if __name__ == "__main__":
            grid = dict(scenario="{DIGITS}", limit=5, epochs=1, model="mlp:16", tasks=2, strategy="naive", seeds=2)
            print([outcome.source for outcome in run_planned(plan_sweep(grid), jobs=2)])
            resource_tracker.register("/never-there", "semlock")
            print(os.environ.get("PYTHONWARNINGS"))
        """)
    )
    ended = subprocess.run([sys.executable, "leaks.py"], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["['here', 'here']", "None"]
    assert ended.stderr == ""


@pytest.mark.slow
def test_workers_follow_into_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of the first call are there at the second one too, and paths are relative to where the caller stands."""
    fast: dict[str, Any] = {"limit": 2, "epochs": 1, "model": "mlp:4", "threads": 1, "quiet": True, "out": "runs"}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        results = clbench.compare("split-mnist-5k", ["naive", "l2"], seeds=1, jobs=2, references=False, **fast)
        assert [result.status for result in results] == ["done", "done"]
        assert len(list((tmp_path / name).rglob("run.json"))) == 2
