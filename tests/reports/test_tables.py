"""Tables of a comparison: numbers in full, what they mean, and what keeps them from being comparable."""

import io
import re
from collections.abc import Callable
from math import sqrt

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from clbench.config.errors import ConfigError
from clbench.reports import markdown, tables
from clbench.reports.comparison import compare
from clbench.results.result import Result

NAN = float("nan")
Make = Callable[..., Result]


def matrix(first: float, after: float, second: float) -> np.ndarray:
    """Two tasks: accuracy on task 0 when learned, on task 0 at the end, on task 1."""
    return np.array([[first, NAN], [after, second]])


def two(make: Make, strategy: str, seed: int, values: tuple[float, float, float], **kwargs: object) -> Result:
    return make(strategy, seed, sizes=(2, 2), matrix=matrix(*values), **kwargs)


def screen(results: list[Result], width: int = 100) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(tables.render(compare(results)))
    return text.getvalue()


def cells(line: str) -> list[str]:
    """The cells of a line of a Markdown table; an escaped bar is no border."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def read(csv: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(csv))


def test_mean_sd_and_n_over_seeds(make_result: Make) -> None:
    """Averages .3 and .5 by hand give mean .4, sd (n-1) sqrt(2 * .1^2 / 1), n 2; the table says n-1."""
    results = [two(make_result, "lwf", 0, (0.9, 0.2, 0.4)), two(make_result, "lwf", 1, (0.9, 0.4, 0.6))]
    row = tables.comparison(compare(results)).iloc[0]
    assert row["average_accuracy"] == pytest.approx(0.4)
    assert row["average_accuracy_sd"] == pytest.approx(sqrt(0.02))
    assert (row["average_accuracy_n"], row["n"], row["seeds"]) == (2, 2, "0 1")
    for text in (markdown.to_markdown(compare(results)), screen(results)):
        assert re.search(r"40\.0 ?± ?14\.1", text)
        assert "(n-1)" in text


def test_every_number_on_screen_is_in_the_csv(seven: list[Result]) -> None:
    """The screen's numbers, parsed, equal those of comparison.csv to the digits shown; four are kept."""
    frame = read(tables.to_csv(tables.comparison(compare(seven)))).set_index("strategy")
    columns = [
        *("average_accuracy", "task_aware_accuracy", "average_incremental_accuracy"),
        *("forgetting", "learning_accuracy"),
    ]
    lines = [line.split() for line in screen(seven).splitlines() if re.search(r"±.* \d+ *$", line)]
    assert len(lines) == 8
    for line in lines:
        *name, n = line
        numbers = name[-7:]
        label = " ".join(word for word in name[:-7] if word not in "†‡")
        for shown, column in zip(numbers[:5], columns, strict=True):
            if shown == "-":
                assert np.isnan(frame.loc[label, column])
                continue
            mean, sd = (float(part) for part in shown.split("±"))
            assert mean == pytest.approx(100 * frame.loc[label, column], abs=0.0501)
            assert sd == pytest.approx(100 * frame.loc[label, f"{column}_sd"], abs=0.0501)
        assert float(numbers[5]) == pytest.approx(frame.loc[label, "seconds"], abs=0.0501)
        assert float(numbers[6]) == pytest.approx(frame.loc[label, "extra_bytes"] / 1000, abs=0.0501)
        assert int(n) == frame.loc[label, "n"]


def test_csv_is_not_rounded(make_result: Make) -> None:
    """The file has every digit that the computation had."""
    results = [two(make_result, "lwf", 0, (0.9, 0.123456789, 0.2))]
    assert read(tables.to_csv(tables.comparison(compare(results))))["average_accuracy"][0] == (0.123456789 + 0.2) / 2


def test_every_entry_of_every_matrix_is_in_the_csv(seven: list[Result]) -> None:
    """21 runs with two 5 x 5 matrices each, and one more of each of the 3 iCaRL runs; upper halves empty."""
    frame = read(tables.to_csv(tables.matrices(compare(seven))))
    assert len(frame) == 21 * 2 * 25 + 3 * 25
    assert frame["accuracy"].isna().sum() == (21 * 2 + 3) * 10
    lwf = frame.query("strategy == 'lwf' and seed == 1 and matrix == 'class_incremental'")
    expected = next(result for result in seven if result.strategy == "lwf" and result.seed == 1).accuracy
    np.testing.assert_array_equal(lwf.pivot(index="after", columns="task", values="accuracy"), expected)


