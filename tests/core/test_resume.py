"""Nothing is lost: a killed run goes on to the same bytes, and a run folder is neither mixed up nor trusted blindly."""

import importlib.metadata
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from shared import StopAt, StoppedError
from torch import Tensor, nn

import clbench
from clbench import Observer, Result, Strategy, Traits
from clbench.cli import main
from clbench.running.folder import RunFolder

# Each keeps a different thing from task to task: a memory, a teacher, importances, class means, optimizer statistics.
KILLED = {
    "naive": {},
    "joint": {},
    "lwf": {},
    "ewc": {"strategy_options": {"strength": 1.0}},
    "er": {"memory_size": 30},
    "icarl": {"memory_size": 30},
    "er[memory_policy=herding]": {"memory_size": 30, "optimizer": "adam", "optimizer_state": "keep", "lr": 0.005},
}
FAST = {"limit": 10, "model": "mlp:16[batch_norm=true,dropout=0.2]", "epochs": 2, "batch_size": 8, "threads": 1}
SCENARIO = "split-mnist-5k"

KILLER = """
    import os, signal, sys
    import clbench
    from clbench.running.resolve import prepare, resolve

    os.fsync = lambda file: None  # a killed process loses nothing that it has written; only a power cut does

    class Killer(clbench.Observer):
        def step(self, progress, loss):
            if (progress.task, progress.step) == (2, 4):
                os.kill(os.getpid(), signal.SIGKILL)

    for index, (strategy, options) in enumerate({killed}.items()):
        child = os.fork()
        if child == 0:
            clbench.run({scenario!r}, strategy, out="run-" + str(index), observer=Killer(), **{fast}, **options)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (strategy, status)
"""


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("accuracy.csv", "run.json", "model.pt")}


def comparable(folder: Path) -> dict[str, Any]:
    """The record of a run without times and without the points where it was continued."""
    record = json.loads((folder / "run.json").read_text())
    del record["created"], record["resumes"]
    for entry in record["tasks"] + record["training"]:
        del entry["seconds"]
        entry.pop("peak_memory_bytes", None)
    return record


def same_model(one: Path, other: Path) -> bool:
    states = [torch.load(folder / "model.pt", weights_only=True) for folder in (one, other)]
    return states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())


# Killed


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs, each killed by SIGKILL at step 4 of its third task of five; one process forks them all."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    folder = tmp_path_factory.mktemp("killed")
    script = textwrap.dedent(KILLER).format(killed=KILLED, scenario=SCENARIO, fast=FAST)
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("strategy", KILLED)
def test_a_killed_run_resumes_to_the_identical_bytes(strategy, killed, tmp_path):
    """SIGKILL in task 3 of 5 leaves an unfinished run, which goes on to the accuracies of an undisturbed run."""
    folder, options = killed / f"run-{list(KILLED).index(strategy)}", FAST | KILLED[strategy]
    left = Result.load(folder)
    assert left.status == "running"
    assert [task["task"] for task in left.record["tasks"]] == [0, 1]
    begun: list[int] = []

    class Watch(Observer):
        def begin(self, config: Any, scenario: Any, first_task: int) -> None:
            begun.append(first_task)

    clbench.run(SCENARIO, strategy, out=folder, resume=True, observer=Watch(), **options)
    clbench.run(SCENARIO, strategy, out=tmp_path, **options)
    assert begun == [2]
    assert (folder / "accuracy.csv").read_bytes() == (tmp_path / "accuracy.csv").read_bytes()
    assert comparable(folder) == comparable(tmp_path)
    assert same_model(folder, tmp_path)
    assert not (folder / "checkpoint.pt").exists()


@pytest.mark.slow
def test_the_command_line_killed_at_some_moment_resumes_to_the_identical_bytes(tmp_path):
    """`clbench run` itself, killed once two tasks are in its run.json; then `--resume`."""
    command = ["run", SCENARIO, "icarl", "--epochs", "5", "--threads", "1", "--quiet", "--out"]
    killed = [sys.executable, "-m", "clbench", *command, str(tmp_path / "killed")]
    process = subprocess.Popen(killed, stdout=subprocess.DEVNULL)
    file = tmp_path / "killed" / "run.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and len(json.loads(file.read_text())["tasks"]) == 2:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    for options in ([str(tmp_path / "killed"), "--resume"], [str(tmp_path / "whole")]):
        with pytest.raises(SystemExit) as ended:
            main([*command, *options])
        assert ended.value.code == 0
    assert Result.load(tmp_path / "killed").status == "done"
    csv = [(tmp_path / name / "accuracy.csv").read_bytes() for name in ("killed", "whole")]
    assert csv[0] == csv[1]
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")


