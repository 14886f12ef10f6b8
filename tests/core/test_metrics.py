"""Metrics: worked examples and properties.

The 3x3 example and its values were worked by hand from the formulas of the papers that each function cites.
"""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clbench.config.errors import ConfigError
from clbench.results import metrics

NAN = float("nan")
R = np.array([[0.80, 0.30, 0.10], [0.85, 0.80, 0.20], [0.50, 0.60, 0.90]])
UNTRAINED = [0.10, 0.10, 0.10]
JOINT = [0.92, 0.85, 0.95]
INDEPENDENT = [0.91, 0.88, 0.93]
MINIMA = [0.35, 0.45]
SEEN_ONLY = np.where(np.tri(3, dtype=bool), R, NAN)

NAMES = [
    "average_accuracy",
    "sample_average_accuracy",
    "average_incremental_accuracy",
    "average_incremental_accuracy_without_first",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "learning_accuracy",
    "average_online_accuracy",
    "near_future_accuracy",
    "anytime_accuracy",
    "intransigence",
    "min_accuracy",
    "worst_case_accuracy",
]

matrices = st.integers(1, 6).flatmap(lambda t: arrays(np.float64, (t, t), elements=st.floats(0, 1)))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (metrics.average_accuracy(R), 2.0 / 3),
        (metrics.average_incremental_accuracy(R), 0.763889),
        (metrics.average_incremental_accuracy_without_first(R), 0.745833),
        (metrics.backward_transfer(R), -0.25),
        (metrics.gem_code_backward_transfer(R), -0.166667),
        (metrics.diaz_rodriguez_backward_transfer(R), -0.15),
        (metrics.remembering(R), 0.85),
        (metrics.positive_backward_transfer(R), 0.0),
        (metrics.forward_transfer(R, UNTRAINED), 0.15),
        (metrics.gem_code_forward_transfer(R, UNTRAINED), 0.10),
        (metrics.forward_transfer_without_baseline(R), 0.25),
        (metrics.diaz_rodriguez_forward_transfer(R), 0.20),
        (metrics.forward_transfer_from_independent(R, INDEPENDENT), -0.055),
        (metrics.forgetting(R), 0.275),
        (metrics.forgetting(R[:2, :2]), -0.05),
        (metrics.clipped_forgetting(R), 0.275),
        (metrics.clipped_forgetting(R[:2, :2]), 0.0),
        (metrics.first_minus_last_forgetting(R), 0.25),
        (metrics.intransigence(R, JOINT), 0.05),
        (metrics.learning_accuracy(R), 0.833333),
        (metrics.near_future_accuracy([3, 12]), 0.25),
        (metrics.near_future_accuracy([0, 0]), None),
        # (0.9 + 0.6 + 0.6) / 3, and of what was tested
        (metrics.anytime_accuracy([0.9, 0.6, 0.6]), 0.70),
        (metrics.anytime_accuracy([0.9, NAN, 0.6]), 0.75),
        (metrics.anytime_accuracy([]), None),
        (metrics.diaz_rodriguez_accuracy(R), 0.741667),
        (metrics.min_accuracy(MINIMA), 0.40),
        (metrics.worst_case_accuracy(R, MINIMA), 0.566667),
        (metrics.min_accuracy([0.40]), 0.40),
        (metrics.worst_case_accuracy(R[:2, :2], [0.40]), 0.60),
        # 0.5 and 0.6 and 0.9 of 100, 200 and 700 samples: 50 + 120 + 630 of 1000
        (metrics.sample_average_accuracy(R, [100, 200, 700]), 0.80),
    ],
)
def test_worked_example(value, expected):
    assert value == pytest.approx(expected, abs=1e-6)


def test_worked_example_task_by_task():
    assert metrics.average_accuracies(R) == pytest.approx([0.80, 0.825, 2.0 / 3])
    assert metrics.forgetting_by_task(R) == pytest.approx([0.35, 0.20])
    assert metrics.intransigence_by_task(R, JOINT) == pytest.approx([0.12, 0.05, 0.05])


