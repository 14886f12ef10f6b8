"""Published tables cell by cell, and runs from elsewhere that are added to the results."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shared import call

from clbench.config.errors import ConfigError
from clbench.config.run import config_of_record
from clbench.reports import published, reproduction
from clbench.reports.published import Claim, claims_of_table, read_claims
from clbench.reports.published_table import chart, published_table, to_csv, to_markdown
from clbench.reports.reproduction import Measured, judge

PAPER = """
citation = "A paper"
[defaults]
tier = "A"
metric = "average_accuracy"
error_kind = "sem"
error = 0.5
error_runs = 20
tolerance = 2.0
seeds = 1
seconds = 3
cost = "minutes on CPU"
provenance = "primary"
source = "table 1"
[protocols.digits-class]
scenario = "split-mnist-5k"
tasks = 5
setting = "class"
limit = 10
iterations = 4
batch_size = 8
class_order_seed = "per-seed"
lr = 0.1
model = "mlp:32"
threads = 1
naive_seconds = 2
[protocols.digits-task]
like = "digits-class"
setting = "task"
[[claims]]
protocol = "digits-class"
strategy = "naive"
value = 20.0
[[claims]]
protocol = "digits-task"
strategy = "er"
fields = { memory_size = 30, memory_policy = "reservoir" }
value = 75.5
[[claims]]
protocol = "digits-class"
strategy = "er"
fields = { memory_size = 30, memory_policy = "reservoir" }
provenance = "uncertain"
value = 40.0
"""


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Claim]:
    found = {c.id: c for c in read_claims(PAPER, "paper")}
    for module in (published, reproduction):
        monkeypatch.setattr(module, "claims", lambda: found)
    monkeypatch.chdir(tmp_path)
    return found


def of(claim: Claim, *values: float) -> list[Measured]:
    place = ("10.00", "0 1", "x86", 1, "0.1.0", "2.14", "2026-01-01T00:00:00+00:00")
    roles = [(role, value) for value in values for role in (("claim", value), ("naive", 10.0))]
    return [
        Measured(claim.id, role, i // 2, value, 1.5, *place, f"{claim.id}{role}{i}")  # type: ignore[arg-type]
        for i, ((role, value), _) in enumerate(roles)
    ]


def test_a_table_has_methods_as_rows_settings_as_columns_and_says_what_has_not_run(listed: dict[str, Claim]) -> None:
    claims = claims_of_table("paper/split-mnist-5k")
    naive, er = listed["paper/digits-class/naive"], listed["paper/digits-task/er"]
    judgements = [judge(c, [*of(naive, 20.0, 21.0), *of(er, 75.0, 77.0)]) for c in claims]
    judgements = [judge(c, {naive.id: of(naive, 20.0, 21.0), er.id: of(er, 75.0, 77.0)}.get(c.id, [])) for c in claims]
    table = published_table("paper/split-mnist-5k", judgements)
    assert table.lines(" | ") == [
        ["method", "task-incremental", "class-incremental"],
        ["naive", "", "20 ±0.5 SEM | 20.50 ±6.35 | reproduced"],
        ["ER", "75.5 ±0.5 SEM | 76.00 ±12.71 | reproduced", "40? ±0.5 SEM | - | not run"],
    ]
    assert to_markdown(table).splitlines()[1] == "| --- | --- | --- |"
    rows = list(csv.DictReader(to_csv(table).splitlines()))
    assert [(row["claim"], row["ours"]) for row in rows][:2] == [
        ("paper/digits-class/naive", "20.5"),
        ("paper/digits-task/er", "76.0"),
    ]


def test_the_chart_has_both_errors_at_the_difference_of_each_cell(listed: dict[str, Claim]) -> None:
    """Ours 75 and 77 beside 75.5: 0.5 above, half its interval 12.706 * sqrt(2) / sqrt(2); 1.96 * 0.5 beside it."""
    er = listed["paper/digits-task/er"]
    told, ours = chart(published_table("paper/split-mnist-5k", [judge(er, of(er, 75.0, 77.0))])).series
    assert (list(told.x), list(told.dx)) == ([0.0], [0.98])
    assert (list(ours.x), list(ours.dx)) == ([0.5], [pytest.approx(12.706, abs=1e-3)])


def test_two_protocols_of_one_setting_have_columns_of_their_own() -> None:
    table = published_table(
        "rebuffi2017/split-cifar100", [judge(c, []) for c in claims_of_table("rebuffi2017/split-cifar100")]
    )
    assert len(table.in_order()) == len(claims_of_table("rebuffi2017/split-cifar100"))


def test_an_unknown_table_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="vandeven2022/split-mnist"):
        claims_of_table("vandeven2022/split-mnis")


def test_reproduce_prints_a_table_and_writes_it_with_its_figure(
    listed: dict[str, Claim], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "reproduce", "--table", "paper/split-mnist-5k")
    assert code in (0, 1), err
    assert "task-incremental" in out
    assert "75.5 ±0.5 SEM" in out
    written = {path.name for path in Path("runs/reproduction").glob("paper-split-mnist-5k.*")}
    assert written == {f"paper-split-mnist-5k.{kind}" for kind in ("md", "csv", "png", "svg")}
    code, _, err = call(capsys, "reproduce", "paper/digits-task", "--table", "paper/split-mnist-5k")
    assert (code, "leave out the names" in err) == (2, True)


Change = Callable[[dict[str, Any]], None]


def _flipped(record: dict[str, Any]) -> None:
    """Two more right answers of task 0 after the last task, in the matrix alone."""
    row = record["accuracy"]["class_incremental"][-1]
    row[0] = row[0] + 2 / record["scenario"]["tasks"][0]["n_test"]


def _better(record: dict[str, Any]) -> None:
    """One more right answer, in the matrix and in the counts, but not in the metrics."""
    _flipped(record)
    record["classifiers"]["linear"]["class_incremental"] = record["accuracy"]["class_incremental"]
    counts = record["correct"]["class_incremental"][-1][0]
    counts[next(iter(counts))] += 2


def _both(after: int, value: float | None) -> Change:
    """Another accuracy on task 0, wherever it is written."""

    def change(record: dict[str, Any]) -> None:
        for place in (record["accuracy"], record["classifiers"]["linear"]):
            place["class_incremental"][after][0] = value

    return change


def _longer(record: dict[str, Any]) -> None:
    """A step more, in an epoch alone."""
    record["training"][-1]["steps"] += 1


def _shorter(record: dict[str, Any]) -> None:
    """A step less, in the task and in its last epoch."""
    record["tasks"][-1]["steps"] -= 1
    record["training"][-1]["steps"] -= 1


CHANGES: dict[str, tuple[Change, str]] = {
    "another accuracy": (_flipped, "are not those of its accuracy"),
    "accuracy and counts": (_better, "its confusion matrix is there twice"),
    "a metric": (lambda r: r["metrics"].update(average_accuracy=0.99), "average_accuracy is not that of its matrix"),
    "no whole number": (_both(-1, 0.123), "no whole number"),
    "another seed": (lambda r: r["config"].update(seed=3), "it was changed afterwards"),
    "another rate": (lambda r: r["config"].update(lr=0.2), "it was changed afterwards"),
    "unfinished": (lambda r: r.update(status="running"), "the run is unfinished"),
    "fewer tasks": (lambda r: r["tasks"].pop(), "4 of 5 tasks"),
    "gaps": (_both(2, None), "gaps"),
    "a later version": (lambda r: r.update(clbench="99.0.0"), "clbench 99.0.0"),
    "no torch": (lambda r: r["environment"].update(packages={}), "torch None"),
    "torch in a table": (lambda r: r["environment"]["packages"].update(torch="2.6|9"), "torch 2.6|9"),
    "no version": (lambda r: r.update(clbench="hello"), "clbench hello"),
    "no date": (lambda r: r.update(created="yesterday"), "no date"),
    "in the future": (lambda r: r.update(created="2999-01-01T00:00:00+00:00"), "in the future"),
    "another strategy": (lambda r: r["strategy"].update(name="joint"), "its strategy is there twice"),
    "other options": (lambda r: r["strategy"].update(options={"a": 1}), "its options is there twice"),
    "another order": (lambda r: r["class_order"].reverse(), "its class order is there twice"),
    "another confusion": (lambda r: r["confusion"][0].__setitem__(0, 999), "its confusion matrix is there twice"),
    "fewer steps": (_shorter, "19 steps were taken"),
    "more steps in an epoch": (_longer, "took 20 steps, and its epochs 21"),
    "one copy of the accuracies": (
        lambda r: r["classifiers"]["linear"]["class_incremental"][0].__setitem__(0, 0.5),
        "are there twice",
    ),
    "no record": (lambda r: r.clear(), "not a run of clbench"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of naive under the protocol of the claims, as made on another machine."""
    from clbench.cli.claim_runs import needed
    from clbench.many.execution import run_shown

    (claim,) = [c for c in read_claims(PAPER, "paper") if c.strategy == "naive"]
    (run,), _ = needed([claim], out=tmp_path_factory.mktemp("elsewhere"))
    assert [outcome.source for outcome in run_shown([run.planned], quiet=True)] == ["here"]
    return run.planned.folder


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_that_is_forged_or_incomplete_is_refused_with_the_reason(
    name: str, made: Path, listed: dict[str, Claim], capsys: pytest.CaptureFixture[str]
) -> None:
    change, reason = CHANGES[name]
    there = Path("sent")
    there.mkdir()
    record = json.loads((made / "run.json").read_text())
    change(record)
    (there / "run.json").write_text(json.dumps(record))
    (there / "accuracy.csv").write_bytes((made / "accuracy.csv").read_bytes())
    code, _, err = call(capsys, "reproduce", "--submit", "sent", "--results", "table")
    assert code == 1
    assert reason in err
    assert "runs refused: 1 of 1" in err
    assert not Path("table").exists()


