"""--track: the same numbers go to TensorBoard, Weights & Biases or MLflow, and to run.json in any case."""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clbench
from clbench import Observer, Result
from clbench.cli import main
from clbench.running.tracking import TRACKERS

FAST: dict[str, Any] = {"limit": 10, "epochs": 2, "model": "mlp:16", "batch_size": 8, "threads": 1, "tasks": 2}
TYPED = ["--limit", "5", "--epochs", "1", "--model", "mlp:8", "--threads", "1", "--tasks", "2", "--quiet"]

# Stand-ins with the used calls of wandb 0.2x and mlflow 3, which write their arguments down.
STANDINS = {
    "wandb": """
        import json, os, pathlib

        class Settings(dict):
            pass

        class Run:
            def __init__(self, **given):
                self.id = given["id"] or "w1"
                self.file = pathlib.Path(given["dir"], "wandb.jsonl").open("a")
                self.tell(init={k: v for k, v in given.items() if k != "dir"})
            def tell(self, **what):
                self.file.write(json.dumps(what) + "\\n")
                self.file.flush()
            def define_metric(self, name, step_metric): ...
            def log(self, values):
                if os.environ.get("LOSE_THE_NETWORK"):
                    raise ConnectionError("the network is gone")
                self.tell(log=values)
            def finish(self, exit_code): self.tell(finish=exit_code)

        def init(**given):
            if os.environ.get("NO_KEY"):
                raise RuntimeError("No API key configured. Use `wandb login` to log in.\\nmore")
            return Run(**given)
    """,
    "mlflow": """
        import json, types

        class MlflowClient:
            def tell(self, **what):
                with open("mlflow.jsonl", "a") as file:
                    file.write(json.dumps(what) + "\\n")
            def get_experiment_by_name(self, name): return None
            def create_experiment(self, name): return "7"
            def create_run(self, where, run_name, tags):
                self.tell(init=dict(where=where, name=run_name, tags=tags))
                return types.SimpleNamespace(info=types.SimpleNamespace(run_id="m1"))
            def update_run(self, run_id, status): self.tell(again=run_id)
            def log_param(self, run_id, key, value): self.tell(param=[key, value])
            def log_metric(self, run_id, key, value, step): self.tell(metric=[key, value, step])
            def set_terminated(self, run_id, status): self.tell(finish=status)
    """,
}


class StopError(Exception):
    """Raised within a run by the test."""


class StopAt(Observer):
    """Stops at a step, as an interruption would."""

    def __init__(self, task: int, step: int) -> None:
        self.at = (task, step)

    def step(self, progress: Any, loss: float | None) -> None:
        if (progress.task, progress.step) == self.at:
            raise StopError


@pytest.fixture
def standins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packages as files, so that worker processes find them too; the working folder is the test's own."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name, text in STANDINS.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return the values in a run's event files, by name and step, as TensorBoard itself reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


def check_against(result: Result, found: dict[str, dict[int, float]]) -> None:
    """Every epoch's losses over the steps so far, every accuracy over tasks: recomputed from run.json."""
    ends = np.cumsum([epoch["steps"] for epoch in result.record["training"]])
    for term in ("classification", "distillation"):
        expected = {
            int(end): epoch["losses"][term]
            for end, epoch in zip(ends, result.record["training"], strict=True)
            if term in epoch["losses"]
        }
        assert found[f"loss/{term}"] == pytest.approx(expected, rel=1e-6)
    assert found["learning_rate"] == pytest.approx({int(end): result.config["lr"] for end in ends}, rel=1e-6)
    n = len(result.accuracy)
    for task in range(n):
        column = {i: value for i in range(n) if not np.isnan(value := result.accuracy[i, task])}
        assert found[f"class_incremental_accuracy/task {task}"] == pytest.approx(column, rel=1e-6)
        aware = {i: value for i in range(n) if not np.isnan(value := result.task_aware_accuracy[i, task])}
        assert found[f"task_aware_accuracy/task {task}"] == pytest.approx(aware, rel=1e-6)
    assert found["metrics/average_accuracy"][n - 1] == pytest.approx(result.metrics["average_accuracy"], rel=1e-6)
    assert found["metrics/forgetting"] == pytest.approx({n - 1: result.metrics["forgetting"]}, rel=1e-6)