def test_forgetting_and_backward_transfer_of_the_rwalk_example():
    """In Chaudhry et al. 2018 a task at .7, .8, .6, .5 over four stages forgets .3 and transfers -.2 backward."""
    matrix = np.where(np.tri(4, dtype=bool), 0.5, NAN)
    matrix[:, 0] = [0.7, 0.8, 0.6, 0.5]
    assert metrics.forgetting_by_task(matrix) == pytest.approx([0.3, 0, 0])
    assert metrics.backward_transfer(matrix) == pytest.approx(-0.2 / 3)


def test_forgetting_is_negative_where_tasks_improve_and_says_so():
    """Hand-worked: task 0 goes from .5 to .9, so -.4; the clipped variant has another name."""
    matrix = [[0.5, NAN], [0.9, 0.7]]
    assert metrics.summarize(matrix)["forgetting"] == pytest.approx(-0.4)
    assert metrics.clipped_forgetting(matrix) == 0
    assert "not clamped" in metrics.METRICS["forgetting"].sentence


def test_average_incremental_accuracy_has_two_names_and_definitions():
    """Hand-worked: A_1 = 1, A_2 = (.2 + .6) / 2 = .4, so .7 with the first step and .4 without it."""
    summary = metrics.summarize([[1.0, NAN], [0.2, 0.6]])
    assert summary["average_incremental_accuracy"] == pytest.approx(0.7)
    assert summary["average_incremental_accuracy_without_first"] == pytest.approx(0.4)
    assert "first included" in metrics.METRICS["average_incremental_accuracy"].sentence
    assert "from the second" in metrics.METRICS["average_incremental_accuracy_without_first"].sentence


def test_summary_has_the_published_names_and_the_worked_values():
    summary = metrics.summarize(R, UNTRAINED, [100, 200, 700], JOINT, MINIMA, [210, 300], [150, 300], [0.9, 0.6, 0.6])
    expected = [2 / 3, 0.8, 0.763889, 0.745833, 0.275, -0.25, 0.15, 0.833333, 0.7, 0.5, 0.7, 0.05, 0.4, 0.566667]
    assert list(summary) == list(metrics.METRICS) == NAMES
    assert list(summary.values()) == pytest.approx(expected, abs=1e-6)
    assert all(type(value) is float for value in summary.values())
    assert all(metric.sentence.endswith(".") for metric in metrics.METRICS.values())


def test_values_are_plain_floats_whatever_the_mean_returns(monkeypatch):
    """fmean of Python 3.12 returns a numpy scalar for numbers from an array; no checkpoint may hold one."""
    exact = metrics.fmean
    monkeypatch.setattr(metrics, "fmean", lambda values, weights: np.float64(exact(values, weights)))
    found = metrics.summarize(R, baseline=UNTRAINED, test_sizes=[1, 2, 3])
    assert {type(value) for value in found.values()} <= {float, type(None)}
    assert {type(value) for value in metrics.average_accuracies(R)} == {float}


def test_summary_of_what_was_not_given_is_none():
    summary = metrics.summarize(SEEN_ONLY)
    missing = {name for name, value in summary.items() if value is None}
    needs_more = {"sample_average_accuracy", "forward_transfer", "intransigence"}
    assert missing == needs_more | {
        *("min_accuracy", "worst_case_accuracy", "average_online_accuracy", "near_future_accuracy", "anytime_accuracy")
    }


def test_one_task_has_neither_transfer_nor_forgetting():
    summary = metrics.summarize([[0.9]], [0.1], [10], [0.95], [], [3, 4], [1, 4], [0.5, 1])
    assert summary == {
        "average_accuracy": 0.9,
        "sample_average_accuracy": 0.9,
        "average_incremental_accuracy": 0.9,
        "average_incremental_accuracy_without_first": None,
        "forgetting": None,
        "backward_transfer": None,
        "forward_transfer": None,
        "learning_accuracy": 0.9,
        "average_online_accuracy": 0.75,
        "near_future_accuracy": 0.25,
        "anytime_accuracy": 0.75,
        "intransigence": pytest.approx(0.05),
        "min_accuracy": None,
        "worst_case_accuracy": 0.9,
    }
    for variant in (
        metrics.clipped_forgetting,
        metrics.first_minus_last_forgetting,
        metrics.gem_code_backward_transfer,
        metrics.diaz_rodriguez_backward_transfer,
        metrics.diaz_rodriguez_forward_transfer,
        metrics.remembering,
        metrics.positive_backward_transfer,
        metrics.forward_transfer_without_baseline,
    ):
        assert variant([[0.9]]) is None
    assert metrics.gem_code_forward_transfer([[0.9]], [0.1]) is None
    assert metrics.forward_transfer_from_independent([[0.9]], [0.1]) is None