def test_a_run_from_elsewhere_is_added_once_for_each_claim_and_changes_no_number(
    made: Path, listed: dict[str, Claim], capsys: pytest.CaptureFixture[str]
) -> None:
    """It serves two claims: that of naive, and er's in the class-incremental setting as its lower reference."""
    told = []
    for _ in range(2):
        code, out, err = call(capsys, "reproduce", "--submit", str(made), "--results", "table")
        assert code == 0, err
        told.append("runs added: 1, there already: 0" in out)
    assert told == [True, False]
    assert "naive has not run" not in out
    rows = list(csv.DictReader(Path("table/runs.csv").read_text().splitlines()))
    assert [(row["claim"], row["role"]) for row in rows] == [
        ("paper/digits-class/er", "naive"),
        ("paper/digits-class/naive", "claim"),
    ]
    kept = Path("table/runs.csv").read_text()
    other = kept.replace(rows[0]["class_order"], rows[0]["class_order"][::-1]).replace(rows[0]["identity"], "another")
    Path("table/runs.csv").write_text(other.replace("digits-class/er,naive", "digits-class/er,claim"))
    code, _, err = call(capsys, "reproduce", "--submit", str(made), "--results", "table")
    assert (code, "its class order is not that of the claim run with seed 0" in err) == (1, True)
    text = kept.replace(rows[0]["value"], "12.5")
    Path("table/runs.csv").write_text(text)
    code, out, _ = call(capsys, "reproduce", "--submit", str(made), "--results", "table")
    assert (code, "there already: 1" in out) == (0, True)
    assert Path("table/runs.csv").read_text() == text


