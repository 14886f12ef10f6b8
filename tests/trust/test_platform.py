"""Files of other editors, `~`, other locales, terminals and systems: what clbench takes for granted of none of them."""

import ast
import io
import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clbench
from clbench import ConfigError, Result
from clbench.cli import main
from clbench.cli.options import read_config
from clbench.many.sweeps import plan_sweep, read_grid
from clbench.results.result import load_results
from clbench.running.folder import RunFolder, default_folder
from clbench.running.resolve import resolve, strategy_class
from clbench.support.files import expanded

ROOT = Path(__file__).parents[2]
SCENARIO = "split-mnist-5k"
OPTIONS: dict[str, Any] = {"tasks": 2, "limit": 6, "model": "mlp:8", "epochs": 1, "batch_size": 8, "threads": 1}
TYPED = ["--tasks", "2", "--limit", "6", "--model", "mlp:8", "--epochs", "1", "--batch-size", "8", "--threads", "1"]
GRID = 'scenario = "split-mnist-5k"\nstrategy = ["naive"]\nseeds = 1\ntasks = 2\nlimit = 6\n'
STRATEGY = "import clbench\n\n\nclass Own(clbench.Strategy):\n    traits = clbench.Traits(family='replay')\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, beside the folder in which the test works."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code, *capsys.readouterr()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    return err


# Files as editors leave them -----------------------------------------------------------------------------------------

MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("mark", [b"", MARK], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_files_with_a_byte_order_mark_and_windows_lines_are_read(mark: bytes, newline: str) -> None:
    def write(name: str, text: str) -> Path:
        Path(name).write_bytes(mark + text.replace("\n", newline).encode("utf-8"))
        return Path(name)

    assert read_grid(write("grid.toml", GRID)) == tomllib.loads(GRID)
    assert len(plan_sweep("grid.toml")) == 1
    options = {"lr": 0.5, "tuned_by": "Müller"}
    assert read_config(write("options.toml", 'lr = 0.5\ntuned_by = "Müller"\n')) == options
    assert read_config(write("options.json", json.dumps(options, indent=1, ensure_ascii=False))) == options
    assert strategy_class(f"{write('own.py', STRATEGY)}:Own").__name__ == "Own"


def test_a_record_that_was_saved_again_with_a_byte_order_mark_is_read() -> None:
    done = clbench.run(SCENARIO, "naive", out="run", **OPTIONS)
    file = Path("run/run.json")
    file.write_bytes(MARK + file.read_bytes().replace(b"\n", b"\r\n"))
    assert Result.load("run").record == done.record


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_a_grid_in_another_encoding_is_refused_in_a_sentence(encoding: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The first is what PowerShell writes."""
    Path("grid.toml").write_bytes(f"# Müller\n{GRID}".encode(encoding))
    assert "grid.toml: 'utf-8' codec" in refused(capsys, "sweep", "grid.toml")
    assert "grid.toml: 'utf-8' codec" in refused(capsys, "run", SCENARIO, "naive", "--config", "grid.toml")


# The home folder -----------------------------------------------------------------------------------------------------


def arrays(path: Path) -> None:
    images = np.arange(16 * 64, dtype=np.uint8).reshape(16, 8, 8)
    labels = np.arange(16) % 4
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)


def test_every_path_of_the_python_interface_may_begin_with_the_home_folder(home: Path) -> None:
    arrays(home / "mine.npz")
    (home / "own.py").write_text(STRATEGY)
    (home / "grid.toml").write_text(GRID + 'model = "mlp:8"\nepochs = 1\n')
    own = {**OPTIONS, "limit": None}
    done = clbench.run("~/mine.npz", "~/own.py:Own", out="~/one", data_root="~/data", **own)
    assert done.status == "done"
    torch.save({k: v for k, v in torch.load(home / "one/model.pt").items() if "head" not in k}, home / "weights.pt")
    clbench.run("~/mine.npz", "naive", out="~/two", weights="~/weights.pt", **own)
    clbench.compare("~/mine.npz", ["~/own.py:Own"], seeds=1, references=False, out="~/several", **own)
    clbench.sweep("~/grid.toml", out="~/swept")
    assert Result.load("~/one").record == done.record
    assert [run.strategy for run in load_results("~/several")] == ["~/own.py:Own"]
    assert len(clbench.load(["~/one", "~/two"])) == 2 * 4
    clbench.reports.write_report([done], "~/report")
    clbench.reports.write_figures([done], "~/figures", ["average_accuracy"], kind="svg")
    done.write("~/again")
    left = {"one", "two", "several", "swept", "report", "figures", "again"}
    assert {path.name for path in home.iterdir()} - {"__pycache__", ".cache", ".config"} == left | {
        *("mine.npz", "own.py", "grid.toml", "weights.pt")
    }
    assert list(Path().iterdir()) == []


def test_every_path_on_the_command_line_and_in_a_file_may(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shell leaves `~` as it is in quotes, and behind the sign of `--out=~/x`."""
    arrays(home / "mine.npz")
    (home / "options.toml").write_text('data_root = "~/data"\nepochs = 1\n')
    (home / "grid.toml").write_text(GRID + 'model = "mlp:8"\nepochs = 1\ndata_root = "~/data"\n')
    small = ["--model", "mlp:8", "--threads", "1", "--quiet"]
    for arguments in (
        ["run", "~/mine.npz", "naive", "--tasks", "2", "--config", "~/options.toml", "--out", "~/one", *small],
        ["run", "~/mine.npz", "naive", "--tasks", "2", "--config=~/options.toml", "--out=~/two", "--lr=0.2", *small],
        ["compare", SCENARIO, "naive", "--no-references", "--seeds", "1", "--out=~/several", "--quiet", *TYPED],
        ["sweep", "~/grid.toml", "--out", "~/swept", "--quiet"],
        ["report", "~/one", "~/two", "--out=~/report"],
        ["watch", "~/swept", "--once"],
        ["describe", "~/mine.npz", "--tasks", "2"],
    ):
        code, _, err = call(capsys, *arguments)
        assert code == 0, (arguments, err)
    assert Result.load(home / "one").config["data_root"] == str(home / "data")
    names = {"mine.npz", "options.toml", "grid.toml", "one", "two", "several", "swept", "report"}
    assert names <= {path.name for path in home.iterdir()}
    assert list(Path().iterdir()) == []


@pytest.mark.slow
def test_a_search_may_too(home: Path) -> None:
    clbench.tune(SCENARIO, "lwf", trials=1, first_tasks=2, out="~/tuned", **(OPTIONS | {"tasks": 3}))
    assert (home / "tuned/best.toml").is_file()
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "~nobody-of-this-name"])
def test_a_home_that_is_not_there_is_refused(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such home folder" in refused(capsys, "run", SCENARIO, "naive", "--out", path, *TYPED)
    with pytest.raises(ConfigError, match="no such home folder"):
        clbench.run(SCENARIO, "naive", out=path, **OPTIONS)
    assert list(Path().iterdir()) == []


def test_a_file_whose_name_begins_so_is_that_file_and_variables_are_no_ones_affair() -> None:
    Path("~no-user of this name").mkdir()
    for name in ("~no-user of this name", "./~x"):
        assert expanded(name) == expanded(expanded(name)) == Path.cwd() / name
    assert RunFolder("$HOME/x").path == Path.cwd() / "$HOME/x"
    assert expanded("a/~/b") == Path("a/~/b")


def test_the_same_place_by_either_name_is_one_run(home: Path) -> None:
    (home / "own.py").write_text(STRATEGY)
    short, long = (resolve(SCENARIO, f"{at}/own.py:Own", OPTIONS) for at in ("~", str(home)))
    assert short.identity() == long.identity()
    assert default_folder(short, "~/runs") == default_folder(long, home / "runs")


# Locale, terminal, folders -------------------------------------------------------------------------------------------


def files() -> list[Path]:
    return [
        file for folder in ("clbench", "strategies", "scenarios", "reports") for file in (ROOT / folder).rglob("*.py")
    ]


def test_every_text_file_is_opened_as_utf_8() -> None:
    """The encoding of the locale would be taken where none is named; binary files have none."""
    bare = []
    for file in files():
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = [a.value for a in node.args if isinstance(a, ast.Constant)]
            keys = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            binary = any(isinstance(v, str) and re.fullmatch("[rwxa]+b[+]?", v) for v in [*given, keys.get("mode")])
            named = "encoding" in keys or "utf-8" in given or "utf-8-sig" in given
            text = name in ("read_text", "write_text", "fdopen", "NamedTemporaryFile") or (
                name == "open" and not (isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name))
            )
            if name in ("run", "Popen", "check_output") and (keys.get("text") or keys.get("universal_newlines")):
                bare.append((file.name, node.lineno))
            # clbench's own read_text reads options, and opens nothing.
            own = name == "read_text" and isinstance(node.func, ast.Name)
            if text and not own and not binary and not named:
                bare.append((file.name, node.lineno))
    assert bare == []


# The C locale, without Python's own ways out of it.
PLAIN = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def python(code: str, *arguments: str, **environment: str) -> Any:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONIOENCODING", "TMPDIR", *environment)}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        timeout=300,
        env=kept | environment,
    )