def test_upper_triangle_counts_only_where_a_formula_has_it():
    """Nothing in forgetting, averages or backward transfer reads the accuracy on a task before it is learned."""
    full, seen = metrics.summarize(R, UNTRAINED), metrics.summarize(SEEN_ONLY, UNTRAINED)
    assert seen.pop("forward_transfer") is None
    assert full.pop("forward_transfer") is not None
    assert full == seen


def test_forward_transfer_skips_terms_without_active_outputs():
    """Task 1 has no untrained accuracy: only R[1, 2] - b[2] = .2 - .1 is left."""
    assert metrics.forward_transfer(R, [NAN, NAN, 0.10]) == pytest.approx(0.10)
    assert metrics.forward_transfer(R, [NAN, NAN, NAN]) is None


@pytest.mark.parametrize("rest", [[NAN, NAN, NAN], [0.4, NAN, NAN]], ids=["none", "part"])
def test_run_under_way_is_summarised_up_to_its_last_complete_row(rest):
    under_way = [*SEEN_ONLY[:2].tolist(), rest]
    summary = metrics.summarize(under_way, UNTRAINED, [100, 300, 700], JOINT, MINIMA)
    first_two = metrics.summarize(SEEN_ONLY[:2, :2], UNTRAINED[:2], [100, 300], JOINT[:2], MINIMA[:1])
    assert summary == first_two
    assert summary["forgetting"] == pytest.approx(-0.05)
    assert metrics.completed(under_way).shape == (2, 2)


def test_run_without_a_complete_row_has_no_metrics():
    matrix = np.full((3, 3), NAN)
    assert set(metrics.summarize(matrix, UNTRAINED, [1, 1, 1], JOINT, MINIMA).values()) == {None}
    assert metrics.diaz_rodriguez_accuracy(matrix) is None
    assert metrics.gem_code_backward_transfer(matrix) is None
    assert metrics.gem_code_forward_transfer(matrix, UNTRAINED) is None


def test_missing_entry_between_complete_rows_is_skipped_not_zero():
    """Without R[1, 0] the best earlier accuracy on task 0 is .80, and A_2 is .80 alone."""
    matrix = R.copy()
    matrix[1, 0] = NAN
    assert metrics.forgetting_by_task(matrix) == pytest.approx([0.30, 0.20])
    assert metrics.average_accuracies(matrix)[1] == pytest.approx(0.80)


