"""clbench in a notebook: what compare() and sweep() return, what load() holds, and the names that can be completed."""

import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clbench
from clbench.config.errors import ConfigError
from clbench.results.result import Result

SMALL: dict[str, Any] = {"limit": 10, "epochs": 1, "batch_size": 8, "threads": 1, "model": "mlp:8", "tasks": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def results(folder: Path) -> clbench.Results:
    asked = {**SMALL, "memory_size": 10, "references": False, "milestones": [1], "schedule": "multistep"}
    return clbench.compare("split-mnist-5k", ["naive", "er", "lwf[strength=2]"], seeds=2, out=folder, **asked)


def test_it_is_a_list_of_results_as_before(results: clbench.Results) -> None:
    assert isinstance(results, list)
    assert len(results) == 6
    assert all(isinstance(result, Result) for result in results)
    assert [result.seed for result in results] == [0, 1] * 3
    assert results[0] == results[:1][0]
    assert [r.seed for r in pickle.loads(pickle.dumps(results))] == [0, 1] * 3


def test_the_table_has_a_row_for_each_run_with_all_that_decides_and_comes_out(results: clbench.Results) -> None:
    frame = results.table()
    assert len(frame) == 6
    assert frame["strategy"].tolist() == [result.strategy for result in results]
    for row, result in zip(frame.to_dict("records"), results, strict=True):
        for name, value in result.metrics.items():
            np.testing.assert_equal(row[name], np.nan if value is None else value)
        assert row["seconds_train"] == result.seconds["train"] > 0
        assert (row["lr"], row["epochs"], row["batch_size"], row["model"]) == (result.config["lr"], 1, 8, "mlp:8")
        assert row["milestones"] == "1"
    assert frame.groupby("strategy")["memory_size"].max().to_dict()["er"] == 10
    assert frame[frame["strategy"] == "lwf[strength=2]"]["strength"].tolist() == [2.0, 2.0]
    assert frame[frame["strategy"] == "naive"]["strength"].isna().all()


def test_hyper_parameters_metrics_and_seconds_are_on_a_result(results: clbench.Results) -> None:
    lwf = results[-1]
    assert {"lr": lwf.config["lr"], "strength": 2.0, "memory_size": None}.items() <= lwf.hyper_parameters.items()
    assert set(lwf.metrics) == set(clbench.metrics.METRICS)
    assert set(lwf.seconds) == {"train", "evaluation", "memory"}


def test_load_has_them_beside_the_accuracies(results: clbench.Results, folder: Path) -> None:
    """2 tasks make 4 rows for each of 6 runs; what is known of a run is the same in all of its rows."""
    frame = clbench.load(folder)
    assert len(frame) == 24
    assert list(frame.columns[:13]) == [
        *("scenario", "setting", "strategy", "family", "reference", "seed", "class_order", "identity"),
        *("classifier", "after", "task", "class_incremental", "task_aware"),
    ]
    for result in results:
        rows = frame[frame["identity"] == result.recorded.identity]
        assert len(rows) == 4
        assert set(rows["average_accuracy"]) == {result.metrics["average_accuracy"]}
        assert set(rows["seconds_train"]) == {result.seconds["train"]}
        assert set(rows["lr"]) == {result.config["lr"]}
        matrix = rows.pivot(index="after", columns="task", values="accuracy")
        np.testing.assert_array_equal(matrix, result.accuracy)


def test_an_option_that_has_the_name_of_a_column_gets_another_one() -> None:
    record = Path(__file__).parents[1] / "fixtures"
    (first, *_) = sorted(record.rglob("run.json"))
    result = Result.load(first)
    result.recorded.config.strategy_options = {"family": "mine", "strength": 1}
    row = clbench.Results([result]).table().iloc[0]
    assert (row["option_family"], row["strength"], row["family"]) == ("mine", 1, result.recorded.strategy.family)


def test_runs_in_folders_become_the_same_object(results: clbench.Results, folder: Path) -> None:
    again = clbench.Results.load(folder)
    assert {r.recorded.identity for r in again} == {r.recorded.identity for r in results}
    with pytest.raises(ConfigError, match="no such file"):
        clbench.Results.load(folder / "report")


def test_a_notebook_shows_means_and_verdict_with_every_text_escaped(results: clbench.Results) -> None:
    shown = results._repr_html_()
    assert shown.count("<table>") == 1
    assert shown.count("<tr>") == 4
    assert "lwf[strength=2]" in shown
    assert "verdict: " in shown
    mean = 100 * np.mean([result.metrics["average_accuracy"] for result in results[2:4]])
    assert f"{mean:.1f} ± " in shown
    record = {**results[0].record, "strategy": {**results[0].record["strategy"], "label": "<b>mine</b>"}}
    assert "&lt;b&gt;mine&lt;/b&gt;" in clbench.Results([Result(record)])._repr_html_()
    assert clbench.Results()._repr_html_() == "<p>no runs</p>"


@pytest.mark.parametrize("name", ["average_accuracy", "accuracy_matrices"])
def test_a_figure_is_one_of_matplotlib_that_a_notebook_shows(
    name: str, results: clbench.Results, tmp_path: Path
) -> None:
    from matplotlib.figure import Figure

    figure: Any = results.figure(name)
    assert isinstance(figure, Figure)
    assert figure._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
    figure.savefig(tmp_path / "own.pdf")
    assert (tmp_path / "own.pdf").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("average_acuracy",), ("unknown figure 'average_acuracy'", "did you mean 'average_accuracy'")),
        ((5,), ("name=5",)),
        (("average_accuracy", "split-cifar10"), ("no such scenario",)),
    ],
)
def test_a_figure_that_is_not_there_is_named(
    arguments: Any, words: tuple[str, ...], results: clbench.Results, refused: Any
) -> None:
    with refused(*words):
        results.figure(*arguments)