@pytest.mark.slow
def test_a_comparison_under_the_c_locale_in_a_folder_with_any_name() -> None:
    """The terminal knows ASCII alone, and a table has the sign for plus or minus."""
    out = "ein Ordner/mit Leerzeichen/ünïcödé 中"
    Path("müller.toml").write_text('tuned_by = "Müller, von Hand"\n', encoding="utf-8")
    code = """
        import sys
        import clbench.cli
        assert sys.stdout.encoding.lower() not in ("utf-8", "utf8"), sys.stdout.encoding
        clbench.cli.main(sys.argv[1:])
    """
    arguments = ["compare", SCENARIO, "naive", "--no-references", "--seeds", "2", "--config", "müller.toml"]
    done = python(code, *arguments, "--out", out, *TYPED, **PLAIN)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"naive" in done.stdout
    assert done.stdout.isascii()
    page = Path(out, "report/report.html").read_text("utf-8")
    assert "±" in page
    assert "Müller, von Hand" in page
    assert load_results(out)[0].record["config"]["tuned_by"] == "Müller, von Hand"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_lacks_a_character_gets_another(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clbench.run(SCENARIO, "naive", seed=0, out="runs/ü 中", **OPTIONS)
    clbench.run(SCENARIO, "naive", seed=1, out="runs/b", **OPTIONS)
    for arguments, code in (
        (["report", "runs", "--out", "ü 中"], 0),
        (["describe", SCENARIO], 0),
        (["list"], 0),
        (["--help"], 0),
        (["run", SCENARIO, "中", "--out", "ü"], 2),
    ):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        shown = [stream.buffer.getvalue().decode(encoding) for stream in streams if stream.flush() is None]  # type: ignore[attr-defined]
        monkeypatch.undo()
        assert ended.value.code == code, shown
        assert "Traceback" not in shown[1]


@pytest.mark.parametrize("path", ["x" * 300, "x/" * 3000, "a\0b"], ids=["long name", "long path", "NUL"])
def test_a_path_that_no_system_takes_is_refused(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="accepted"):
        clbench.run(SCENARIO, "naive", out=path, **OPTIONS)
    if "\0" not in path:
        assert "accepted" in refused(capsys, "run", SCENARIO, "naive", "--out", path, *TYPED)
        assert "accepted" in refused(capsys, "compare", SCENARIO, "naive", "--out", path, *TYPED)
        refused(capsys, "report", path)
        refused(capsys, "sweep", path)
        refused(capsys, "run", SCENARIO, "naive", "--config", path, *TYPED)
        refused(capsys, "run", path, "naive", *TYPED)


# Systems without what Unix alone has.
LESS = """
    import os
    import signal
    import sys

    # Of other packages, which have ways of their own where these are missing.
    import psutil

    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM", "SIGQUIT", "setitimer", "pthread_sigmask"):
        delattr(signal, name)
    for name in ("sched_getaffinity", "O_DIRECTORY", "killpg"):
        delattr(os, name)
    for name in ("fcntl", "resource", "termios", "pwd", "grp"):
        sys.modules[name] = None

    from clbench.__main__ import main

    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_runs_on_a_system_without_the_signals_and_modules_of_unix(jobs: str) -> None:
    arguments = ["compare", SCENARIO, "naive", "--no-references", "--seeds", "2", "--out", "less", "--jobs", jobs]
    done = python(LESS, *arguments, *TYPED)
    assert done.returncode == 0, done.stderr
    clbench.compare(SCENARIO, ["naive"], seeds=2, out="here", references=False, **OPTIONS)
    less, here = ([run.record["classifiers"] for run in load_results(at)] for at in ("less", "here"))
    assert less == here


@pytest.mark.slow
def test_neither_a_home_nor_a_folder_for_temporary_files_is_needed() -> None:
    """The home is a file, in which no cache can be made, and TMPDIR is not there."""
    Path("file").touch()
    arrays(Path("mine.npz"))
    code = """
        import sys
        import clbench
        from clbench.cli import main
        options = {"tasks": 2, "model": "mlp:8", "epochs": 1, "batch_size": 8, "threads": 1}
        clbench.run("mine.npz", "naive", out="run", **options)
        main(["plan", "mine.npz", "er", "--tasks", "2", "--model", "mlp:8", "--epochs", "1"])
    """
    nowhere = {name: str(Path("file").resolve()) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    done = python(code, **nowhere, TMPDIR="/nowhere/at/all")
    assert done.returncode == 0, done.stderr
    assert Result.load("run").status == "done"