def test_negative_forgetting_is_shown_and_the_convention_stated(make_result: Make) -> None:
    """A task that rises from .5 to .7 has a forgetting of -20 points; the definition says: not clamped."""
    results = [two(make_result, "lwf", 0, (0.5, 0.7, 0.8))]
    assert tables.comparison(compare(results))["forgetting"][0] == pytest.approx(-0.2)
    assert "-20.0" in screen(results)
    text = markdown.to_markdown(compare(results))
    assert "-20.0" in text
    assert re.search(r"\*\*forgetting\*\*: .*not clamped", text)


def test_both_incremental_averages_are_shown_and_defined(make_result: Make) -> None:
    """A_0 = .9 and A_1 = .5 by hand: .7 with the first task, .5 without it."""
    results = [two(make_result, "lwf", 0, (0.9, 0.2, 0.8))]
    row = tables.comparison(compare(results)).iloc[0]
    assert row["average_incremental_accuracy"] == pytest.approx(0.7)
    assert row["average_incremental_accuracy_without_first"] == pytest.approx(0.5)
    text = markdown.to_markdown(compare(results))
    for name in ("average incremental accuracy", "average incremental accuracy without first"):
        assert f"| {name} |" in text
        assert f"- **{name}**: " in text


def test_both_classifiers_of_icarl_have_rows_and_the_headline_is_stated(make_result: Make) -> None:
    """Nearest mean .8 is the headline; the linear head's .3 stands beside it under its own name."""
    results = [two(make_result, "icarl", 0, (0.9, 0.8, 0.8), linear=matrix(0.9, 0.2, 0.4))]
    frame = tables.comparison(compare(results)).set_index("strategy")
    assert frame["average_accuracy"].to_dict() == pytest.approx({"icarl": 0.8, "icarl (linear)": 0.3})
    assert frame["classifier"].to_dict() == {"icarl": "nearest_mean", "icarl (linear)": "linear"}
    text = markdown.to_markdown(compare(results))
    assert "`icarl (linear)`" in text
    assert "The headline is the class-incremental average accuracy" in text
    assert "icarl (linear)" in screen(results)


def test_results_of_each_order_are_kept_beside_mean_sd_and_n(make_result: Make) -> None:
    """Three runs of 28, 37 and 46 % stay readable one by one; by hand mean 37, sd 9, n 3."""
    results = [two(make_result, "icarl", seed, (0.9, v, v)) for seed, v in enumerate((0.28, 0.37, 0.46))]
    frame = read(tables.to_csv(tables.runs(compare(results))))
    assert frame["average_accuracy"].tolist() == pytest.approx([0.28, 0.37, 0.46])
    assert frame["class_order"].tolist() == ["0 1 2 3"] * 3
    text = markdown.to_markdown(compare(results))
    assert "37.0 ± 9.0" in text
    assert "| `icarl` | 28.0 | 37.0 | 46.0 |" in text


def test_one_run_is_called_one_run(make_result: Make) -> None:
    """A single run says little, and the report says so."""
    assert "One run says little" in markdown.to_markdown(compare([make_result("naive"), make_result("joint")]))


def test_storage_is_listed_in_items_and_bytes(seven: list[Result]) -> None:
    """Exemplars count as items and bytes; a teacher and importances in bytes."""
    frame = tables.comparison(compare(seven)).set_index("strategy")
    assert frame.loc["icarl", "exemplars_items"] == 200
    assert frame.loc["icarl", "exemplars_bytes"] == 200 * 784
    assert frame.loc["lwf", "teacher_bytes"] == 1_913_640
    assert frame.loc["ewc", "importances_bytes"] == frame.loc["ewc", "extra_bytes"] == 3_827_280
    assert frame.loc["naive", "extra_bytes"] == 0
    text = markdown.to_markdown(compare(seven))
    header = next(line for line in text.splitlines() if "exemplars items" in line)
    line = next(line for line in text.splitlines() if line.startswith("| `icarl` ") and "156800" in line)
    assert dict(zip(cells(header), cells(line), strict=True))["exemplars items"] == "200"


