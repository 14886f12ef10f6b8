"""Verdicts by hand, and `clbench reproduce` on a claim about a few digits."""

import csv
import functools
import hashlib
import json
import math
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from shared import call

from clbench.cli import claim_runs
from clbench.config.errors import ConfigError, MissingDataError
from clbench.config.run import RunConfig, identity_fields
from clbench.reports import published, reproduction
from clbench.reports.published import Claim, read_claims
from clbench.reports.reproduction import Measured, judge, read_csv, to_csv, write_results
from clbench.running.folder import default_folder
from clbench.running.resolve import prepare, resolve
from clbench.scenarios import download

PAPER = """
citation = "A paper"
[defaults]
tier = "A"
metric = "average_accuracy"
error_kind = "none"
seeds = 2
cost = "minutes on CPU"
provenance = "primary"
source = "table 1"
[protocols.digits]
scenario = "split-mnist-5k"
tasks = 5
setting = "task"
limit = 10
epochs = 1
batch_size = 8
lr = 0.1
model = "mlp:32"
threads = 1
naive_seconds = 2
[[claims]]
protocol = "digits"
strategy = "er"
fields = { memory_size = 30, memory_policy = "reservoir" }
value = 50.0
tolerance = 1.0
seconds = 3
[[claims]]
protocol = "digits"
strategy = "vandeven2019-lwf"
name = "lwf"
options = { strength = 0.5 }
value = 90.0
tolerance = 9.0
seconds = 30
"""


def made(**changed: Any) -> Claim:
    return read_claims(PAPER, "paper")[0].model_copy(update=changed)


def run_of(claim: Claim, role: Any, seed: int, value: float) -> Measured:
    place = ("10.00", "0 1", "x86", 1, "0.1.0", "2.14", "2026-01-01T00:00:00+00:00", f"{role}{seed}")
    return Measured(claim.id, role, seed, value, 1.5, *place)


def runs(claim: Claim, ours: list[float], naive: list[float]) -> list[Measured]:
    return [run_of(claim, "claim", s, v) for s, v in enumerate(ours)] + [
        run_of(claim, "naive", s, v) for s, v in enumerate(naive)
    ]


FAR = [20.0, 21.0, 19.0, 20.0, 20.0]


def test_a_verdict_by_hand() -> None:
    """Ours 50, 51, 52, 53, 54: mean 52, s^2 = 10/4, s^2/n = 0.5; SEM 0.7 of sd 0.7 sqrt(10): 2 sqrt(0.99) = 1.98998.

    The 95 % t quantile of 4 degrees of freedom is 2.776445, so the interval is 2.776445 sqrt(0.5) = 1.963243.
    Paired with naive 20, 21, 19, 20, 20: 30, 30, 33, 33, 34, mean 32, s^2 = 14/4, 2.776445 sqrt(0.7) = 2.322941.
    """
    claim = made(value=50.1, tolerance=1.5, error=0.7 * math.sqrt(10), error_kind="std", error_runs=10, seeds=5)
    j = judge(claim, runs(claim, [50.0, 51.0, 52.0, 53.0, 54.0], FAR))
    assert (j.n, j.mean, j.naive, j.paired) == (5, 52.0, 20.0, 32.0)
    assert j.bound == pytest.approx(1.989975)
    assert j.interval == pytest.approx(1.963243, abs=1e-6)
    assert j.paired_interval == pytest.approx(2.322941, abs=1e-6)
    assert j.difference == pytest.approx(1.9)
    assert (j.verdict, j.provisional) == ("reproduced", False)
    assert (
        judge(claim.model_copy(update={"value": 50.0}), runs(claim, [50.0, 51.0, 52.0, 53.0, 54.0], FAR)).verdict
        == "differs"
    )


