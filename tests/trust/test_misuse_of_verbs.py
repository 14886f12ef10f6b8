"""Wrong usage of every verb of the command line: exit code 2 and one line on stderr, within a second or two."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from clbench.cli import VERBS, main

HERE = "{here}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with wrong things of every kind, which is the present one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary.json").write_bytes(bytes(range(256)))
    (tmp_path / "binary.toml").write_bytes(bytes(range(256)))
    (tmp_path / "empty.toml").write_text("")
    (tmp_path / "broken.toml").write_text("lr = [")
    (tmp_path / "broken.json").write_text('{"lr": ')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "unknown.toml").write_text("lrr = 0.1")
    (tmp_path / "typed.toml").write_text('lr = "fast"')
    (tmp_path / "options.toml").write_text("strategy_options = 5")
    (tmp_path / "text.txt").write_text("not a run")
    (tmp_path / "mine.py").write_text("class Mine: pass")
    (tmp_path / "mine.npz").write_bytes(b"no archive")
    (tmp_path / "grid.toml").write_text('scenario = "split-mnist-5k"\nstrategy = "naive"\nseeds = 1\nepochs = 1\n')
    (tmp_path / "bad-grid.toml").write_text('scenario = "split-mnist-5k"\nstrategy = "naive"\nlrr = 1\n')
    return tmp_path


def ended(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


SCENARIO = "split-mnist-5k"
# Values that no option takes; each goes to options of other kinds below.
NUMBERS = ["", " ", "abc", "-1", "1e400", "nan", "inf", "--", "9" * 400, "1,2", "[1]", "１２", "0x10", "1_0", "\u0663"]
WRONG: list[tuple[str, ...]] = [
    # Names.
    *((verb, name, "naive") for verb in ("run", "compare", "plan") for name in ("", " ", "no-such", "split-mnist-5k[", "[]")),
    *((verb, SCENARIO, name) for verb in ("run", "compare", "plan", "tune") for name in ("", "nave", "naive[", "naive[[a=1]]")),
    *(("run", SCENARIO, name) for name in ("lwf[strength]", "lwf[strength=]", "lwf[=1]", "lwf[strength=1,strength=2]")),
    *(("run", SCENARIO, name) for name in ("lwf[strength=a]", "lwf[strength=-1]", "lwf[strenght=1]", "lwf[strength=nan]")),
    *(("run", SCENARIO, name) for name in ("mine.py:Mine", "mine.py:None", "none.py:Mine", "mine.py:", ":Mine", "folder:Mine")),
    *(("run", SCENARIO, name) for name in ("naivе", "lwf[strength＝1]", "lwf；", "no:such", "avalanche:NoSuch")),
    *(("run", name, "naive") for name in ("mine.npz", "none.npz", "folder", "text.txt", "/", "..", "split-mnist-5k[tasks=a]")),
    *(("run", name, "naive") for name in ("split-mnist-5k[tasks=0]", "split-mnist-5k[tasks]", "split-mnist-5k[[tasks=2]]")),
    ("run", SCENARIO),
    ("run",),
    ("run", SCENARIO, "naive", "lwf"),
    ("compare", SCENARIO),
    ("compare", SCENARIO, "naive", "naive"),
    ("plan",),
    ("tune", SCENARIO),
    # Options.
    *(("run", SCENARIO, "naive", "--lr", value) for value in NUMBERS),
    *(("run", SCENARIO, "naive", "--epochs", value) for value in (*NUMBERS, "0", "2.5", "1e3")),
    *(("run", SCENARIO, "naive", "--seed", value) for value in (*NUMBERS, "2.5")),
    *(("run", SCENARIO, "naive", "--task-sizes", value) for value in ("", "5", "5,", "5,,5", "a", "5;5", "-5,15", "11")),
    *(("run", SCENARIO, "naive", "--class-order", value) for value in ("", "1,1", "0,99", "a", "-1")),
    *(("run", SCENARIO, "naive", "--optimizer", value) for value in ("", "SGD", "sgdd", "ѕgd")),
    *(("run", SCENARIO, "naive", "--model", value) for value in ("", "mlpp", "mlp:", "mlp:0", "mlp:a", "mlp[", "mlp:9999999")),
    *(("run", SCENARIO, "naive", "--device", value) for value in ("", "gpu", "cuda:99", "CPU")),
    *(("run", SCENARIO, "naive", "--weights", value) for value in ("", "none.pt", "folder", "text.txt")),
    *(("run", SCENARIO, "naive", "-p", value) for value in ("", "a", "=1", "a=", "strength=1", "a=1=2")),
    *(("run", SCENARIO, "naive", "--config", value) for value in ("", "none.toml", "folder", "binary.toml", "binary.json")),
    *(("run", SCENARIO, "naive", "--config", value) for value in ("broken.toml", "broken.json", "list.json", "unknown.toml")),
    *(("run", SCENARIO, "naive", "--config", value) for value in ("typed.toml", "options.toml", "text.txt", "mine.npz")),
    *(("run", SCENARIO, "naive", "--out", value) for value in ("", "text.txt", "text.txt/below", "x" * 300, "/proc/none")),
    *(("run", SCENARIO, "naive", "--track", value) for value in ("", "tensorbord")),
    *(("run", SCENARIO, "naive", "--overfit", value) for value in ("", "0", "-1", "a")),
    ("run", SCENARIO, "naive", "--lr"),
    ("run", SCENARIO, "naive", "--lr", "1", "--lr", "2"),
    ("run", SCENARIO, "naive", "--lr=1", "--lr=2"),
    ("run", SCENARIO, "naive", "--learning-rate", "1"),
    ("run", SCENARIO, "naive", "-lr", "1"),
    ("run", SCENARIO, "naive", "—lr", "1"),
    ("run", SCENARIO, "naive", "--resume", "--force"),
    ("run", SCENARIO, "naive", "--epochs", "1", "--iterations", "2"),
    ("run", SCENARIO, "naive", "--like", "no-such"),
    ("run", SCENARIO, "naive", "--overfit", "3", "--out", "x"),
    *(("compare", SCENARIO, "naive", "--seeds", value) for value in ("", "0", "-1", "a", "0,0", "1,", "1.5", "1;2", "9" * 30)),
    *(("compare", SCENARIO, "naive", "--jobs", value) for value in ("", "0", "-1", "a", "1.5")),
    *(("compare", SCENARIO, "naive", "--out", value) for value in ("", "text.txt", "text.txt/below")),
    ("compare", SCENARIO, "naive", "--seed", "1"),
    ("compare", SCENARIO, "naive", "--memory-size", "5"),
    *(("sweep", value) for value in ("", "none.toml", "folder", "binary.toml", "empty.toml", "broken.toml", "bad-grid.toml")),
    *(("sweep", "grid.toml", "--shard", value) for value in ("", "a", "1", "0/2", "3/2", "1/0", "-1/2", "1/2/3")),
    *(("sweep", "grid.toml", "--backend", value) for value in ("", "rays")),
    ("sweep",),
    ("sweep", "grid.toml", "--address", "x:1"),
    ("sweep", "grid.toml", "--out", "text.txt"),
    *(("report", value) for value in ("", "none", "folder", "text.txt", "binary.json")),
    ("report",),
    ("report", "folder", "--format", "pdf"),
    ("report", "folder", "--figure", "no_such"),
    *(("describe", value) for value in ("", "no-such", "folder", "text.txt", "mine.npz", "split-mnist-5k[")),
    ("describe",),
    ("describe", SCENARIO, "--tasks", "99"),
    ("describe", SCENARIO, "--epochs", "1"),
    *(("list", value) for value in ("", "strategy", "no")),
    *(("check", value) for value in ("", "no-such", "mine.py:Mine", "ewc[strength=a]", "ewc[strenght=1]", "ewc[", "ewc[lr=1]")),
    ("check",),
    *(("reproduce", value) for value in ("", "no-such")),
    *(("reproduce", "--tier", value) for value in ("", "D", "a")),
    *(("reproduce", "--budget", value) for value in ("", "10", "m", "-1m", "nanm", "1e9h")),
    ("reproduce", "--seeds", "0"),
    *(("tune", SCENARIO, "lwf", "--space", value) for value in ("", "a", "strength", "strength=", "strength=log:1", "a=1|2")),
    *(("tune", SCENARIO, "lwf", "--space", value) for value in ("strength=log:2:1", "strength=log:a:b", "strength=a|b")),
    *(("tune", SCENARIO, "lwf", "--protocol", value) for value in ("", "first")),
    *(("tune", SCENARIO, "lwf", "--trials", value) for value in ("", "0", "-1", "a")),
    *(("tune", SCENARIO, "lwf", "--first-tasks", value) for value in ("", "0", "1", "5", "99", "a")),
    ("tune", SCENARIO, "lwf", "--validation", "0"),
    *(("pretrain", SCENARIO, "--out", "b.pt", "--classes", value) for value in ("", "a", "0,", "0;1", "99", "0,0", "-1")),
    ("pretrain", SCENARIO, "--classes", "0,1"),
    ("pretrain", SCENARIO, "--classes", "0,1", "--out", "folder"),
    ("pretrain", SCENARIO, "--classes", "0,1", "--out", "text.txt/b.pt"),
    *(("crosscheck", value) for value in ("", "no-such", "gem")),
    ("crosscheck", "ewc", "--seeds", "0"),
    ("crosscheck", "ewc", "--scenario", "no-such"),
    ("crosscheck",),
    *(("watch", value) for value in ("", "none", "text.txt")),
    ("watch", "folder", "--onc"),
    # No verb at all.
    ("",),
    ("runn", SCENARIO, "naive"),
    ("--lr", "1"),
    ("RUN", SCENARIO, "naive"),
]


def test_the_table_has_every_verb() -> None:
    assert set(VERBS) <= {arguments[0] for arguments in WRONG}


@pytest.mark.filterwarnings("ignore")
def test_wrong_usage_is_one_line_and_exit_code_2(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for arguments in WRONG:
        started = time.monotonic()
        code, out, err = ended(list(arguments), capsys)
        took = time.monotonic() - started
        shown = " ".join(repr(a[:40]) for a in arguments)
        lines = err.splitlines()
        if code != 2 or len(lines) != 1 or out or not lines[0].startswith("clbench: ") or not lines[0].isprintable():
            wrong.append(f"{shown}: {code}, {out[:80]!r}, {err[-300:]!r}")
        elif len(lines[0]) > 300 and arguments[0] != "reproduce":
            wrong.append(f"{shown}: {len(lines[0])} characters: {lines[0]}")
        elif took > 10:  # alone it takes a tenth of a second; a machine may be busy
            wrong.append(f"{shown}: {took:.1f} s")
    left = sorted(path.name for path in place.iterdir())
    assert wrong == []
    assert not {"runs", "report", "tuning"} & set(left), left
