"""Runs made up for the tests of reports, of real shapes with drawn numbers, and helpers that several tests share."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clbench.reports import page
from clbench.reports.comparison import Comparison, compare
from clbench.results.result import Result

SEVEN = ("naive", "joint", "feature-extraction", "lwf", "ewc", "er", "icarl")
# Accuracy when just learned, and what is lost of it with each later task.
LEVELS = {
    "naive": (0.98, 0.55),
    "joint": (0.96, 0.01),
    "feature-extraction": (0.60, 0.20),
    "lwf": (0.97, 0.45),
    "ewc": (0.97, 0.50),
    "er": (0.95, 0.08),
    "icarl": (0.93, 0.04),
}


def rows(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]


def drawn_matrix(n_tasks: int, level: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    matrix = np.full((n_tasks, n_tasks), np.nan)
    for after in range(n_tasks):
        for task in range(after + 1):
            matrix[after, task] = level[0] * (1 - level[1]) ** (after - task) + rng.normal(0, 0.01)
    return matrix.clip(0, 1)


def build(
    strategy: str = "lwf",
    seed: int = 0,
    *,
    sizes: tuple[int, ...] = (2, 2, 2, 2, 2),
    matrix: np.ndarray | None = None,
    task_aware: bool = True,
    label: str | None = None,
    setting: str = "class",
    scenario: str = "split-mnist-5k",
    config: dict[str, Any] | None = None,
    linear: np.ndarray | None = None,
    warnings: tuple[str, ...] = (),
    created: str = "2026-01-01T00:00:00+00:00",
    evaluations: tuple[tuple[int, int, list[float | None]], ...] = (),
) -> Result:
    """A run; `linear` is the matrix of a classifier beside nearest_mean, `evaluations` are (task, step, row)."""
    n_tasks = len(sizes)
    rng = np.random.default_rng([seed, len(strategy), n_tasks])
    if matrix is None:
        matrix = drawn_matrix(n_tasks, LEVELS.get(strategy, (0.9, 0.2)), rng)
    order = list(range(sum(sizes)))
    aware = matrix + (1 - matrix) * 0.6
    accuracy = {
        "class_incremental": rows(matrix),
        "task_aware": rows(aware) if task_aware else None,
        "untrained": {"class_incremental": [0.1] * n_tasks, "task_aware": [0.5] * n_tasks},
    }
    headline = "nearest_mean" if linear is not None else "linear"
    classifiers = (
        {}
        if linear is None
        else {
            "nearest_mean": accuracy,
            "linear": {"class_incremental": rows(linear), "task_aware": None, "untrained": {}},
        }
    )
    kept = {"lwf": {"teacher": 1_913_640}, "ewc": {"importances": 3_827_280}, "icarl": {"exemplars": 156_800}}
    return Result(
        {
            "schema_version": 1,
            "clbench": "0.1.0",
            "status": "done",
            "identity": f"{strategy}-{seed}",
            "created": created,
            "config": {
                "scenario": scenario,
                "setting": setting,
                "strategy": strategy,
                "strategy_options": {},
                "seed": seed,
                "epochs": 1,
                "iterations": None,
                "lr": 0.001,
                "memory_size": 200 if strategy in ("er", "icarl") else None,
                "data_root": "data",
            }
            | (config or {}),
            "strategy": {
                "name": strategy,
                "label": label or strategy,
                "family": "reference" if strategy == "joint" else "regularisation",
                "reference": strategy == "joint",
                "data_access": "all" if strategy == "joint" else "task",
            },
            "scenario": {
                "name": scenario,
                "setting": setting,
                "tasks": [
                    {
                        "classes": order[a:b],
                        "outputs": order[a:b],
                        "n_train": 400 * (b - a),
                        "n_test": 100 * (b - a),
                    }
                    for a, b in itertools.pairwise(itertools.accumulate(sizes, initial=0))
                ],
            },
            "class_order": order,
            "headline": {
                "matrix": "task_aware" if setting == "task" else "class_incremental",
                "classifier": headline,
            },
            "accuracy": accuracy,
            "classifiers": classifiers,
            "tasks": [
                {"task": t, "steps": 7, "seconds": {"train": 0.125, "evaluation": 0.02, "memory": 0.0}}
                for t in range(n_tasks)
            ],
            "ledger": [
                {
                    "task": t,
                    "bytes": {"model": 1_913_640, **kept.get(strategy, {})},
                    "items": {"exemplars": 200} if strategy == "icarl" else {},
                }
                for t in range(n_tasks)
            ],
            "evaluations": [
                {"task": task, "stage": "train", "epoch": 0, "step": step, "class_incremental": row, "task_aware": None}
                for task, step, row in evaluations
            ],
            "metrics": {},
            "warnings": [{"rule": "test", "text": text} for text in warnings],
        }
    )


@pytest.fixture
def with_more() -> Callable[..., Result]:
    """Makes of a run one whose record has the named parts too."""
    return lambda result, **parts: Result(json.loads(json.dumps(result.record)) | parts)


@pytest.fixture
def compared() -> Callable[[list[Result]], Comparison]:
    """Returns the one comparison that some runs make up."""

    def only(results: list[Result]) -> Comparison:
        (part,) = compare(results)
        return part

    return only


@pytest.fixture
def make_result() -> Callable[..., Result]:
    return build


@pytest.fixture
def seven() -> list[Result]:
    """Seven strategies by three seeds by five tasks; iCaRL with a further classifier."""
    rng = np.random.default_rng(0)
    return [
        build(name, seed, linear=drawn_matrix(5, (0.9, 0.2), rng) if name == "icarl" else None)
        for name in SEVEN
        for seed in range(3)
    ]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    chromium, chromedriver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("needs chromium and chromedriver (apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Callable[..., None]:
    """Opens the page of some runs in the browser at a width of the window, on the screen or as it is printed."""

    def show(results: list[Result], width: int, media: str = "screen") -> None:
        file = tmp_path / "report.html"
        file.write_text(page.render(compare(results)), "utf-8")
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
        browser.get(file.as_uri())
        assert browser.get_log("browser") == []

    return show
