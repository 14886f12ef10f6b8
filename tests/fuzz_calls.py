"""Wrong arguments to the public Python functions, by the hundred: the targets of `fuzz.py calls`.

A case takes a correct call and replaces one or two of its arguments with something else. The call must return, or raise
ConfigError or RunError; no other exception is an answer to a wrong argument.
"""

import datetime
import decimal
import enum
import fractions
import functools
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clbench
from clbench.config.errors import ConfigError, RunError
from clbench.results.result import Result

# A ConfigError and a RunError are the answers to a wrong argument; 2 is the exit code that the fuzzer counts for them.
REFUSED = 2


class Colour(enum.Enum):
    """An enumeration, which no function knows."""

    RED = 1


class Mine(clbench.Strategy):
    """A correct strategy, as a class of the user's own."""

    traits = clbench.Traits(family="replay")
    strength: float = 1.0


class Foreign:
    """A class that has nothing to do with clbench, with attributes that look as if it had."""

    name, path, traits, options = "naive", "x", None, 3


def things() -> list[Any]:
    """Return objects of many kinds, made anew because a call may use some of them up."""
    return [
        *(None, True, False, 0, 1, -1, 2, 3, 7, 10**30, -(10**30), 2**63, 0.0, 0.5, -0.5, 1e308, 1.5, complex(1, 2)),
        *(float("nan"), float("inf"), -float("inf"), decimal.Decimal("0.5"), fractions.Fraction(1, 3)),
        *("", " ", "a", "naive", "1", "0.5", "1,2", "nan", "é😀", "x" * 500, "a\x00b", "\ud800", b"", b"naive"),
        *(bytearray(b"a"), memoryview(b"abc"), Path(), Path("no/such"), Path("a\x00b"), datetime.date(2020, 1, 1)),
        *([], (), {}, set(), frozenset(), [1], (1, 2), {1, 2}, [1, "a"], [None], [[1, 2], [3]], [[]], {"a": 1}, {1: 2}),
        *(range(0), range(3), range(10**9), iter([1, 2]), (i for i in range(3)), zip([1], [2], strict=True), slice(1)),
        *(np.int64(3), np.float32(0.5), np.bool_(True), np.str_("naive"), np.nan, np.array(3), np.array([]), np.eye(2)),
        *(np.arange(4), np.arange(6.0).reshape(2, 3), np.array(["a", "b"]), np.array([None, 1], dtype=object)),
        *(np.array([1 + 2j]), np.full((2, 2), np.nan), np.zeros((0, 3)), np.zeros((2, 3, 4)), np.array([1, -1, 10**9])),
        *(
            np.ma.masked_array([1, 2], [0, 1]),
            np.array(["2020-01-01"], dtype="datetime64[D]"),
            np.random.default_rng(0),
        ),
        *(torch.tensor(3), torch.tensor([]), torch.eye(3), torch.arange(4), torch.tensor([float("nan")] * 3)),
        *(torch.zeros(2, 0), torch.zeros(2, 3, 4, 5), torch.tensor([True, False]), torch.tensor([1 + 2j])),
        *(torch.zeros(3, dtype=torch.float16), torch.zeros(2, 2, requires_grad=True), torch.empty(2, device="meta")),
        *(torch.eye(3).to_sparse(), torch.Generator(), torch.device("cpu"), torch.float32, torch.nn.Linear(2, 2)),
        *(torch.utils.data.TensorDataset(torch.zeros(4, 1, 4, 4), torch.zeros(4)), torch.nn.Module),
        *(int, object, type, dict, Colour, Colour.RED, Foreign, Foreign(), Mine, Mine(), clbench, clbench.run, len),
        *(lambda: 1, lambda *a, **k: None, NotImplemented, Ellipsis, ValueError("x"), ValueError),
        *(clbench.Observer, clbench.Observer(), clbench.Log(0.1, 1.0), clbench.Choices(1, 2), clbench.ScenarioSpec),
    ]