def test_tensorboard_shows_what_the_run_holds(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    result = clbench.run("split-mnist-5k", "lwf", out=tmp_path / "run", track="tensorboard", **FAST)
    check_against(result, scalars(tmp_path / "run"))
    plain = clbench.run("split-mnist-5k", "lwf", out=tmp_path / "plain", **FAST)
    assert plain.recorded.identity == result.recorded.identity
    assert plain.record["accuracy"] == result.record["accuracy"]
    assert "tensorboard" not in json.dumps(result.record)
    # CSV and JSON are there without any logger, and nothing else is.
    assert (tmp_path / "plain" / "training.csv").exists()
    assert not (tmp_path / "plain" / "tensorboard").exists()


def test_a_run_that_goes_on_within_a_task_is_one_curve(tmp_path: Path) -> None:
    """50 images of a task in batches of 8 are 7 steps an epoch: the second task stops in its second epoch."""
    pytest.importorskip("tensorboard")
    options = {**FAST, "checkpoint_every": "2-steps", "track": "tensorboard", "out": tmp_path / "run"}
    with pytest.raises(StopError):
        clbench.run("split-mnist-5k", "lwf", observer=StopAt(1, 9), **options)
    result = clbench.run("split-mnist-5k", "lwf", resume=True, **options)
    assert result.record["resumes"] == [{"task": 1, "stage": "train", "epoch": 1, "step": 8}]
    check_against(result, scalars(tmp_path / "run"))
    again = clbench.run("split-mnist-5k", "lwf", force=True, **{**options, "epochs": 1})
    check_against(again, scalars(tmp_path / "run"))


@pytest.mark.slow
def test_worker_processes_track_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    typed = ["--seeds", "2", "--jobs", "2", "--no-references", "--track", "tensorboard"]
    with pytest.raises(SystemExit) as ended:
        main(["compare", "split-mnist-5k", "lwf", *typed, "--out", str(tmp_path), *TYPED])
    assert ended.value.code == 0
    folders = [file.parent for file in tmp_path.rglob("run.json")]
    assert len(folders) == 2
    for folder in folders:
        check_against(Result.load(folder), scalars(folder))


def test_wandb_gets_the_numbers_and_no_secret(standins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder's name in the strategy's path and in data_root, and a variable, must not be sent."""
    monkeypatch.setenv("WANDB_API_KEY", "key-in-environment")
    home = standins / "home-of-somebody"
    home.mkdir()
    source = (
        "import clbench\nclass Mine(clbench.Strategy):\n    'Nothing.'\n    traits = clbench.Traits(family='replay')\n"
    )
    source += "    strength: float = 1.0\n"
    (home / "mine.py").write_text(source)
    result = clbench.run(
        "split-mnist-5k", f"{home}/mine.py:Mine", out="run", track="wandb", data_root=str(home), **FAST
    )
    told = lines(standins / "run" / "wandb.jsonl")
    text = json.dumps(told)
    for secret in ("home-of-somebody", "key-in-environment", str(standins)):
        assert secret not in text
    begun = told[0]["init"]
    assert begun["name"] == "split-mnist-5k, mine.py:Mine, seed 0"
    assert begun["config"]["lr"] == str(result.config["lr"])
    assert begun["config"]["strategy_options.strength"] == "1.0"
    assert begun["settings"]["disable_git"]
    assert begun["settings"]["x_disable_meta"]
    assert told[-1] == {"finish": 0}
    logged = [line["log"] for line in told if "log" in line]
    losses = {entry["optimizer_step"]: entry["loss/classification"] for entry in logged if "optimizer_step" in entry}
    ends = np.cumsum([epoch["steps"] for epoch in result.record["training"]]).tolist()
    assert losses == dict(zip(ends, [e["losses"]["classification"] for e in result.record["training"]], strict=True))
    last = next(entry for entry in logged if entry.get("task") == 1)
    assert last["metrics/average_accuracy"] == result.metrics["average_accuracy"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_run_that_goes_on_is_the_same_run_at_the_service(name: str, standins: Path) -> None:
    options = {**FAST, "checkpoint_every": "2-steps", "track": name, "out": "run"}
    with pytest.raises(StopError):
        clbench.run("split-mnist-5k", "naive", observer=StopAt(1, 9), **options)
    clbench.run("split-mnist-5k", "naive", resume=True, **options)
    told = lines(next(standins.rglob(f"{name}.jsonl")))
    if name == "wandb":
        assert [line["init"]["id"] for line in told if "init" in line] == [None, "w1"]
        assert [line["finish"] for line in told if "finish" in line] == [1, 0]
    else:
        assert [next(iter(line)) for line in told if "init" in line or "again" in line] == ["init", "again"]
        assert [line["finish"] for line in told if "finish" in line] == ["FAILED", "FINISHED"]
        steps = [line["metric"][2] for line in told if "metric" in line and line["metric"][0] == "loss/classification"]
        assert steps == sorted(set(steps))
    # Begun again, it is another run.
    clbench.run("split-mnist-5k", "naive", force=True, **options)
    told = lines(next(standins.rglob(f"{name}.jsonl")))
    assert sum("init" in line and (name == "mlflow" or line["init"]["id"] is None) for line in told) == 2


def test_a_service_that_fails_costs_no_run(standins: Path, monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    monkeypatch.setenv("LOSE_THE_NETWORK", "1")
    with pytest.warns(UserWarning, match="wandb is given up .the network is gone.; the run goes on") as warned:
        result = clbench.run("split-mnist-5k", "naive", out="run", track="wandb", **FAST)
    assert result.status == "done"
    assert sum("given up" in str(warning.message) for warning in warned) == 1
    monkeypatch.setenv("NO_KEY", "1")
    with refused("wandb", "No API key configured", "off without the option"):
        clbench.run("split-mnist-5k", "naive", out="other", track="wandb", **FAST)
    assert not (standins / "other" / "run.json").exists()


@pytest.mark.parametrize("verb", ["run", "compare", "sweep"])
@pytest.mark.parametrize("name", [*TRACKERS])
def test_a_missing_package_is_answered_with_what_to_install(
    verb: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clbench.running.tracking.find_spec", lambda name: None)
    Path("grid.toml").write_text('scenario = "split-mnist-5k"\nstrategy = "naive"\nseeds = 1\n')
    typed = ["grid.toml", "--quiet"] if verb == "sweep" else ["split-mnist-5k", "naive", *TYPED]
    with pytest.raises(SystemExit) as ended:
        main([verb, *typed, "--track", name])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"pip install 'clbench[{name}]'" in message
    assert not Path("runs").exists()


def test_an_unknown_tracker_is_refused(refused: Any) -> None:
    with refused("tensorbord", "'tensorboard'"):
        clbench.run("split-mnist-5k", "naive", track="tensorbord", **FAST)
    with refused("accepted: tensorboard, wandb, mlflow"):
        clbench.compare("split-mnist-5k", ["naive"], track="x", **FAST)


def test_a_folder_that_wandb_left_is_not_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    (tmp_path / "mlflow").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with refused("pip install 'clbench[mlflow]'"):
        clbench.run("split-mnist-5k", "naive", track="mlflow", **FAST)
