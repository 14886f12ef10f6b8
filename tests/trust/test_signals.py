"""Signals save and end a run; what would end the program from within a run never makes it look done."""

import json
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import clbench
from clbench import ConfigError, Observer, RunError, ScenarioSpec, Strategy, Traits
from clbench.cli import main
from clbench.models.mlp import MLP
from clbench.support.endings import SIGNALS

CLBENCH = str(Path(sys.executable).parent / "clbench")
SCENARIO = "split-mnist-5k"
# Five tasks of four steps.
OPTIONS: dict[str, Any] = {"limit": 8, "model": "mlp:8", "epochs": 2, "batch_size": 8, "threads": 1}
TYPED = ["--limit", "8", "--model", "mlp:8", "--epochs", "2", "--batch-size", "8", "--threads", "1"]
FURTHER = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


class StoppedError(Exception):
    """Raised by the program's own handler of a signal."""


class Act(Observer):
    """Does something after the third step of the second task."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def step(self, progress: Any, loss: float | None) -> None:
        if (progress.task, progress.step) == (1, 3):
            self.act()


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Let the processes that a test starts hear SIGHUP, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@contextmanager
def handled(number: int, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("whole") / "run"
    return clbench.run(SCENARIO, "er", out=out, memory_size=20, **OPTIONS).record["classifiers"]


def stop(*_: object) -> None:
    raise StoppedError


@pytest.mark.parametrize("number", FURTHER)
def test_a_signal_saves_the_step_it_comes_at_and_goes_to_the_programs_handler(number: int, whole: Any) -> None:
    given = {"out": "run", "memory_size": 20, "checkpoint_every": "task"} | OPTIONS
    with handled(number, stop), pytest.raises(StoppedError):
        clbench.run(SCENARIO, "er", observer=Act(lambda: signal.raise_signal(number)), **given)
    steps: list[tuple[int, int]] = []

    class Notes(Observer):
        def step(self, progress: Any, loss: float | None) -> None:
            steps.append((progress.task, progress.step))

    resumed = clbench.run(SCENARIO, "er", resume=True, observer=Notes(), **given)
    assert steps[0] == (1, 4)
    assert resumed.record["classifiers"] == whole


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored(number: int, whole: Any) -> None:
    with handled(number, signal.SIG_IGN):
        act = Act(lambda: signal.raise_signal(number))
        result = clbench.run(SCENARIO, "er", out="run", memory_size=20, observer=act, **OPTIONS)
    assert result.record["classifiers"] == whole


def test_a_handler_that_leaves_the_program_leaves_it(whole: Any) -> None:
    """sys.exit() in the program's own handler is its way to end, and the run can be continued."""
    given = {"out": "run", "memory_size": 20} | OPTIONS
    with handled(signal.SIGTERM, lambda *_: sys.exit(0)), pytest.raises(SystemExit):
        clbench.run(SCENARIO, "er", observer=Act(lambda: signal.raise_signal(signal.SIGTERM)), **given)
    assert clbench.Result.load("run").status != "failed"
    assert clbench.run(SCENARIO, "er", resume=True, **given).record["classifiers"] == whole


def test_the_command_line_leaves_the_handlers_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    """A program, or a test, that calls it goes on afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for arguments in (["list"], ["run", "nothing", "naive"], ["--version"], ["run", SCENARIO, "naive", "--lr", "x"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert {number: signal.getsignal(number) for number in SIGNALS} == before
    capsys.readouterr()


# Sends a signal to itself, or to the process that started it, once the second task has begun.
SENDS = """
import os
import signal
import time
from pathlib import Path

from clbench import Strategy, Traits


class Sends(Strategy):
    traits = Traits(family="regularisation")
    number: int = 0
    to_parent: bool = False

    def after_step(self, batch):
        if self.progress.task == 1 and self.number and not Path(f"sent-{self.config.seed}").exists():
            Path(f"sent-{self.config.seed}").touch()
            if not self.to_parent:
                os.kill(os.getpid(), self.number)
            elif self.config.seed == 0:
                # Both runs are under way then.
                while not Path("sent-1").exists():
                    time.sleep(0.05)
                os.kill(os.getppid(), self.number)
        if self.to_parent and Path("sent-1").exists() and not Path("resumes").exists():
            time.sleep(0.2)
