"""The view on a terminal: tables that fit, progress, help, and the sentence that ends a command."""

import io
import json
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

import clbench
from clbench.cli import main
from clbench.learning.strategy import Progress
from clbench.results.record import EpochRecord
from clbench.running.display import Display, Named
from clbench.running.position import NAME, Position, position
from clbench.running.progress import Pace
from clbench.running.resolve import prepare, resolve
from clbench.support.endings import ending
from clbench.support.fitted import GAP, Column, Fitted

TINY = ["--limit", "5", "--epochs", "1", "--model", "mlp:8", "--threads", "1"]
FAST: dict[str, Any] = {"limit": 5, "epochs": 1, "model": "mlp:8", "threads": 1}
WIDTHS = (80, 120)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


# Tables


def printed(table: Fitted, width: int) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    return text.getvalue().splitlines()


def test_a_table_of_any_shape_fits_and_breaks_no_word() -> None:
    """100 tables of random shapes: no line is too long, and what is shown is there in whole words."""
    chance = random.Random(0)
    for _ in range(100):
        n, width = chance.randint(0, 6), chance.randint(30, 160)
        columns = []
        for place in range(chance.randint(1, 12)):
            wraps = chance.random() < 0.3
            title = " ".join("abcdefghij"[: chance.randint(1, 10)] for _ in range(chance.randint(1, 3)))
            cells = [", ".join(["x=1", "yy=2"] * chance.randint(1, 4)) if wraps else "9" * chance.randint(1, 9)] * n
            columns.append(Column(title, cells, chance.randint(0, 9), wraps=wraps) if place else Column("name", cells))
        table = Fitted(columns, caption="a caption " * chance.randint(0, 20), more="more")
        lines = printed(table, width)
        assert max(map(len, lines)) <= width
        shown = table.shown(width)
        assert sum(w for _, w in shown) + GAP * (len(shown) - 1) <= width
        text = "".join(lines)
        for column, _ in shown:
            assert all(word in text for word in column.title.split())
            assert column.wraps or all(str(cell) in text for cell in column.cells)


def test_the_columns_that_go_first_are_those_that_matter_least() -> None:
    """Widths by hand: 4 + 6 + 8 with two gaps of 2 are 22 columns; without the 8 and its gap they are 12."""
    table = Fitted([Column("aaaa", ["1"], 2), Column("bbbbbb", ["1"], 3), Column("cccccccc", ["1"], 1)], more="else")
    assert [column.title for column, _ in table.shown(22)] == ["aaaa", "bbbbbb", "cccccccc"]
    assert [column.title for column, _ in table.shown(21)] == ["aaaa", "bbbbbb"]
    assert [column.title for column, _ in table.shown(11)] == ["bbbbbb"]
    assert "cccccccc" in " ".join(printed(table, 21))  # named as left out


