"""The words of a command about itself: where a run is done, what a check found in all."""

import signal
from pathlib import Path

import pytest

from clbench.cli import main
from clbench.support.endings import ending

RUN = ["run", "split-mnist-5k", "naive", "--limit", "5", "--epochs", "1", "--model", "mlp:4", "--device", "cpu"]


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0
    told = capsys.readouterr()
    return told.out, told.err


@pytest.mark.parametrize(("threads", "words"), [("1", "1 thread"), ("2", "2 threads")])
def test_run_says_first_with_how_many_threads(
    threads: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = said(capsys, *RUN, "--threads", threads, "--out", str(tmp_path / "run"))
    assert out.splitlines()[0] == f"naive on split-mnist-5k, class-incremental, seed 0, {words}"


@pytest.mark.parametrize(
    ("arguments", "begun", "text"),
    [
        (["run", "a", "b"], False, "interrupted before a run began; nothing was saved"),
        (["compare", "a", "b"], False, "interrupted before a run began; nothing was saved"),
        (["run", "a", "b", "--overfit", "5"], False, "interrupted"),
        (["list"], False, "interrupted"),
        ([], False, "interrupted"),
        (["sweep", "a"], True, "interrupted; what was saved is kept and can be continued: clbench sweep a"),
    ],
)
def test_an_interruption_before_a_run_began_does_not_say_that_something_was_saved(
    arguments: list[str], begun: bool, text: str
) -> None:
    assert ending(signal.SIGINT, arguments, begun=begun) == (text, 130)


@pytest.mark.slow
def test_check_ends_with_a_line_for_each_network(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capsys, "check", "mlp:4")
    *each, last = out.splitlines()
    assert last == f"mlp:4: {len(each)} checks: {len(each)} passed"