"""


def command(*arguments: str, **more: Any) -> Any:
    Path("sends.py").write_text(textwrap.dedent(SENDS))
    return subprocess.run([CLBENCH, *arguments], capture_output=True, encoding="utf-8", timeout=120, **more)


def ends_with(number: signal.Signals, arguments: list[str]) -> tuple[int, str]:
    again = shlex.join(["clbench", *arguments, *(["--resume"] if arguments[0] == "run" else [])])
    return 128 + number, f"clbench: ended by {number.name}; what was saved is kept and can be continued: {again}\n"


def last_line(text: str) -> str:
    """Return what a command ends with; the lines before it are its progress, and nothing else."""
    *progress, last = text.splitlines(keepends=True)
    assert all(", seed " in line for line in progress), text
    return last


@pytest.mark.parametrize(
    "number", [signal.SIGUSR1, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGHUP, signal.SIGUSR2))]
)
def test_the_command_ends_with_the_code_of_the_signal_and_goes_on_from_the_step(number: signal.Signals) -> None:
    arguments = ["run", SCENARIO, "sends.py:Sends", "-p", f"number={int(number)}", "--out", "run", *TYPED]
    ended = command(*arguments)
    assert (ended.returncode, last_line(ended.stderr)) == ends_with(number, arguments)
    assert json.loads(Path("run/run.json").read_text())["status"] == "running"
    assert Path("run/checkpoint.pt").is_file()
    assert command(*arguments, "--resume").returncode == 0
    plain = clbench.run(SCENARIO, "naive", out="naive", **OPTIONS).record["classifiers"]
    assert clbench.Result.load("run").record["classifiers"] == plain


def test_sighup_under_nohup_ends_nothing() -> None:
    """nohup starts its command with SIGHUP ignored."""
    arguments = ["run", SCENARIO, "sends.py:Sends", "-p", f"number={int(signal.SIGHUP)}", "--out", "run", *TYPED]
    ended = command(*arguments, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert ended.returncode == 0, ended.stderr
    assert Path("sent-0").exists()
    assert clbench.Result.load("run").status == "done"


@pytest.mark.slow
@pytest.mark.parametrize("number", FURTHER)
@pytest.mark.parametrize("verb", ["compare", "sweep"])
def test_workers_save_too(verb: str, number: signal.Signals) -> None:
    given = '"sends.py:Sends"\nseeds = 2\nlimit = 8\nmodel = "mlp:8"\nepochs = 2\nbatch_size = 8\nthreads = 1\n'
    options = f"[strategy_options]\nnumber = {int(number)}\nto_parent = true\n"
    Path("grid.toml").write_text(f'scenario = "{SCENARIO}"\nstrategy = {given}{options}')
    arguments = ["sweep", "grid.toml", "--jobs", "2"]
    if verb == "compare":
        asked = ["-p", f"number={int(number)}", "-p", "to_parent=true", "--seeds", "2", "--no-references"]
        arguments = ["compare", SCENARIO, "sends.py:Sends", *asked, "--jobs", "2", *TYPED]
    ended = command(*arguments)
    assert (ended.returncode, last_line(ended.stderr)) == ends_with(number, arguments), ended.stderr
    assert len(list(Path("runs").rglob("checkpoint.pt"))) == 2
    Path("resumes").touch()
    again = command(*arguments)
    assert again.returncode == 0, again.stderr
    for seed in (0, 1):
        plain = clbench.run(SCENARIO, "naive", seed=seed, out=f"naive-{seed}", **OPTIONS).record["classifiers"]
        (found,) = [r for r in clbench.results.result.load_results("runs") if r.seed == seed]
        assert found.record["classifiers"] == plain


# Exits of the program ------------------------------------------------------------------------------------------------


PLACES = ("begin_run", "begin_task", "stages", "loss", "after_backward", "penalty", "after_step", "end_task", "scores")
RAISED = [SystemExit(0), SystemExit(), SystemExit("all done"), SystemExit(3), GeneratorExit()]


def leaving(place: str, error: BaseException, task: int = 1) -> type[Strategy]:
    """A strategy that raises at one of its hooks in a task."""

    def hook(self: Strategy, *given: Any) -> Any:
        if self.progress.task >= (0 if place == "begin_run" else task):
            raise error
        return getattr(Strategy, place)(self, *given)

    return type("Leaves", (Strategy,), {"traits": Traits(family="regularisation"), place: hook, "__module__": __name__})


@pytest.mark.parametrize("place", PLACES)
def test_a_hook_that_would_end_the_program_fails_the_run(place: str) -> None:
    for number, error in enumerate(RAISED):
        out = Path(f"run-{number}")
        with pytest.raises(RunError, match=type(error).__name__) as caught:
            clbench.run(SCENARIO, leaving(place, error), out=out, **OPTIONS)
        assert f"was raised in task {0 if place == 'begin_run' else 1}" in str(caught.value)
        record = json.loads((out / "run.json").read_text())
        assert record["status"] == "failed"
        assert type(error).__name__ in record["error"]
        # The tasks learnt before count, and the run can be tried again.
        assert len(record["tasks"]) < 5


def test_a_model_and_an_observer_that_would_end_the_program_fail_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*_: object) -> None:
        sys.exit(0)

    with pytest.raises(RunError, match=r"SystemExit\(0\) was raised in task 1"):
        clbench.run(SCENARIO, "naive", out="observer", observer=Act(leave), **OPTIONS)
    monkeypatch.setattr(MLP, "forward", leave)
    with pytest.raises(ConfigError, match=r"SystemExit: 0"):
        clbench.run(SCENARIO, "naive", out="model", **OPTIONS)
    assert json.loads(Path("observer", "run.json").read_text())["status"] == "failed"


LEAVES = """
import sys

