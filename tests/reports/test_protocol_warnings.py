"""Protocol rules: what a reader is told, from the runs alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clbench.learning.memory import Memory
from clbench.reports.comparison import compare
from clbench.reports.protocol import broken_rules
from clbench.results.result import Result
from clbench.strategies.icarl import ICaRL

Make = Callable[..., Result]


def rules(*groups: list[Result]) -> dict[str, str]:
    return dict(broken_rules([(group[0].strategy, group) for group in groups]))


def with_steps(result: Result, steps: int) -> Result:
    """The same run with so many optimizer steps in all."""
    record = json.loads(json.dumps(result.record))
    for task in record["tasks"]:
        task["steps"] = steps // len(record["tasks"])
    return Result(record)


def with_order(result: Result, order: list[int]) -> Result:
    return Result({**result.record, "class_order": order})


def test_unequal_steps_of_competitors_are_told_and_those_of_references_are_not(make_result: Make) -> None:
    tasks = len(make_result("lwf").task_classes)
    few = [with_steps(make_result("lwf", seed), 10 * tasks) for seed in (0, 1)]
    many = [with_steps(make_result("ewc", seed), 20 * tasks) for seed in (0, 1)]
    joint = [with_steps(make_result("joint", seed), 50 * tasks) for seed in (0, 1)]
    text = rules(few, many, joint)["unequal-budget"]
    assert f"ewc takes {20 * tasks}" in text
    assert f"lwf {10 * tasks}" in text
    assert "joint" not in text
    assert "unequal-budget" not in rules(few, joint)
    nearly = [with_steps(make_result("ewc", seed), 10 * tasks) for seed in (0, 1)]
    assert "unequal-budget" not in rules(few, nearly)


def test_one_seed_and_one_class_order_are_told(make_result: Make) -> None:
    one = make_result("lwf", 0)
    order = one.recorded.class_order
    assert set(rules([one], [make_result("ewc", 0)])) == {"single-seed"}
    both = [make_result("lwf", seed) for seed in (0, 1)]
    assert set(rules(both)) == {"single-class-order"}
    assert set(rules([both[0], with_order(both[1], order[::-1])])) == set()


def test_the_report_names_the_rule(make_result: Make) -> None:
    assert "(single-seed)" in " ".join(compare([make_result("lwf", 0)])[0].notes)


def test_what_all_runs_say_is_said_once(make_result: Make) -> None:
    """Three runs with one warning each: one note, of all runs, instead of a list of them."""
    results = [make_result(name, seed, warnings=("Take care",)) for name in ("lwf", "ewc") for seed in (0, 1)]
    (part,) = compare(results)
    assert [note for note in part.notes if "Take care" in note] == ["Take care (all runs)"]
    results = [*results[:2], *(make_result("ewc", seed) for seed in (0, 1))]
    (part,) = compare(results)
    assert [note for note in part.notes if "Take care" in note] == ["Take care (lwf, seed 0, 1)"]


def test_a_run_says_by_rule_what_its_protocol_is(run: Any, cut: Any, tmp_path: Path) -> None:
    """A memory of 7 over 2 to 10 classes, each rounded up: 8, 8, 12, 8, 10 by hand, so 10 after the last task."""
    task = run("naive", cut(setting="task"))
    assert [w["rule"] for w in task.record["warnings"]] == ["task-given-at-test"]
    assert [w["rule"] for w in run("naive").record["warnings"]] == []
    over = run("rebuffi2017-icarl", memory_size=7)
    (text,) = [w["text"] for w in over.record["warnings"] if w["rule"] == "memory-above-budget"]
    assert text == "rebuffi2017-icarl: 10 exemplars are kept, and the memory is of 7 after task 4"
    assert [t["n_exemplars"] for t in over.record["tasks"]] == [8, 8, 12, 8, 10]

    class RoundedDown(ICaRL):
        def new_memory(self, kind: Any, size: int | None, per_class: int | None) -> Memory:
            return kind(size, per_class, rounding="floor")

    exact = run(RoundedDown, memory_size=10)
    assert [t["n_exemplars"] for t in exact.record["tasks"]] == [10, 8, 6, 8, 10]
    assert not any(w["rule"] == "memory-above-budget" for w in exact.record["warnings"])


def test_a_strategy_of_ones_own_that_reads_all_data_is_told(run: Any) -> None:
    import clbench

    class Means(clbench.Strategy):
        traits = clbench.Traits(family="replay", data_access="all")

    assert [w["rule"] for w in run(Means).record["warnings"]] == ["all-past-data"]
    assert not run("joint").record["warnings"]


def test_milestones_that_training_does_not_reach_are_told(run: Any, cut: Any) -> None:
    """Of two epochs the last is epoch 1: a rate that falls at epoch 2 never does, but over a run of two tasks."""
    tasks = cut(task_sizes=[5, 5], limit=5)
    fields = {"epochs": 2, "schedule": "multistep", "milestones": [1, 2]}
    (told,) = run("naive", tasks, **fields).record["warnings"]
    assert told["rule"] == "milestones-not-reached"
    assert "epoch 2, since training ends after 2" in told["text"]
    assert run("naive", tasks, schedule_scope="run", **fields).record["warnings"] == []
    steps = {"epochs": 2, "schedule": "step", "step_epochs": 5}
    assert "at epoch 5," in run("naive", tasks, **steps).record["warnings"][0]["text"]
    # Tasks of 25 images in batches of 25: three iterations are three epochs.
    few = {"epochs": None, "iterations": 3, "batch_size": 25, "schedule": "multistep", "milestones": [1, 9]}
    assert "at epoch 9, since training ends after 3" in run("naive", tasks, **few).record["warnings"][0]["text"]