def test_references_are_marked_and_never_the_best_competitor(make_result: Make) -> None:
    """Joint and naive are in the table and marked; the bold number is the best of the competitors."""
    results = [
        two(make_result, "naive", 0, (0.9, 0.1, 0.9)),
        two(make_result, "joint", 0, (0.9, 0.9, 0.9)),
        two(make_result, "lwf", 0, (0.9, 0.3, 0.9)),
    ]
    frame = tables.comparison(compare(results))
    assert frame["strategy"].tolist() == ["joint", "lwf", "naive"]
    assert frame["reference"].tolist() == [True, False, False]
    text = markdown.to_markdown(compare(results))
    joint, lwf, naive = [line for line in text.splitlines() if line.startswith("| `")][:3]
    assert joint.startswith("| `joint` †")
    assert naive.startswith("| `naive` ‡")
    assert "**" not in joint
    assert cells(lwf)[3] == "**60.0**"
    assert "† a reference, not a competitor" in text
    assert "† a reference" in " ".join(screen(results).split())


def test_missing_references_are_noted(make_result: Make) -> None:
    """A comparison without its upper and lower reference says so."""
    text = markdown.to_markdown(compare([make_result("lwf")]))
    assert "No joint run" in text
    assert "No naive run" in text


def test_intransigence_is_taken_from_the_joint_run_of_the_same_seed(make_result: Make) -> None:
    """Joint's last task .95 and .85, the strategy's .90 and .60: .05 and .25 by hand; without a joint, none."""
    joints = [two(make_result, "joint", 0, (0.9, 0.9, 0.95)), two(make_result, "joint", 1, (0.9, 0.9, 0.85))]
    own = [two(make_result, "lwf", 0, (0.9, 0.1, 0.90)), two(make_result, "lwf", 1, (0.9, 0.1, 0.60))]
    frame = tables.runs(compare(joints + own)).query("strategy == 'lwf'")
    assert frame["intransigence"].tolist() == pytest.approx([0.05, 0.25])
    assert np.isnan(tables.comparison(compare(joints + own)).set_index("strategy").loc["joint", "intransigence"])
    partly = tables.comparison(compare(joints[:1] + own)).set_index("strategy").loc["lwf"]
    assert (partly["intransigence"], partly["intransigence_n"], partly["n"]) == (pytest.approx(0.05), 1, 2)
    assert "5.0 (n=1)" in markdown.to_markdown(compare(joints[:1] + own))


def test_differing_budgets_and_seeds_are_noted(make_result: Make) -> None:
    results = [
        *(make_result("naive", seed) for seed in (0, 1)),
        *(make_result("joint", seed) for seed in (0, 1)),
        make_result("lwf", 0, config={"epochs": 5}),
    ]
    (part,) = compare(results)
    assert "Not the same for all strategies: epochs is 5 (lwf), 1 (the others)." in part.notes
    assert any("seeds" in note and "0 (lwf)" in note for note in part.notes)
    assert "epochs is 5" in " ".join(screen(results).split())


def test_equal_budgets_give_no_note(make_result: Make, seven: list[Result]) -> None:
    """A memory that only some strategies have, and chosen each in its way, is no unequal budget; two sizes are."""
    (part,) = compare(seven)
    (order,) = part.notes
    assert order.endswith("(single-class-order)")
    others = [make_result("er", s, label="er[b]", config={"memory_policy": "reservoir"}) for s in range(3)]
    (part,) = compare(seven + others)
    assert part.notes == [order]
    others = [make_result("er", s, label="er[b]", config={"memory_size": 500}) for s in range(3)]
    (part,) = compare(seven + others)
    assert part.notes == ["Not the same for all strategies: memory_size is 500 (er[b]), 200 (the others).", order]