from clbench import Strategy, Traits


class Leaves(Strategy):
    traits = Traits(family="regularisation")
    code: int = 0
    where: str = "end_task"

    def check(self, config, scenario):
        if self.where == "check":
            sys.exit(self.code)

    def end_task(self, task):
        if task.index == 1 and self.where == "end_task":
            sys.exit(self.code)
        if task.index == 1 and self.where == "interrupt":
            raise KeyboardInterrupt
        if task.index == 1 and self.where == "base":
            raise BaseException("of no kind")
"""


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        (["run", "-p", "code=0"], 1, "SystemExit(0) was raised in task 1"),
        (["run", "-p", "code=7"], 1, "SystemExit(7) was raised in task 1"),
        (["compare", "--seeds", "1", "--no-references"], 1, "SystemExit(0) was raised in task 1"),
        (["run", "-p", "where=check"], 1, "sys.exit(0) was called"),
        (["run", "-p", "where=interrupt"], 130, "interrupted"),
        (["run", "-p", "where=base"], 1, "of no kind"),
    ],
)
def test_the_command_never_ends_with_0_before_all_is_done(
    asked: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("leaves.py").write_text(LEAVES)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([asked[0], SCENARIO, "leaves.py:Leaves", *asked[1:], *TYPED])
    err = capsys.readouterr().err
    assert ended.value.code == code
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_worker_whose_strategy_would_end_it_fails_its_own_run_alone() -> None:
    Path("leaves.py").write_text(LEAVES)
    arguments = ["compare", SCENARIO, "leaves.py:Leaves", "naive", "--seeds", "1", "--jobs", "2", "--no-references"]
    ended = command(*arguments, *TYPED)
    assert ended.returncode == 1
    assert "1 of 2 runs failed" in ended.stderr.splitlines()[-1]
    assert "SystemExit(0) was raised in task 1" in ended.stderr.splitlines()[-1]
    assert sorted(json.loads(f.read_text())["status"] for f in Path("runs").rglob("run.json")) == ["done", "failed"]


def test_a_file_that_would_end_the_program_while_it_is_imported_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("ends.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(SystemExit) as ended:
        main(["run", SCENARIO, "ends.py:Any", *TYPED])
    assert ended.value.code == 2
    assert "SystemExit" in capsys.readouterr().err


def test_a_run_in_another_thread_takes_no_signal() -> None:
    """Python gives signals to the main thread alone."""
    found: list[Any] = []

    def run() -> None:
        act = Act(lambda: found.append([signal.getsignal(number) for number in SIGNALS]))
        clbench.run(SCENARIO, "naive", out="run", observer=act, **OPTIONS)

    before = [signal.getsignal(number) for number in SIGNALS]
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_a_scenario_that_would_end_the_program_while_it_is_built_is_refused(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Leaves(ScenarioSpec):
        def build(self, config: Any) -> Any:
            raise error

    monkeypatch.setattr("clbench.running.resolve.scenario_class", lambda name: Leaves)
    with pytest.raises(ConfigError, match=rf"can't be built \({type(error).__name__}"):
        clbench.run(SCENARIO, "naive", out="run", epochs=1)