# Stopped in the same process


class Hoarder(Strategy):
    """Assigns all kinds of values to self, and lets each of them change its behaviour."""

    traits = Traits(family="replay", memory="joined")

    def begin_task(self, task: Any) -> None:
        if task.index == 0:
            self.gate = nn.Parameter(torch.ones(16))
            self.adapter = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))
            self.table, self.nested = torch.zeros(3), {"old": [torch.zeros(2)], 7: (1, None, "text", 0.5, True)}
            self.nothing, self.names, self.part = None, {"a"}, slice(0, 2)
        self.teacher = self.frozen_copy()

    def loss(self, batch: Any) -> Tensor:
        features = self.adapter(self.gate * self.model.features(batch.images))
        logits = self.model.head(features) + self.table.sum() * 0.01 + self.nested["old"][-1].mean()
        extra = 0.0 if self.teacher is None else self.teacher(batch.images).square().mean()
        return self.classification_loss(logits, batch) + extra * logits.square().mean()

    def end_task(self, task: Any) -> None:
        assert self.nothing is None
        assert (self.names, self.part) == ({"a"}, slice(0, 2))
        assert self.nested[7] == (1, None, "text", 0.5, True)
        self.table = self.table + 1
        self.nested["old"].append(torch.full((2,), 0.1 * task.index))

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        return self.model.head(self.adapter(self.gate * self.model.features(images)))


RESUMED: list[tuple[Any, dict[str, Any]]] = [
    ("naive", {}),
    ("naive", {"optimizer_state": "keep", "momentum": 0.9}),
    ("naive", {"eval_every": "epoch", "epochs": 2, "head": "full", "loss_outputs": "all"}),
    ("joint", {}),
    ("feature-extraction", {}),
    ("lwf", {}),
    ("lwf[warmup_epochs=1,recorded=true]", {"memory_size": 20}),
    ("ewc[strength=1]", {}),
    ("ewc[strength=1,mode=online,decay=0.5,fisher_labels=sampled,fisher_samples=7]", {}),
    ("er", {"memory_size": 20}),
    ("er", {"memory_size": 20, "memory_policy": "balanced"}),
    ("er", {"memory_per_class": 2, "memory_policy": "random"}),
    ("icarl", {"memory_size": 20}),
    ("icarl[loss_form=softmax,flip_means=true,classifier=linear]", {"memory_per_class": 2}),
    (Hoarder, {"memory_size": 20, "optimizer": "adam", "optimizer_state": "keep", "lr": 0.01}),
]


