"""The search for hyper-parameters: the data it may read, the values it chooses, and where the choice is reported."""

import itertools
import json
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from pydantic import Field

import clbench
from clbench import ImageSet, RunError, Strategy, Traits
from clbench.cli import main
from clbench.config.registry import entry_point_names
from clbench.config.space import Choices, Log, declared, read_space
from clbench.running.resolve import strategy_class
from clbench.tools.tune import PROTOCOLS, held_out

# The learning rate is the preset's, 0.001.
FAST = {"model": "mlp:16", "epochs": 1, "batch_size": 4, "optimizer": "adam", "threads": 1}
SEARCHES = [("first-k-tasks", {"trials": 3}), ("oracle", {"trials": 3}), ("continual", {"lr": 0.001})]
SPACE = "strength=log:1:8"


@pytest.fixture
def tasks(cut: Any) -> Any:
    """4 tasks of 2 classes with 8 training and 2 validation images a class."""
    return cut(tasks=None, task_sizes=[2, 2, 2, 4], setting="task", validation=0.2)


@pytest.fixture
def search(tmp_path: Path, tasks: Any) -> Any:
    """Tune a strategy on `tasks` (or a scenario given) with fast training, each time in a new folder unless named."""
    numbers = itertools.count()

    def done(strategy: Any = "l2", scenario: Any = None, **options: Any) -> clbench.tools.tune.Tuned:
        options.setdefault("out", tmp_path / f"search-{next(numbers)}")
        return clbench.tune(tasks if scenario is None else scenario, strategy, **(FAST | options))

    return done


def choices(found: Any) -> Any:
    """The trials, their scores and the choice, without times."""
    trials = [{k: v for k, v in trial.items() if k != "seconds"} for trial in found.record["trials"]]
    return trials, {k: v for k, v in found.options.items() if k != "tuned_by"}


class Untouchable(ImageSet):
    """A set whose images, labels and ids must not be read."""

    def _open(self) -> Any:
        raise AssertionError("test data were read")


# Values that are read


@pytest.mark.parametrize(("protocol", "options"), SEARCHES)
def test_test_data_are_never_read(protocol: str, options: Any, search: Any, tasks: Any) -> None:
    """Poisoned test images and labels change nothing, and test sets that must not be opened are not opened."""
    random = torch.Generator().manual_seed(0)
    test = tasks.test
    poisoned = replace(
        test,
        images=torch.randint(0, 256, test.images.shape, generator=random, dtype=torch.uint8),
        labels=test.labels[torch.randperm(len(test.labels), generator=random)],
    )
    rest = [replace(task, test=ImageSet(poisoned, task.test.ids)) for task in tasks.tasks]
    closed = [replace(task, test=Untouchable(test, task.test.ids)) for task in tasks.tasks]
    found = [
        choices(search("l2", scenario, protocol=protocol, space=SPACE, **options))
        for scenario in (tasks, replace(tasks, tasks=rest, test=poisoned), replace(tasks, tasks=closed, test=None))
    ]
    assert found[0] == found[1] == found[2]


def test_the_trials_scenario_holds_the_first_tasks_and_their_validation_images_alone(tasks: Any) -> None:
    """Counted image by image: 8 + 2 images of each of 4 classes; what was the validation split is the test split."""
    made = held_out(tasks, 2)
    assert len(made.tasks) == 2
    assert made.train.images.shape[0] == 40
    assert made.test.images.shape[0] == 8
    assert set(made.train.classes.tolist()) == set(made.test.classes.tolist()) == {0, 1, 2, 3}
    for before, after in zip(tasks.tasks, made.tasks, strict=False):
        assert torch.equal(after.train.images, before.train.images)
        for split in (after.validation, after.test):
            assert torch.equal(split.images, before.validation.images)
            assert torch.equal(split.labels, before.validation.labels)
        assert not set(after.train.ids.tolist()) & set(after.validation.ids.tolist())


def test_first_k_tasks_knows_nothing_of_later_tasks(search: Any, tasks: Any) -> None:
    images = tasks.train.images.clone()
    images[torch.isin(tasks.train.tasks, torch.tensor([2, 3]))] = 0
    train = replace(tasks.train, images=images)
    rest = [
        replace(t, train=ImageSet(train, t.train.ids), validation=ImageSet(train, t.validation.ids))
        for t in tasks.tasks
    ]
    plain = search(first_tasks=2, trials=3)
    assert choices(search("l2", replace(tasks, tasks=rest, train=train), first_tasks=2, trials=3)) == choices(plain)
    assert (plain.record["tasks_read"], plain.record["tasks"]) == (2, 4)


