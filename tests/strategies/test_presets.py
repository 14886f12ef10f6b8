"""Every strategy survives every preset: optimizer, rate, network, strengths, over three tasks of a share of its data.

A run that diverges ends with a sentence, so that three finished tasks are what is asked for.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared import network_of

import clbench
from clbench.config.registry import entry_point_names
from clbench.results.result import Result
from clbench.running.resolve import resolve, scenario_class, strategy_class
from clbench.scenarios.registered import presets

NAMES = entry_point_names("clbench.strategies")
# One scenario of each training; the others are trained as one of these is. That of split-mnist-5k is in test_grid.py,
# with every setting and three shapes of tasks.
SCENARIOS = ["split-mnist", "split-cifar10", "split-cifar100", "permuted-mnist", "rotated-mnist", "permuted-mnist-5k"]
SCENARIOS += ["files"]
SAME = {"split-fashion-mnist": "split-mnist", "split-kmnist": "split-mnist", "rotated-mnist-5k": "permuted-mnist-5k"}
# These diverged in 0.1.0: SGD at a rate of 0.1 met importances of a network that had learned little.
DIVERGED = [(name, scenario) for name in ("ewc", "mas") for scenario in ("split-cifar10", "split-cifar100")]
QUICK = [("ewc", "rotated-mnist"), ("mas", "rotated-mnist"), ("ewc", "split-mnist"), ("lwf", "permuted-mnist-5k")]
# Training images of each class, and epochs: the large networks take a second for a few images.
FEW, MANY = {"limit": 4, "epochs": 3}, {"limit": 20, "epochs": 3}
SLOW = pytest.mark.slow
# Each strategy and each scenario of them once; `make soak` tries all.
LARGE = [pytest.param(*cell, marks=SLOW if cell in DIVERGED[1:3] else pytest.mark.soak) for cell in DIVERGED]
N_CLASSES = {"mnist": 10, "cifar10": 10, "cifar100": 100}


class Three(clbench.Observer):
    """Ends a run after its third task."""

    def task(self, task: int, row: list[float]) -> None:
        """Interrupt the run."""
        if task == 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="session")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with 20 training images and a test image of each class; tinted digits where there is no CIFAR."""
    from clbench.scenarios import load_dataset

    digits, root = load_dataset("mnist-5k", "data", offline=True), tmp_path_factory.mktemp("share")
    given = os.environ.get("CLBENCH_TEST_DATA")
    for name, n_classes in N_CLASSES.items():
        if name != "mnist" and given:
            data = load_dataset(name, given, offline=True)
            parts = [(data.x_train, data.y_train, 20), (data.x_test, data.y_test, 1)]
            arrays = [_first(images.transpose(0, 2, 3, 1), labels, n, n_classes) for images, labels, n in parts]
        else:
            arrays = [
                _first(*_tinted(images[:, 0], labels, n_classes, grey=name == "mnist"), n, n_classes)
                for images, labels, n in ((digits.x_train, digits.y_train, 20), (digits.x_test, digits.y_test, 1))
            ]
        (x_train, y_train), (x_test, y_test) = arrays
        np.savez(root / f"{name}.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return root


def _first(images: Any, labels: Any, n: int, n_classes: int) -> tuple[Any, Any]:
    chosen = np.concatenate([np.flatnonzero(labels == c)[:n] for c in range(n_classes)])
    return images[chosen], labels[chosen]


def _tinted(images: Any, labels: Any, n_classes: int, *, grey: bool) -> tuple[Any, Any]:
    """Return digits as they are, or in n_classes / 10 tints on 32 x 32 pixels, a class for each digit and tint."""
    if grey:
        return images, labels
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None].astype(np.float64)
    n_tints = n_classes // 10
    tints = np.random.default_rng(0).uniform(0.2, 1, (n_tints, 3))
    tinted = [(padded * tint).astype(np.uint8) for tint in tints]
    return np.concatenate(tinted), np.concatenate([labels + 10 * i for i in range(n_tints)])


def three_tasks(name: str, scenario: str, share: Path, out: Path, **options: Any) -> Result:
    """Run a strategy with a preset, with which it sees some images of each class a few times; return what there is."""
    asked = str(share / "mnist.npz") if scenario == "files" else scenario
    amount = FEW if scenario.startswith("split-cifar") else MANY
    given = {"data_root": share, "threads": 1, "evaluate": "seen", "out": out} | amount | network_of(name) | options
    if scenario == "files":
        given["tasks"] = 5
    if name == "coda-prompt":
        # Components are orthogonal, and the small transformer has too few dimensions for ten in each of 20 tasks.
        given["strategy_options"] = {"components": 5}
    with pytest.raises(KeyboardInterrupt):
        clbench.run(asked, name, observer=Three(), **given)
    return Result.load(out)