@pytest.mark.parametrize("value", [47.9, 52.1])
def test_a_mean_above_the_published_one_differs_as_one_below_it_does(value: float) -> None:
    claim = made(tolerance=2.0)
    inside, outside = [50 + (value - 50) * 0.9] * 5, [value] * 5
    assert judge(claim, runs(claim, inside, FAR)).verdict == "reproduced"
    assert judge(claim, runs(claim, outside, FAR)).verdict == "differs"


def test_noise_never_allows_more_than_twice_the_tolerance() -> None:
    """Values 30 and 70, mean 50: s^2/n = 400, twice its root is 40; the claim at 53 is 3 away and 2 are allowed."""
    claim = made(value=53.0, tolerance=1.0)
    j = judge(claim, runs(claim, [30.0, 70.0], FAR))
    assert (j.bound, j.verdict) == (2.0, "differs")


def test_a_claim_that_naive_passes_is_not_discriminating() -> None:
    claim = made()
    j = judge(claim, runs(claim, [50.5, 50.6, 50.4, 50.5, 50.5], [49.9, 50.0, 50.1, 50.0, 50.0]))
    assert j.verdict == "not discriminating"
    assert "naive passes" in j.reason


def test_a_claim_whose_difference_from_naive_may_be_0_is_not_discriminating() -> None:
    """Naive is 12 points away and 10 are allowed, but the paired differences, -23 and 47, may be 0 on average."""
    claim = made(tolerance=5.0)
    j = judge(claim, runs(claim, [50.0, 50.0], [73.0, 3.0]))
    assert j.verdict == "not discriminating"
    assert "may be 0" in j.reason


def test_a_claim_differs_also_where_naive_passes() -> None:
    claim = made()
    assert judge(claim, runs(claim, [60.0] * 5, [50.0] * 5)).verdict == "differs"


def test_naive_itself_is_judged_by_its_value_alone() -> None:
    claim = made(strategy="naive")
    assert judge(claim, runs(claim, [50.0] * 5, [])).verdict == "reproduced"
    assert judge(claim, runs(claim, [52.0] * 5, [])).verdict == "differs"


def test_without_runs_there_is_no_verdict() -> None:
    claim = made()
    assert judge(claim, []).verdict == "not run"
    assert judge(claim, runs(claim, [50.0] * 5, [])).verdict == "not run"
    assert judge(claim, runs(claim, [], FAR)).n == 0


def test_few_seeds_give_a_provisional_verdict() -> None:
    claim = made(seeds=5)
    j = judge(claim, runs(claim, [50.0, 50.2], [20.0, 21.0]))
    assert (j.verdict, j.provisional) == ("reproduced", True)


def test_one_run_is_no_more_than_consistent() -> None:
    j = judge(made(seeds=1), runs(made(), [50.0], [20.0]))
    assert (j.verdict, j.provisional, j.interval) == ("consistent", False, None)
    assert (j.equivalence, j.runs_needed) == (None, None)
    assert judge(made(seeds=1), runs(made(), [52.0], [20.0])).verdict == "differs"


def test_equivalence_is_that_of_two_t_tests_of_scipy() -> None:
    """The published mean counts as exact, so these are two one-sided t tests of five values against 50 -+ 2."""
    values = [50.0, 51.0, 52.0, 50.5, 50.5]
    claim = made(value=50.0, tolerance=2.0, seeds=5)
    below = stats.ttest_1samp(values, 48.0, alternative="greater").pvalue
    above = stats.ttest_1samp(values, 52.0, alternative="less").pvalue
    j = judge(claim, runs(claim, values, FAR))
    assert j.equivalence == pytest.approx(max(below, above), rel=1e-9)


