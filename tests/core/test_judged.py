"""Strategies tuned on one scenario and judged on another: what is read, what is ranked, what is refused."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from pydantic import Field

import clbench
from clbench import ImageSet, Strategy, Traits
from clbench.cli import main
from clbench.config.space import Log
from clbench.results.statistics import agreement, places
from clbench.tools.judge import seen_images

FAST: dict[str, Any] = {"model": "mlp:16", "epochs": 1, "batch_size": 8, "lr": 0.01, "optimizer": "adam", "quiet": True}
SPACE = "strength=log:1:8"


@pytest.fixture(scope="module")
def pair(digits: Any) -> Any:
    """Two scenarios of 3 tasks with 8 training and 2 validation images a class, of digits and of their negatives."""
    from clbench.scenarios import split

    cuts: Any = {"task_sizes": [2, 2, 2], "class_order": range(6), "limit": 10, "validation": 0.2, "setting": "task"}
    negatives = replace(digits, name="negatives", x_train=255 - digits.x_train, x_test=255 - digits.x_test)
    return split(digits, **cuts), split(negatives, **cuts)


@pytest.fixture
def judged(pair: Any, tmp_path: Path) -> Any:
    """Tune on the digits and judge on the negatives, with fast training."""

    def done(strategies: Any = ("l2", "ewc"), scenario: Any = None, judge_on: Any = None, **options: Any) -> Any:
        asked = {"seeds": [0], "trials": 2, "space": SPACE, "out": tmp_path / "judged"} | FAST | options
        return clbench.tune(scenario or pair[0], strategies, judge_on=judge_on or pair[1], **asked)

    return done


class Untouchable(ImageSet):
    """A set whose images, labels and ids must not be read."""

    def _open(self) -> Any:
        raise AssertionError("test data were read")


def with_wrong_test(scenario: Any) -> Any:
    """The scenario with its test labels in another order."""
    test = replace(scenario.test, labels=scenario.test.labels.flip(0))
    tasks = [replace(task, test=ImageSet(test, task.test.ids)) for task in scenario.tasks]
    return replace(scenario, tasks=tasks, test=test)


def rankings(found: Any) -> Any:
    """The rankings of each way, without times."""
    return [
        {way["name"]: [{k: v for k, v in row.items() if k != "seconds"} for row in way["ranking"]]}
        for part in found.record["judged"]
        for way in part["ways"]
    ]


def chosen(found: Any) -> Any:
    return {
        (way["name"], row["strategy"]): row["values"]
        for part in found.record["judged"]
        for way in part["ways"]
        for row in way["ranking"]
    }


def test_no_test_image_of_the_tuned_scenario_is_read(judged: Any, pair: Any, tmp_path: Path) -> None:
    """Wrong test labels change nothing, and test sets that must not be opened are not opened."""
    tuned = pair[0]
    closed = [replace(task, test=Untouchable(tuned.test, task.test.ids)) for task in tuned.tasks]
    found = [
        rankings(judged(scenario=scenario, out=tmp_path / f"{i}"))
        for i, scenario in enumerate((tuned, with_wrong_test(tuned), replace(tuned, tasks=closed, test=None)))
    ]
    assert found[0] == found[1] == found[2]


def test_no_test_image_of_the_judged_scenario_changes_what_is_chosen(judged: Any, pair: Any, tmp_path: Path) -> None:
    """Labels of test images are put in another order: the scores are others, and the values are not."""

    def found(scenario: Any, out: str) -> Any:
        made = replace(scenario, tasks=scenario.tasks, name="judged")
        return judged("l2", judge_on=made, beside=["oracle"], seeds=[0, 1], out=tmp_path / out)

    plain = found(pair[1], "plain")
    turned = replace(pair[1].test, images=pair[1].test.images.flip(0))
    tasks = [replace(task, test=ImageSet(turned, task.test.ids)) for task in pair[1].tasks]
    other = found(replace(pair[1], tasks=tasks, test=turned), "other")
    assert chosen(plain) == chosen(other)
    assert rankings(plain) != rankings(other)


def test_scores_are_those_of_runs_with_the_chosen_values(judged: Any, pair: Any, tmp_path: Path) -> None:
    """The runs are done by hand, with seeds of their own; the first tasks alone and the whole stream give two ways."""
    found = judged(("l2", "er[memory_size=6]"), beside=["first-k-tasks"], first_tasks=2, seeds=[3, 4], lr=None)
    (part,) = found.record["judged"]
    assert [way["name"] for way in part["ways"]] == ["split-digits, all tasks", "itself, first 2 tasks"]
    assert [(way["scenario"], way["tasks_read"]) for way in part["ways"]] == [
        ("split-digits", 3),
        ("split-negatives", 2),
    ]
    for way in part["ways"]:
        for row in way["ranking"]:
            by_hand = [
                clbench.run(
                    pair[1], row["strategy"], seed=seed, out=tmp_path / f"{way['name']}-{row['strategy']}-{seed}",
                    strategy_options=row["values"], threads=1, **FAST | {"lr": None},
                ).metrics["average_accuracy"]
                for seed in (3, 4)
            ]  # fmt: skip
            assert row["scores"] == by_hand
            assert (row["mean"], row["n"]) == (pytest.approx(sum(by_hand) / 2), 2)
        assert [row["rank"] for row in way["ranking"]] == sorted(places([r["mean"] for r in way["ranking"]]))
    # l2: 2 trials over 3 tasks of 16 images; over the first 2 tasks.
    cost = [next(row for row in way["ranking"] if row["strategy"] == "l2") for way in part["ways"]]
    assert [(row["runs"], row["images"]) for row in cost] == [(2, 2 * 3 * 16), (2, 2 * 2 * 16)]
    told = {run.config["tuned_by"].split(",")[0] for run in found.results}
    assert told <= {"another scenario", "first-k-tasks"}
    assert "another scenario" in told


def test_a_stopped_call_goes_on_and_a_second_one_gives_the_same_bytes(judged: Any, tmp_path: Path) -> None:
    told: list[Any] = []

    def stop(trial: Any) -> None:
        told.append(trial)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judged(told=stop, beside=["first-k-tasks"], first_tasks=2)
    assert told[2]["of"] == "ewc on split-digits"
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "judged").rglob("run.json")}
    assert len(done) == 3
    first = judged(beside=["first-k-tasks"], first_tasks=2)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "judged").rglob("run.json")}
    assert done.items() <= files.items()
    written = (first.folder / "judged.json").read_bytes()
    again = judged(beside=["first-k-tasks"], first_tasks=2)
    assert again.folder == first.folder
    assert (again.folder / "judged.json").read_bytes() == written
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "judged").rglob("run.json")} == files


class Breaks(Strategy):
    """Can't be trained."""

    traits = Traits(family="regularisation")
    strength: Annotated[float, Field(ge=0), Log(0.5, 32)] = 16.0

    def penalty(self) -> Any:
        return self.model.head.weight.sum() * float("nan")


