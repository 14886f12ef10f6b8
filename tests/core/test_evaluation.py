"""The two accuracy matrices and the counts beside them, against slow computations of the test's own."""

import copy
import csv
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import clbench
from clbench import Strategy
from clbench.cli import main
from clbench.learning.strategy import Stage, Traits
from clbench.scenarios import dataset_from_arrays, split

SEVEN = ["naive", "joint", "feature-extraction", "lwf", "ewc[strength=1]", "er", "icarl"]
SHUFFLED = [7, 3, 9, 0, 5, 1, 8, 2, 6, 4]


def guesses(state: dict[str, Tensor], images: Any, mean: float, std: float) -> np.ndarray:
    """Scores of an MLP with one hidden layer, in numpy and float64, from its state dict and uint8 images."""
    w = {name: value.double().numpy() for name, value in state.items()}
    x = (np.asarray(images).reshape(len(images), -1) / 255 - mean) / std
    hidden = np.maximum(x @ w["backbone.0.1.weight"].T + w["backbone.0.1.bias"], 0)
    return hidden @ w["head.weight"].T + w["head.bias"]


def slow_row(scenario: Any, digits: Any, state: dict[str, Tensor], after: int, matrix: str) -> list[float]:
    """Accuracy on each task, one image at a time; NaN if the outputs of the task do not exist or do not compete."""
    row = []
    seen = 2 if scenario.setting == "domain" else sum(len(t.classes) for t in scenario.tasks[: after + 1])
    for task in scenario.tasks:
        first = 0 if scenario.setting == "domain" else scenario.class_order.index(task.classes[0])
        own = range(first, first + len(task.classes))
        competing = list(own) if matrix == "task_aware" else list(range(seen))
        exist = len(state["head.bias"])
        if own[-1] >= (exist if matrix == "task_aware" else seen):
            row.append(math.nan)
            continue
        chosen = np.flatnonzero(np.isin(digits.y_test, task.classes))
        scores = guesses(state, digits.x_test[chosen], digits.mean[0], digits.std[0])
        right = 0
        for values, original in zip(scores, digits.y_test[chosen], strict=True):
            best = max(competing, key=lambda output, values=values: values[output])
            right += best == first + task.classes.index(original)
        row.append(right / len(chosen))
    return row


@pytest.fixture
def watched() -> Any:
    """A naive strategy that keeps its weights before training and after each task."""

    class Watched(Strategy):
        traits = Traits(family="reference")

        def stages(self, task: Any) -> list[Stage]:
            if task.index == 0:
                states.clear()
                states.append(copy.deepcopy(self.model.state_dict()))
            return super().stages(task)

        def end_task(self, task: Any) -> None:
            states.append(copy.deepcopy(self.model.state_dict()))

    states: list[dict[str, Tensor]] = []
    return Watched, states


@pytest.mark.parametrize("head", ["growing", "full"])
@pytest.mark.parametrize(
    "cuts",
    [
        {"setting": "class", "task_sizes": [4, 3, 3]},
        {"setting": "class", "task_sizes": [1] * 10},
        {"setting": "class", "tasks": 5, "class_order": SHUFFLED},
        {"setting": "task", "task_sizes": [2, 5, 3], "class_order": SHUFFLED},
        {"setting": "domain", "tasks": 5, "class_order": SHUFFLED},
        {"setting": "class", "tasks": 1},
    ],
    ids=str,
)
def test_matrices_and_untrained_row_against_a_slow_computation(cuts, head, cut, digits, run, watched, tmp_path):
    """From the weights after each task, image by image; the last row from model.pt."""
    kind, states = watched
    scenario = cut(**cuts)
    result = run(kind, scenario, head=head, out=tmp_path / "run")
    final = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    matrices = {
        "class_incremental": result.class_incremental_accuracy,
        "task_aware": result.task_aware_accuracy,
    }
    for name, matrix in matrices.items():
        for after, row in enumerate(matrix):
            state = final if after == len(matrix) - 1 else states[after + 1]
            np.testing.assert_allclose(row, slow_row(scenario, digits, state, after, name), rtol=1e-12)
        untrained = result.classifiers["linear"].untrained[name]
        np.testing.assert_allclose(untrained, slow_row(scenario, digits, states[0], 0, name), rtol=1e-12)
    assert result.recorded.headline.matrix == ("task_aware" if cuts["setting"] == "task" else "class_incremental")
    np.testing.assert_array_equal(result.accuracy, matrices[result.recorded.headline.matrix])


# The two matrices


@pytest.mark.parametrize("strategy", SEVEN)
@pytest.mark.parametrize("head", ["growing", "full"])
def test_task_aware_is_nowhere_below_class_incremental(strategy, head, run):
    result = run(strategy, head=head, epochs=2)
    for matrices in result.classifiers.values():
        defined = ~np.isnan(matrices.class_incremental)
        assert defined.sum() == 15
        assert (matrices.task_aware[defined] >= matrices.class_incremental[defined]).all()
    assert result.task_aware_accuracy[-1].mean() > result.class_incremental_accuracy[-1].mean()


