"""Wrong usage of every verb of the command line: exit code 2 and one line on stderr, within a second or two."""

import json
import time
from pathlib import Path

import pytest

from clbench.cli import VERBS, main


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


# Values that an option of numbers does not take.
NUMBERS = (
    *("", " ", "abc", "-1", "1e400", "nan", "inf", "--", "9" * 400, "1,2", "[1]", "0x10", "1_0"),
    *("\uff11\uff12", "\u0663"),
)


def each(begin: str, *values: str) -> list[list[str]]:
    """Return a command line for each value, which is its last argument."""
    return [[*begin.split(), value] for value in values]


RUN = "run split-mnist-5k naive"
TUNE = "tune split-mnist-5k lwf"
WRONG: list[list[str]] = [
    # Names.
    *([verb, name, "naive"] for verb in ("run", "compare", "plan") for name in ("", " ", "no-such", "split-mnist-5k[")),
    *(["run", name, "naive"] for name in ("[]", "mine.npz", "none.npz", "folder", "text.txt", "/", "..")),
    *(["run", f"split-mnist-5k[{options}]", "naive"] for options in ("tasks=a", "tasks=0", "tasks", "[tasks=2]")),
    *(
        one
        for verb in ("run", "plan", "tune")
        for one in each(f"{verb} split-mnist-5k", "", "nave", "naive[", "naive[[a=1]]")
    ),
    *each("run split-mnist-5k", "lwf[strength]", "lwf[strength=]", "lwf[=1]", "lwf[strength=1,strength=2]"),
    *each("run split-mnist-5k", "lwf[strength=a]", "lwf[strength=-1]", "lwf[strenght=1]", "lwf[strength=nan]"),
    *each("run split-mnist-5k", "mine.py:Mine", "mine.py:None", "none.py:Mine", "mine.py:", ":Mine", "folder:Mine"),
    *each("run split-mnist-5k", "naiv\u0435", "lwf[strength\uff1d1]", "lwf\uff1b", "no:such"),
    *(text.split() for text in ("run", "run split-mnist-5k", f"{RUN} lwf", "compare split-mnist-5k", "plan", "tune x")),
    *(
        text.split()
        for text in ("compare split-mnist-5k naive naive", "describe", "report", "check", "crosscheck", "sweep")
    ),
    # Options.
    *each(f"{RUN} --lr", *NUMBERS),
    *each(f"{RUN} --epochs", *NUMBERS, "0", "2.5", "1e3"),
    *each(f"{RUN} --seed", *NUMBERS, "2.5"),
    *each(f"{RUN} --task-sizes", "", "5", "5,", "5,,5", "a", "5;5", "-5,15", "11"),
    *each(f"{RUN} --class-order", "", "1,1", "0,99", "a", "-1"),
    *each(f"{RUN} --optimizer", "", "SGD", "sgdd", "\u0455gd"),
    *each(f"{RUN} --model", "", "mlpp", "mlp:", "mlp:0", "mlp:a", "mlp[", "mlp:9999999"),
    *each(f"{RUN} --device", "", "gpu", "cuda:99", "CPU"),
    *each(f"{RUN} --weights", "", "none.pt", "folder", "text.txt"),
    *each(f"{RUN} -p", "", "a", "=1", "a=", "strength=1", "a=1=2"),
    *each(f"{RUN} --config", "", "none.toml", "folder", "binary.toml", "binary.json", "broken.toml", "broken.json"),
    *each(f"{RUN} --config", "list.json", "unknown.toml", "typed.toml", "options.toml", "text.txt", "mine.npz"),
    *each(f"{RUN} --out", "", "text.txt", "text.txt/below", "x" * 300, "/proc/none"),
    *each(f"{RUN} --track", "", "tensorbord"),
    *each(f"{RUN} --overfit", "", "0", "-1", "a"),
    *(
        f"{RUN} {options}".split()
        for options in ("--lr", "--lr 1 --lr 2", "--lr=1 --lr=2", "--learning-rate 1", "-lr 1")
    ),
    *(f"{RUN} {options}".split() for options in ("\u2014lr 1", "--resume --force", "--epochs 1 --iterations 2")),
    *(f"{RUN} {options}".split() for options in ("--like no-such", "--overfit 3 --out x", "--no-lr")),
    *each("compare split-mnist-5k naive --seeds", "", "0", "-1", "a", "0,0", "1,", "1.5", "1;2", "9" * 30),
    *each("compare split-mnist-5k naive --jobs", "", "0", "-1", "a", "1.5"),
    *each("compare split-mnist-5k naive --out", "", "text.txt", "text.txt/below"),
    *each("compare split-mnist-5k naive --seed", "1"),
    *each("compare split-mnist-5k naive --memory-size", "5"),
    *each("sweep", "", "none.toml", "folder", "binary.toml", "empty.toml", "broken.toml", "bad-grid.toml"),
    *each("sweep grid.toml --shard", "", "a", "1", "0/2", "3/2", "1/0", "-1/2", "1/2/3"),
    *each("sweep grid.toml --backend", "", "rays"),
    *each("sweep grid.toml --address", "x:1"),
    *each("sweep grid.toml --out", "text.txt"),
    *each("report", "", "none", "folder", "text.txt", "binary.json"),
    *each("report folder --format", "pdf"),
    *each("describe", "", "no-such", "folder", "text.txt", "mine.npz", "split-mnist-5k["),
    *each("describe split-mnist-5k --tasks", "99", "0", "a"),
    *each("describe split-mnist-5k --epochs", "1"),
    *each("list", "", "strategy", "no"),
    *each("check", "", "no-such", "mine.py:Mine", "ewc[strength=a]", "ewc[strenght=1]", "ewc[", "ewc[lr=1]"),
    *each("reproduce", "", "no-such"),
    *each("reproduce --tier", "", "D", "a"),
    *each("reproduce --budget", "", "10", "m", "-1m", "nanm", "1e9h"),
    *each("reproduce --seeds", "0"),
    *each(f"{TUNE} --space", "", "a", "strength", "strength=", "strength=log:1", "a=1|2", "strength=log:2:1"),
    *each(f"{TUNE} --space", "strength=log:a:b", "strength=a|b"),
    *each(f"{TUNE} --protocol", "", "first"),
    *each(f"{TUNE} --trials", "", "0", "-1", "a"),
    *each(f"{TUNE} --first-tasks", "", "0", "1", "5", "99", "a"),
    *each(f"{TUNE} --validation", "0"),
    *each("pretrain split-mnist-5k --out b.pt --classes", "", "a", "0,", "0;1", "99", "0,0", "-1"),
    *each("pretrain split-mnist-5k --classes 0,1 --out", "", "folder", "text.txt/b.pt"),
    *each("pretrain split-mnist-5k --classes", "0,1"),
    *each("crosscheck", "", "no-such", "gem"),
    *each("crosscheck ewc --seeds", "0"),
    *each("crosscheck ewc --scenario", "no-such"),
    *each("watch", "", "none", "text.txt"),
    *each("data", "", "check", "pack", "chek"),
    *each("data check", "", "no-such", "text.txt", "--size"),
    *each("data check folder --size", "8", "x"),
    *each("data pack mine.npz --to", "", "out.txt", "folder"),
    *each("data pack mine.npz --to out.npy --size", "0", "-8", "8.5", "x"),
    *each("cache", "", "lst", "CLEAR", "features-0"),
    *each("cache list", "", "x"),
    *each("cache clear", "", "features-0", "../folder"),
    *each("watch folder", "--onc"),
    *each("predict", "", "none", "folder", "text.txt"),
    *each("predict none mine.npz", "", "--task"),
    *each("predict folder mine.npz --task", "0", "-1", "x"),
    *each("export", "", "none", "folder", "text.txt"),
    *each("export folder --format", "", "onnx", "pt2"),
    *each("extend", "", "none", "folder", "text.txt"),
    *each("extend folder --tasks", "", "0", "x", "3"),
    *each("extend folder", "none", "mine.npz", "--lr", "--resume --force"),
    # No verb.
    *([""], ["runn", "split-mnist-5k", "naive"], ["--lr", "1"], ["RUN", "split-mnist-5k", "naive"]),
]