def answer(call: Callable[[], object]) -> tuple[int, str]:
    """Return exit code and stderr of a command line that would make this call."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            returned = call()
            if hasattr(returned, "__next__"):
                list(returned)
    except (ConfigError, RunError) as error:
        return REFUSED, f"clbench: {error}\n"
    return 0, ""


def call_targets(place: Path) -> dict[str, Callable[[random.Random], tuple[int, str]]]:
    """Return for each public function how a case of it is made and done."""
    from clbench import augment, importance, losses, memory, metrics, models, reports, scenarios, statistics

    quick = {"tasks": 2, "epochs": 1, "model": "mlp:4", "threads": 1, "batch_size": 8, "offline": True, "lr": 0.1}
    data = str(place / "tiny.npz")
    arrays = dict(np.load(data))
    tiny = scenarios.split(scenarios.dataset_from_arrays(**arrays), tasks=2)
    done = clbench.run(data, "naive", out=place / "done", **quick)
    matrix = np.array([[0.9, 0.1], [0.6, 0.8]])
    features = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 0])
    network = torch.nn.Linear(3, 3)
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    ids, classes = torch.arange(6), torch.tensor([0, 0, 0, 1, 1, 1])
    space = "strength=log:0.1:10"
    run = {"scenario": data, "strategy": "naive", "out": place / "o", "force": True, **quick}
    several = {"scenario": data, "strategies": ["naive"], "seeds": 1, "out": place / "c", "references": False, **quick}
    grid = {"scenario": data, "strategy": "naive", "seeds": 1, **quick}
    result_attributes = ("accuracy", "task_aware_accuracy", "metrics", "status", "warnings", "config")

    def filled(kind: Any, **given: Any) -> object:
        made = kind(given.pop("size"), given.pop("per_class"))
        made.update(**given)
        return made.ids

    def result_of(record: Any) -> list[object]:
        return [getattr(Result(record), name) for name in result_attributes]

    calls: dict[str, tuple[Callable[..., object], dict[str, Any]]] = {
        "run": (clbench.run, {**run, "seed": 0, "resume": False, "observer": None, "store": None, "track": None}),
        "run with options": (
            clbench.run,
            {
                **run,
                "strategy": "er",
                "memory_size": 4,
                "strategy_options": {"share": 0.5},
                "class_order": [3, 1, 0, 2],
            },
        ),
        "run of a scenario": (clbench.run, {**run, "scenario": tiny} | dict.fromkeys(["tasks"])),
        "compare": (clbench.compare, {**several, "jobs": 1, "force": False, "seeds_together": False}),
        "sweep": (clbench.sweep, {"grid": grid, "out": place / "s", "jobs": 1, "shard": None, "force": False}),
        "sweep of values": (lambda **given: clbench.sweep(given, out=place / "s"), grid),
        "tune": (
            clbench.tune,
            {
                "scenario": data,
                "strategy": "l2",
                "trials": 1,
                "protocol": "oracle",
                "space": space,
                "out": place / "t",
                **quick,
            },
        ),
        "load": (clbench.load, {"paths": [place / "done"]}),
        "Result.load": (Result.load, {"path": place / "done"}),
        "Result": (result_of, {"record": done.record}),
        "dataset_from_arrays": (scenarios.dataset_from_arrays, {"name": "tiny", "class_names": None, **arrays}),
        "split": (
            scenarios.split,
            {"data": scenarios.dataset_from_arrays(**arrays), "tasks": 2, "setting": "class", "seed": 0},
        ),
        "load_dataset": (
            scenarios.load_dataset,
            {"name_or_path": data, "data_root": place, "offline": True, "image_size": None},
        ),
        "build_model": (models.build_model, {"spec": "mlp:4", "image_shape": (1, 4, 4), "seed": 0}),
        "check_strategy": (clbench.testing.check_strategy, {"strategy": Mine, "checks": ["declarations"]}),
        "Traits": (clbench.Traits, {"family": "replay", "settings": ("class",), "memory": "joined", "paper": ""}),
        "Log": (clbench.Log, {"low": 0.1, "high": 1.0}),
        "write_report": (reports.write_report, {"results": [done], "folder": place / "r"}),
        "write_figures": (
            reports.write_figures,
            {"results": [done], "folder": place / "f", "names": ["forgetting"], "kind": "svg", "style": "paper"},
        ),
        "summarize": (
            metrics.summarize,
            {"R": matrix, "baseline": [0.5, 0.5], "test_sizes": [3, 4], "joint": None, "minima": None},
        ),
        **{
            f"metric {name}": (getattr(metrics, name), {"R": matrix})
            for name in ("average_accuracy", "forgetting", "forgetting_by_task", "backward_transfer", "completed")
        },
        "metric forward_transfer": (metrics.forward_transfer, {"R": matrix, "baseline": [0.5, 0.5]}),
        "confusion_matrix": (
            metrics.confusion_matrix,
            {"targets": [0, 1, 1], "predictions": [0, 1, 0], "n_classes": 2},
        ),
        "herding": (memory.herding, {"features": features, "m": 3}),
        "argmax_herding": (memory.argmax_herding, {"features": features, "m": 3, "steps": 10}),
        "quotas": (memory.quotas, {"n_classes": 3, "size": 10, "per_class": None, "rounding": "spare"}),
        **{
            f"{name}.update": (
                functools.partial(filled, getattr(memory, name)),
                {"size": 4, "per_class": None, "ids": ids, "classes": classes, "generator": torch.Generator()},
            )
            for name in ("ReservoirMemory", "ClassBalancedMemory")
        },
        "cross_entropy": (
            losses.cross_entropy,
            {"logits": logits, "labels": labels, "active": None, "reduction": "mean", "label_smoothing": 0.1},
        ),
        "distillation": (
            losses.distillation,
            {"student_logits": logits, "teacher_logits": logits[:, :2], "temperature": 2.0, "groups": None},
        ),
        "binary_cross_entropy": (
            losses.binary_cross_entropy,
            {"logits": logits, "labels": labels, "teacher_logits": None, "reduction": "mean"},
        ),
        "supervised_contrastive": (
            losses.supervised_contrastive,
            {"anchors": logits, "labels": labels, "temperature": 0.1, "others": None, "other_labels": None},
        ),
        "fisher_diagonal": (
            importance.fisher_diagonal,
            {"model": network, "images": logits, "labels": labels, "label_mode": "empirical", "chunk_size": None},
        ),
        "quadratic_penalty": (
            importance.quadratic_penalty,
            {"parameters": {"w": logits}, "importance": {"w": logits}, "anchor": {"w": logits}},
        ),
        **{
            name: (getattr(augment, name), {"images": images, "generator": torch.Generator()})
            for name in ("crop", "flip", "crop_flip")
        },
        "spread": (statistics.spread, {"values": [1.0, 2.0]}),
        "interval": (statistics.interval, {"values": [1.0, 2.0, 4.0], "level": 0.95}),
        "paired": (statistics.paired, {"ours": {(0, ""): 1.0, (1, ""): 2.0}, "theirs": {(0, ""): 0.5, (1, ""): 1.0}}),
        "holm": (statistics.holm, {"pvalues": [0.01, 0.2, None]}),
        "mean_ranks": (statistics.mean_ranks, {"scores": {"a": [1.0, 2.0] * 3, "b": [2.0, 1.0] * 3}, "alpha": 0.05}),
        "runs_needed": (statistics.runs_needed, {"difference": 1.0, "sd": 1.0, "power": 0.8, "alpha": 0.05}),
        "equivalence": (statistics.equivalence, {"difference": 0.5, "error": 0.5, "df": 4.0, "margin": 2.0}),
        "smallest_p": (statistics.smallest_p, {"n": 5, "tests": 1}),
    }

    def of_call(function: Callable[..., object], right: dict[str, Any]) -> Callable[[random.Random], tuple[int, str]]:
        assert answer(lambda: function(**right)) == (0, ""), answer(lambda: function(**right))

        def case(chance: random.Random) -> tuple[int, str]:
            given = dict(right)
            for name in chance.sample(list(given), min(len(given), chance.choice((1, 1, 1, 2)))):
                given[name] = chance.choice(things())
            return answer(lambda: function(**given))

        return case

    return {name: of_call(*call) for name, call in calls.items()}
