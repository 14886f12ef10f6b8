"""Wrong kinds of argument to every public function: accepted where the meaning is plain, or refused in one sentence."""

import decimal
import importlib
import inspect
import sys
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import clbench
from clbench import ConfigError, RunError, augment, importance, losses, memory, metrics, models, scenarios, statistics
from clbench.config.arguments import check_shapes, checked
from clbench.learning.strategy import Strategy, Traits

FAST = {"model": "mlp:4", "iterations": 1, "threads": 1, "batch_size": 4}


class Odd:
    """An object of no use, whose text can't even be had."""

    def __repr__(self) -> str:
        raise ZeroDivisionError("no text")


class Mine(Strategy):
    """A strategy that is naive fine-tuning."""

    traits = Traits(family="reference")
    strength: float = 1.0


class NoTraits(Strategy):
    pass


class TwoStripes(clbench.ScenarioSpec):
    """Two kinds of stripes in two tasks."""

    preset: ClassVar[Any] = {"epochs": 1, "model": "mlp:4"}
    n: int = 6

    def build(self, config: Any) -> Any:
        images = np.arange(2 * self.n * 64, dtype=np.uint8).reshape(-1, 8, 8)
        labels = np.arange(2).repeat(self.n)
        data = scenarios.dataset_from_arrays(images, labels, images, labels, name="stripes")
        return scenarios.split(data, tasks=2, name=config.scenario)


# Values to hand over in the place of anything else. Each is made anew, since a generator is used up.
ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "numpy True": lambda: np.bool_(True),
    "0": lambda: 0,
    "-1": lambda: -1,
    "3": lambda: 3,
    "2.5": lambda: 2.5,
    "2.0": lambda: 2.0,
    "NaN": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "huge": lambda: 10**400,
    "2**63": lambda: 2**63,
    "a fraction": lambda: Fraction(1, 2),
    "a decimal": lambda: decimal.Decimal("0.5"),
    "complex": lambda: 1j,
    "empty text": lambda: "",
    "text": lambda: "abc",
    "number as text": lambda: "2",
    "long text": lambda: "x" * 5000,
    "NUL": lambda: "a\0b",
    "bytes": lambda: b"abc",
    "path": lambda: Path("no/such/place"),
    "empty list": list,
    "list": lambda: [1, 2],
    "nested": lambda: [[1, 2], [3]],
    "list of None": lambda: [None],
    "list of texts": lambda: ["a", "b"],
    "tuple": lambda: (2, 3),
    "set": lambda: {1, 2},
    "dict": lambda: {"a": 1},
    "dict of numbers": lambda: {1: 2},
    "range": lambda: range(3),
    "generator": lambda: (n for n in range(3)),
    "deque": lambda: deque([1, 2]),
    "int64": lambda: np.int64(3),
    "float32": lambda: np.float32(0.5),
    "0-d array": lambda: np.array(3),
    "array": lambda: np.array([1, 2]),
    "matrix": lambda: np.full((2, 2), 0.5),
    "empty array": lambda: np.empty(0),
    "array of texts": lambda: np.array(["a", "b"]),
    "array of objects": lambda: np.array([None, "a", Odd], dtype=object),
    "array of dates": lambda: np.array(["2026-01-01"], dtype="datetime64[D]"),
    "large array": lambda: np.zeros((1200, 1200)),
    "0-d tensor": lambda: torch.tensor(3),
    "tensor": lambda: torch.tensor([1, 2]),
    "tensor with gradient": lambda: torch.ones(2, requires_grad=True),
    "float tensor": lambda: torch.rand(4, 3),
    "4-D tensor": lambda: torch.rand(2, 1, 8, 8),
    "empty tensor": lambda: torch.empty(0, 3),
    "NaN tensor": lambda: torch.full((4, 3), torch.nan),
    "tensor without values": lambda: torch.empty(3, device="meta"),
    "sparse tensor": lambda: torch.eye(3).to_sparse(),
    "device": lambda: torch.device("cpu"),
    "dtype": lambda: torch.float32,
    "slice": lambda: slice(0, 2),
    "function": lambda: len,
    "class": lambda: int,
    "object": object,
    "object without text": Odd,
    "a module": lambda: torch.nn.Linear(2, 2),
    "a data set of torch": lambda: TensorDataset(torch.zeros(4, 2)),
    "a strategy": lambda: Mine,
    "an instance of a strategy": Mine,
    "a generator of torch": torch.Generator,
    "an error": lambda: ValueError("x"),
}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Counting:
    """A dataset of four tiny images of each of four classes, and other right arguments, made once."""

    images = (np.arange(16 * 64, dtype=np.uint32) % 251).astype(np.uint8).reshape(16, 8, 8)
    labels = np.arange(4).repeat(4)

    @classmethod
    def dataset(cls) -> Any:
        return scenarios.dataset_from_arrays(cls.images, cls.labels, cls.images, cls.labels, name="counting")