@pytest.mark.parametrize("strategy", SEVEN)
def test_with_one_task_both_matrices_are_equal(strategy, run, cut):
    result = run(strategy, cut(tasks=1))
    for matrices in result.classifiers.values():
        np.testing.assert_array_equal(matrices.task_aware, matrices.class_incremental)
        assert matrices.task_aware.shape == (1, 1)
        assert not np.isnan(matrices.task_aware).any()


def test_domains_make_both_matrices_equal(run, cut):
    """All outputs belong to every task, so knowing the task does not help."""
    result = run(scenario=cut(setting="domain"))
    np.testing.assert_array_equal(result.task_aware_accuracy, result.class_incremental_accuracy)
    assert not np.isnan(result.accuracy).any()


# Evaluated cells


def test_task_incremental_evaluates_all_tasks_after_the_first(run, cut):
    """A growing head has no outputs of later tasks: empty. A full head answers at about chance: 1/2 of 40 images."""
    growing = run(scenario=cut(setting="task"), evaluate="all").accuracy
    np.testing.assert_array_equal(np.isnan(growing), np.triu(np.ones((5, 5), bool), 1))
    full = run(scenario=cut(setting="task"), evaluate="all", head="full").accuracy
    assert not np.isnan(full).any()
    future = full[np.triu_indices(5, 1)]
    # Ten cells of 40 images, drawn by two untrained outputs: each within [0, 1], their mean near a half.
    assert abs(future.mean() - 0.5) < 0.25


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_future_tasks_are_tested_only_on_demand(setting, run, cut):
    scenario = cut(setting=setting)
    seen, everything = (run(scenario=scenario, head="full", evaluate=e) for e in ("seen", "all"))
    for name in ("class_incremental_accuracy", "task_aware_accuracy"):
        rows = getattr(seen, name)
        np.testing.assert_array_equal(np.isnan(rows), np.triu(np.ones((5, 5), bool), 1))
        np.testing.assert_array_equal(rows[np.tril_indices(5)], getattr(everything, name)[np.tril_indices(5)])
    # Where outputs of later tasks do not compete yet, the class-incremental cells of the future stay empty.
    future = everything.class_incremental_accuracy[np.triu_indices(5, 1)]
    assert np.isnan(future).all() == (setting != "domain")
    assert not np.isnan(everything.task_aware_accuracy).any()
    assert seen.record["accuracy"]["untrained"][seen.recorded.headline.matrix][1:] == [None] * 4
    for result in (seen, everything):
        assert all(task["seconds"]["evaluation"] > 0 for task in result.record["tasks"])