def cells() -> list[Any]:
    """Return every strategy with every preset, in a setting that both have; the slow ones are marked."""
    found = []
    for scenario in SCENARIOS:
        fixed = presets()[scenario].get("setting")
        for name in NAMES:
            # The other settings of a scenario take the same steps, among other outputs.
            setting = next((s for s in strategy_class(name).traits.settings if fixed in (None, s)), None)
            if setting is not None:
                quick = (name, scenario) in QUICK
                # A ResNet-32 takes half a minute a cell.
                large = scenario.startswith("split-cifar") and (name, scenario) not in DIVERGED[1:3]
                marks = [] if quick else [pytest.mark.soak if large else SLOW]
                found.append(pytest.param(name, scenario, setting, id=f"{scenario}-{setting}-{name}", marks=marks))
    return found


@pytest.mark.filterwarnings("ignore:.*data are")
@pytest.mark.parametrize(("name", "scenario", "setting"), cells())
def test_a_strategy_survives_a_preset(name: str, scenario: str, setting: str, share: Path, tmp_path: Path) -> None:
    result = three_tasks(name, scenario, share, tmp_path / "run", setting=setting)
    assert len(result.recorded.tasks) == 3
    assert np.isfinite(result.accuracy[2][:3]).all()


@pytest.mark.filterwarnings("ignore:.*data are")
@pytest.mark.parametrize(
    ("name", "scenario"),
    [("ewc", "rotated-mnist"), ("mas", "rotated-mnist"), *LARGE],
)
def test_without_the_strengths_of_the_preset_it_would_not(
    name: str, scenario: str, share: Path, tmp_path: Path
) -> None:
    """So the test above can fail; and the sentence names what helps beside the rate."""
    strength = {"ewc": 100.0, "mas": 10.0}[name]
    before = {"strength": strength, "importance_max": None}
    amount = FEW if scenario.startswith("split-cifar") else MANY | {"epochs": 5, "tasks": 3}
    with pytest.raises(clbench.RunError) as caught:
        clbench.run(scenario, name, data_root=share, threads=1, out=tmp_path, strategy_options=before, **amount)
    text = str(caught.value)
    helping = ["smaller learning rate", "strength", "--clip 1"]
    if "importance" not in text:
        helping += [f"strength (now {strength:g})", "clbench tune"]
    for named in helping:
        assert named in text, text


def test_every_preset_is_tried() -> None:
    # Those of streams that are seen once are tried in test_online.py.
    own = {SAME.get(name, name) for name in presets() if not name.startswith("online")}
    assert own == {*SCENARIOS, "split-mnist-5k"}
    for name, like in SAME.items():
        kept = {key: value for key, value in presets()[like].items() if key != "strategies"}
        assert {key: value for key, value in presets()[name].items() if key != "strategies"} == kept


@pytest.mark.parametrize("scenario", ["split-cifar10", "split-cifar100", "rotated-mnist"])
@pytest.mark.parametrize(("name", "factor"), [("ewc", 1), ("mas", 2)])
def test_the_penalty_of_a_preset_is_not_too_stiff_for_its_optimizer(scenario: str, name: str, factor: int) -> None:
    """Gradient descent with momentum m on h w^2 / 2 diverges from rate * h = 2 (1 + m) on (Polyak 1964).

    For any data h is at most strength * limit * tasks, twice that for MAS, whose penalty has no 1 / 2. A factor of 2 is
    left to the loss.
    """
    config = resolve(scenario, name, {})
    training, tasks = config.training, scenario_class(scenario).preset["tasks"]
    options = config.strategy_options
    stiffness = factor * options["strength"] * options["importance_max"] * tasks
    assert training.optimizer == "sgd"
    assert training.lr * stiffness <= 2 * (1 + training.momentum) / 2


def test_the_limit_takes_greater_entries_for_itself_and_leaves_the_rest(run: Any) -> None:
    """The same first task with and without it; what is above the limit is the limit, by hand."""
    found: dict[float | None, dict[str, Any]] = {}

    class Watched(strategy_class("ewc")):  # type: ignore[misc]
        def end_task(self, task: Any) -> None:
            super().end_task(task)
            if task.index == 0:
                found[self.importance_max] = {name: value.clone() for name, value in self.importance.items()}

    for limit in (None, 1e-3):
        run(Watched, lr=0.01, strategy_options={"importance_max": limit})
    assert max(float(value.max()) for value in found[None].values()) > 1e-3
    for name, value in found[None].items():
        assert (found[1e-3][name] == value.minimum(value.new_tensor(1e-3))).all()