def test_continual_judges_by_the_current_task_alone(search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each evaluation has images of the task that is being learnt, and of no other."""
    import clbench.running.run

    seen = []
    plain = clbench.running.run.evaluate

    def evaluate(strategy: Any, context: Any, after: int) -> Any:
        seen.append((context.progress.task, [t.index for t in context.scenario.tasks if len(t.test)]))
        return plain(strategy, context, after)

    monkeypatch.setattr(clbench.running.run, "evaluate", evaluate)
    search(protocol="continual", space=SPACE, lr=0.001)
    assert {task for task, _ in seen} == {0, 1, 2, 3}
    assert all(judged == [task] for task, judged in seen)


# Values that are chosen


@pytest.mark.parametrize("protocol", ["first-k-tasks", "oracle"])
def test_the_best_trial_is_chosen_and_the_first_is_what_would_be_used_anyway(
    protocol: str, search: Any, tasks: Any, tmp_path: Path
) -> None:
    """The score of a trial is that of a run of its own on a scenario cut by hand."""
    found = search(protocol=protocol, trials=4, strategy_options={}, space="strength=log:0.01:100,lr=0.001|0.01|0.1")
    trials = found.record["trials"]
    assert trials[0]["values"] == {"strength": 1.0, "lr": 0.001}
    best = found.record["best"]
    assert best["score"] == max(trial["score"] for trial in trials)
    assert found.options["lr"] == best["values"]["lr"]
    assert found.options["strategy_options"] == {"strength": best["values"]["strength"]}
    n = 3 if protocol == "first-k-tasks" else 4
    kept = [replace(t, test=ImageSet(tasks.train, t.validation.ids)) for t in tasks.tasks[:n]]
    by_hand = replace(tasks, tasks=kept, test=tasks.train)
    options = {**FAST, "lr": best["values"]["lr"], "strategy_options": {"strength": best["values"]["strength"]}}
    row = clbench.run(by_hand, "l2", out=tmp_path / "by-hand", **options).accuracy[-1]
    assert best["score"] == pytest.approx(np.mean(row))


class Learns(Strategy):
    """Answers only if its weight is 4 or less; above that it always answers the first class, which is half right."""

    traits = Traits(family="regularisation")
    most = 4.0
    strength: Annotated[float, Field(ge=0), Log(0.5, 32)] = 1.0

    def scores(self, images: Any, task: int | None = None) -> Any:
        return self.model(images) * (self.strength <= self.most)


class Never(Learns):
    """Answers with no weight."""

    most = 0.0


class Breaks(Strategy):
    """Can't be trained with a weight above 4."""

    traits = Traits(family="regularisation")
    strength: Annotated[float, Field(ge=0), Log(0.5, 32)] = 16.0

    def penalty(self) -> Any:
        return self.model.head.weight.sum() * (float("nan") if self.strength > 4 else 0)


@pytest.mark.parametrize(("strategy", "expected", "tried"), [(Learns, 4.0, 4), (Breaks, 4.0, 4), (Never, 0.5, 7)])
def test_continual_halves_the_weight_from_its_upper_end(
    strategy: Any, expected: float, tried: int, search: Any, cut: Any
) -> None:
    """By hand: 32, 16, 8, 4, where it learns; if it never learns, it ends at 0.5, after log2(32 / 0.5) + 1 = 7."""
    scenario = cut(limit=40, tasks=2, class_order=[0, 1, 6, 7], setting="task", validation=0.2)
    found = search(strategy, scenario, protocol="continual", epochs=4)
    for task, values in enumerate(found.options["per_task"]):
        assert values["strength"] == expected
        phases = [t["phase"] for t in found.record["trials"] if t["task"] == task]
        assert phases == ["plasticity"] * 5 + ["stability"] * tried


def test_continual_takes_the_fastest_rate_and_its_choices_make_the_run_that_it_went_through(
    search: Any, tasks: Any, tmp_path: Path
) -> None:
    """An ordinary run with these values per task, without a stop, meets the accuracies that they were chosen by."""
    found = search("ewc", protocol="continual", optimizer_state="keep", epochs=3)
    for best in found.record["best"]:
        plasticity = [t for t in found.record["trials"] if (t["task"], t["phase"]) == (best["task"], "plasticity")]
        assert [t["values"]["lr"] for t in plasticity] == [0.01, 0.00316, 0.001, 0.000316, 0.0001]
        assert best["plasticity"] == max(t["score"] for t in plasticity)
        fastest = next(t for t in plasticity if t["score"] == best["plasticity"])
        assert best["values"]["lr"] == fastest["values"]["lr"]
        assert best["score"] >= 0.8 * best["plasticity"] or best["values"]["strength"] == 0.01
    judged = replace(
        tasks,
        tasks=[replace(t, test=ImageSet(tasks.train, t.validation.ids)) for t in tasks.tasks],
        test=tasks.train,
    )
    result = clbench.run(judged, "ewc", out=tmp_path / "run", **found.options)
    assert np.diag(result.accuracy).tolist() == [best["score"] for best in found.record["best"]]
    assert len({json.dumps(values) for values in found.options["per_task"]}) > 1
    assert sorted({t["task"]: t["lr"] for t in result.record["training"]}.items()) == [
        (task, values["lr"]) for task, values in enumerate(found.options["per_task"])
    ]


def test_replay_is_tuned_task_by_task_too(search: Any) -> None:
    """The memory goes from the chosen candidate of a task to those of the next one."""
    found = search("derpp", protocol="continual", memory_size=12, lr=0.001, space="alpha=log:0.1:1,beta=log:0.1:1")
    assert [set(values) for values in found.options["per_task"]] == [{"lr", "alpha", "beta"}] * 4


def test_trials_that_fail_are_told_and_never_chosen(search: Any) -> None:
    found = search(Breaks, trials=6)
    for trial in found.record["trials"]:
        failed = trial["values"]["strength"] > 4
        assert (trial["score"] is None) == failed
        assert ("nan" in trial.get("error", "")) == failed
    assert found.record["best"]["values"]["strength"] <= 4
    with pytest.raises(RunError, match="none of 2 trials"):
        search(Breaks, trials=2, space="strength=8|16")


@pytest.mark.parametrize(("protocol", "options"), SEARCHES)
def test_a_search_that_was_stopped_goes_on(protocol: str, options: Any, search: Any, tmp_path: Path) -> None:
    """Compared with a search that was not stopped; finished trials are not repeated."""
    options = {"protocol": protocol, "space": SPACE, **options}
    whole = search(**options)
    told: list[Any] = []

    def stop(trial: Any) -> None:
        told.append(trial)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(out=tmp_path / "stopped", told=stop, **options)
    assert choices(search(out=tmp_path / "stopped", **options)) == choices(whole)
    files = sorted((tmp_path / "stopped").rglob("run.json"))
    before = [file.stat().st_mtime_ns for file in files]
    again = search(out=tmp_path / "stopped", **options)
    assert choices(again) == choices(whole)
    assert [file.stat().st_mtime_ns for file in files] == before
    if protocol != "continual":
        more = search(out=tmp_path / "stopped", **(options | {"trials": 4}))
        assert choices(more)[0][:3] == choices(whole)[0]
        assert [trial["seconds"] for trial in more.record["trials"][:3]] == [
            trial["seconds"] for trial in again.record["trials"]
        ]


# Spaces


def test_every_declared_space_is_accepted_and_holds_the_default() -> None:
    spaces = {name: declared(strategy_class(name)._options) for name in entry_point_names("clbench.strategies")}
    for name, of_strategy in spaces.items():
        for option, space in of_strategy.items():
            for end in (space.low, space.high) if isinstance(space, Log) else space.values:
                assert strategy_class(name).validate({option: end})[option] == end
            assert strategy_class(name)().__dict__[option] in space
    assert spaces["ewc"] == {"strength": Log(0.01, 1e6)}
    assert spaces["lwf"] == {"strength": Log(0.1, 10), "temperature": Choices(1.0, 2.0, 4.0)}
    assert set(spaces["derpp"]) == {"alpha", "beta"}
    assert spaces["naive"] == {}


def test_spaces_are_read_as_they_are_written() -> None:
    spaces = read_space("strength=log:0.1:1000, lr=0.1|0.01")
    assert spaces == {"strength": Log(0.1, 1000.0), "lr": Choices("0.1", "0.01")}
    assert read_space(",".join(f"{name}={space}" for name, space in spaces.items())) == spaces
    # Ratios of 10, from the upper end.
    assert Log(0.1, 1000.0).grid(5) == pytest.approx([1000, 100, 10, 1, 0.1])


def test_what_is_given_is_not_searched_and_nothing_declared_means_the_rate(search: Any) -> None:
    assert search("naive", trials=1).record["space"] == {"lr": "log:0.0001:0.01"}
    assert search("lwf[temperature=3]", trials=1).record["space"] == {"strength": "log:0.1:10"}


REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"protocol": "first"}, ("'first'", "first-k-tasks")),
    ({"first_tasks": 4}, ("first_tasks=4", "2 to 3")),
    ({"first_tasks": 1}, ("first_tasks=1", "2 to 3")),
    ({"first_tasks": 2, "protocol": "oracle"}, ("first_tasks=2", "oracle")),
    ({"trials": 0}, ("trials=0", "1 or more")),
    ({"trials": 3, "protocol": "continual"}, ("trials=3", "continual")),
    ({"space": "strenght=1|2"}, ("'strenght'", "'strength'")),
    ({"space": "strength"}, ("'strength'", "log:LOW:HIGH")),
    ({"space": "strength=log:1"}, ("log:1", "log:LOW:HIGH")),
    ({"space": "strength=log:10:1"}, ("log:10:1", "lower one first")),
    ({"space": "strength=log:0:1"}, ("log:0:1", "above 0")),
    ({"space": "strength=1|2,strength=3"}, ("strength", "twice")),
    ({"space": "strength=-1|1"}, ("strength=-1", "greater than or equal to 0")),
    ({"space": "strength=one|two"}, ("strength=one", "number")),
    ({"space": "momentum=log:0.5:2"}, ("momentum=", "sgd")),
    ({"space": "lr=1|0"}, ("lr=0", "greater than 0")),
    ({"space": "tasks=2|5"}, ("'tasks'",)),
    ({"space": "lr=0.1|0.2", "strategy_options": {}, "lr": 0.1}, ("lr", "given and searched")),
    ({"space": SPACE, "strategy_options": {"strength": 1.0}}, ("strength", "given and searched")),
    ({"strategy_options": {"strength": 1.0}, "lr": 0.1}, ("nothing is left", "--space")),
    ({"protocol": "continual", "strategy_options": {"strength": 1.0}}, ("continual", "declares none")),
    ({"protocol": "continual", "space": "strength=1|2"}, ("strength=1|2", "log:LOW:HIGH")),
    ({"protocol": "continual", "space": "weight_decay=log:0.1:1"}, ("weight_decay",)),
    ({"tuned_by": "me"}, ("tuned_by",)),
    ({"evaluate": "current"}, ("evaluate=current", "average accuracy", "continual")),
    ({"evaluate": "current", "protocol": "oracle"}, ("evaluate=current", "oracle")),
    ({"epochs": 0}, ("epochs=0",)),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=lambda v: str(v)[:50])
