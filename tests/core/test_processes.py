"""One run on many processes has the numbers of one process, and the death of one of them loses nothing.

The expected values are those of the same runs on one process, which know nothing of parts of a batch.
"""

import functools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import one_of_many
import psutil
import pytest
import torch

import clbench
from clbench.running.packing import unpack

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "one_of_many.py"
# Name, strategy, network, options. Batches have 7 images, and the last one of a task fewer: parts are never equal.
Asked = tuple[str, str, str, dict[str, Any]]
RUNS: list[Asked] = [
    ("er", "er[share=0.3]", "double", {"memory_size": 12}),
    ("gem", "gem", "double", {"memory_size": 12}),
    ("norm", "naive", "norm", {"augment": "crop", "optimizer": "adam", "lr": 0.01, "momentum": 0.0}),
    *(
        (name, name, "double", {})
        for name in ("naive", "lwf", "ewc", "si", "mas", "rwalk", "ewc[fisher_labels=sampled]")
    ),
    *((name, name, "double", {"memory_size": 12}) for name in ("icarl", "agem", "mir", "derpp", "bic", "lucir")),
    *((name, name, "double", {"memory_size": 12, "near_future": 2, "anytime": 20}) for name in ("er-aml", "gsa")),
    ("der", "der", "double", {"memory_size": 12, "head": "full", "augment": "crop-flip", "on_nan": "skip"}),
    ("online", "naive", "norm", {"memory_size": 12, "online_accuracy": True}),
    ("packnet", "packnet", "double", {"setting": "task"}),
    ("xdg", "xdg", "double", {"setting": "task"}),
    ("lwf-late", "lwf", "norm", {"validation": 0.3, "patience": 1, "epochs": 3, "eval_every": 1}),
    *([("compiled", "lwf", "double", {"compile": "default"})] if shutil.which("g++") else []),
    ("one-by-one", "er", "double", {"memory_size": 12, "batch_size": 1, "optimizer_state": "keep"}),
]


def torchrun(folder: Path, asked: list[Asked], *options: str) -> subprocess.Popen[str]:
    """Start runs on the processes of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(SCRIPT), str(folder), json.dumps(asked)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return unpack((folder / "model.pt").read_bytes(), clbench.Strategy)


def assert_same(folder: Path, asked: list[Asked], ranks: int) -> None:
    """Compare each run with the same one on one process: losses and weights to 1e-10, accuracies to the last bit."""
    for name, strategy, network, options in asked:
        alone = one_of_many.run(folder / f"{name}-alone", strategy, network, options)
        together = clbench.Result.load(folder / name)
        assert together.config["processes"] == ranks
        assert alone.config["processes"] == 1
        assert "not-compiled" not in [warning["rule"] for warning in together.record["warnings"]]
        losses = [[epoch["losses"] for epoch in result.record["training"]] for result in (alone, together)]
        assert len(losses[0]) == len(losses[1]) > 0
        for here, there in zip(*losses, strict=True):
            assert there == pytest.approx(here, rel=1e-10, abs=1e-10), name
        known = weights(folder / f"{name}-alone")
        found = weights(folder / name)
        assert known.keys() == found.keys()
        for key, value in known.items():
            assert float((found[key].double() - value.double()).abs().max()) < 1e-10, (name, key)
        assert together.record["accuracy"] == alone.record["accuracy"]
        assert together.metrics == alone.metrics
        # Every process has found the same, and not the first alone.
        each = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(ranks)]
        assert all(one == each[0] for one in each), name


def done(started: subprocess.Popen[str], seconds: float = 240) -> str:
    """Wait for a command; return what it has printed."""
    printed, _ = started.communicate(timeout=seconds)
    assert started.returncode == 0, printed
    return printed


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_every_kind_of_strategy_has_the_numbers_of_one_process(processes: int, tmp_path: Path) -> None:
    """Also where parts are unequal, the strategy reads gradients, and layers mix the samples of a batch.

    Also with a gradient in the loss, steps that are left out, early stopping, and fewer images than processes.
    """
    done(torchrun(tmp_path, RUNS, "--standalone", "--nproc-per-node", str(processes)), 600)
    assert_same(tmp_path, RUNS, processes)


@pytest.mark.slow
def test_torchrun_starts_a_run_on_two_nodes(tmp_path: Path) -> None:
    """Two commands, as on two machines, which meet at an address; here it is this machine's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port)
    nodes = [torchrun(tmp_path, RUNS[:2], *common, "--node-rank", str(rank)) for rank in (0, 1)]
    for node in nodes:
        done(node)
    assert_same(tmp_path, RUNS[:2], 2)


