"""`clbench watch` on a folder with several comparisons: rows in order, and runs of one name told apart."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from clbench.many.watching import Watch, render
from clbench.running.folder import MARK


def planned(out: Path, *runs: str, scenario: str = "split-mnist-5k") -> None:
    """Leave the marks of runs as one comparison plans them, each as STRATEGY/SEED-HASH."""
    for place, run in enumerate(runs):
        folder = out / scenario / run
        folder.mkdir(parents=True)
        strategy, _, name = run.partition("/")
        text = {"scenario": scenario, "strategy": strategy, "seed": int(name[0]), "place": place}
        (folder / MARK).write_text(json.dumps(text))


def looked(root: Path) -> list[str]:
    return [Path(run.folder).relative_to(root).as_posix() for run in Watch(root).look()]


def shown(root: Path, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(Watch(root).look(), root))
    return console.export_text()


def test_one_comparison_is_in_the_order_in_which_it_was_planned(tmp_path: Path) -> None:
    """Not by strategy, where a sweep has a scenario's options outermost."""
    order = ["lwf/0-a", "er/0-a", "lwf/0-b", "er/0-b"]
    planned(tmp_path, *order)
    assert looked(tmp_path) == [f"split-mnist-5k/{run}" for run in order]


def test_two_comparisons_of_a_scenario_are_not_shuffled(tmp_path: Path) -> None:
    planned(tmp_path, "lwf/0-a", "lwf/1-a", "er/0-a", "er/1-a", "naive/0-a", "naive/1-a")
    planned(tmp_path, "icarl/0-b", "icarl/1-b", "er/0-b", "er/1-b")
    names = [run.split("/")[1] for run in looked(tmp_path)]
    assert names == ["icarl"] * 2 + ["lwf"] * 2 + ["er"] * 4 + ["naive"] * 2


def test_comparisons_of_several_scenarios_and_folders_follow_each_other(tmp_path: Path) -> None:
    for out in ("b", "a"):
        for scenario in ("split-kmnist", "split-mnist"):
            planned(tmp_path / out, "naive/0-a", "er/0-a", scenario=scenario)
    every = [f"{out}/{scenario}" for out in ("a", "b") for scenario in ("split-kmnist", "split-mnist")]
    assert looked(tmp_path) == [f"{of}/{run}" for of in every for run in ("naive/0-a", "er/0-a")]


def test_a_sweep_keeps_the_order_of_its_scenarios(tmp_path: Path) -> None:
    """Its places go on from one scenario to the next."""
    for place, scenario in enumerate(("z", "a")):
        planned(tmp_path, "naive/0-a", scenario=scenario)
        file = tmp_path / scenario / "naive" / "0-a" / MARK
        file.write_text(json.dumps({"scenario": scenario, "strategy": "naive", "seed": 0, "place": place}))
    assert looked(tmp_path) == ["z/naive/0-a", "a/naive/0-a"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path, width: int) -> None:
    planned(tmp_path, "er/0-aaaa", "er/1-aaaa")
    assert "folder" not in shown(tmp_path, width)
    planned(tmp_path, "er/0-bbbb", "er/1-bbbb")
    text = shown(tmp_path, width)
    assert all(name in text for name in ("0-aaaa", "1-aaaa", "0-bbbb", "1-bbbb"))
    assert "split-mnist-5k/er" not in text


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for out in ("first", "second"):
        planned(tmp_path / out, "er/0-aaaa")
    text = shown(tmp_path)
    assert "first/split-mnist-5k/er/0-aaaa" in text
    assert "second/split-mnist-5k/er/0-aaaa" in text