DATA = Counting.dataset()
R = np.array([[0.9, 0.1], [0.5, 0.8]])
LINEAR = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
WEIGHTS = {name: w.detach() for name, w in LINEAR.named_parameters()}
PAIRS = {(seed, "0 1"): 0.1 * seed for seed in range(7)}
SCORES = {"a": [0.1, 0.2, 0.3, 0.4, 0.5], "b": [0.5, 0.4, 0.3, 0.2, 0.9]}

# Every public function that trains nothing, with arguments that are right.
RIGHT: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "scenarios.split": (
        scenarios.split,
        {
            "data": DATA,
            "tasks": 2,
            "task_sizes": None,
            "class_order": None,
            "class_order_seed": None,
            "setting": "class",
            "limit": None,
            "validation": 0.0,
            "blurry": 0.0,
            "imbalance": None,
            "shots": None,
            "seed": 0,
            "name": "x",
        },
    ),
    "scenarios.dataset_from_arrays": (
        scenarios.dataset_from_arrays,
        {
            "x_train": Counting.images,
            "y_train": Counting.labels,
            "x_test": Counting.images,
            "y_test": Counting.labels,
            "name": "x",
            "class_names": None,
        },
    ),
    "scenarios.join": (scenarios.join, {"sets": [DATA], "names": ["x"], "image_size": 4}),
    "scenarios.load_dataset": (
        scenarios.load_dataset,
        {"name_or_path": "mnist-5k", "data_root": "data", "offline": True, "image_size": None},
    ),
    "memory.herding": (memory.herding, {"features": np.eye(4, 3), "m": 2}),
    "memory.argmax_herding": (memory.argmax_herding, {"features": np.eye(4, 3), "m": 2, "steps": 9}),
    "memory.quotas": (memory.quotas, {"n_classes": 3, "size": 7, "per_class": None, "rounding": "spare"}),
    "memory.ReservoirMemory": (memory.ReservoirMemory, {"size": 3, "per_class": None, "rounding": "spare"}),
    "memory.ClassBalancedMemory": (memory.ClassBalancedMemory, {"size": 3, "per_class": None, "rounding": "spare"}),
    "memory.HerdingMemory": (memory.HerdingMemory, {"size": 3, "per_class": None, "rounding": "spare"}),
    "memory.RandomMemory": (memory.RandomMemory, {"size": 3, "per_class": None, "rounding": "spare"}),
    "HerdingMemory.update": (
        lambda **given: memory.HerdingMemory(3).update(**given),
        {
            "ids": torch.arange(4),
            "classes": torch.tensor([0, 0, 1, 1]),
            "generator": seeded(),
            "features": torch.eye(4, 3),
        },
    ),
    "ClassBalancedMemory.update": (
        lambda **given: memory.ClassBalancedMemory(3).update(**given),
        {"ids": torch.arange(4), "classes": torch.tensor([0, 0, 1, 1]), "generator": seeded()},
    ),
    "Memory.sample": (
        lambda **given: filled().sample(**given),
        {"n": 2, "generator": seeded()},
    ),
    "losses.cross_entropy": (
        losses.cross_entropy,
        {
            "logits": torch.rand(4, 3),
            "labels": torch.tensor([0, 1, 2, 0]),
            "active": None,
            "reduction": "mean",
            "label_smoothing": 0.0,
        },
    ),
    "losses.distillation": (
        losses.distillation,
        {
            "student_logits": torch.rand(4, 3),
            "teacher_logits": torch.rand(4, 2),
            "temperature": 2.0,
            "groups": None,
            "squared_temperature": False,
        },
    ),
    "losses.binary_cross_entropy": (
        losses.binary_cross_entropy,
        {
            "logits": torch.rand(4, 3),
            "labels": torch.tensor([0, 1, 2, 0]),
            "teacher_logits": torch.rand(4, 2),
            "reduction": "mean",
        },
    ),
    "losses.supervised_contrastive": (
        losses.supervised_contrastive,
        {
            "anchors": torch.rand(4, 3),
            "labels": torch.tensor([0, 1, 2, 0]),
            "temperature": 0.1,
            "others": torch.rand(5, 3),
            "other_labels": torch.tensor([0, 1, 2, 0, 1]),
        },
    ),
    "importance.fisher_diagonal": (
        importance.fisher_diagonal,
        {
            "model": LINEAR,
            "images": torch.rand(4, 4),
            "labels": torch.tensor([0, 1, 2, 0]),
            "label_mode": "empirical",
            "active": None,
            "generator": None,
            "chunk_size": None,
        },
    ),
    "importance.mas_importance": (
        importance.mas_importance,
        {"model": LINEAR, "batches": [torch.rand(4, 4)], "active": None, "chunk_size": None},
    ),
    "importance.quadratic_penalty": (
        importance.quadratic_penalty,
        {"parameters": WEIGHTS, "importance": WEIGHTS, "anchor": WEIGHTS},
    ),
    "importance.loss_decrease": (
        importance.loss_decrease,
        {"gradients": WEIGHTS, "before": WEIGHTS, "model": LINEAR},
    ),
    "importance.copied_weights": (importance.copied_weights, {"model": LINEAR}),
    "importance.copied_gradients": (importance.copied_gradients, {"model": LINEAR}),
    "importance.zeros": (importance.zeros, {"model": LINEAR}),
    "metrics.summarize": (
        metrics.summarize,
        {"R": R, "baseline": [0.1, 0.1], "test_sizes": [5, 5], "joint": [0.9, 0.9], "minima": [0.4]},
    ),
    "metrics.forgetting": (metrics.forgetting, {"R": R}),
    "metrics.average_accuracies": (metrics.average_accuracies, {"R": R, "test_sizes": [1, 2]}),
    "metrics.forward_transfer": (metrics.forward_transfer, {"R": R, "baseline": [0.1, 0.1]}),
    "metrics.intransigence": (metrics.intransigence, {"R": R, "joint": [0.9, 0.9]}),
    "metrics.min_accuracy": (metrics.min_accuracy, {"minima": [0.5]}),
    "metrics.worst_case_accuracy": (metrics.worst_case_accuracy, {"R": R, "minima": [0.5]}),
    "metrics.minima": (metrics.minima, {"R": R, "evaluations": [(1, [0.5, 0.6])]}),
    "metrics.confusion_matrix": (
        metrics.confusion_matrix,
        {"targets": [0, 1], "predictions": [1, 1], "n_classes": 2},
    ),
    "metrics.metric": (metrics.metric, {"sentence": "A sentence.", "better": "higher", "unit": "%"}),
    "statistics.spread": (statistics.spread, {"values": [0.1, 0.2]}),
    "statistics.interval": (statistics.interval, {"values": [0.1, 0.2], "level": 0.95}),
    "statistics.paired": (statistics.paired, {"ours": PAIRS, "theirs": PAIRS}),
    "statistics.sign_flip": (statistics.sign_flip, {"differences": [0.1, 0.2]}),
    "statistics.smallest_p": (statistics.smallest_p, {"n": 6, "tests": 1}),
    "statistics.holm": (statistics.holm, {"pvalues": [0.1, 0.2]}),
    "statistics.mean_ranks": (statistics.mean_ranks, {"scores": SCORES, "lower_is_better": False, "alpha": 0.05}),
    "statistics.variances": (statistics.variances, {"values": PAIRS}),
    "statistics.runs_needed": (
        statistics.runs_needed,
        {"difference": 0.1, "sd": 0.1, "power": 0.8, "alpha": 0.05},
    ),
    "models.build_model": (models.build_model, {"spec": "mlp:4", "image_shape": (1, 8, 8), "seed": 0}),
    "models.Head": (models.Head, {"in_features": 3, "out_features": 2}),
    "Head.grow": (
        lambda **given: models.Head(3).grow(**given),
        {"n_outputs": 2, "generator": seeded(), "init": "default"},
    ),
    "models.Network": (models.Network, {"blocks": [torch.nn.Linear(2, 2)], "feature_dim": 2}),
    "augment.crop": (augment.crop, {"images": torch.rand(2, 1, 8, 8), "generator": seeded(), "padding": 1}),
    "augment.flip": (augment.flip, {"images": torch.rand(2, 1, 8, 8), "generator": seeded()}),
    "augment.crop_flip": (augment.crop_flip, {"images": torch.rand(2, 1, 8, 8), "generator": seeded(), "padding": 1}),
    "Log": (clbench.Log, {"low": 0.1, "high": 10.0}),
    "Traits": (
        clbench.Traits,
        {
            "family": "replay",
            "paper": "",
            "settings": ("class",),
            "data_access": "task",
            "memory": "joined",
            "needs_memory": False,
            "memory_policy": "herding",
            "needs_task_at_test": False,
            "seeds_together": False,
            "through_features": True,
            "on_features": False,
            "not_applicable": {},
        },
    ),
    "Stage": (
        clbench.Stage,
        {
            "data": scenarios.split(DATA, tasks=2).tasks[0].train,
            "name": "train",
            "parameters": None,
            "head_rows": None,
            "epochs": 1,
            "iterations": None,
            "lr": 0.1,
            "loss": None,
            "before": None,
            "watched": True,
        },
    ),
    "ImageSet.subset": (
        lambda **given: scenarios.split(DATA, tasks=2).tasks[0].train.subset(**given),
        {"index": torch.tensor([0, 1])},
    ),
    "Result": (clbench.Result, {"record": {"schema_version": 1}}),
    "Result.load": (clbench.Result.load, {"path": "no/such/run"}),
    "load": (clbench.load, {"paths": ["no/such/run"]}),
    "reports.write_report": (clbench.reports.write_report, {"results": [], "folder": "report"}),
    "reports.write_figures": (
        clbench.reports.write_figures,
        {"results": [], "folder": "report", "names": ["forgetting"], "kind": "pdf", "style": "paper"},
    ),
}