def test_what_can_not_be_searched_is_refused_before_any_trial(
    options: Any, words: Any, tasks: Any, refused: Any, tmp_path: Path
) -> None:
    with refused(*words):
        clbench.tune(tasks, "l2", out=tmp_path / "search", **(FAST | options))
    assert not (tmp_path / "search").exists()


def test_a_scenario_without_validation_images_and_another_searchs_folder_are_refused(
    search: Any, tiny: Any, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refused("task 0", "no validation images"):
        search("l2", tiny)
    search(trials=1, out=tmp_path / "one")
    with refused("another search", "--out"):
        search(trials=1, out=tmp_path / "one", epochs=2)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with refused("Optuna", "pip install 'clbench[tune]'"):
        search(trials=1)


# Values per task


@pytest.mark.parametrize(
    ("per_task", "words"),
    [
        ([{"strength": 1.0}], ("per_task has 1", "5 tasks")),
        ([{"strenght": 1.0}] * 5, ("'strenght'", "'strength'")),
        ([{"strength": -1.0}] * 5, ("strength=-1.0", "0")),
        ([{"lr": 0.0}] * 5, ("lr=0.0", "greater than 0")),
        ([1.0] * 5, ("per_task", "dictionary")),
    ],
)
def test_values_per_task_that_can_not_hold_are_refused(per_task: Any, words: Any, run: Any, refused: Any) -> None:
    with refused(*words):
        run("l2", per_task=per_task)


def test_the_same_values_in_each_task_make_the_same_run(run: Any) -> None:
    plain = run("l2", strategy_options={"strength": 3.0}, lr=0.05)
    told = run("l2", per_task=[{"lr": 0.05, "strength": 3.0}] * 5, lr=0.2)
    assert told.accuracy_rows() == plain.accuracy_rows()
    assert told.recorded.identity != plain.recorded.identity


# The command line, and what a reader of the numbers is told


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0), *capsys.readouterr()