def test_runs_needed_are_the_fewest_whose_interval_fits_into_the_tolerance() -> None:
    """The sd of 49, 50, 51 is 1: t(0.95, 4) / sqrt(5) = 2.132 / 2.236 = 0.953, t(0.95, 3) / sqrt(4) = 1.177; tol 1.

    With a published standard error of 1, no number of runs brings 1.645 below 1.
    """
    values = [49.0, 50.0, 51.0]
    assert judge(made(tolerance=1.0), runs(made(), values, FAR)).runs_needed == 5
    assert (
        judge(made(tolerance=1.0, error=1.0, error_kind="sem", error_runs=20), runs(made(), values, FAR)).runs_needed
        is None
    )


def test_runs_survive_the_way_to_disk_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written twice with other seeds: the rows that are there stay, and the tables are made from the rows alone."""
    claim = made()
    monkeypatch.setattr(published, "claims", lambda: {claim.id: claim})
    rows = runs(claim, [50.123456789012345, 50.2], [20.0, 21.0])
    assert read_csv(to_csv(rows)) == rows
    write_results(rows[:1] + rows[2:3], tmp_path)
    (j,) = write_results(rows[1:2] + rows[3:], tmp_path)
    assert (j.n, j.verdict) == (2, "reproduced")
    assert sorted(read_csv((tmp_path / "runs.csv").read_text()), key=lambda r: r.identity) == sorted(
        rows, key=lambda r: r.identity
    )
    text = (tmp_path / "claims.md").read_text()
    assert "paper/digits/er" in text
    assert "torch 2.14" in text
    assert "reproduced" in (tmp_path / "claims.csv").read_text()


def test_a_table_of_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match="measured"):
        read_csv("a,b\n1,2\n")


@pytest.fixture
def two_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Claim]]:
    listed = read_claims(PAPER, "paper")
    monkeypatch.setattr(published, "claims", lambda: {c.id: c for c in listed})
    monkeypatch.setattr(reproduction, "claims", lambda: {c.id: c for c in listed})
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield listed
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_runs_are_shared_and_the_budget_takes_the_quickest_claim(two_claims: list[Claim]) -> None:
    """Two seeds each: er 2 x 3 s, lwf 2 x 30 s, naive 2 x 2 s serves both; so er costs 10 s, lwf then 60 s more."""
    needed, refused = claim_runs.needed(two_claims, out="runs")
    assert not refused
    assert sorted(run.seconds for run in needed) == [2, 2, 3, 3, 30, 30]
    assert all(len(run.serves) == (2 if run.seconds == 2 else 1) for run in needed)

    def fits(budget: float, jobs: int = 1) -> list[float]:
        return sorted(run.seconds for run in claim_runs.within(needed, budget, jobs))

    assert fits(10) == fits(69) == [2, 2, 3, 3]
    assert len(fits(70)) == len(fits(35, jobs=2)) == 6
    assert fits(9) == [2, 3]  # no claim in full, so one seed of the quickest
    assert fits(4) == []


def test_reproduce_runs_what_is_missing_and_gives_verdicts(
    two_claims: list[Claim], capsys: pytest.CaptureFixture[str]
) -> None:
    """The value is far from the claimed one, so the claim differs and the exit code is 1. Nothing is run twice."""
    code, *_ = call(capsys, "reproduce", "paper/digits/er", "--dry-run")
    assert (code, list(Path("runs").rglob("run.json"))) == (0, [])
    code, out, err = call(capsys, "reproduce", "paper/digits/er")
    assert code == 1
    assert "differs" in out
    assert "1 of 1 claims differ" in err
    files = sorted(Path("runs").rglob("run.json"))
    assert len(files) == 4
    stamps = [file.stat().st_mtime_ns for file in files]
    values = [json.loads(f.read_text())["metrics"]["average_accuracy"] for f in files if "/er/" in str(f)]
    table = Path("runs/reproduction/claims.csv").read_text()
    assert float(next(csv.DictReader(table.splitlines()))["ours"]) == pytest.approx(50 * sum(values))
    code, again, _ = call(capsys, "reproduce", "paper/digits/lwf", "paper/digits/er", "--seeds", "1", "--json")
    rows = json.loads(again)
    assert {row["claim"]: row["n"] for row in rows} == {"paper/digits/lwf": 1, "paper/digits/er": 1}
    assert all(isinstance(row[name], float) for row in rows for name in ("ours", "published", "difference"))
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert len(list(Path("runs").rglob("run.json"))) == 5


def test_a_run_in_the_table_of_results_is_not_done_again_for_any_claim(
    two_claims: list[Claim], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same number in a second paper: its runs are those of the first, which the table holds without folders."""
    twin = two_claims[0].model_copy(update={"paper": "later", "value": 51.0})
    listed = {c.id: c for c in (*two_claims, twin)}
    for module in (published, reproduction):
        monkeypatch.setattr(module, "claims", lambda: listed)
    assert call(capsys, "reproduce", "paper/digits/er", "--results", "table")[0] == 1
    shutil.rmtree("runs")
    code, out, _ = call(capsys, "reproduce", "later", "paper/digits/er", "--results", "table")
    assert (code, "2 of 2" in out) == (1, False)
    assert not Path("runs").exists()
    first, second = (row for row in csv.DictReader(Path("table/claims.csv").read_text().splitlines()))
    assert first["ours"] == second["ours"]
    assert {first["claim"], second["claim"]} == {"paper/digits/er", "later/digits/er"}