class BreaksLater(Breaks):
    """Can be trained on digits, whose background is black, and not on negatives."""

    def penalty(self) -> Any:
        return self.model.head.weight.sum() * 0

    def loss(self, batch: Any) -> Any:
        factor = 1 if float(batch.images.mean()) < 0.5 else float("nan")
        return {name: term * factor for name, term in super().loss(batch).items()}


def test_a_strategy_that_fails_has_its_row_and_the_others_are_ranked(judged: Any) -> None:
    found = judged(["l2", Breaks, BreaksLater], beside=["oracle"], normalize="none")
    assert len(found.failures) == 4
    for way in found.record["judged"][0]["ways"]:
        assert way["ranking"][0]["strategy"] == "l2"
        assert [row["rank"] for row in way["ranking"]] == [1, None, None]
        assert all("is nan in task 0" in row["error"] for row in way["ranking"][1:])
    assert "none of 2 trials" in found.failures[0]


def test_shared_images_are_counted_and_told(judged: Any, pair: Any, cut: Any, digits: Any) -> None:
    """By hand: of 3 tasks of 2 classes with 10 images each, task 0 has digits in place of negatives."""
    from clbench.scenarios import split
    from clbench.scenarios.domains import permuted

    tuned, other = pair
    mixed = other.train.images.clone()
    ids = torch.cat([other.tasks[0].train.ids, other.tasks[0].validation.ids])
    mixed[ids] = 255 - mixed[ids]
    train = replace(other.train, images=mixed)
    tasks = [
        replace(t, train=ImageSet(train, t.train.ids), validation=ImageSet(train, t.validation.ids))
        for t in other.tasks
    ]
    made = replace(other, tasks=tasks, train=train)
    n = sum(len(t.test) for t in other.tasks)
    assert seen_images(tuned, other) == ({"training": (0, 60), "test": (0, n)}, False)
    assert seen_images(tuned, made) == ({"training": (20, 60), "test": (0, n)}, True)
    warned = judged("l2", judge_on=made).record["judged"][0]["warnings"]
    assert warned == ["20 of the 60 training images of split-negatives are among those that split-digits is tuned on."]
    # Permuted images are those that they are made from, and other classes of one data set are other images.
    assert seen_images(tuned, split(permuted(digits, 3), tasks=3, setting="domain"))[0]["training"][0] == 60
    apart = cut(tasks=None, task_sizes=[2, 2], class_order=[6, 7, 8, 9], limit=None)
    assert seen_images(tuned, apart)[0]["training"][0] == 0


REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"judge_on": "same"}, ("split-digits: 60 of the 60 training images", "are among those", "beside=oracle")),
    ({"judge_on": []}, ("judge_on=[]", "one or more")),
    ({"judge_on": "split-mnist-6k"}, ("'split-mnist-6k'", "split-mnist-5k")),
    ({"judge_on": "split-digits"}, ("split-digits", "class-incremental", "setting=task")),
    ({"judge_on": "twice"}, ("split-negatives", "twice")),
    ({"judge_on": "split-digits[setting=task,tasks=2]"}, ("2 tasks", "3", "tasks=3")),
    ({"strategies": []}, ("no strategy",)),
    ({"strategies": ["l2", "l2"]}, ("l2", "the same run")),
    ({"strategies": ["l2", "evc"]}, ("'evc'", "'ewc'")),
    ({"strategies": ["naive"], "space": None}, ("nothing is left to search for naive", "--space")),
    ({"strategies": ["l2", "sldb"]}, ("'sldb'", "'slda'")),
    ({"protocol": "orakel"}, ("'orakel'", "oracle")),
    ({"beside": ["first-k-tasks", "first-k-tasks"]}, ("beside=first-k-tasks,first-k-tasks", "once")),
    ({"beside": ["second"]}, ("'second'", "first-k-tasks")),
    ({"beside": ["first-k-tasks"], "first_tasks": 0}, ("first_tasks=0", "3 tasks")),
    ({"beside": ["first-k-tasks"], "first_tasks": 9}, ("first_tasks=9", "3 tasks")),
    ({"first_tasks": 2}, ("first_tasks=2", "first-k-tasks", "oracle")),
    ({"protocol": "continual", "trials": 2}, ("trials=2", "continual")),
    ({"trials": 0}, ("trials=0", "1 or more")),
    ({"seeds": 0}, ("seeds=0",)),
    ({"seeds": [1, 1]}, ("seeds=1,1", "once")),
    ({"space": "strength=-1|1"}, ("strength=-1", "greater than or equal to 0")),
    ({"space": "strenght=1|2"}, ("'strenght'", "'strength'")),
    ({"space": "lr=0.1|0.2"}, ("lr", "given and searched")),
    ({"memory_size": 10}, ("memory_size", "none of the strategies")),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=lambda v: str(v)[:50])