# A run long enough to be killed in the middle of a task, in double precision.
LONG = {
    "limit": 20,
    "batch_size": 7,
    "memory_size": 12,
    "tasks": 2,
    "checkpoint_every": "9-steps",
    "optimizer": "adam",
    "lr": 0.001,
    "threads": 1,
}


def command(folder: Path, processes: int, *options: str, epochs: int = 15) -> subprocess.Popen[str]:
    """Start the long run from the command line; it has a session of its own, as in a terminal."""
    given = [f"--{name.replace('_', '-')}={value}" for name, value in LONG.items()]
    words = ["run", "split-mnist-5k", "er", f"--model={SCRIPT}:Double", f"--processes={processes}", f"--out={folder}"]
    arguments = [sys.executable, "-m", "clbench", *words, *given, f"--epochs={epochs}", "--quiet", *options]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_a_new_checkpoint(folder: Path, run: "subprocess.Popen[str]") -> None:
    def stamp() -> float:
        file = folder / "checkpoint.pt"
        return file.stat().st_mtime if file.exists() else 0.0

    before, until = stamp(), time.monotonic() + 120
    while stamp() == before and run.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.005)


def followers(run: "subprocess.Popen[str]") -> list[psutil.Process]:
    return [child for child in psutil.Process(run.pid).children() if "follow_leader" in " ".join(child.cmdline())]


def in_this_process(folder: Path, epochs: int = 15, **options: Any) -> clbench.Result:
    """Do the long run, or what is left of it, in the process of the tests."""
    options |= {"model": f"{SCRIPT}:Double", "out": folder, "quiet": True, "epochs": epochs}
    return clbench.run("split-mnist-5k", "er", **options, **LONG)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], clbench.Result]:
    """The long run on one process that nothing disturbs, by its epochs."""
    return functools.cache(lambda epochs: in_this_process(tmp_path_factory.mktemp("alone"), epochs))