def test_like_begins_with_the_protocol_of_a_claim(two_claims: list[Claim], capsys: pytest.CaptureFixture[str]) -> None:
    """--like gives the run that reproduce asks for, the published strength included; options on the line come first."""
    needed, _ = claim_runs.needed(two_claims, out="runs")
    wanted = {run.planned.config.identity() for run in needed if run.planned.config.seed == 1}
    code, out, _ = call(capsys, "run", "--like", "paper/digits/lwf", "--seed", "1", "--json")
    assert code == 0
    record = json.loads(out)
    assert record["identity"] in wanted
    code, out, err = call(
        capsys, "run", "--like", "paper/digits/lwf", "-p", "temperature=4", "--iterations", "2", "--json"
    )
    assert code == 0, err
    config = json.loads(out)["config"]
    assert (config["iterations"], config["epochs"]) == (2, None)
    assert config["strategy"] == "vandeven2019-lwf"
    assert (config["strategy_options"]["temperature"], config["strategy_options"]["strength"]) == (4.0, 0.5)
    code, out, err = call(
        capsys, "compare", "--like", "paper/digits/er", "er", "lwf", "--seeds", "1", "--no-references"
    )
    assert code == 0, err
    configs = [json.loads(f.read_text())["config"] for f in Path("runs").rglob("run.json")]
    assert {c["memory_size"] for c in configs if c["strategy"] == "er"} == {30}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--like", "paper/digits/ewc"], ("paper/digits/ewc", "paper/digits/er")),
        (["run", "--like", "paper/digits/er", "lwf", "ewc"], ("one strategy",)),
        (["run"], ("a scenario and a strategy",)),
        (["reproduce", "paper/other"], ("paper/other", "paper/digits")),
        (["reproduce", "A4"], ("'A4'", "paper/digits/er", "paper/digits/lwf")),
        (["reproduce", "--budget", "10"], ("--budget 10", "10m")),
        (["reproduce", "--tier", "E"], ("tier", "'E'")),
        (["reproduce", "--tier", "a"], ("did you mean 'A'?",)),
        (["reproduce", "--tier", "A", "--device", "cuda:99"], ("device=cuda:99 is not there", "cpu")),
        (["reproduce", "--seeds", "3"], ("not told what to run", "--tier A")),
        (["reproduce", "--data-root", "there"], ("not told what to run", "--table")),
        (["run", "split-mnist", "lwf", "--like", "paper/digits/er"], ("split-mnist given", "claim's, split-mnist-5k")),
        (["compare", "own.npz", "lwf", "--like", "paper/digits/er"], ("own.npz given", "claim's, split-mnist-5k")),
    ],
)
def test_what_reproduce_and_like_refuse(
    two_claims: list[Claim], capsys: pytest.CaptureFixture[str], arguments: list[str], words: tuple[str, ...]
) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