def test_runs_of_one_label_with_other_epochs_are_not_pooled(make_result: Make) -> None:
    results = [
        two(make_result, "lwf", seed, (0.9, 0.1 * epochs, 0.5), config={"epochs": epochs})
        for epochs in (1, 5)
        for seed in (0, 1)
    ]
    frame = tables.comparison(compare(results)).set_index("strategy")
    assert frame["average_accuracy"].to_dict() == pytest.approx({"lwf (epochs=1)": 0.3, "lwf (epochs=5)": 0.5})
    assert frame["n"].tolist() == [2, 2]


def test_of_a_repeated_run_the_newest_counts_and_the_other_is_noted(make_result: Make) -> None:
    old = two(make_result, "lwf", 0, (0.9, 0.1, 0.1), created="2026-01-01T00:00:00+00:00")
    new = two(make_result, "lwf", 0, (0.9, 0.7, 0.7), created="2026-02-01T00:00:00+00:00", config={"data_root": "x"})
    for results in ([old, new], [new, old]):
        row = tables.comparison(compare(results)).iloc[0]
        assert (row["average_accuracy"], row["n"]) == (pytest.approx(0.7), 1)
        assert "1 older run(s)" in markdown.to_markdown(compare(results))


def test_the_table_says_where_frozen_features_came_from(make_result: Make) -> None:
    results = [make_result(name, 0) for name in ("naive", "slda", "ranpac", "lwf")]
    for result, source in zip(
        results, (None, "come from the first task", "come from the first task", "start from w.pt"), strict=True
    ):
        result.record["strategy"]["features"] = source
    notes = compare([Result(result.record) for result in results])[0].notes
    assert "Features come from the first task: slda, ranpac." in notes
    assert "Features start from w.pt: lwf." in notes
    assert not any("naive" in note for note in notes if note.startswith("Features"))


def test_warnings_of_runs_are_listed_with_strategy_and_seeds(make_result: Make) -> None:
    results = [make_result("lwf", seed, warnings=("memory is above 10 %",)) for seed in (0, 1)]
    assert "memory is above 10 % (lwf, seed 0, 1)" in compare(results)[0].notes


@pytest.mark.parametrize("sizes", [(2,) * 5, (1,) * 20, (4, 3, 3), (10,)])
def test_the_screen_fits_on_100_columns(make_result: Make, sizes: tuple[int, ...]) -> None:
    names = ("naive", "joint", "feature-extraction", "lwf", "ewc", "er", "icarl")
    results = [make_result(name, seed, sizes=sizes) for name in names for seed in range(3)]
    text = screen(results)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert "feature-extraction" in text


def test_names_are_shown_as_they_are(make_result: Make) -> None:
    """Brackets are rich's markup, bars and tags Markdown's; a terminal code must not reach the terminal."""
    names = ("er[memory_size=200]", "<script>$x_1$</script>", "a|b`c", "red\x1b[31m\nline", "n" * 200)
    results = [make_result("er", label=name) for name in names]
    shown = screen(results)
    assert "er[memory_size=200]" in shown
    assert "\x1b" not in shown
    text = markdown.to_markdown(compare(results))
    assert "`<script>$x_1$</script>`" in text
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len({len(cells(line)) for line in rows[:5]}) == 1
    assert tables.comparison(compare(results))["strategy"].str.len().max() == 200


def test_scenarios_and_settings_are_kept_apart(make_result: Make) -> None:
    results = [
        make_result("lwf", setting="class"),
        make_result("lwf", setting="task"),
        make_result("lwf", sizes=(4, 3, 3), task_aware=False),
    ]
    titles = [part.title for part in compare(results)]
    assert titles == [
        "split-mnist-5k, class-incremental, 5 tasks of 2 classes",
        "split-mnist-5k, task-incremental, 5 tasks of 2 classes",
        "split-mnist-5k, class-incremental, 3 tasks of 4+3+3 classes",
    ]
    frame = tables.comparison(compare(results))
    assert frame["headline"].tolist() == ["class_incremental", "task_aware", "class_incremental"]
    assert np.isnan(frame["task_aware_accuracy"][2])
    assert "The headline is the task-aware average accuracy" in markdown.to_markdown(compare(results))


def test_no_results_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one run"):
        tables.comparison(compare([]))