def assert_as_undisturbed(folder: Path, known: clbench.Result, epochs: int = 15) -> None:
    found = clbench.Result.load(folder)
    losses = [[epoch["losses"] for epoch in result.record["training"]] for result in (known, found)]
    assert len(losses[0]) == len(losses[1]) == 2 * epochs
    for here, there in zip(*losses, strict=True):
        assert there == pytest.approx(here, rel=1e-10, abs=1e-10)
    assert found.record["accuracy"] == known.record["accuracy"]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_in_one_sentence_and_loses_nothing(
    tmp_path: Path, undisturbed: Callable[[int], clbench.Result]
) -> None:
    """It goes on with another number of processes, which the record tells."""
    run = command(tmp_path / "run", 2)
    wait_for_a_new_checkpoint(tmp_path / "run", run)
    (follower,) = followers(run)
    follower.kill()
    printed, said = run.communicate(timeout=60)
    assert run.returncode == 1
    assert printed == ""
    assert said.count("\n") == 1
    assert said.startswith("clbench: one of the 2 processes of this run was ended by SIGKILL, as happens when memory")
    assert "--resume" in said
    assert in_this_process(tmp_path / "run", resume=True).status == "done"
    assert_as_undisturbed(tmp_path / "run", undisturbed(15))
    record = clbench.Result.load(tmp_path / "run").record
    (told,) = [warned["text"] for warned in record["warnings"] if warned["rule"] == "continued-elsewhere"]
    assert "number of processes 2, here 1" in told
    assert record["config"]["processes"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_saves_and_leaves_no_process_behind(
    number: int, code: int, tmp_path: Path, undisturbed: Callable[[int], clbench.Result]
) -> None:
    """Ctrl-C reaches the processes of a terminal's session at once, and a batch system signals all that it started."""
    run = command(tmp_path / "run", 3)
    wait_for_a_new_checkpoint(tmp_path / "run", run)
    beside = followers(run)
    assert len(beside) == 2
    for process in (*beside, psutil.Process(run.pid)):
        process.send_signal(number)
    _, said = run.communicate(timeout=60)
    assert run.returncode == code
    assert said.count("\n") == 1
    assert "what was saved is kept and can be continued: clbench run" in said
    assert not psutil.wait_procs(beside, timeout=10)[1]
    assert in_this_process(tmp_path / "run", processes=2, resume=True).status == "done"
    assert_as_undisturbed(tmp_path / "run", undisturbed(15))


@pytest.mark.parametrize(
    ("kills", "epochs"), [pytest.param(3, 15, marks=pytest.mark.slow), pytest.param(20, 100, marks=pytest.mark.soak)]
)
def test_runs_whose_processes_are_killed_at_random_come_to_the_same_numbers(
    kills: int, epochs: int, tmp_path: Path, undisturbed: Callable[[int], clbench.Result]
) -> None:
    """Any of the processes, at any moment, the first one too; each time the run goes on with another number of them."""
    draw, done_kills = random.Random(kills), 0
    while True:
        size = draw.choice([2, 3]) if done_kills < kills else 2
        run = command(tmp_path / "run", size, *(["--resume"] if done_kills else []), epochs=epochs)
        if done_kills == kills:
            assert run.wait(120) == 0
            break
        wait_for_a_new_checkpoint(tmp_path / "run", run)
        time.sleep(draw.uniform(0, 0.05))
        if run.poll() is not None:
            # It was done before the kill; nothing is left to be continued.
            _, said = run.communicate()
            assert run.returncode == 0, said
            break
        victims = [*followers(run), psutil.Process(run.pid)]
        victim = draw.choice(victims)
        victim.kill()
        done_kills += 1
        run.communicate(timeout=60)
        assert run.returncode == (-signal.SIGKILL if victim.pid == run.pid else 1)
        assert not psutil.wait_procs(victims, timeout=20)[1]
    assert done_kills > 0
    assert_as_undisturbed(tmp_path / "run", undisturbed(epochs), epochs)


@pytest.mark.slow
def test_the_command_line_joins_the_processes_of_torchrun_and_answers_once(tmp_path: Path) -> None:
    """A run, the same one again, which is answered from its folder, and one that is refused."""
    words = ["run", "split-mnist-5k", "naive", "--limit=5", "--epochs=1", "--model=mlp:8", "--threads=1"]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    start += ["-m", "clbench", *words]
    said = []
    for more in (["--quiet"], ["--quiet"], ["--quiet", "--lr=0.5"]):
        run = [*start, f"--out={tmp_path / 'run'}", *more]
        said.append(subprocess.run(run, capture_output=True, text=True, timeout=240, check=False))
    assert [ended.returncode for ended in said] == [0, 0, 1]
    for ended in said[:2]:
        assert ended.stdout.count("metrics of the headline matrix") == 1
    assert said[1].stderr.count("reused, finished at") == 1
    # The rest is torchrun's own account of the exit code.
    ours = {line for line in said[2].stderr.splitlines() if line.startswith("clbench: ")}
    assert len(ours) == 1
    assert "holds another run: lr is" in ours.pop()
    assert clbench.Result.load(tmp_path / "run").config["processes"] == 2


@pytest.mark.slow
def test_ray_starts_the_processes_of_a_run(tmp_path: Path) -> None:
    """Each is a task of Ray's that finds in its environment which one it is, as in a worker of Ray Train."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'clbench[ray]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    try:
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(SCRIPT.parent)}

        def one(folder: str) -> dict[str, Any]:
            result = one_of_many.run(Path(folder), "er", "double", {"memory_size": 12})
            return {"processes": result.config["processes"], "accuracy": result.record["accuracy"]}

        tasks = [
            ray.remote(one)
            .options(runtime_env={"env_vars": {**group, "RANK": str(rank)}})
            .remote(str(tmp_path / "run"))
            for rank in (0, 1)
        ]
        first, second = ray.get(tasks, timeout=240)
    finally:
        ray.shutdown()
    alone = one_of_many.run(tmp_path / "alone", "er", "double", {"memory_size": 12})
    assert first == second == {"processes": 2, "accuracy": alone.record["accuracy"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (one_of_many.Alone, ("the 2 processes of the run have come to differ in task 0", "Alone", "self.gradient_of")),
        (one_of_many.Failing, ("one of the 2 processes of this run ended: ValueError: only here (task 1", "--resume")),
    ],
)
def test_processes_that_differ_end_the_run(strategy: Any, words: tuple[str, ...], tmp_path: Path) -> None:
    options = {**one_of_many.OPTIONS, "out": tmp_path / "run", "model": one_of_many.Double, "processes": 2}
    with pytest.raises(clbench.RunError) as caught:
        clbench.run("split-mnist-5k", strategy, **options)
    message = str(caught.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message
    assert clbench.Result.load(tmp_path / "run").status == "failed"


@pytest.mark.slow
def test_a_strategy_of_a_file_is_shared(tmp_path: Path) -> None:
    """The other process has to read the file before it can read a strategy that was made of its class."""
    (tmp_path / "mine.py").write_text(
        'from clbench.strategies.naive import Naive\n\n\nclass Plain(Naive):\n    """Naive again."""\n'
    )
    options: dict[str, Any] = {"limit": 5, "epochs": 1, "model": "mlp:8", "threads": 1, "tasks": 2, "batch_size": 8}
    alone = clbench.run("split-mnist-5k", "naive", out=tmp_path / "alone", **options)
    shared = clbench.run(
        "split-mnist-5k", f"{tmp_path / 'mine.py'}:Plain", out=tmp_path / "shared", processes=2, **options
    )
    assert shared.config["processes"] == 2
    assert shared.record["accuracy"] == alone.record["accuracy"]
