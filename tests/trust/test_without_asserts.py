"""Nothing that a user relies on is an assert statement, which `python -O` leaves out."""

import ast
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from clbench.tools.conformance import CHECKS, check_strategy, demand

ROOT = Path(__file__).parents[2]
LIBRARY = ("clbench", "strategies", "scenarios", "reports")


def asserts(text: str) -> list[int]:
    return sorted(node.lineno for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Assert))


def test_asserts_are_found_on_any_line() -> None:
    assert asserts("def f(x):\n    if x:\n        assert x > 0, 'told'\n\n\nassert f\n") == [3, 6]


@pytest.mark.parametrize("folder", LIBRARY)
def test_no_assert_statement_is_in_the_library(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    assert [f"{file}, line {line}" for file in files for line in asserts(file.read_text("utf-8"))] == []


# A strategy that draws anew at each run, one that keeps images, and one that is right; and a wrong request.
SCRIPT = """
import json
import sys

import torch

import clbench


class Drawn(clbench.Strategy):
    '''Draws from a stream that no seed fixes.'''

    traits = clbench.Traits(family="regularisation")

    def loss(self, batch):
        factor = float(torch.rand(1, generator=noise))
        return {name: factor * term for name, term in super().loss(batch).items()}


class Keeps(clbench.Strategy):
    '''Keeps images of each task.'''

    traits = clbench.Traits(family="regularisation")

    def begin_run(self):
        self.kept = []

    def end_task(self, task):
        self.kept.append(task.train.images[:2].clone())


noise = torch.Generator()
noise.seed()
found = {}
for kind, checks in ((Drawn, ["determinism"]), (Keeps, ["no_images_kept"]), ("naive", ["determinism"])):
    for outcome in clbench.testing.check_strategy(kind, checks=checks):
        found[f"{getattr(kind, '__name__', kind)} {outcome.check}"] = [outcome.status, outcome.reason]
result = clbench.run("split-mnist-5k", "gem", memory_size=20, limit=8, epochs=1, tasks=2, model="mlp:8", threads=1)
found["run"] = [result.status, result.metrics["average_accuracy"]]
try:
    clbench.run("split-mnist-5k", "naive", lr=-1.0)
except clbench.ConfigError as error:
    found["refused"] = ["refused", str(error)]
assert not found, "left out by python -O"
print(json.dumps({"optimized": sys.flags.optimize} | found))
"""


@pytest.mark.slow
def test_the_kit_finds_what_is_wrong_and_a_run_is_the_same_under_python_o(tmp_path: Path) -> None:
    import clbench

    command = [sys.executable, "-O", "-c", textwrap.dedent(SCRIPT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["optimized"] == 1
    assert found["Drawn determinism"] == ["failed", "the same config gave another matrix"]
    assert found["Keeps no_images_kept"][0] == "failed"
    assert "keeps 2 images outside the memory" in found["Keeps no_images_kept"][1]
    assert found["naive determinism"] == ["passed", ""]
    assert found["refused"][1].startswith("lr=-1.0 given")
    options = {"memory_size": 20, "limit": 8, "epochs": 1, "tasks": 2, "model": "mlp:8", "threads": 1}
    here = clbench.run("split-mnist-5k", "gem", out=tmp_path / "here", **options)
    assert found["run"] == ["done", here.metrics["average_accuracy"]]


def test_every_check_of_the_kit_says_what_it_found_by_raising() -> None:
    """A demand that does not hold raises by itself; a check's sentence is what the kit reports."""
    demand(1, "not told")
    with pytest.raises(AssertionError, match=r"^told$"):
        demand([], "told")
    assert len(CHECKS) > 15
    assert [outcome.status for outcome in check_strategy("naive", checks=["declarations"])] == ["passed"]
