"""The command line: what it prints, what it writes, what it refuses, and how it ends."""

import csv
import json
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from clbench.cli import app, main
from clbench.config.registry import entry_point_names

CLBENCH = str(Path(sys.executable).parent / "clbench")
SCENARIO = "split-mnist-5k"
TINY = ["--epochs", "1", "--limit", "5", "--threads", "1"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@dataclass
class Ended:
    """The exit code and output of a command."""

    code: Any
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> Ended:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return Ended(ended.value.code, *capsys.readouterr())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Check the form of every refusal, and return its line."""
    ended = call(capsys, *arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("clbench: ")
    assert ended.err.count("\n") == 1
    assert ended.err.endswith("\n")
    assert len(ended.err) < 300
    assert "Traceback" not in ended.err
    return ended.err


def console_script(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CLBENCH, *arguments], capture_output=True, text=True, timeout=300, check=False, **options)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.rglob("run.json"))]


# Refused commands, and the words that the line must hold (the value, and what is accepted or the nearest name).
REFUSED = [
    (f"run {SCENARIO}x naive", "'split-mnist-5kx'", f"'{SCENARIO}'"),
    (f"run {SCENARIO} lfw", "'lfw'", "'lwf'"),
    (f"runn {SCENARIO} lwf", "'runn'", "run"),
    (f"run {SCENARIO}", "strategy"),
    (f"run {SCENARIO} naive more", "more"),
    (f"run {SCENARIO} naive --epoch 3", "--epoch", "--epochs"),
    (f"describe {SCENARIO} --epochs 3", "--epochs"),
    ("run split-mnist-5k lwf --lr 0.1 --limit 5 --lr=0.2", "--lr", "twice"),
    ("run split-mnist-5k lwf --limit 5 --out=", "--out=", "value"),
    ("run split-mnist-5k lwf --limit 5 --model mlp:99999999999", "mlp:99999999999", "smaller"),
    ("run split-mnist-5k lwf --class-order 0,1,2", "tasks=5", "3 classes"),
    ("list strategys", "'strategys'", "'strategies'"),
    ("list strategies --family replays", "'replays'", "'replay'"),
    ("list strategies --setting tasks", "'tasks'", "'task'"),
    ("list models --family replay", "--family", "strategies"),
    ("report", "folders"),
    ("report nowhere", "nowhere"),
    ("report .", "no finished run"),
    (f"run {SCENARIO} naive --resume --force", "--resume", "--force"),
    # wrong types and values out of range
    (f"run {SCENARIO} naive --epochs 0", "epochs=0", "1"),
    (f"run {SCENARIO} naive --epochs ten", "epochs=ten", "integer"),
    (f"run {SCENARIO} naive --iterations 1.5", "iterations=1.5", "integer"),
    (f"run {SCENARIO} naive --batch-size 0", "batch_size=0", "1"),
    (f"run {SCENARIO} naive --lr 0", "lr=0", "greater than 0"),
    (f"run {SCENARIO} naive --lr nan", "lr=nan", "finite"),
    (f"run {SCENARIO} naive --optimizer adm", "optimizer=adm", "'adam'"),
    (f"run {SCENARIO} naive --head big", "head=big", "'growing'", "'full'"),
    (f"run {SCENARIO} naive --loss-outputs old", "loss_outputs=old", "'new'", "'seen'", "'all'"),
    (f"run {SCENARIO} naive --setting clas", "setting=clas", "'class'"),
    (f"run {SCENARIO} naive --limit 0", "limit=0", "1"),
    (f"run {SCENARIO} naive --validation 1", "validation=1", "less than 1"),
    (f"run {SCENARIO} naive --seed -1", "seed=-1", "0"),
    (f"run {SCENARIO} naive --evaluate none", "evaluate=none", "'seen'", "'all'"),
    (f"run {SCENARIO} naive --eval-every never", "eval_every=never", "'task'", "'epoch'", "integer"),
    (f"run {SCENARIO} naive --precision fp16", "precision=fp16", "'fp32'", "'bf16'"),
    (f"run {SCENARIO} naive --threads 0", "threads=0", "1"),
    (f"run {SCENARIO} naive --device cuda:99", "cuda:99", "cpu"),
    (f"run {SCENARIO} naive --device gpu", "device=gpu", "cpu"),
    (f"run {SCENARIO} naive --image-size 32", "32", "28x28"),
    (f"run {SCENARIO} naive --weights nowhere.pt", "nowhere.pt"),
    (f"compare {SCENARIO} naive --jobs 0", "--jobs", "1"),
    (f"compare {SCENARIO} naive --seeds 0", "seeds=0", "1"),
    (f"compare {SCENARIO} naive --seeds 1,1", "1,1", "once"),
    (f"compare {SCENARIO} naive --seeds one", "one", "0,1,2"),
    # tasks and class orders
    (f"run {SCENARIO} naive --tasks 11", "tasks=11", "10"),
    (f"run {SCENARIO} naive --tasks 0", "tasks=0", "1"),
    (f"run {SCENARIO} naive --task-sizes 4,3", "4,3", "10"),
    (f"run {SCENARIO} naive --task-sizes 4,x,3", "x", "integer"),
    (f"describe {SCENARIO} --class-order 0,0,1", "twice", "0..9"),
    (f"describe {SCENARIO} --class-order 0,12", "12", "0..9"),
    (f"describe {SCENARIO} --class-order cifar100-icrl", "'cifar100-icrl'", "'cifar100-icarl'"),
    (f"describe {SCENARIO} --class-order cifar100-icarl", "100 classes", "10"),
    (f"describe {SCENARIO} --class-order-seed per-sead", "per-sead", "'per-seed'"),
    (f"run {SCENARIO} naive --validation 0.99 --limit 5", "validation=0.99", "5"),
    (f"run {SCENARIO} naive --drop-last --batch-size 9999", "9999", "800"),
    # models, strategies and their hyper-parameters
    (f"run {SCENARIO} naive --model mpl", "'mpl'", "'mlp'"),
    (f"run {SCENARIO} naive --model mlp[width=3]", "'width'", "'widths'"),
    (f"run {SCENARIO} naive --model resnet32[shortcut=C]", "shortcut=C", "'A'", "'B'"),
    (f"run {SCENARIO} lwf -p strenght=2", "'strenght'", "'strength'"),
    (f"run {SCENARIO} lwf -p strength=-1", "strength=-1", "0"),
    (f"run {SCENARIO} lwf -p strength", "'strength'", "key=value"),
    (f"run {SCENARIO} lwf -p strength=2 -p strength=3", "strength", "twice"),
    (f"run {SCENARIO} lwf[strength=2", "lwf[strength=2", "NAME[key=value,...]"),
    (f"run {SCENARIO} lwf[temprature=2]", "'temprature'", "'temperature'"),
    (f"compare {SCENARIO} er[seed=3]", "'seed'"),
    (f"compare {SCENARIO} lwf er -p strength=2", "er", "'strength'"),
    (f"run {SCENARIO} lwf[recorded=true] --augment crop-flip", "crop-flip", "'none'"),
    (f"run {SCENARIO} icarl --loss-outputs new", "'new'", "'seen'"),
    # what excludes each other
    (f"run {SCENARIO} naive --tasks 5 --task-sizes 5,5", "tasks", "task_sizes"),
    (f"run {SCENARIO} naive --class-order 1,0 --class-order-seed 3", "class_order", "class_order_seed"),
    (f"run {SCENARIO} naive --epochs 1 --iterations 5", "epochs", "iterations"),
    (f"run {SCENARIO} icarl --memory-size 20 --memory-per-class 2", "memory_size", "memory_per_class"),
    (f"run {SCENARIO} joint --memory-size 20", "joint", "memory"),
    (f"run {SCENARIO} naive --memory-policy herding", "memory_policy", "memory_size"),
    (f"run {SCENARIO} er --memory-policy reservoir --memory-per-class 5", "reservoir", "memory_size"),
    (f"compare {SCENARIO} lwf --memory-size 10", "memory_size"),
    (f"run {SCENARIO} naive --loss-outputs all", "'all'", "head='full'"),
    (f"run {SCENARIO} naive --setting task --loss-outputs new", "'new'", "class"),
    # what can't work together
    (f"run {SCENARIO} icarl --setting domain", "icarl", "domain", "class, task"),
    (f"run {SCENARIO} naive --setting task --tasks 10", "task", "one class"),
    (f"run {SCENARIO} naive --setting domain --task-sizes 4,3,3", "4,3,3", "equal"),
    # the same run twice
    (f"compare {SCENARIO} lwf lwf", "lwf", "once"),
    (f"compare {SCENARIO} lwf lwf[]", "lwf", "once"),
    # data that is not there
    ("run nowhere/data.npz naive", "nowhere/data.npz"),
    ("run nowhere/photos naive", "nowhere/photos"),
]


@pytest.mark.parametrize(("command", "fragments"), [(line, rest) for line, *rest in REFUSED])
def test_what_cannot_be_met_is_refused_in_one_line(
    command: str, fragments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = refused(capsys, *shlex.split(command))
    for fragment in fragments:
        assert fragment in line
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize("verb", ["run", "compare"])
def test_a_folder_that_cannot_be_written_is_refused(
    verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    assert "file" in refused(capsys, verb, SCENARIO, "naive", *TINY, "--out", "file/runs")


@pytest.mark.parametrize("offline", [True, False])
def test_no_data_and_no_network_is_refused_with_what_to_put_where(
    offline: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def unreachable(*address: object, **options: object) -> None:
        attempts.append(address)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(socket.socket, "connect", unreachable)
    Path("empty").mkdir()
    started = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        main(["run", "split-kmnist", "naive", "--data-root", "empty", *(["--offline"] if offline else [])])
    out, err = capsys.readouterr()
    assert time.monotonic() - started < 30
    assert ended.value.code == 2
    assert out == ""
    assert "Traceback" not in err
    *notices, line = err.splitlines()
    assert all(notice.startswith("clbench: downloading ") for notice in notices)
    assert line.startswith("clbench: ")
    assert "empty/KMNIST/raw" in line
    assert "train-images-idx3-ubyte" in line
    assert bool(attempts) is not offline


# The promised options of the command line. They are spelt out here, because the code makes them from fields.
OF_ALL_RUNS = """
--setting --tasks --task-sizes --class-order --class-order-seed --epochs --iterations --batch-size --lr --optimizer
--model --head --loss-outputs --drop-last --memory-size --memory-per-class -p --limit --validation --evaluate
--eval-every --checkpoint-every --device --precision --threads --data-root --out --force --quiet --json
"""
OPTIONS = {
    "run": f"{OF_ALL_RUNS} --seed --resume",
    "compare": f"{OF_ALL_RUNS} --seeds --jobs --references --no-references",
    "report": "--out --figure --format --style --json",
    "describe": "--setting --tasks --task-sizes --class-order --class-order-seed --limit --validation --json",
    "list": "--json",
}


@pytest.mark.parametrize("verb", OPTIONS)
def test_every_option_is_there(verb: str) -> None:
    command: Any = typer.main.get_command(app)
    offered = {name for p in command.commands[verb].params for name in (*p.opts, *p.secondary_opts)}
    assert set(OPTIONS[verb].split()) <= offered


def test_help_shows_brackets_as_they_are_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rich takes [name=value] for markup and swallows it, unless it is escaped."""
    monkeypatch.setenv("COLUMNS", "200")
    text = call(capsys, "run", "--help").out
    assert "er[memory_size=500]" in text
    assert "resnet32[shortcut=B]" in text


def test_no_arguments_at_all_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    ended = call(capsys)
    assert ended.code == 0
    assert "compare" in ended.out + ended.err


def test_a_run_prints_what_run_json_holds() -> None:
    ended = console_script("run", SCENARIO, "icarl", *TINY, "--out", "out", "-p", "flip_means=true")
    assert ended.returncode == 0
    record = json.loads(Path("out/run.json").read_text())
    # Without a terminal a line for each task.
    lines = ended.stderr.splitlines()
    assert [line.split(" learnt")[0] for line in lines] == [f"icarl, seed 0: task {n} ({n + 1} of 5)" for n in range(5)]
    assert f"average accuracy {100 * record['metrics']['average_accuracy']:.1f} %" in lines[-1]
    assert record["status"] == "done"
    assert record["config"]["strategy_options"]["flip_means"] is True
    assert {file.name for file in Path("out").iterdir()} >= {"run.json", "accuracy.csv", "training.csv", "model.pt"}
    for value in (record["metrics"]["average_accuracy"], record["accuracy"]["class_incremental"][4][4]):
        assert f"{100 * value:.1f}" in ended.stdout
    known = set(shown_forms(record))
    for number in re.findall(r"(?<![\w.-])-?\d+\.\d+(?![\w.])", ended.stdout):
        assert number in known


def shown_forms(value: Any) -> Iterator[str]:
    """Yield every number in a bundle as a table may show it: as it is, or in percent."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from shown_forms(item)
    elif isinstance(value, int | float):
        yield from (f"{scale * value:.{digits}f}" for scale in (1, 100, 1e-3) for digits in (1, 2, 3, 4))


def test_json_of_a_run_is_its_run_json(capsys: pytest.CaptureFixture[str]) -> None:
    ended = call(capsys, "run", SCENARIO, "lwf", *TINY, "--out", "out", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out) == json.loads(Path("out/run.json").read_text())


def test_quiet_says_nothing_but_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    compare = ["compare", SCENARIO, "naive", *TINY, "--seeds", "1", "--no-references", "--out", "out"]
    loud = call(capsys, *compare)
    quiet = call(capsys, *compare, "--quiet", "--force")
    assert "naive, seed 0" in loud.err
    assert quiet.err == ""
    assert call(capsys, *compare, "--quiet").out == quiet.out


def test_a_terminal_sees_progress() -> None:
    ours, theirs = pty.openpty()
    command = [CLBENCH, "run", SCENARIO, "er", "--epochs", "40", "--limit", "50", "--threads", "1", "--out", "out"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux says so where other systems read nothing
                break
            if not part:
                break
            shown += part
    os.close(ours)
    assert process.returncode == 0
    for text in (b"er, seed 0", b"task 0", b"epoch 1 of 40", b"loss", b"images/s"):
        assert text in shown


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two variants of one strategy, two seeds, two workers: the folder and what was printed."""
    folder = tmp_path_factory.mktemp("comparison")
    strategies = ["er[memory_size=20]", "er[memory_size=50]"]
    ended = console_script("compare", SCENARIO, *strategies, *TINY, "--seeds", "0,3", "--jobs", "2", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    # A line for each of five tasks and one for each run, and no progress bars off a terminal.
    assert ended.stderr.count("\n") == 8 * (5 + 1)
    return folder / "runs", ended.stdout


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "report" / "comparison.csv").open(newline="") as file:
        return {row["strategy"]: row for row in csv.DictReader(file)}


def test_variants_stand_side_by_side_beside_the_references(comparison: tuple[Path, str]) -> None:
    folder, printed = comparison
    labels = {"er[memory_size=20]", "er[memory_size=50]", "naive", "joint"}
    assert rows_of(folder).keys() == labels
    report = (folder / "report" / "report.md").read_text()
    for label in labels:
        assert label in printed
        assert label in report
    assert "reference" in printed
    sizes = {r["strategy"]["label"]: {entry["n_exemplars"] for entry in r["tasks"]} for r in records(folder)}
    assert max(sizes["er[memory_size=20]"]) == 20
    assert max(sizes["er[memory_size=50]"]) == 50


def test_mean_standard_deviation_and_n_over_seeds(comparison: tuple[Path, str]) -> None:
    """The independent method is statistics.stdev, which divides by n-1."""
    folder, printed = comparison
    for label, row in rows_of(folder).items():
        runs = [r for r in records(folder) if r["strategy"]["label"] == label]
        assert sorted(r["config"]["seed"] for r in runs) == [0, 3]
        values = [r["metrics"]["average_accuracy"] for r in runs]
        mean, sd = statistics.mean(values), statistics.stdev(values)
        assert float(row["average_accuracy"]) == pytest.approx(mean, abs=1e-9)
        assert float(row["average_accuracy_sd"]) == pytest.approx(sd, abs=1e-9)
        assert row["n"] == "2"
        line = next(line for line in printed.splitlines() if line.startswith(label))
        assert f"{100 * mean:.1f}±{100 * sd:.1f}" in line
        assert line.split()[-1] == "2"
    assert "standard deviation (n-1)" in printed


def test_every_number_of_the_table_is_in_a_file(comparison: tuple[Path, str]) -> None:
    folder, printed = comparison
    for label, row in rows_of(folder).items():
        line = next(line for line in printed.splitlines() if line.startswith(label)).removeprefix(label)
        numbers = [float(value) for value in row.values() if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", value)]
        known = set(shown_forms(numbers)) | {f"{value:.0f}" for value in numbers}
        shown = re.findall(r"-?\d+(?:\.\d+)?", line)
        assert len(shown) >= 8
        assert set(shown) <= known
    with (folder / "report" / "matrices.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == 4 * 2 * 2 * 25  # strategies, seeds, matrices, 5 x 5


def test_a_finished_comparison_is_not_repeated(
    comparison: tuple[Path, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = comparison
    monkeypatch.chdir(folder.parent)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("run.json")}
    strategies = ["er[memory_size=20]", "er[memory_size=50]"]
    ended = call(capsys, "compare", SCENARIO, *strategies, *TINY, "--seeds", "0,3", "--json")
    assert ended.code == 0
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("run.json")} == before
    printed = {row["strategy"]: row for row in json.loads(ended.out)}
    for label, row in rows_of(folder).items():
        for name in ("average_accuracy", "average_accuracy_sd", "forgetting", "task_aware_accuracy", "n"):
            assert printed[label][name] == pytest.approx(float(row[name]), abs=5e-5)
    again = call(capsys, "report", str(folder), "--out", "report", "--json")
    assert json.loads(again.out) == json.loads(ended.out)
    for name in ("comparison.csv", "runs.csv", "matrices.csv"):
        assert (folder / "report" / name).read_bytes() == (Path("report") / name).read_bytes()


def test_a_figure_alone_for_a_paper(
    comparison: tuple[Path, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, _ = comparison
    report = ["report", str(folder), "--out", str(tmp_path / "paper")]
    ended = call(capsys, *report, "--figure", "average_accuracy", "--figure", "forgetting")
    files = [tmp_path / "paper" / f"{SCENARIO}-class-{name}.pdf" for name in ("average_accuracy", "forgetting")]
    assert ended.out.splitlines() == [str(file) for file in files]
    assert sorted((tmp_path / "paper").iterdir()) == files
    assert all(file.read_bytes().startswith(b"%PDF") for file in files)
    talk = call(capsys, *report, "--figure", "forgetting", "--format", "svg", "--style", "talk")
    assert talk.out == f"{files[1].with_suffix('.svg')}\n"
    assert "did you mean 'forgetting'" in refused(capsys, *report, "--figure", "forgeting")
    assert "--figure" in refused(capsys, *report, "--style", "talk")
    assert "--json" in refused(capsys, *report, "--figure", "forgetting", "--json")


def test_a_damaged_run_is_named_and_the_report_goes_on(
    comparison: tuple[Path, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, _ = comparison
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("model.pt"))
    torn = min(copy.rglob("run.json"))
    torn.write_bytes(torn.read_bytes()[:1000])
    ended = call(capsys, "report", str(copy), "--out", str(tmp_path / "report"))
    assert ended.code == 0
    assert f"left out: {torn}: damaged" in ended.err
    assert "| `naive` " in (tmp_path / "report" / "report.md").read_text()
    assert "damaged" in refused(capsys, "report", str(torn.parent))


def test_references_can_be_left_out_and_options_must_suit_every_strategy_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """-p must be accepted by every strategy that was named; the references that were added don't count."""
    options = [*TINY, "--seeds", "1", "--out", "out", "-p", "strength=2"]
    assert call(capsys, "compare", SCENARIO, "lwf", *options, "--no-references").code == 0
    assert rows_of(Path("out")).keys() == {"lwf"}
    assert call(capsys, "compare", SCENARIO, "lwf", *options).code == 0
    assert rows_of(Path("out")).keys() == {"lwf", "naive", "joint"}
    assert {r["config"]["strategy_options"].get("strength") for r in records(Path("out"))} == {2.0, None}
    assert call(capsys, "compare", SCENARIO, "er", *options[:-2], "--memory-size", "30").code == 0
    assert {r["config"]["memory_size"] for r in records(Path("out")) if r["strategy"]["name"] == "er"} == {30}
    line = refused(capsys, "compare", SCENARIO, "lwf", "naive", *options)
    assert "naive" in line
    assert "'strength'" in line


def test_the_tasks_are_shown_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    """400 training and 100 test images a class; outputs are numbered in order of appearance."""
    command = ["describe", SCENARIO, "--task-sizes", "4,3,3", "--class-order", "9,8,7,6,5,4,3,2,1,0"]
    tasks = json.loads(call(capsys, *command, "--json").out)["tasks"]
    assert [task["classes"] for task in tasks] == [[9, 8, 7, 6], [5, 4, 3], [2, 1, 0]]
    assert [task["outputs"] for task in tasks] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert [task["n_train"] for task in tasks] == [1600, 1200, 1200]
    assert [task["n_test"] for task in tasks] == [400, 300, 300]
    lines = call(capsys, *command).out.splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells == [
        ["0", "9, 8, 7, 6", "0-3", "1600", "0", "400"],
        ["1", "5, 4, 3", "4-6", "1200", "0", "300"],
        ["2", "2, 1, 0", "7-9", "1200", "0", "300"],
    ]
    held_out = json.loads(call(capsys, *command, "--validation", "0.1", "--json").out)["tasks"]
    assert [(task["n_train"], task["n_validation"]) for task in held_out] == [(1440, 160), (1080, 120), (1080, 120)]


def test_a_published_class_order_is_given_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Its first classes are those of the authors' run, as every port quotes them; any data of 100 classes takes it."""
    labels = np.arange(100)
    images = np.zeros((100, 8, 8), np.uint8)
    np.savez("hundred.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    for name, first in (("cifar100-icarl", [87, 0, 52, 58, 44]), ("cifar100-1993", [68, 56, 78, 8, 23])):
        ended = call(capsys, "describe", "hundred.npz", "--tasks", "20", "--class-order", name, "--json")
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["tasks"][0]["classes"] == first


@pytest.mark.parametrize("arguments", [("run", "split-mnist-5k", "lwf", "--out", ""), ("run", "", "lwf")])
def test_an_empty_argument_is_refused(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """As from an unset shell variable; an empty path would mean the current folder."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "empty argument" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version").out == f"clbench {metadata.version('clbench')}\n"


def test_the_list_of_strategies_is_filtered_by_family_and_setting(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(call(capsys, "list", "strategies", "--family", "isolation", "--setting", "task", "--json").out)
    # All four are told the task at test.
    assert {row["name"] for row in found["strategies"]} == {"packnet", "hat", "pnn", "xdg"}
    assert json.loads(
        call(capsys, "list", "strategies", "--family", "isolation", "--setting", "class", "--json").out
    ) == {"strategies": []}


def test_the_list_says_what_a_strategy_keeps_beside_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    """By hand, in bytes, for mlp:400-400 (478,410 weights with ten outputs, of 4 bytes) and 200 exemplars of 784.

    ewc keeps importances and anchors, two of each weight; a further task adds two outputs of 401 weights to both. slda
    keeps a 400 x 400 moment, ten sums of 400 and ten counts in float64, ten weights of 400 and biases in float32.
    """
    listed = json.loads(call(capsys, "list", "strategies", "--json").out)["strategies"]
    rows = {row["name"]: (row["extra_bytes"], row["extra_bytes_per_task"]) for row in listed}
    assert rows["naive"] == (0, 0)
    assert rows["er"] == (200 * 784, 0)
    assert rows["ewc"] == (2 * 4 * 478_410, 2 * 4 * 2 * 401)
    assert rows["slda"] == (8 * (400 * 400 + 10 * 400 + 10) + 4 * 10 * 401, 2 * (8 * 401 + 4 * 401))
    assert all(row[0] is not None for row in rows.values())


def test_lists_name_everything_that_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(call(capsys, "list", "--json").out)
    for kind in ("strategies", "scenarios", "models"):
        assert [row["name"] for row in found[kind]] == entry_point_names(f"clbench.{kind}")
        shown = call(capsys, "list", kind).out
        for row in found[kind]:
            assert row["name"] in shown
        assert "…" not in shown  # no option is cut off


def own_images() -> dict[str, Any]:
    """Four classes that differ in brightness, 8 x 8 pixels, 12 training and 4 test images each."""
    random = np.random.default_rng(0)
    data: dict[str, Any] = {}
    for part, each in (("train", 12), ("test", 4)):
        labels = np.repeat(np.arange(4), each)
        noise = random.integers(0, 40, (len(labels), 8, 8))
        data |= {f"x_{part}": (60 * labels[:, None, None] + noise).astype(np.uint8), f"y_{part}": labels}
    return data


def test_own_data_takes_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from PIL import Image

    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
    data = own_images()
    np.savez("mine.npz", **data)
    for part in ("train", "test"):
        for index, (image, label) in enumerate(zip(data[f"x_{part}"], data[f"y_{part}"], strict=True)):
            file = Path("photos") / part / f"class {label}" / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    for source in ("mine.npz", "photos"):
        out = f"out-{source}"
        ended = call(capsys, "run", source, "naive", "--tasks", "2", "--epochs", "2", "--threads", "1", "--out", out)
        assert ended.code == 0, ended.err
        record = json.loads((Path(out) / "run.json").read_text())
        assert [task["n_train"] for task in record["scenario"]["tasks"]] == [24, 24]
        assert [task["n_test"] for task in record["scenario"]["tasks"]] == [8, 8]
        assert record["status"] == "done"
    assert record["scenario"]["class_names"] == ["class 0", "class 1", "class 2", "class 3"]


def test_a_pipe_that_is_closed_is_no_error() -> None:
    with subprocess.Popen([CLBENCH, "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err == b""


# Naive; it leaves a file for each run that has trained a step.
STEPS = """
from pathlib import Path
from clbench import Strategy, Traits

class Steps(Strategy):
    traits = Traits(family="reference")

    def after_step(self, batch: object) -> None:
        Path(f"trained-{self.config.seed}").touch()
"""
ONE = ["run", SCENARIO, "steps.py:Steps", "--out", "runs/one"]
TWO = ["compare", SCENARIO, "steps.py:Steps", "--no-references", "--seeds", "2", "--jobs", "2"]
INTERRUPTED = {
    130: "clbench: interrupted; what was saved is kept and can be continued",
    143: "clbench: terminated; what was saved is kept and can be continued",
}
# Nothing of a run was begun yet.
EARLY = {130: "clbench: interrupted", 143: "clbench: terminated"}
ENDINGS = [
    (ONE, 1, signal.SIGTERM, 143),
    pytest.param(ONE, 1, signal.SIGINT, 130, marks=pytest.mark.slow),
    pytest.param(TWO, 2, signal.SIGTERM, 143, marks=pytest.mark.slow),
    (TWO, 2, signal.SIGINT, 130),
]


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interruption_in_the_middle_of_an_import_ends_at_once(number: str, code: int, tmp_path: Path) -> None:
    """numpy and torch catch exceptions while they import parts of theirs, and so does this module."""
    (tmp_path / "catches.py").write_text(
        textwrap.dedent(f"""
        import os, signal, time
        from clbench import Strategy, Traits

        try:
            os.kill(os.getpid(), signal.{number})
            time.sleep(5)
        except BaseException:
            pass


        class Catches(Strategy):
            traits = Traits(family="reference")
        """)
    )
    command = [sys.executable, "-m", "clbench", "run", SCENARIO, "catches.py:Catches", "--limit", "5", "--epochs", "1"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == code
    assert ended.stderr.splitlines() == [f"{EARLY[code]} before a run began; nothing was saved"]
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".pyc" and path.name != "__pycache__"] == [
        "catches.py"
    ]


COMMANDS = [[CLBENCH], [sys.executable, "-m", "clbench"]]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("code", INTERRUPTED)
@pytest.mark.parametrize("module", ["typer", "clbench.cli", "pydantic"])
def test_an_interruption_of_the_first_imports_ends_at_once(
    command: list[str], code: int, module: str, tmp_path: Path
) -> None:
    """The signal comes before there is a command line at all."""
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
        import os, sys, time

        class Interrupts:
            @staticmethod
            def find_spec(name, *_):
                if name == {module!r}:
                    os.kill(os.getpid(), {code - 128})
                    time.sleep(5)

        sys.meta_path.insert(0, Interrupts)
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run([*command, "list"], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr.splitlines()) == (code, "", [EARLY[code]])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("code", INTERRUPTED)
def test_an_interruption_of_the_end_ends_at_once(command: list[str], code: int, tmp_path: Path) -> None:
    """The signal comes while Python shuts down."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import atexit, os\natexit.register(lambda: os.kill(os.getpid(), {code - 128}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run([*command, "--version"], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.splitlines()) == (code, [EARLY[code]])


@pytest.mark.parametrize("code", INTERRUPTED)
def test_an_interruption_ends_a_loop_that_is_not_ours_and_comes_to_no_step(code: int, tmp_path: Path) -> None:
    """As a strategy of Avalanche may; nothing of it can be saved."""
    (tmp_path / "endless.py").write_text(
        textwrap.dedent(f"""
        import os, time
        from clbench import Strategy, Traits
        from clbench.running.run import Run

        class EndlessRun(Run):
            continues = False

            def train(self, task):
                os.kill(os.getpid(), {code - 128})
                time.sleep(20)
                raise ValueError("no end")

        class Endless(Strategy):
            traits = Traits(family="reference")
            runner = EndlessRun
        """)
    )
    command = [CLBENCH, "run", SCENARIO, "endless.py:Endless", *TINY]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr.splitlines()) == (
        code,
        "",
        [f"{INTERRUPTED[code]}: clbench {shlex.join([*command[1:], '--resume'])}"],
    )
    assert [record["status"] for record in records(tmp_path / "runs")] == ["running"]


@pytest.mark.parametrize(("arguments", "n_runs", "number", "code"), ENDINGS)
def test_an_interruption_ends_everything(
    arguments: list[str], n_runs: int, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """SIGTERM goes to the one process that Slurm knows; Ctrl-C goes from the terminal to the whole group."""
    Path("steps.py").write_text(STEPS)
    process = subprocess.Popen(
        [CLBENCH, *arguments, "--epochs", "100000", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("trained-*"))) < n_runs and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    if number is signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    try:
        # Workers inherit both pipes, so the end of both pipes means that no process is left to write into them.
        out, err = process.communicate(timeout=30)
    finally:
        leave_none(process.pid)
    assert process.returncode == code
    # The command goes on when it is given again; a single run needs --resume for that.
    again = [*arguments, "--epochs", "100000", "--threads", "1", *(["--resume"] if arguments[0] == "run" else [])]
    assert (out, err.splitlines()) == ("", [f"{INTERRUPTED[code]}: clbench {shlex.join(again)}"])
    assert all(record["status"] == "running" for record in records(tmp_path / "runs"))
    # Each was in its first task, where nothing else is saved before ten minutes are over.
    assert len(list((tmp_path / "runs").rglob("checkpoint.pt"))) == n_runs


def leave_none(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
