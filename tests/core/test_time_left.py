"""The time that is left counts what goes by between the runs, such as the loading of their data."""

import time
from pathlib import Path

import pytest

from clbench.cli import main
from clbench.running.display import Display, Named
from clbench.support.locks import NAME


def watching_the_first_of_three(place: Path) -> tuple[Display, Path]:
    """Return a display that has seen one run of three under way, and the folder of this run, which has ended since."""
    first, *others = (place / name for name in "abc")
    display = Display({folder: Named("er", 0) for folder in (first, *others)}, total=3, quiet=True)
    first.mkdir()
    (first / NAME).touch()
    display.under_way()
    (first / NAME).unlink()
    return display, first


def test_what_goes_by_beside_each_finished_run_is_added(tmp_path: Path) -> None:
    """One run of three takes 0.4 seconds, of which it is at work for 0.1: two more take 0.8, and not 0.2."""
    began = time.monotonic()
    display, first = watching_the_first_of_three(tmp_path)
    time.sleep(0.4)
    display.finished(first, seconds=0.1)
    left = display.seconds_left({}) or 0.0
    # A busy machine may have slept for longer.
    assert 0.8 <= left <= 2 * (time.monotonic() - began)


def test_work_that_filled_the_time_is_not_counted_twice(tmp_path: Path) -> None:
    display, first = watching_the_first_of_three(tmp_path)
    display.finished(first, seconds=30.0)
    assert display.seconds_left({}) == 60.0


@pytest.mark.parametrize(("strategies", "ends"), [(["naive"], " more\n"), (["naive", "er"], " more in each process\n")])
def test_a_plan_says_what_starting_and_loading_the_data_takes(
    strategies: list[str], ends: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "split-mnist-5k", *strategies, "--limit", "5", "--epochs", "1", "--model", "mlp:4", "--quiet"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "starting and loading the data takes about " in said
    assert said.endswith(ends)