def test_the_table_has_every_verb() -> None:
    assert set(VERBS) <= {arguments[0] for arguments in WRONG}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cases", [WRONG[::9], pytest.param(WRONG, marks=pytest.mark.slow)], ids=["some", "all"])
def test_wrong_usage_is_one_line_and_exit_code_2(
    cases: list[list[str]], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """About 330 command lines; a ninth of them in each test run."""
    wrong = []
    ended(["list", "no"], capsys)  # the first command imports what all of them need
    for arguments in cases:
        started = time.monotonic()
        code, out, err = ended(list(arguments), capsys)
        took = time.monotonic() - started
        shown = " ".join(repr(a[:40]) for a in arguments)
        lines = err.splitlines()
        if code != 2 or len(lines) != 1 or out or not lines[0].startswith("clbench: ") or not lines[0].isprintable():
            wrong.append(f"{shown}: {code}, {out[:80]!r}, {err[-300:]!r}")
        elif len(lines[0]) > 300 and arguments[0] != "reproduce":
            wrong.append(f"{shown}: {len(lines[0])} characters: {lines[0]}")
        elif took > 20:  # alone it takes a tenth of a second; a machine may be busy
            wrong.append(f"{shown}: {took:.1f} s")
    assert wrong == []


TINY = ["--limit", "2", "--epochs", "1", "--model", "mlp:4", "--threads", "1"]


def test_a_run_json_names_scenario_and_strategy_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(["run", "split-mnist-5k", "lwf", *TINY, "-p", "strength=2", "--out", "first"], capsys)[0] == 0
    assert ended(["run", "--config", "first/run.json", "--out", "second"], capsys)[0] == 0
    first, second = (json.loads((place / name / "run.json").read_text()) for name in ("first", "second"))
    assert second["identity"] == first["identity"]
    assert second["config"]["strategy_options"]["strength"] == 2.0
    # The command line comes first, and a verb that asks for a scenario still does.
    code, out, _ = ended(["run", "split-mnist-5k", "naive", "--config", "first/run.json", "--json"], capsys)
    assert code == 2
    assert not out
    code, out, _ = ended(["describe", "split-mnist-5k", "--json"], capsys)
    assert code == 0
    assert json.loads(out)["scenario"] == "split-mnist-5k"


def test_to_resume_nothing_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ended(["run", "split-mnist-5k", "naive", *TINY, "--out", "new", "--resume", "--quiet"], capsys)
    assert code == 0
    assert err.splitlines() == ["note: new: there is no run to continue, so one begins"]


def test_an_option_of_another_scenario_is_no_misspelling(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ended(["describe", "permuted-mnist-5k", "--task-sizes", "5,5"], capsys)
    assert code == 2
    assert err.startswith("clbench: unknown option of permuted-mnist-5k 'task_sizes'; accepted: setting, tasks, ")


def test_what_would_be_reproduced_is_json_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The runs of the table are counted here from the claims: each run of a claim is done or to do."""
    code, out, _ = ended(["reproduce", "--dry-run", "--json", "--quiet"], capsys)
    assert code == 0
    told = json.loads(out)
    assert all(row["runs"] == row["done"] + row["to do"] for row in told["claims"])
    # A run that two claims share stands in both rows.
    assert told["seconds"] <= sum(row["seconds"] for row in told["claims"]) + 1e-6
    code, out, _ = ended(["reproduce", "--dry-run", "--quiet"], capsys)
    assert "done once" in out


def test_check_takes_options_in_brackets() -> None:
    from clbench.testing import check_strategy

    (found,) = check_strategy("lwf[strength=2,temperature=1]", checks=["declarations"])
    assert found.status == "passed"


def test_a_hook_that_raises_ends_the_command_in_one_line_and_shows_more_when_asked(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "raising.py").write_text(
        "import clbench\n\n\nclass Mine(clbench.Strategy):\n    traits = clbench.Traits(family='reference')\n\n"
        "    def end_task(self, task):\n        return 1 / 0\n"
    )
    typed = ["run", "split-mnist-5k", "raising.py:Mine", *TINY, "--quiet"]
    code, _, err = ended([*typed, "--out", "one"], capsys)
    assert code == 1
    assert err == (
        "clbench: ZeroDivisionError: division by zero (task 0, Mine.end_task, raising.py line 8); "
        "CLBENCH_TRACEBACK=1 shows where it came from\n"
    )
    monkeypatch.setenv("CLBENCH_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main([*typed, "--out", "two"])