def test_a_run_of_another_device_is_that_of_its_claim(
    made: Path, listed: dict[str, Claim], capsys: pytest.CaptureFixture[str]
) -> None:
    """Device and compiler are part of what a run is, and a claim leaves them open."""
    record = json.loads((made / "run.json").read_text())
    record["config"] |= {"device": "cuda", "compile": "default"}
    other = config_of_record(record["config"]).identity()
    assert other != record["identity"]
    record["identity"] = other
    Path("sent").mkdir()
    (Path("sent") / "run.json").write_text(json.dumps(record))
    (Path("sent") / "accuracy.csv").write_bytes((made / "accuracy.csv").read_bytes())
    code, out, err = call(capsys, "reproduce", "--submit", "sent", "--results", "table")
    assert (code, "runs added: 1" in out) == (0, True), err


def test_a_run_of_no_claim_a_changed_csv_and_an_empty_folder_are_refused(
    made: Path, listed: dict[str, Claim], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("empty").mkdir()
    code, _, err = call(capsys, "reproduce", "--submit", "empty")
    assert (code, "holds no run" in err) == (2, True)
    code, _, err = call(capsys, "reproduce", "paper", "--submit", str(made))
    assert (code, "takes every run in the folder" in err) == (2, True)
    Path("sent").mkdir()
    for name in ("run.json", "accuracy.csv"):
        (Path("sent") / name).write_bytes((made / name).read_bytes())
    text = (made / "accuracy.csv").read_text()
    (Path("sent") / "accuracy.csv").write_text(text.replace(",4,0,", ",4,0,0.25 "))
    code, _, err = call(capsys, "reproduce", "--submit", "sent")
    assert (code, "accuracy.csv does not hold" in err) == (1, True)
    monkeypatch.setattr(published, "claims", lambda: {k: c for k, c in listed.items() if c.protocol == "digits-task"})
    code, _, err = call(capsys, "reproduce", "--submit", str(made))
    assert (code, "no claim needs it" in err) == (1, True)