def test_of_several_scenarios_one_is_drawn(results: clbench.Results, refused: Any) -> None:
    record = {**results[0].record, "scenario": {**results[0].record["scenario"], "name": "other"}}
    both = clbench.Results([*results, Result(record)])
    with refused("the runs are of", "split-mnist-5k", "other", "scenario='...'"):
        both.figure()
    assert both.figure(scenario="other") is not None
    assert both._repr_html_().count("<table>") == 2


def test_a_sweep_returns_it_too(folder: Path) -> None:
    swept = clbench.sweep({"scenario": "split-mnist-5k", "strategy": "naive", "lr": [0.1, 0.2], "seeds": 1, **SMALL})
    assert isinstance(swept, clbench.Results)
    assert swept.table()["lr"].tolist() == [0.1, 0.2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_signature_is_that_of_the_function_that_runs() -> None:
    assert list(inspect.signature(clbench.compare).parameters)[:4] == ["scenario", "strategies", "seeds", "out"]
    assert "unfinished ones are continued" in " ".join(str(clbench.compare.__doc__).split())


def test_every_name_of_the_package_can_be_completed_and_leads_somewhere() -> None:
    code = (
        "import clbench\n"
        "names = dir(clbench)\n"
        "assert set(clbench.__all__) <= set(names) and '__version__' in names\n"
        "print(*(name for name in names if not name.startswith('__') and name not in clbench.__all__))\n"
        "print(*(name for name in names if getattr(clbench, name, None) is None))\n"
        "print(clbench.__version__, clbench.strategies.__name__, clbench.errors.ConfigError is clbench.ConfigError)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["", "", f"{clbench.__version__} clbench.strategies True"]


def test_the_page_has_every_method_of_an_observer_with_its_arguments() -> None:
    page = (Path(__file__).parents[2] / "docs/notebook.md").read_text("utf-8")
    methods = [(name, f) for name, f in vars(clbench.Observer).items() if inspect.isfunction(f)]
    expected = [f"{name}({', '.join([*inspect.signature(f).parameters][1:])})" for name, f in methods]
    assert re.findall(r"^\| `(\w+\([^`]*\))` \|", page, re.MULTILINE) == expected


def test_no_column_of_load_has_the_name_of_another(tmp_path: Path) -> None:
    """icarl has a hyper-parameter `classifier`, as the table has a column."""
    clbench.run("split-mnist-5k", "icarl", memory_size=20, out=tmp_path / "run", **SMALL)
    frame = clbench.load(tmp_path)
    assert frame.columns.is_unique
    assert set(frame["classifier"]) == {"nearest_mean"}
    assert set(frame["option_classifier"]) == {"nearest_mean"}