SMALL = ["--limit", "10", "--epochs", "1", "--threads", "1", "--model", "mlp:16"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_tune_finds_is_used_and_told_by_the_run(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    trials = [] if protocol == "continual" else ["--trials", "2"]
    code, out, err = command(
        capsys, "tune", "split-mnist-5k", "l2", "--setting", "task", "--protocol", protocol, *trials, *SMALL,
        "--space", SPACE,
    )  # fmt: skip
    assert code == 0, err
    assert f"chosen by {protocol}" in " ".join(out.split())
    assert "trial 1" in err
    (best,) = tmp_path.rglob("best.toml")
    assert out.strip().endswith(str(best.relative_to(tmp_path)))
    assert best.read_text().startswith(f"# {protocol}, ")
    record = json.loads(best.with_name("tune.json").read_text())
    assert record["status"] == "done"
    chosen = tomllib.loads(best.read_text())
    verb = ["compare", "--seeds", "1"] if protocol == "oracle" else ["run"]
    code, out, err = command(capsys, *verb, "split-mnist-5k", "l2", "--config", str(best), "--out", "runs")
    assert code == 0, err
    assert f"hyper-parameters chosen by {protocol}" in " ".join(out.split())
    runs = [json.loads(file.read_text()) for file in (tmp_path / "runs").rglob("run.json")]
    ours = next(run for run in runs if run["strategy"]["name"] == "l2")
    if protocol == "continual":
        assert ours["config"]["per_task"] == [best["values"] for best in record["best"]]
    else:
        assert ours["config"]["strategy_options"]["strength"] == record["best"]["values"]["strength"]
    # The options given hold in the run too, and the references were not tuned.
    assert (ours["config"]["setting"], ours["config"]["limit"]) == ("task", 10)
    assert ours["config"]["tuned_by"] == chosen["tuned_by"]
    assert ours["config"]["tuned_by"].startswith(protocol)
    assert [run["config"]["tuned_by"] for run in runs if run is not ours] == [None] * (2 * (protocol == "oracle"))
    assert ("tuned-by-oracle" in {warning["rule"] for warning in ours["warnings"]}) == (protocol == "oracle")
    if protocol == "oracle":
        report = (tmp_path / "runs/report/report.md").read_text()
        assert "l2: hyper-parameters chosen by oracle" in report
        assert "l2: hyper-parameters chosen by an oracle, on the validation data of all tasks" in report


def test_tune_prints_json_and_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command(
        capsys, "tune", "split-mnist-5k", "lwf", "--trials", "1", "--validation", "0.2", "--json", *SMALL
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["validation"] == 0.2
    code, out, err = command(capsys, "tune", "split-mnist-5k", "lwf", "--validation", "0", *SMALL)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "validation=0" in err


def test_presets_are_shipped_and_the_report_prints_every_hyper_parameter(tmp_path: Path, tiny: Any, run: Any) -> None:
    from clbench.reports import write_report

    results = [run("lwf"), run("ewc", strategy_options={"strength": 7.0}), run("naive")]
    write_report(results, tmp_path / "report")
    report = (tmp_path / "report/report.md").read_text()
    part = report.split("### Hyper-parameters")[1].split("\n###")[0]
    for result in results[:2]:
        line = next(row for row in part.splitlines() if row.startswith(f"- `{result.strategy}`"))
        for option in strategy_class(result.strategy)._options.model_fields:
            assert f"{option}=" in line
    assert "strength=7.0" in part
    shared = next(row for row in part.splitlines() if "the same for all" in row)
    for text in ("lr=0.1", "epochs=1", "batch_size=8", "optimizer=sgd", "model=mlp:32"):
        assert text in shared
    preset = tomllib.loads((Path(__file__).parents[2] / "scenarios/presets.toml").read_text())
    assert {"si", "mas", "l2", "derpp"} <= set(preset["split-mnist-5k"]["strategies"])
