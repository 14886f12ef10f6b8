"""Files that an earlier version wrote, and the published schema of run.json."""

import csv
import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from clbench.cli.options import read_config
from clbench.config.errors import ConfigError
from clbench.config.run import config_of_record
from clbench.results.result import Result, load_results
from clbench.running.resolve import resolve, strategy_class

ROOT = Path(__file__).parents[2]
VERSIONS = sorted((ROOT / "tests" / "fixtures").iterdir())


def script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    published = json.loads((ROOT / "docs" / "run.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(published)
    return jsonschema.Draft202012Validator(published)


def test_the_published_schema_is_that_of_the_code() -> None:
    made = script("docs/update_schema.py").schema()
    assert made == json.loads((ROOT / "docs" / "run.schema.json").read_text("utf-8")), "run docs/update_schema.py"


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("naive", {}),
        ("icarl", {"memory_size": 20}),
        ("er", {"memory_size": 20, "eval_every": 3, "patience": 1}),
    ],
)
def test_every_run_json_is_as_the_schema_says(strategy: str, options: Any, run: Any, cut: Any, validator: Any) -> None:
    held = 0.3 if "patience" in options else 0.0
    result = run(strategy, cut(validation=held), **options)
    validator.validate(json.loads(json.dumps(result.record)))


@pytest.mark.parametrize("file", sorted(ROOT.glob("tests/fixtures/*/*/run.json")), ids=lambda p: p.parent.name)
def test_files_of_every_version_are_as_the_schema_says(file: Path, validator: Any) -> None:
    validator.validate(json.loads(file.read_text("utf-8")))


@pytest.mark.parametrize(
    ("key", "value"),
    [("schema_version", 2), ("status", "lost"), ("class_order", ["a"]), ("headline", {"matrix": "x"}), ("tasks", [{}])],
)
def test_the_schema_refuses_what_the_code_refuses(key: str, value: Any, validator: Any, tmp_path: Path) -> None:
    record = json.loads((VERSIONS[0] / "finished" / "run.json").read_text("utf-8")) | {key: value}
    assert not validator.is_valid(record)
    (tmp_path / "run.json").write_text(json.dumps(record), "utf-8")
    with pytest.raises(ValueError, match=r"run\.json"):
        Result.load(tmp_path)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_a_finished_run_of_an_earlier_version_is_read(version: Path) -> None:
    """The numbers are those of its accuracy.csv, which is read with the csv module alone."""
    (result,) = load_results(version / "finished")
    assert result.status == "done"
    with (version / "finished" / "accuracy.csv").open(newline="", encoding="utf-8") as file:
        rows = [
            r
            for r in csv.DictReader(file)
            if r["matrix"] == result.recorded.headline.matrix and r["classifier"] == "linear"
        ]
    expected = np.full((2, 2), np.nan)
    for row in rows:
        if row["accuracy"]:
            expected[int(row["after"]), int(row["task"])] = float(row["accuracy"])
    np.testing.assert_array_equal(result.accuracy, expected)
    from clbench.reports import tables
    from clbench.reports.comparison import compare

    assert "er" in str(tables.comparison(compare([result])).to_dict())


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore:.*begun with")
def test_an_unfinished_run_of_an_earlier_version_goes_on(version: Path, tmp_path: Path) -> None:
    """It reaches the accuracies of the undisturbed run, and keeps its identity."""
    from clbench.running.folder import RunFolder
    from clbench.running.run import execute

    folder = tmp_path / "unfinished"
    shutil.copytree(version / "unfinished", folder)
    record = json.loads((folder / "run.json").read_text("utf-8"))
    result = execute(
        config_of_record(record["config"]), script("tests/make_fixtures.py").scenario(), RunFolder(folder), resume=True
    )
    assert result.status == "done"
    assert [(resume["task"], resume["step"]) for resume in result.record["resumes"]] == [(1, 2)]
    whole = Result.load(version / "finished")
    np.testing.assert_array_equal(result.accuracy, whole.accuracy)


# Options of strategies that 0.1.0 had and that were removed, each with its value in 0.1.0 at which it did nothing.
REMOVED = [
    ("er", "weighting", "size", "tasks"),
    ("icarl", "teacher_temperature", 1.0, 2.0),
    ("joint", "iterations_per_task", False, True),
    ("lwf", "weighting", "constant", "share"),
    ("lwf", "distilled", "all", "old"),
]


def test_every_option_of_0_1_is_one_of_today_or_listed_as_removed() -> None:
    first = json.loads((ROOT / "clbench" / "config" / "defaults-1.json").read_text("utf-8"))
    gone = {
        (strategy, option)
        for strategy, options in first["strategies"].items()
        for option in options.keys() - strategy_class(strategy).validate({}).keys()
    }
    listed = {(strategy, option) for strategy, options in first["removed_options"].items() for option in options}
    assert gone == listed == {(strategy, option) for strategy, option, *_ in REMOVED}
    assert all(first["strategies"][strategy][option] == value for strategy, option, value, _ in REMOVED)


@pytest.mark.parametrize(("strategy", "option", "without_effect", "other"), REMOVED)
def test_an_option_that_was_removed_is_read_at_the_value_where_it_did_nothing(
    strategy: str, option: str, without_effect: Any, other: Any, tmp_path: Path
) -> None:
    """From the run.json of 0.1.0 and as --config; another value is kept, and so refused by its name."""
    own = strategy_class(strategy).validate({})
    for version in VERSIONS:
        record = json.loads((version / "finished" / "run.json").read_text("utf-8"))
        file = tmp_path / "run.json"
        for value, left in ((without_effect, own), (other, {**own, option: other})):
            config = record["config"] | {"strategy": strategy, "strategy_options": {**own, option: value}}
            file.write_text(json.dumps({**record, "config": config}), "utf-8")
            assert config_of_record(config).strategy_options == left
            assert read_config(file)["strategy_options"] == left
        with pytest.raises(ConfigError, match=option):
            strategy_class(strategy)(**left)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_a_run_json_of_an_earlier_version_serves_as_options(version: Path) -> None:
    """Fields that were removed are left out at their defaults; what is left gives a run with the values recorded."""
    recorded = json.loads((version / "finished" / "run.json").read_text("utf-8"))["config"]
    removed = {"decay_biases", "evaluate_on", "memory_rounding"}
    assert removed < recorded.keys()
    options = read_config(version / "finished" / "run.json")
    assert not removed & options.keys()
    given = resolve("split-mnist-5k", "er", options).flat()
    # 0.1.0 wrote the options of every scenario into every run; padding is one of permuted-mnist alone.
    left = {name: value for name, value in recorded.items() if value is not None and name not in removed}
    for name in left.keys() - {"scenario", "strategy_options", "data_fingerprint"}:
        assert given[name] == left[name], name
    with pytest.raises(ConfigError, match="evaluate_on"):
        resolve("split-mnist-5k", "er", {**options, "evaluate_on": "train"})


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_the_command_that_repeats_a_run_of_an_earlier_version_has_options_of_this_one(version: Path) -> None:
    from clbench.reports.comparison import compare
    from clbench.reports.provenance import command

    text = command(compare(load_results(version / "finished"))[0].rows[0])
    assert "clbench run" in text
    for removed in ("decay-biases", "evaluate-on", "memory-rounding", "weighting"):
        assert removed not in text