def test_a_cell_that_was_not_evaluated_is_null_empty_and_nan(run, tmp_path):
    """Never 0: null in run.json, an empty field in accuracy.csv, NaN in the array; and means skip it."""
    result = run(out=tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    rows = record["accuracy"]["class_incremental"]
    assert [[value is None for value in row] for row in rows] == [[t > i for t in range(5)] for i in range(5)]
    with open(tmp_path / "run" / "accuracy.csv", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["matrix"] == "class_incremental"]
    assert len(lines) == 25
    for line in lines:
        assert (line["accuracy"] == "") == (int(line["task"]) > int(line["after"]))
    assert np.isnan(result.accuracy[0, 1:]).all()
    seen = [result.accuracy[k, : k + 1].mean() for k in range(5)]
    assert result.metrics["average_incremental_accuracy"] == pytest.approx(np.mean(seen))
    assert result.metrics["forward_transfer"] is None


def test_forward_transfer_is_defined_where_future_outputs_are_active(run, cut):
    """Task-incremental with a full head: the mean of R[i-1][i] - untrained[i], by hand."""
    result = run(scenario=cut(setting="task"), head="full")
    r, b = result.accuracy, result.untrained
    by_hand = sum(r[i - 1, i] - b[i] for i in range(1, 5)) / 4
    assert result.metrics["forward_transfer"] == pytest.approx(by_hand)


# Beside the matrices


@pytest.mark.parametrize("setting", ["class", "task"])
@pytest.mark.parametrize("sizes", [[4, 3, 3], [1, 2, 7]], ids=str)
def test_the_confusion_matrix_is_k_by_k_and_adds_up(sizes, setting, cut, digits, run, tmp_path):
    """Rows sum to the test images of each class (some are left out, so they differ), in order of outputs; the trace
    over the total is the share of all images that is right, which is not the mean over tasks; and cell by cell."""
    if setting == "task" and 1 in sizes:
        sizes = [2, 2, 6]
    keep = np.concatenate([np.flatnonzero(digits.y_test == c)[: 5 + c] for c in range(10)])
    train = np.concatenate([np.flatnonzero(digits.y_train == c)[:10] for c in range(10)])
    data = dataset_from_arrays(digits.x_train[train], digits.y_train[train], digits.x_test[keep], digits.y_test[keep])
    scenario = split(data, task_sizes=sizes, class_order=SHUFFLED, setting=setting)
    result = run("er", scenario, out=tmp_path / "run", epochs=3)
    confusion = np.array(result.record["confusion"])
    assert confusion.shape == (10, 10)
    assert confusion.sum(1).tolist() == [5 + c for c in SHUFFLED]
    class_incremental = result.summary(matrix="class_incremental")
    assert np.trace(confusion) / confusion.sum() == pytest.approx(class_incremental["sample_average_accuracy"])
    assert class_incremental["sample_average_accuracy"] != pytest.approx(class_incremental["average_accuracy"])
    state = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    best = guesses(state, data.x_test, data.mean[0], data.std[0]).argmax(1)
    expected = np.zeros((10, 10), int)
    for original, guess in zip(data.y_test, best, strict=True):
        expected[SHUFFLED.index(original), guess] += 1
    np.testing.assert_array_equal(confusion, expected)


def test_correct_counts_of_each_class_add_up_to_the_accuracies(run, cut):
    scenario = cut(task_sizes=[4, 3, 3], class_order=SHUFFLED)
    result = run("icarl", scenario)
    for matrix in ("class_incremental", "task_aware"):
        rows = result.record["correct"][matrix]
        assert len(rows) == 3
        for after, row in enumerate(rows):
            for index, counts in enumerate(row):
                accuracy = result.record["accuracy"][matrix][after][index]
                if accuracy is None:
                    assert counts is None
                    continue
                assert {int(c) for c in counts} == set(scenario.tasks[index].classes)
                assert all(0 <= n <= 20 for n in counts.values())
                assert sum(counts.values()) / (20 * len(counts)) == pytest.approx(accuracy)


def test_several_classifiers_are_reported_by_name_the_first_as_headline(run, cut):
    class Two(Strategy):
        traits = Traits(family="reference")

        def scores(self, images: Tensor, task: int | None = None) -> dict[str, Tensor]:
            logits = self.model(images)
            return {"reversed": -logits, "linear": logits}

    result, plain = run(Two, cut(task_sizes=[2, 8])), run("naive", cut(task_sizes=[2, 8]))
    assert list(result.classifiers) == ["reversed", "linear"]
    assert result.recorded.headline.classifier == "reversed"
    assert np.array_equal(result.accuracy, result.classifiers["reversed"].class_incremental, equal_nan=True)
    assert np.array_equal(result.classifiers["linear"].class_incremental, plain.accuracy, equal_nan=True)
    # Of two outputs the smaller is right where the larger is wrong.
    assert result.accuracy[0, 0] == pytest.approx(1 - plain.accuracy[0, 0])


def test_a_strategy_that_needs_the_task_has_no_class_incremental_matrix(run, cut):
    asked: list[tuple[int | None, int]] = []

    class Told(Strategy):
        traits = Traits(family="isolation", settings=("task",), needs_task_at_test=True)

        def scores(self, images: Tensor, task: int | None = None) -> Tensor:
            asked.append((task, len(images)))
            return self.model(images)

    result, plain = run(Told, cut(setting="task")), run("naive", cut(setting="task"))
    assert result.class_incremental_accuracy is None
    np.testing.assert_array_equal(result.accuracy, plain.accuracy)
    assert asked[-5:] == [(task, 40) for task in range(5)]
    assert None not in [task for task, _ in asked]


# A user's own data


def own_arrays(digits: Any) -> dict[str, Any]:
    """Four digits under labels of the user's own, in files of the user's own, shuffled."""
    labels = np.array([40, 7, 300, -2])
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, x, y in (("train", digits.x_train, digits.y_train), ("test", digits.x_test, digits.y_test)):
        order = generator.permutation(np.flatnonzero(y < 4))
        arrays |= {f"x_{part}": x[order, 0], f"y_{part}": labels[y[order]]}
    return arrays


def test_forgetting_of_own_data_is_that_of_the_matrix(digits, run, tmp_path):
    """From an .npz file and from arrays; naive and class-incremental; recomputed by hand from the matrix."""
    arrays = own_arrays(digits)
    np.savez(tmp_path / "mine.npz", **arrays)
    results = [
        run("naive", str(tmp_path / "mine.npz"), tasks=2, epochs=3),
        run("naive", split(dataset_from_arrays(**arrays, name="mine"), tasks=2), epochs=3),
    ]
    for result in results:
        r = result.accuracy
        assert result.metrics["forgetting"] == pytest.approx(r[0, 0] - r[1, 0])
        assert result.metrics["forgetting"] > 0.5
        assert result.metrics["backward_transfer"] == pytest.approx(r[1, 0] - r[0, 0])
    assert np.array_equal(results[0].accuracy, results[1].accuracy, equal_nan=True)


def test_own_data_in_one_line_on_the_command_line(digits, tmp_path, capsys):
    np.savez(tmp_path / "mine.npz", **own_arrays(digits))
    options = ["--tasks", "4", "--epochs", "2", "--model", "mlp:16", "--lr", "0.01", "--json", "--threads", "1"]
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "mine.npz"), "naive", "--out", str(tmp_path / "run"), *options])
    assert ended.value.code == 0
    record = json.loads(capsys.readouterr().out)
    r = record["accuracy"]["class_incremental"]
    by_hand = sum(max(r[i][j] for i in range(j, 3)) - r[3][j] for j in range(3)) / 3
    assert record["metrics"]["forgetting"] == pytest.approx(by_hand)
    assert by_hand > 0.5