@pytest.mark.parametrize("width", WIDTHS)
def test_lists_have_a_line_for_each_strategy_and_claim(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for kind, most in (("strategies", 8), ("claims", 6)):
        lines = called(capsys, "list", kind)[1].splitlines()
        assert max(map(len, lines)) <= width
        names = [
            row.get("name", row.get("claim")) for row in json.loads(called(capsys, "list", kind, "--json")[1])[kind]
        ]
        for name in names:
            assert sum(line.split(" ")[0] == name for line in lines) == 1
        # Title, head, rule and notes beside the names.
        assert len(lines) <= len(names) + most
    assert max(map(len, called(capsys, "list")[1].splitlines())) <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_everything_about_one_name_is_told(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for name, words in {
        "lwf": ["Li & Hoiem", "strength=1.0", "distillation", "vandeven2022/split-mnist-class/lwf"],
        "split-mnist": ["task_sizes", "60,000"],
        "mlp": ["widths=400,400"],
        "vandeven2022/split-mnist-class/lwf": ["21.89", "Nature"],
    }.items():
        code, out, _ = called(capsys, "list", name)
        assert code == 0
        assert max(map(len, out.splitlines())) <= width
        flat = "".join(out.split())
        assert all("".join(word.split()) in flat for word in words), out
    code, _, err = called(capsys, "list", "lwff")
    assert (code, err.count("\n")) == (2, 1)
    assert "'lwf'" in err


@pytest.mark.parametrize("verb", ["run", "compare", "plan", "tune", "list", "watch", "sweep", "describe"])
def test_help_fits_on_a_screen_or_so_and_all_of_it_is_one_option_away(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    from clbench.cli import app

    monkeypatch.setenv("COLUMNS", "80")
    short = called(capsys, verb, "--help")[1].splitlines()
    assert max(map(len, short)) <= 80
    assert len(short) <= 75
    command: Any = typer.main.get_command(app)
    options = [name for p in command.commands[verb].params for name in p.opts if name.startswith("--")]
    if "--help-all" in options:
        assert any("--help-all" in line for line in short)
        whole = called(capsys, verb, "--help-all")[1]
        assert all(option in whole for option in options)
    else:
        assert all(option in "\n".join(short) for option in options)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_tables_of_a_comparison_and_of_watch_fit(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    strategies = ["er[memory_size=20]", "er[memory_size=50]"]
    code, out, err = called(capsys, "compare", "split-mnist-5k", *strategies, "--seeds", "2", "--out", "runs", *TINY)
    assert code == 0, err
    table = out.split("verdict:")[0].splitlines()
    assert max(map(len, table)) <= width
    assert "…" not in out
    for words in ("class-incr.", "forgetting", "strategy", "memory_size=20]"):
        assert words in out
    # Five tasks and an end of each of eight runs.
    assert len(err.splitlines()) == 8 * 6
    failed = json.loads(next(Path("runs").rglob("run.json")).read_text())
    failed |= {"status": "failed", "error": "loss is not finite " * 30 + "the end"}
    Path("runs/failed").mkdir()
    Path("runs/failed/run.json").write_text(json.dumps(failed))
    out = called(capsys, "watch", "runs", "--once")[1]
    assert max(map(len, out.splitlines())) <= width
    assert "the end" in " ".join(out.split())
    order = [line.split()[1:3] for line in out.splitlines() if line.startswith("done")]
    expected = [[name, str(seed)] for name in (*strategies, "naive", "joint") for seed in (0, 1)]
    assert order == expected, "the order of the comparison"


# Progress


def test_the_position_of_a_run_is_what_its_steps_say(tmp_path: Path) -> None:
    """Worked out by hand: 5 equal tasks; after step 6 of 12 in task 1, a fifth and half of a fifth are done."""
    config, scenario = prepare(resolve("split-mnist-5k", "naive", FAST))
    pace = Pace(tmp_path)
    pace.begin(config, scenario, 0)
    assert position(tmp_path) == Position(0, 5, seconds=pytest.approx(0, abs=5))
    at = Progress(task=1, stage="train", epoch=1, step=6, steps_per_epoch=4, steps=12)
    pace.step(at, None)
    found = position(tmp_path)
    assert found is not None
    assert found.share == pytest.approx(0.3)
    assert (found.task, found.n_tasks, found.epoch, found.n_epochs, found.loss) == (1, 5, 1, 3, None)
    assert str(found) == "task 1 (2 of 5), epoch 2 of 3"
    pace.epoch(EpochRecord(task=1, stage="train", epoch=1, losses={"a": 0.25, "b": 0.5}, images=300, seconds=2.0))
    at.step = 7
    pace.step(at, None)
    # Not a second has gone by since the last write, so nothing is written.
    assert position(tmp_path).share == pytest.approx(0.3)  # type: ignore[union-attr]
    pace.wrote = 0.0
    at.stages_done, at.n_stages = 1, 2
    pace.step(at, None)
    found = position(tmp_path)
    assert found is not None
    # In the second of two stages, 7 of 12 steps: 0.2 + 0.2 (1 + 7 / 12) / 2.
    assert found.share == pytest.approx(0.2 + 0.2 * (1 + 7 / 12) / 2)
    assert found.loss == 0.75
    pace.close()
    assert position(tmp_path) is None


def test_the_time_left_runs_on_between_two_writes(tmp_path: Path) -> None:
    file = tmp_path / NAME
    file.write_text(json.dumps({"task": 0, "n_tasks": 2, "seconds": 10.0, "seconds_left": 30.0}))
    first = position(tmp_path)
    time.sleep(1.1)
    second = position(tmp_path)
    assert first is not None
    assert second is not None
    assert 1.0 < (first.seconds_left or 0) - (second.seconds_left or 0) < 5.0
    for text in ("", "{", "[]", "7", '{"task": 0}', '{"task": "x", "n_tasks": null}', '{"foo": 1}'):
        file.write_text(text)
        assert position(tmp_path) is None


def test_the_time_of_all_runs_is_that_of_others_like_them(tmp_path: Path) -> None:
    """By hand: naive took 10 s, so the naive run to come takes 10 s; the other two take 10 s for want of others."""
    runs = {tmp_path / str(i): Named(label, 0) for i, label in enumerate(["naive", "naive", "er", "er"])}
    display = Display(runs, total=4, quiet=True)
    assert display.seconds_left({}) is None
    display.finished(tmp_path / "0", "done", seconds=10.0)
    assert display.seconds_left({}) == 30
    under_way = {tmp_path / "2": Position(0, 5, seconds=30.0, seconds_left=10.0)}
    # er takes 40 s: 10 are left of one, 40 of the other, 10 of naive.
    assert display.seconds_left(under_way) == 60


def test_python_shows_progress_unless_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    clbench.run("split-mnist-5k", "naive", out="one", **FAST)
    assert [line.split(" learnt")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"naive, seed 0: task {n} ({n + 1} of 5)" for n in range(5)
    ]
    clbench.run("split-mnist-5k", "naive", out="two", quiet=True, **FAST)
    clbench.compare("split-mnist-5k", "naive", seeds=1, references=False, quiet=True, out="three", **FAST)
    clbench.sweep({"scenario": "split-mnist-5k", "strategy": "naive", "seeds": 1, **FAST}, out="four", quiet=True)
    assert capsys.readouterr().err == ""


def test_a_notebook_shows_progress_in_the_output_of_its_cell(tmp_path: Path) -> None:
    """A module with what the display asks of IPython stands for it."""
    package = tmp_path / "IPython"
    package.mkdir()
    (package / "__init__.py").write_text(
        "class ZMQInteractiveShell: pass\ndef get_ipython(): return ZMQInteractiveShell()\n"
    )
    (package / "display.py").write_text(
        textwrap.dedent("""
        class Handle:
            def update(self, content, raw):
                print("updated", content["text/plain"])

        def display(content, raw, display_id):
            print("displayed", content["text/plain"])
            return Handle()
        """)
    )
    options = FAST | {"epochs": 60, "limit": 100}
    script = f"import IPython, clbench; clbench.run('split-mnist-5k', 'naive', out='run', **{options!r})"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "displayed" in ended.stdout
    assert "naive, seed 0" in ended.stdout
    assert "of 60" in ended.stdout
    assert ended.stderr == ""


# Ends


@pytest.mark.parametrize(
    ("arguments", "again"),
    [
        (["run", "x", "lwf"], "clbench run x lwf --resume"),
        (["run", "x", "lwf", "--force", "--resume"], "clbench run x lwf --resume"),
        (["compare", "x", "er[a=1]", "--force"], "clbench compare x 'er[a=1]'"),
        (["sweep", "my grid.toml"], "clbench sweep 'my grid.toml'"),
        (["tune", "x", "lwf"], "clbench tune x lwf"),
        (["run", "x", "lwf", "--overfit", "3"], None),
        (["list"], None),
        ([], None),
    ],
)
def test_the_sentence_names_the_command_that_goes_on(arguments: list[str], again: str | None) -> None:
    text, code = ending(signal.SIGTERM, arguments)
    assert code == 143
    assert text == "terminated; what was saved is kept and can be continued" + (f": {again}" if again else "")


@pytest.mark.slow
def test_workers_are_gone_within_seconds_of_their_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clbench", "compare", "split-mnist-5k", "naive", "lwf", "--no-references"]
    options = ["--seeds", "1", "--jobs", "2", "--epochs", "100000", "--threads", "1", "--out", "runs"]
    parent = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    ends = time.monotonic() + 120
    while len(list(Path("runs").rglob(NAME))) < 2 and time.monotonic() < ends:
        time.sleep(0.2)
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) >= 2
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