@pytest.mark.parametrize(("strategy", "options"), RESUMED, ids=lambda v: getattr(v, "__name__", None) or str(v)[:40])
def test_stopped_and_resumed_at_every_task_boundary(strategy, options, run, cut, tmp_path):
    """Four tasks of 4, 3, 2 and 1 classes; the head and all that grows with it fit at each boundary."""
    scenario = cut(task_sizes=[4, 3, 2, 1])
    options = {"model": "mlp:16[batch_norm=true,dropout=0.2]"} | options
    run(strategy, scenario, out=tmp_path / "whole", **options)
    for task in range(4):
        with pytest.raises(StoppedError):
            run(strategy, scenario, out=tmp_path / "parts", resume=True, observer=StopAt(task), **options)
        assert len(Result.load(tmp_path / "parts").record["tasks"]) == task + 1
    run(strategy, scenario, out=tmp_path / "parts", resume=True, **options)
    csv = [(tmp_path / name / "accuracy.csv").read_bytes() for name in ("whole", "parts")]
    assert csv[0] == csv[1]
    assert comparable(tmp_path / "whole") == comparable(tmp_path / "parts")
    assert same_model(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("at", [(1, 2), (4, 3)])
def test_stopped_within_a_task_without_checkpoints_there_the_task_begins_again(at, run, tmp_path):
    run("icarl", out=tmp_path / "whole", memory_size=20)
    with pytest.raises(StoppedError):
        run("icarl", out=tmp_path / "parts", memory_size=20, observer=StopAt(*at))
    run("icarl", out=tmp_path / "parts", memory_size=20, resume=True)
    assert Result.load(tmp_path / "parts").record["resumes"] == [{"task": at[0], "stage": "", "epoch": 0, "step": 0}]
    assert comparable(tmp_path / "whole") == comparable(tmp_path / "parts")


def test_a_run_that_was_stopped_before_anything_was_saved_begins_again_and_says_so(run, tmp_path):
    with pytest.raises(StoppedError):
        run(out=tmp_path / "run", observer=StopAt(0, 1))
    with pytest.warns(UserWarning, match="nothing had been saved to continue from; the run begins again"):
        run(out=tmp_path / "run", resume=True)


def test_a_run_that_failed_can_be_resumed_when_its_cause_is_gone(run, tmp_path, monkeypatch):
    """The failure is recorded; the tasks before it are kept."""
    monkeypatch.setenv("CLBENCH_TEST_FAILS", "1")

    class Failing(Strategy):
        traits = Traits(family="reference")

        def begin_task(self, task: Any) -> None:
            if task.index == 2 and os.environ.get("CLBENCH_TEST_FAILS"):
                raise clbench.RunError("no luck")

    with pytest.raises(clbench.RunError, match="no luck"):
        run(Failing, out=tmp_path / "run")
    failed = Result.load(tmp_path / "run")
    assert (failed.status, failed.record["error"]) == ("failed", "no luck")
    monkeypatch.delenv("CLBENCH_TEST_FAILS")
    again = run(Failing, out=tmp_path / "run", resume=True)
    assert again.status == "done"
    assert "error" not in again.record
    assert [task["task"] for task in again.record["tasks"]] == list(range(5))


# Content of the folder


@pytest.fixture
def unfinished(run: Any, tmp_path: Path) -> Path:
    with pytest.raises(StoppedError):
        run("icarl", out=tmp_path / "run", memory_size=20, observer=StopAt(1))
    return tmp_path / "run"


def test_an_unfinished_run_is_refused_naming_both_ways_out(unfinished, run, refused):
    before = {f.name: f.read_bytes() for f in unfinished.iterdir()}
    with refused(str(unfinished), "unfinished", "--resume", "--force"):
        run("icarl", out=unfinished, memory_size=20)
    assert {f.name: f.read_bytes() for f in unfinished.iterdir()} == before


def test_force_begins_again(unfinished, run, tmp_path):
    begun: list[int] = []

    class Watch(Observer):
        def begin(self, config: Any, scenario: Any, first_task: int) -> None:
            begun.append(first_task)

    run("icarl", out=unfinished, memory_size=20, force=True, observer=Watch())
    assert begun == [0]
    run("icarl", out=tmp_path / "other", memory_size=20)
    assert comparable(unfinished) == comparable(tmp_path / "other")


def test_force_leaves_foreign_files_alone(unfinished, run):
    (unfinished / "notes.txt").write_text("mine")
    run("icarl", out=unfinished, memory_size=20, force=True)
    assert (unfinished / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("options", [{}, {"resume": True}], ids=str)
def test_a_finished_run_is_not_repeated(options, run, tmp_path):
    first = run(out=tmp_path / "run")
    before = {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in (tmp_path / "run").iterdir() if f.suffix}

    class Never(Observer):
        def begin(self, config: Any, scenario: Any, first_task: int) -> None:
            raise AssertionError("the run was begun again")

    again = run(out=tmp_path / "run", observer=Never(), **options)
    after = {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in (tmp_path / "run").iterdir() if f.suffix}
    assert before == after
    assert {"run.json", "accuracy.csv", "training.csv", "model.pt"} <= before.keys()
    assert json.dumps(again.record) == json.dumps(first.record)


def test_forcing_a_finished_run_repeats_it(run, tmp_path):
    run(out=tmp_path / "run")
    before = (tmp_path / "run" / "run.json").stat().st_mtime_ns
    run(out=tmp_path / "run", force=True)
    assert (tmp_path / "run" / "run.json").stat().st_mtime_ns > before


@pytest.mark.parametrize("state", ["finished", "unfinished", "resumed"])
def test_another_run_in_the_folder_is_refused_with_the_differing_keys(state, run, refused, tmp_path):
    folder = tmp_path / "run"
    if state == "finished":
        run(out=folder)
    else:
        with pytest.raises(StoppedError):
            run(out=folder, observer=StopAt(1))
    before = files(folder) if state == "finished" else {f.name: f.read_bytes() for f in folder.iterdir()}
    options = {"lr": 0.25, "seed": 3, "resume": state == "resumed"}
    with refused(str(folder), "lr", "0.1", "0.25", "seed", "0", "3", "--force"):
        run(out=folder, **options)
    with refused("strategy", "naive", "lwf", "--force"):
        run("lwf", out=folder, resume=state == "resumed")
    after = files(folder) if state == "finished" else {f.name: f.read_bytes() for f in folder.iterdir()}
    assert before == after
    forced = run(out=folder, lr=0.25, seed=3, force=True)
    assert (forced.config["lr"], forced.seed, forced.status) == (0.25, 3, "done")


def test_other_data_in_the_folder_is_another_run(run, refused, cut, tmp_path):
    """The same name and options, but another image: the content counts."""
    run(scenario=cut(limit=10), out=tmp_path / "run")
    with refused("data", "--force"):
        run(scenario=cut(limit=9), out=tmp_path / "run")


def test_the_data_root_and_the_label_are_no_part_of_the_identity(run, tmp_path):
    first = run(out=tmp_path / "run")
    again = run(out=tmp_path / "run", data_root="elsewhere", label="my run", offline=True)
    assert again.record == first.record


def test_a_folder_in_use_is_refused(run, refused, tmp_path):
    with RunFolder(tmp_path / "run").lock(), refused(str(tmp_path / "run"), "in use"):
        run(out=tmp_path / "run")
    assert run(out=tmp_path / "run").status == "done"


def test_a_folder_in_use_by_another_process_is_refused_and_a_killed_one_gives_it_back(run, refused, tmp_path):
    script = """
        import sys, time
        from clbench.running.folder import RunFolder
        with RunFolder(sys.argv[1]).lock():
            print("held", flush=True)
            time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with refused(str(tmp_path / "run"), "in use"):
                run(out=tmp_path / "run")
        finally:
            process.kill()
    assert run(out=tmp_path / "run").status == "done"


# Damaged or hostile files


def spoil(file: Path, how: str) -> None:
    if how == "missing":
        file.unlink()
        return
    content = bytearray(file.read_bytes())
    if how == "empty":
        content = bytearray()
    elif how == "cut":
        content = content[: len(content) // 2]
    elif how == "cut at the end":
        content = content[:-10]
    elif how == "text":
        content = bytearray(b"not a checkpoint\n" * 50)
    elif how == "one bit":
        content[len(content) // 2] ^= 1
    elif how == "zeros":
        content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    file.write_bytes(content)


DAMAGE = ["missing", "empty", "cut", "cut at the end", "text", "one bit", "zeros"]


@pytest.mark.parametrize("how", DAMAGE)
def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before_and_says_so(how, unfinished, run, tmp_path):
    """run.json keeps its content until the run has come as far again."""
    spoil(unfinished / "checkpoint.pt", how)
    begun: list[tuple[int, int]] = []

    class Watch(Observer):
        def begin(self, config: Any, scenario: Any, first_task: int) -> None:
            begun.append((first_task, len(Result.load(unfinished).record["tasks"])))

        def step(self, progress: Any, loss: float | None) -> None:
            assert len(Result.load(unfinished).record["tasks"]) >= 2

    with pytest.warns(UserWarning, match=r"checkpoint\.pt is (missing|damaged).*going on from checkpoint-previous\.pt"):
        run("icarl", out=unfinished, memory_size=20, resume=True, observer=Watch())
    assert begun == [(1, 2)]
    run("icarl", out=tmp_path / "whole", memory_size=20)
    assert comparable(unfinished) == comparable(tmp_path / "whole")
    assert same_model(unfinished, tmp_path / "whole")


@pytest.mark.parametrize("how", DAMAGE)
def test_a_run_whose_checkpoints_are_both_damaged_is_refused_in_one_sentence(how, unfinished, run, refused):
    spoil(unfinished / "checkpoint.pt", how)
    spoil(unfinished / "checkpoint-previous.pt", "cut")
    with refused("checkpoint.pt", "checkpoint-previous.pt", "--force"):
        run("icarl", out=unfinished, memory_size=20, resume=True)
    assert run("icarl", out=unfinished, memory_size=20, force=True).status == "done"


@pytest.mark.parametrize("content", [[1, 2], {"identity": "?"}, {}, torch.zeros(3)], ids=str)
def test_a_checkpoint_that_is_something_else_is_refused(content, unfinished, run, refused):
    (unfinished / "checkpoint-previous.pt").unlink()
    torch.save(content, unfinished / "checkpoint.pt")
    with refused("--force"):
        run("icarl", out=unfinished, memory_size=20, resume=True)


@pytest.mark.parametrize("how", ["empty", "cut", "text", "zeros"])
def test_a_damaged_run_json_is_refused_in_one_sentence(how, unfinished, run, refused):
    spoil(unfinished / "run.json", how)
    with refused("run.json"):
        run("icarl", out=unfinished, memory_size=20, resume=True)


def test_a_checkpoint_of_another_run_is_refused(unfinished, run, refused, tmp_path):
    with pytest.raises(StoppedError):
        run("icarl", out=tmp_path / "other", memory_size=21, observer=StopAt(1))
    (tmp_path / "other" / "checkpoint.pt").replace(unfinished / "checkpoint.pt")
    with refused("checkpoint", "another run", "--force"):
        run("icarl", out=unfinished, memory_size=20, resume=True)


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_checkpoint_that_would_run_code_does_not(form, unfinished, run, refused, tmp_path):
    """Only tensors, plain values and known layers are unpickled; pickle itself shows that the bomb runs code."""
    marker = tmp_path / "exploded"
    bomb = {"identity": Bomb(marker), "strategy": {}, "task": 0}
    if form == "pickle":
        (unfinished / "checkpoint.pt").write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb, unfinished / "checkpoint.pt", _use_new_zipfile_serialization=form == "zip")
    (unfinished / "checkpoint-previous.pt").write_bytes((unfinished / "checkpoint.pt").read_bytes())
    with refused("checkpoint.pt", "--force"):
        run("icarl", out=unfinished, memory_size=20, resume=True)
    assert not marker.exists()
    pickle.loads(pickle.dumps(bomb))
    assert marker.exists()


def test_weights_that_would_run_code_do_not(run, refused, tmp_path):
    torch.save({"backbone.0.1.weight": Bomb(tmp_path / "exploded")}, tmp_path / "given.pt")
    with refused("given.pt"):
        run(weights=str(tmp_path / "given.pt"))
    assert not (tmp_path / "exploded").exists()


def test_all_files_load_with_the_safe_loader_and_versions_are_stored(unfinished, run):
    """run.json says which libraries wrote the checkpoint; model.pt needs no class at all."""
    environment = Result.load(unfinished).record["environment"]
    for name in ("torch", "torchvision", "numpy"):
        assert environment["packages"][name] == importlib.metadata.version(name)
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    run("icarl", out=unfinished, memory_size=20, resume=True)
    state = torch.load(unfinished / "model.pt", weights_only=True)
    assert {name: value.dtype for name, value in state.items()}["head.weight"] == torch.float32


def test_the_command_line_names_the_ways_out_and_takes_them(tmp_path, capsys):
    """Exit code 2 and one line for an unfinished run; --resume finishes it with exit code 0."""
    options = {"limit": 5, "model": "mlp:8", "epochs": 1, "threads": 1}
    with pytest.raises(StoppedError):
        clbench.run(SCENARIO, "naive", out=tmp_path, observer=StopAt(1), quiet=True, **options)
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    for extra, code in (([], 2), (["--resume"], 0), ([], 0)):
        with pytest.raises(SystemExit) as ended:
            main(["run", SCENARIO, "naive", "--out", str(tmp_path), *arguments, *extra])
        assert ended.value.code == code
        error = capsys.readouterr().err
        if code == 2:
            assert error.count("\n") == 1
            assert "--resume" in error
            assert "--force" in error
    assert Result.load(tmp_path).status == "done"