def test_a_plan_reads_and_downloads_no_data(
    two_claims: list[Claim], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a budget that no run fits into: er and naive take 2 + 3 s at least."""
    claim = two_claims[0].model_copy(update={"scenario": "split-mnist"})
    monkeypatch.setattr(published, "claims", lambda: {claim.id: claim})
    monkeypatch.setattr(claim_runs, "prepare", lambda config: pytest.fail("a scenario was built"))
    for given in (["--dry-run"], ["--budget", "4s"]):
        code, out, err = call(capsys, "reproduce", "--data-root", "empty", *given)
        assert (code, err) == (0, "")
        assert claim.id in out
    assert not Path("empty").exists()


def test_a_budget_alone_takes_claims_of_every_tier(
    two_claims: list[Claim], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    second = two_claims[1].model_copy(update={"tier": "B"})
    monkeypatch.setattr(published, "claims", lambda: {c.id: c for c in (two_claims[0], second)})
    told = [call(capsys, "reproduce", "--dry-run", *given)[1] for given in ([], ["--budget", "10m"])]
    assert [second.id in out for out in told] == [False, True]
    assert " ".join(call(capsys, "reproduce", "--help")[1].split()).count("every tier") == 2


def test_data_are_looked_at_once_for_all_claims_that_share_them(
    two_claims: list[Claim], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing data are looked for once, and the budget goes to the next claim: er on the digits that are here."""
    absent = [
        two_claims[0].model_copy(
            update={"scenario": "split-mnist", "name": f"er{n}", "fields": {**two_claims[0].fields, "limit": n}}
        )
        for n in (10, 20, 30)
    ]
    asked: list[str] = []
    monkeypatch.setattr(claim_runs, "prepare", lambda config: asked.append(config.scenario) or prepare(config))
    wanted = [*absent, *two_claims]
    needed, _ = claim_runs.needed(wanted, out="runs", offline=True, data_root="empty")
    assert asked == []
    _, todo, refused = claim_runs.startable(needed, 25)
    assert asked == ["split-mnist", "split-mnist-5k"]
    assert {c.id for run in todo for c, _ in run.serves} == {c.id for c in two_claims}
    assert sorted(run.seconds for run in todo) == [2, 2, 3, 3]
    assert len(set(refused) & {c.id for c in absent}) == len(refused) > 0
    left, todo, refused = claim_runs.startable(needed)
    assert asked[2:] == ["split-mnist", "split-mnist-5k"]
    assert set(refused) == {c.id for c in absent}
    assert left == todo
    assert len(left) == 6


def test_the_reason_why_claims_cannot_run_is_given_once_and_in_one_short_line(
    two_claims: list[Claim], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claims that are named and can't run give exit code 2; the results that are kept are shown all the same."""
    listed = [c.model_copy(update={"scenario": "split-mnist"}) for c in two_claims]
    monkeypatch.setattr(published, "claims", lambda: {c.id: c for c in listed})
    monkeypatch.setattr(reproduction, "committed", lambda: runs(listed[0], [50.0, 50.1], [20.0, 21.0]))
    tried: list[str] = []

    def fail(payload: Any, folder: Path) -> Path:
        tried.append(payload.name)
        raise ConnectionError("; ".join(f"https://mirror-{n}.org/{payload.name}: {'no answer ' * 9}" for n in (1, 2)))

    monkeypatch.setattr(download, "fetch", fail)
    for names, ends in ((["--tier", "A"], 0), (["paper"], 2)):
        code, out, err = call(capsys, "reproduce", "--data-root", "empty", *names)
        assert code == ends
        assert "reproduced" in out
        assert err.startswith("2 claims can't run here: there is no data for 'mnist' in empty")
        assert err.count("can't run here") == 1
        assert all(len(line) < 300 for line in err.splitlines())
    assert len(tried) == 2
    assert "paper: none can run here" in err


def test_a_finished_claim_needs_no_data(
    two_claims: list[Claim], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(capsys, "reproduce", "paper/digits/er")[0] == 1
    monkeypatch.setattr(claim_runs, "prepare", lambda config: pytest.fail("a scenario was built"))
    assert "differs" in call(capsys, "reproduce", "paper/digits/er")[1]


def test_with_nothing_at_hand_the_kept_results_are_shown(
    two_claims: list[Claim], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty folder holds no MNIST, and nothing is downloaded; date and versions of the kept runs are shown."""
    claim = two_claims[0].model_copy(update={"scenario": "split-mnist"})
    monkeypatch.setattr(published, "claims", lambda: {claim.id: claim})
    rows = [replace(row, torch="9.9") for row in runs(claim, [50.0, 50.1], [20.0, 21.0])]
    monkeypatch.setattr(reproduction, "committed", lambda: rows)
    code, out, err = call(capsys, "reproduce", "--tier", "A", "--offline", "--data-root", "empty", "--json")
    assert code == 0, err
    assert [row["verdict"] for row in json.loads(out)] == ["reproduced"]
    code, out, err = call(capsys, "reproduce", "--tier", "A", "--offline", "--data-root", "empty")
    assert "torch 9.9" in out
    assert "2026-01-01" in out
    assert "there is no data for 'mnist'" in err
    monkeypatch.setattr(reproduction, "committed", list)
    code, out, err = call(capsys, "reproduce", "--tier", "A", "--offline", "--data-root", "empty")
    assert code == 2


def test_without_a_limit_the_kept_results_are_shown_and_nothing_runs(
    two_claims: list[Claim], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduction, "committed", lambda: runs(two_claims[0], [50.0, 50.1], [20.0, 21.0]))
    code, out, _ = call(capsys, "reproduce")
    assert code == 0
    assert "1 reproduced" in out
    assert "--tier A or --budget 10m run some" in out
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("width", "hidden"), [(80, "difference, allowed"), (120, "naive, paired difference"), (140, "")]
)
def test_the_table_of_verdicts_cuts_no_word_and_says_what_a_terminal_has_no_room_for(
    two_claims: list[Claim],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    hidden: str,
) -> None:
    claim = two_claims[0].model_copy(update={"paper": "avalanche_baselines", "protocol": "permuted-mnist-domain"})
    monkeypatch.setattr(published, "claims", lambda: {claim.id: claim})
    monkeypatch.setattr(reproduction, "claims", lambda: {claim.id: claim})
    monkeypatch.setattr(reproduction, "committed", lambda: runs(claim, [50.0, 50.1], [50.0, 51.0]))
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = call(capsys, "reproduce")
    assert code == 0
    table = out.partition("a wider terminal")[0].partition("0 reproduced")[0]
    assert max(map(len, table.splitlines())) <= width
    words = ("avalanche_baselines/", "permuted-mnist-domain/", "er", "50.05", "not", "discriminating", "published")
    assert set(words) <= set(table.split())
    assert ("a wider terminal" in out, hidden in out) == (bool(hidden), True)


def test_finished_runs_of_naive_alone_are_no_result_of_a_claim(
    two_claims: list[Claim], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    naive = two_claims[0].model_copy(update={"strategy": "naive", "name": "naive", "fields": two_claims[1].fields})
    monkeypatch.setattr(published, "claims", lambda: {c.id: c for c in (naive, two_claims[1])})
    assert call(capsys, "reproduce", naive.id)[0] in (0, 1)
    monkeypatch.setattr(reproduction, "committed", lambda: runs(two_claims[1], [90.0, 90.1], [20.0, 21.0]))

    def lack(config: Any) -> Any:
        raise MissingDataError("there is no data")

    monkeypatch.setattr(claim_runs, "prepare", lack)
    code, out, err = call(capsys, "reproduce", two_claims[1].id)
    assert code == 2
    assert "reproduced" in out
    assert f"{two_claims[1].id} can't run here: there is no data" in err


def test_list_claims_shows_every_one(two_claims: list[Claim], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "list", "claims", "--json")
    assert code == 0
    assert [row["claim"] for row in json.loads(out)["claims"]] == ["paper/digits/er", "paper/digits/lwf"]


# The hashes of runs that were begun before this lack four fields, which 0.1.0 had when it was released.
SETTLED = "2026-11-25T20:07"
LATER_FIELDS = {"decay_biases", "memory_rounding", "padding", "per_task"}


def kept_rows() -> list[tuple[Measured, RunConfig]]:
    """Every row of runs.csv with the run that its claim asks for now, on the device of the row.

    The rows of the GPU were made with --compile reduce-overhead, which is part of an identity.
    """

    @functools.cache
    def asked(name: str, role: str, gpu: bool) -> RunConfig:
        claim = published.claims()[name]
        strategy, options, fields = claim.strategy, claim.options, claim.run_fields()
        if role == "naive":
            strategy, options, fields = claim.naive.strategy, claim.naive.options, claim.naive_fields()
        machine = {"device": "cuda", "compile": "reduce-overhead"} if gpu else {"device": "cpu"}
        return resolve(claim.scenario, strategy, {**fields, **machine, "strategy_options": options}, elsewhere=True)

    rows = reproduction.known_claims(reproduction.committed())
    assert {row.device for row in rows} == {"x86_64", "NVIDIA H200"}
    return [(row, asked(row.claim, row.role, row.device != "x86_64").replace(seed=row.seed)) for row in rows]


def test_each_kept_row_is_of_the_run_that_its_claim_asks_for() -> None:
    """The identity in runs.csv, of which 0.1.0 wrote a part, is that of the present run: seed and device included."""
    compared = kept_rows()
    assert len(compared) == len(reproduction.committed()) == 496
    for row, config in compared:
        identity = config.identity()
        if row.created < SETTLED:
            hashed = {name: value for name, value in identity_fields(config).items() if name not in LATER_FIELDS}
            identity = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:16]
        assert identity == row.identity, (row.claim, row.role, row.seed)
        assert config.engine.threads == row.threads


def test_a_run_of_a_claim_is_looked_for_where_0_1_put_it() -> None:
    """By hand: 0.1.0 knew the scenarios and strategies of protocols by the names of those that they are based on."""
    strategies = {
        "avalanche-baselines-lwf": "lwf",
        "rebuffi2017-finetuning": "icarl",
        "rebuffi2017-icarl": "icarl",
        "rebuffi2017-lwf-mc": "lwf-mc",
        "vandeven2019-icarl": "icarl",
        "vandeven2019-lwf": "lwf",
        "vandeven2022-er": "er",
        "vandeven2022-joint": "joint",
        "vandeven2022-lwf": "lwf",
    }
    met = set()
    for row, config in kept_rows():
        scenario = {"zenke2017-split-mnist": "split-mnist"}.get(config.scenario, config.scenario)
        strategy = strategies.get(config.strategy, config.strategy)
        if row.created >= SETTLED:
            assert default_folder(config) == Path("runs", scenario, strategy, f"{row.seed}-{row.identity[:8]}")
            met |= {config.scenario, config.strategy}
    assert {*strategies, "zenke2017-split-mnist"} <= met


def test_each_kept_result_that_differs_says_what_was_tried() -> None:
    kept = reproduction.judge_all(reproduction.committed())
    assert len(kept) >= 5
    for judgement in kept:
        assert judgement.verdict != "differs" or len(judgement.claim.tried) > 80, judgement.claim.id