def test_what_can_not_be_judged_is_refused_before_any_trial(
    options: Any, words: Any, judged: Any, pair: Any, refused: Any, tmp_path: Path
) -> None:
    scenarios = {"same": pair[0], "twice": [pair[1], pair[1]]}
    on = options.get("judge_on", pair[1])
    on = scenarios.get(on, on) if isinstance(on, str) else on
    asked = {"seeds": [0], "trials": 2, "space": SPACE} | FAST | {k: v for k, v in options.items() if k != "judge_on"}
    asked = {
        k: v for k, v in asked.items() if not (k == "trials" and "trials" not in options and "protocol" in options)
    }
    strategies = asked.pop("strategies", ["l2", "ewc"])
    with refused(*words):
        clbench.tune(pair[0], strategies, judge_on=on, out=tmp_path / "out", **asked)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": ["l2", "ewc"]}, ("2 strategies", "judge_on")),
        ({"strategy": "l2", "seeds": 3}, ("seeds=3", "judge_on")),
        ({"strategy": "l2", "beside": ["oracle"]}, ("beside=", "judge_on")),
    ],
)
def test_what_is_for_judging_alone_is_refused_without_it(options: Any, words: Any, pair: Any, refused: Any) -> None:
    with refused(*words):
        clbench.tune(pair[0], **options)


def test_places_and_agreement_by_hand() -> None:
    """Two of three pairs in one order: (2 - 1) / 3. With one tie in ours: 2 / sqrt((3 - 1) * 3)."""
    assert places([0.5, None, 0.9, 0.5, float("nan")]) == [2, None, 1, 2, None]
    assert agreement([3, 2, 1], [3, 1, 2]) == pytest.approx(1 / 3)
    assert agreement([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / 6**0.5)
    assert agreement([1, 2], [2, 1]) == -1
    assert agreement([1, 1], [1, 2]) is None
    assert agreement([], []) is None


def test_the_command_prints_and_writes_the_ranking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--trials", "1", "--seeds", "0,1,2", "--limit", "10", "--epochs", "1", "--model", "mlp:16"]
    asked = [
        "tune",
        "split-mnist-5k",
        "er",
        "ewc",
        "--judge-on",
        "split-digits[tasks=5]",
        *small,
        "--memory-size",
        "10",
    ]

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return int(ended.value.code or 0), *capsys.readouterr()

    code, out, err = command(*asked, "--beside", "first-k-tasks")
    assert code == 0, err
    text = " ".join(out.split())
    assert "tuned on split-mnist-5k, judged on split-digits[tasks=5], class-incremental, 5 tasks" in text
    assert "Kendall's tau of the rankings of split-mnist-5k, all tasks and of itself, first 3 tasks" in text
    (file,) = tmp_path.rglob("judged.csv")
    assert out.strip().endswith(str(file.parent.relative_to(tmp_path)))
    rows = list(csv.DictReader(file.open()))
    assert [row["rank"] for row in rows] == ["1", "2"] * 2
    assert {"er on split-mnist-5k: trial 0", "ewc on split-digits: trial 0"} <= {
        ":".join(line.split(":")[:2]) for line in err.splitlines()
    }
    assert {path.name for path in file.parent.iterdir()} == {
        *("judged.csv", "judged.json", "judged.md", "ranks-0.png", "ranks-0.svg"),
    }
    # The report of all that is in the folder has the ranking too, and that of the ranking alone needs no run.
    for folder in ("tuning", str(file.parent)):
        code, out, err = command("report", folder, "--out", "report")
        assert code == 0, err
        assert "Kendall's tau of the rankings of split-mnist-5k, all tasks" in " ".join(out.split())
        assert (tmp_path / "report/judged" / file.parent.name / "judged.csv").read_text() == file.read_text()
    code, out, err = command(*asked, "--beside", "first-k-tasks", "--json")
    assert (code, json.loads(out)) == (0, json.loads((file.parent / "judged.json").read_text()))
    code, out, err = command(*asked, "--beside", "first-k-tasks,,oracle")
    assert (code, out, err.count("\n")) == (2, "", 1)
    (file.parent / "judged.json").write_text('{"judged": [1]}')
    code, out, err = command("report", str(file.parent), "--out", "report")
    assert (code, out, err.count("\n")) == (2, "", 1)