# Evaluations during training


@pytest.mark.parametrize("every", ["epoch", 1, 2])
def test_evaluations_during_training_are_separate_and_stamped(every, run):
    """20 images in batches of 8, 2 epochs: 6 steps a task."""
    plain, often = run("naive", epochs=2), run("naive", epochs=2, eval_every=every)
    assert json.dumps(plain.record["accuracy"]) == json.dumps(often.record["accuracy"])
    assert plain.record["evaluations"] == []
    stamps = [(e["task"], e["stage"], e["epoch"], e["step"]) for e in often.record["evaluations"]]
    if every == "epoch":
        expected = [(0, 3), (1, 6)]
    else:
        expected = [((step - 1) // 3, step) for step in range(1, 7) if step % every == 0]
    assert stamps == [(task, "train", *at) for task in range(5) for at in expected]
    for evaluation in often.record["evaluations"]:
        task = evaluation["task"]
        assert [value is None for value in evaluation["class_incremental"]] == [t > task for t in range(5)]
        if evaluation["step"] == 6:
            for matrix in ("class_incremental", "task_aware"):
                assert evaluation[matrix] == often.record["accuracy"][matrix][task]
    rows = {tuple(e["class_incremental"]) for e in often.record["evaluations"]}
    assert len(rows) > 5
    # The lowest accuracy on each task from when the next one began, by hand; without these evaluations there is none.
    for key, matrix in (("metrics", "class_incremental"), ("metrics_task_aware", "task_aware")):
        later = [(e["task"], e[matrix]) for e in often.record["evaluations"]]
        later += list(enumerate(often.record["accuracy"][matrix]))
        lowest = [min(row[t] for task, row in later if task > t) for t in range(4)]
        final = often.record["accuracy"][matrix][4][4]
        assert often.record[key]["min_accuracy"] == pytest.approx(sum(lowest) / 4)
        assert often.record[key]["worst_case_accuracy"] == pytest.approx(final / 5 + sum(lowest) / 5)
        assert plain.record[key]["min_accuracy"] is plain.record[key]["worst_case_accuracy"] is None
    assert often.summary()["min_accuracy"] == often.metrics["min_accuracy"]


def test_every_number_of_a_run_is_in_its_files(tmp_path, capsys):
    """The percentages that `run` prints are in run.json and accuracy.csv, to the digits that are shown."""
    options = ["--limit", "10", "--epochs", "1", "--model", "mlp:16", "--threads", "1"]
    with pytest.raises(SystemExit):
        main(["run", "split-mnist-5k", "naive", "--out", str(tmp_path), *options])
    printed = capsys.readouterr().out
    result = clbench.Result.load(tmp_path)
    with open(tmp_path / "accuracy.csv", newline="") as file:
        cells = [line for line in csv.DictReader(file) if line["matrix"] == "class_incremental" and line["accuracy"]]
    assert len(cells) == 15
    for line in cells:
        assert float(line["accuracy"]) == result.accuracy[int(line["after"]), int(line["task"])]
    average = result.metrics["average_accuracy"]
    assert f"{100 * average:.1f}" in printed
    # Every number with a decimal point on screen is one of the file's, in percent or as it is.
    record = json.loads((tmp_path / "run.json").read_text())
    known: set[str] = set()
    pending: list[Any] = [record]
    while pending:
        value = pending.pop()
        pending += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        if isinstance(value, int | float):
            known |= {f"{factor * value:.{places}f}" for factor in (1, 100) for places in (1, 2, 3, 4)}
    numbers = {word.strip("│┃|%,;()") for word in printed.split()}
    shown = {n for n in numbers if n.replace(".", "", 1).removeprefix("-").isdigit() and "." in n}
    assert shown
    assert shown <= known, shown - known
