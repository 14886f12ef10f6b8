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

from clbench.config.run import config_of_record
from clbench.results.result import Result, load_results

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
        rows = [r for r in csv.DictReader(file) if r["matrix"] == result.recorded.headline.matrix and r["classifier"] == "linear"]
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