def filled() -> memory.Memory:
    made = memory.ReservoirMemory(3)
    made.update(torch.arange(4), torch.tensor([0, 0, 1, 1]), seeded())
    return made


def is_sentence(error: Exception) -> bool:
    text = str(error)
    return text.isprintable() and 10 < len(text) < 300 and "Traceback" not in text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RIGHT)
def test_each_argument_of_any_kind_is_taken_or_refused_in_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """63 odd values in the place of each argument, one after the other: about 9,000 calls in all."""
    monkeypatch.chdir(tmp_path)
    function, right = RIGHT[name]
    wrong = []
    for argument in right:
        for kind, made in ODD.items():
            try:
                function(**right | {argument: made()})
            except ConfigError as error:
                if not is_sentence(error):
                    wrong.append(f"{argument} = {kind}: {str(error)[:200]!r}")
            except Exception as error:
                where = inspect.getinnerframes(error.__traceback__)[-1]  # type: ignore[arg-type]
                place = f"{Path(where.filename).name}:{where.lineno}"
                wrong.append(f"{argument} = {kind}: {type(error).__name__}: {str(error)[:100]} ({place})")
    assert wrong == []


@pytest.mark.parametrize("name", [n for n in RIGHT if not n.startswith(("Memory", "Head.", "ImageSet"))])
def test_right_arguments_are_right(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    function, right = RIGHT[name]
    if name in ("Result", "Result.load", "load", "reports.write_report", "reports.write_figures"):
        with pytest.raises(ConfigError):
            function(**right)
    else:
        function(**right)


def counting() -> Any:
    return scenarios.split(DATA, tasks=2, name="counting")


RUNS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "run": (
        clbench.run,
        {
            "scenario": counting(),
            "strategy": "naive",
            "out": None,
            "resume": False,
            "force": False,
            "observer": None,
            "track": None,
            "store": None,
        },
    ),
    "compare": (
        clbench.compare,
        {
            "scenario": counting(),
            "strategies": ["naive"],
            "seeds": 1,
            "out": "runs",
            "jobs": 1,
            "references": False,
            "force": False,
            "track": None,
            "seeds_together": False,
        },
    ),
    "tune": (
        clbench.tune,
        {
            "scenario": scenarios.split(DATA, tasks=4, validation=0.25, name="counting"),
            "strategy": "lwf",
            "protocol": "oracle",
            "first_tasks": None,
            "trials": 1,
            "space": None,
            "out": None,
        },
    ),
    "sweep": (
        clbench.sweep,
        {
            "grid": {"scenario": "no-such", "strategy": "naive", "seeds": 1},
            "out": "runs",
            "jobs": 1,
            "shard": None,
            "force": False,
            "track": None,
            "cluster": None,
        },
    ),
    "check_strategy": (clbench.testing.check_strategy, {"strategy": "no-such", "checks": ["declarations"]}),
}
# Values that mean something there, and cost time: worker processes, or thousands of runs.
MANY = {"3", "2**63", "int64", "0-d array", "0-d tensor", "range", "generator"}
COSTLY = {("compare", "jobs"), ("compare", "seeds"), ("tune", "trials"), ("sweep", "jobs")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RUNS)
def test_each_argument_of_a_run_is_taken_or_refused_in_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The odd values in the place of each argument: about 2,000 calls."""
    monkeypatch.chdir(tmp_path)
    function, right = RUNS[name]
    wrong = []
    for argument in right:
        for kind, made in ODD.items():
            value = made()
            if (name, argument) in COSTLY and kind in MANY:
                continue
            try:
                function(**right | {argument: value}, **({} if name in ("sweep", "check_strategy") else FAST))
            except (ConfigError, RunError) as error:
                if not is_sentence(error):
                    wrong.append(f"{argument} = {kind}: {str(error)[:200]!r}")
            except Exception as error:
                wrong.append(f"{argument} = {kind}: {type(error).__name__}: {str(error)[:100]}")
    assert wrong == []


OPTIONS = (
    *(
        "seed",
        "tasks",
        "task_sizes",
        "class_order",
        "class_order_seed",
        "setting",
        "limit",
        "validation",
        "epochs",
        "lr",
    ),
    *("model", "optimizer", "milestones", "memory_size", "device", "data_root", "weights", "per_task", "eval_every"),
    *("strategy_options", "scenario_options", "threads", "checkpoint_every", "drop_last", "label", "tuned_by"),
)


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_of_a_run_is_taken_or_refused_in_a_sentence(option: str) -> None:
    """The odd values for 26 options, of the run, the scenario and the strategy: about 1,600 configurations."""
    from clbench.running.resolve import resolve

    wrong = []
    for kind, made in ODD.items():
        try:
            resolve("split-mnist-5k", "lwf", {option: made()})
        except ConfigError as error:
            if not is_sentence(error):
                wrong.append(f"{kind}: {str(error)[:200]!r}")
        except Exception as error:
            wrong.append(f"{kind}: {type(error).__name__}: {str(error)[:100]}")
    assert wrong == []


PERMUTATION = [3, 1, 4, 5, 9, 2, 6, 8, 7, 0]


@pytest.mark.parametrize(
    ("option", "value", "plain"),
    [
        ("seed", np.int64(3), 3),
        ("seed", np.uint8(3), 3),
        ("seed", torch.tensor(3), 3),
        ("task_sizes", (5, 5), [5, 5]),
        ("task_sizes", np.array([5, 5]), [5, 5]),
        ("task_sizes", torch.tensor([5, 5]), [5, 5]),
        ("task_sizes", (n for n in (5, 5)), [5, 5]),
        ("task_sizes", [np.int64(5), np.int32(5)], [5, 5]),
        ("task_sizes", deque([5, 5]), [5, 5]),
        ("class_order", np.array(PERMUTATION), PERMUTATION),
        ("class_order", torch.tensor(PERMUTATION), PERMUTATION),
        ("class_order", tuple(PERMUTATION), PERMUTATION),
        ("class_order", range(10), list(range(10))),
        ("lr", np.float32(0.5), 0.5),
        ("lr", np.float64(0.25), 0.25),
        ("lr", 1, 1.0),
        ("lr", np.array(0.5), 0.5),
        ("epochs", np.int16(2), 2),
        ("drop_last", np.bool_(True), True),
        ("tasks", np.int64(5), 5),
        ("memory_size", np.int64(20), 20),
        ("data_root", Path("some/where"), "some/where"),
        ("device", torch.device("cpu"), "cpu"),
        ("strategy_options", {"share": np.float64(0.25)}, {"share": 0.25}),
    ],
)
def test_what_is_plainly_meant_is_the_same_run(option: str, value: Any, plain: Any) -> None:
    """The plain value is written beside each; the configurations are equal, and so are their identities."""
    from clbench.running.resolve import resolve

    meant, said = (resolve("split-mnist-5k", "er", {option: given}) for given in (value, plain))
    assert meant == said
    assert meant.identity() == said.identity()


def test_a_set_has_no_order_and_text_is_no_list(refused: Any) -> None:
    from clbench.running.resolve import resolve

    for value in ({5}, "five"):
        with refused("task_sizes"):
            resolve("split-mnist-5k", "naive", {"task_sizes": value})


def test_one_strategy_is_a_comparison(tmp_path: Path) -> None:
    """A single name, a class, and a generator of both."""
    options: dict[str, Any] = {"seeds": 1, "references": False, **FAST}
    names = [
        [result.strategy for result in clbench.compare(counting(), given, out=tmp_path / str(place), **options)]
        for place, given in enumerate(["lwf", Mine, (s for s in ("lwf", Mine)), ("lwf",)])
    ]
    assert names == [["lwf"], ["Mine"], ["lwf", "Mine"], ["lwf"]]


def test_a_scenario_is_a_name_a_path_a_scenario_or_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(
        "mine.npz",
        x_train=Counting.images,
        y_train=Counting.labels,
        x_test=Counting.images,
        y_test=Counting.labels,
    )
    options: dict[str, Any] = {**FAST, "tasks": 2}
    by_path, by_name = (
        clbench.run(given, "naive", out=f"run-{n}", **options) for n, given in enumerate([Path("mine.npz"), "mine.npz"])
    )
    np.testing.assert_array_equal(by_path.accuracy, by_name.accuracy)
    assert clbench.run(TwoStripes, "naive", n=8).scenario == "TwoStripes"
    compared = clbench.compare(TwoStripes, "naive", seeds=2, out="compared", references=False, n=4)
    assert [result.seed for result in compared] == [0, 1]
    grid = {"scenario": TwoStripes, "strategy": [Mine, "naive"], "seeds": 1, "n": [4, 5]}
    assert len(clbench.sweep(grid, out="swept")) == 4
    assert len(clbench.sweep({"scenario": Path("mine.npz"), "strategy": "naive", "tasks": 2, "seeds": 1, **FAST})) == 1


@pytest.mark.slow
def test_a_scenario_class_reaches_worker_processes(tmp_path: Path) -> None:
    # A worker can't import this file, so its classes are sent whole, as those of a notebook are.
    importlib.import_module("cloudpickle").register_pickle_by_value(sys.modules[__name__])
    results = clbench.compare(TwoStripes, Mine, seeds=2, out=tmp_path, references=False, jobs=2)
    assert [result.status for result in results] == ["done", "done"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: clbench.run("split-mnist-5k", "lwf", strength=2), ("strategy_options={'strength': 2}",)),
        (lambda: clbench.run("split-mnist-5k", "lwf", strategy_options={"lr": 2}), ("lr", "field of the run", "lr=2")),
        (lambda: clbench.run("split-mnist-5k", "lwf", strategy_options=2), ("strategy_options=2", "{'strength': 2}")),
        (lambda: clbench.run(TensorDataset(torch.zeros(2)), "lwf"), ("scenario=", "a path or a Scenario")),
        (lambda: clbench.run(counting(), Mine()), ("strategy=", "the class Mine itself")),
        (lambda: clbench.run(counting(), NoTraits), ("'NoTraits'", "declares no traits")),
        (lambda: clbench.run(counting(), int), ("strategy=", "Strategy")),
        (
            lambda: clbench.run(counting(), "naive", observer=clbench.Observer),
            ("observer", "object of the class Observer"),
        ),
        (lambda: clbench.run(TwoStripes("x", {}), "naive"), ("scenario=", "the class TwoStripes itself")),
        (lambda: clbench.compare(counting(), []), ("no strategy",)),
        (lambda: clbench.compare(counting(), {"naive", "lwf"}), ("strategies", "a list of which each entry is text")),
        (lambda: clbench.compare(counting(), "naive", seeds="5"), ("seeds='5'", "an integer")),
        (lambda: clbench.compare(counting(), "naive", jobs=0), ("jobs=0", "1 or more")),
        (lambda: clbench.Result("runs/x"), ("Result.load(path)",)),
        (lambda: clbench.Result.load(TwoStripes), ("path", "a path")),
        (lambda: clbench.load(5), ("paths=5",)),
        (lambda: clbench.reports.write_report("runs", "report"), ("results='runs'", "Result")),
        (lambda: memory.herding(torch.eye(3)), ("missing a required argument: 'm'",)),
        (lambda: losses.distillation(torch.eye(3), torch.eye(3), temprature=2), ("'temprature'", "'temperature'")),
        (lambda: losses.cross_entropy(torch.zeros(4, 3), torch.tensor([0, 1])), ("[B]", "B = 4")),
        (lambda: losses.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 5])), ("labels 0 to 5", "0 to 2")),
        (lambda: losses.cross_entropy(torch.zeros(2, 3), torch.zeros(2)), ("float32", "int64")),
        (lambda: augment.crop(torch.zeros(8, 8), seeded()), ("(8, 8)", "[B, C, H, W]")),
        (lambda: importance.fisher_diagonal(LINEAR, torch.zeros(2, 9), torch.tensor([0, 1])), ("can't work on these",)),
        (lambda: clbench.testing.check_strategy("naive", checks=["neutral"]), ("unknown check 'neutral'",)),
        (lambda: scenarios.split(counting(), tasks=2), ("data=", "a Dataset")),
        (lambda: scenarios.split(DATA, tasks=2.0), ("tasks=2.0", "an integer")),
        (lambda: scenarios.split(DATA, task_sizes="22"), ("task_sizes='22'", "a list")),
    ],
)
def test_a_refusal_names_what_was_given_and_what_is_accepted(
    call: Callable[[], Any], words: tuple[str, ...], refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(*words):
        call()


def test_the_parts_of_a_check_by_hand(refused: Any) -> None:
    """Each accepted value is written beside what was given; a generator of tensors is read one by one."""

    @checked
    def function(
        n: int, *, sizes: list[int] | None = None, name: str = "", parts: Iterator[Any] | None = None
    ) -> tuple[Any, ...]:
        return n, sizes, name

    assert function(np.int64(2), sizes=(1, 2), name="x") == (2, [1, 2], "x")
    assert function(n=True + 1) == (2, None, "")
    for wrong in (
        {"n": True},
        {"n": 2.0},
        {"n": "2"},
        {"n": 2**64},
        {"n": 1, "sizes": [1, None]},
        {"n": 1, "name": b""},
    ):
        with refused("function: "):
            function(**wrong)
    with refused("function", "'n'"):
        function()
    with refused("too many positional"):
        function(1, 2)
    check_shapes("f", x=(np.zeros((2, 3)), "B d"), y=(np.zeros(2), "B"), z=(np.zeros((2, 7, 7)), "B ..."))
    with refused("f: y has shape (3,); [B] is accepted, where B = 2"):
        check_shapes("f", x=(np.zeros((2, 3)), "B d"), y=(np.zeros(3), "B"))