def test_null_of_json_is_not_evaluated():
    assert metrics.summarize([[0.8, None], [0.6, 0.7]])["forgetting"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0.1, 0.2]],), r"shape \(1, 2\)"),
        (([0.1],), r"shape \(1,\)"),
        (([],), r"shape \(0,\)"),
        (([[0.1], [0.2, 0.3]],), "different lengths"),
        (([["a"]],), "no numbers"),
        (([[19.83]],), "holds 19.83"),
        (([[-0.1]],), "holds -0.1"),
        (([[float("inf")]],), "holds inf"),
        ((R, [0.1, 0.1]), r"baseline has shape \(2,\); accepted: \[3\]"),
        ((R, [0.1, 0.1, 10]), "baseline holds 10"),
        ((R, None, [100, 100]), "test_sizes"),
        ((R, None, [100, 0, 100]), "test_sizes"),
        ((R, None, [100, NAN, 100]), "test_sizes"),
        ((R, None, None, [0.9]), "joint has shape"),
        ((R, None, None, None, [0.9]), "minima has shape"),
        ((R, None, None, None, [0.9, 90]), "minima holds 90"),
        ((R, None, None, None, None, None, [2, 1]), "near is"),
        ((R, None, None, None, None, None, [1]), "near is"),
        ((R, None, None, None, None, None, None, [0.5, 2]), "anytime holds 2"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(arguments, message):
    with pytest.raises(ConfigError, match=message) as error:
        metrics.summarize(*arguments)
    assert "\n" not in str(error.value)


@given(matrices)
def test_values_stay_in_their_bounds(matrix):
    tasks = len(matrix)
    summary = metrics.summarize(matrix, matrix[0], np.ones(tasks), matrix[-1], matrix[0, 1:])
    signed = {"forgetting", "backward_transfer", "forward_transfer", "intransigence"}
    for name, value in summary.items():
        if value is not None:
            assert (-1 if name in signed else 0) - 1e-12 <= value <= 1 + 1e-12
    if tasks > 1:
        # The largest of several accuracies is at least the first of them.
        assert metrics.forgetting(matrix) >= metrics.first_minus_last_forgetting(matrix) - 1e-12
        assert metrics.clipped_forgetting(matrix) >= max(0, metrics.forgetting(matrix)) - 1e-12
        assert metrics.backward_transfer(matrix) == -metrics.first_minus_last_forgetting(matrix)


@given(st.integers(2, 8), st.floats(0, 1))
def test_constant_matrix_neither_forgets_nor_transfers(tasks, accuracy):
    matrix = np.full((tasks, tasks), accuracy)
    counts = [accuracy, 1]
    summary = metrics.summarize(
        *(matrix, matrix[0], np.ones(tasks), matrix[0], matrix[0, 1:]), online=counts, near=counts, anytime=[accuracy]
    )
    for name, value in summary.items():
        changes = name in {"forgetting", "backward_transfer", "forward_transfer", "intransigence"}
        assert value == pytest.approx(0 if changes else accuracy, abs=1e-12)


@given(matrices, st.integers(1, 1000))
def test_sample_average_is_the_average_when_all_tasks_have_equal_sizes(matrix, size):
    weighted = metrics.sample_average_accuracy(matrix, [size] * len(matrix))
    assert weighted == pytest.approx(metrics.average_accuracy(matrix))


@given(matrices, st.randoms(use_true_random=False))
def test_final_accuracy_does_not_depend_on_the_order_of_the_tasks(matrix, random):
    order = random.sample(range(len(matrix)), len(matrix))
    sizes = np.arange(1, len(matrix) + 1)
    shuffled = matrix[:, order]
    assert metrics.average_accuracy(shuffled) == metrics.average_accuracy(matrix)
    assert metrics.sample_average_accuracy(shuffled, sizes[order]) == pytest.approx(
        metrics.sample_average_accuracy(matrix, sizes)
    )


@given(matrices, st.floats(0, 0.5))
def test_halving_every_accuracy_halves_every_metric(matrix, untrained):
    baseline = np.full(len(matrix), untrained)
    whole = metrics.summarize(matrix, baseline, joint=baseline, minima=baseline[1:])
    half = metrics.summarize(matrix / 2, baseline / 2, joint=baseline / 2, minima=baseline[1:] / 2)
    for name, value in whole.items():
        assert half[name] == (None if value is None else pytest.approx(value / 2, abs=1e-12))


@given(matrices)
def test_input_is_left_as_it_is(matrix):
    before = matrix.copy()
    metrics.summarize(matrix, matrix[0], np.ones(len(matrix)), matrix[0])
    assert np.array_equal(matrix, before)


def test_confusion_matrix_counts_by_hand():
    """Class 2 is never predicted and class 3 never occurs: both keep their column and row."""
    confusion = metrics.confusion_matrix([0, 0, 1, 2, 2, 2], [0, 1, 1, 0, 3, 3], 4)
    assert confusion.dtype == np.int64
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 2], [0, 0, 0, 0]]
    assert metrics.confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=50))
def test_confusion_matrix_agrees_with_counts_and_accuracy(pairs):
    targets, predictions = np.array(pairs).T
    confusion = metrics.confusion_matrix(targets, predictions, 5)
    assert confusion.sum(axis=1).tolist() == [list(targets).count(k) for k in range(5)]
    assert confusion.sum(axis=0).tolist() == [list(predictions).count(k) for k in range(5)]
    assert confusion.trace() / confusion.sum() == np.mean(targets == predictions)


@pytest.mark.parametrize(
    ("targets", "predictions"), [([0, 3], [0, 0]), ([0, -1], [0, 0]), ([0], [0, 0]), ([0.5], [0]), ([0], [3])]
)
def test_confusion_matrix_refuses_what_is_no_class(targets, predictions):
    with pytest.raises(ConfigError):
        metrics.confusion_matrix(targets, predictions, 3)


def test_metrics_and_statistics_do_not_load_torch():
    code = "import sys, clbench.metrics, clbench.statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
