"""Before a long run: a plan, the check that a few images can be learnt by heart, a pre-trained backbone."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import clbench
from clbench import ConfigError, RunError
from clbench.cli import main
from clbench.config.registry import entry_point_names
from clbench.running.resolve import resolve
from clbench.scenarios.registered import SplitMNIST5K
from clbench.tools.overfit import learn_by_heart
from clbench.tools.plan import plan_run

FAST = {"model": "mlp:16", "epochs": 2, "batch_size": 8, "optimizer": "adam", "lr": 0.01, "threads": 1}


def command(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


# clbench plan

PLANNED: list[tuple[str, dict[str, Any]]] = [
    ("naive", {}),
    ("naive", {"memory_size": 33}),
    ("naive", {"iterations": 7, "epochs": None}),
    ("naive", {"batch_size": 9, "drop_last": True}),
    ("joint", {}),
    ("lwf[warmup_epochs=3]", {}),
    ("er", {"memory_size": 25}),
    ("er", {"memory_per_class": 6, "memory_policy": "balanced"}),
    ("icarl", {"memory_size": 25}),
    ("gdumb", {"memory_size": 25}),
    ("bic", {"memory_size": 40}),
    ("packnet", {"setting": "task"}),
    ("derpp", {"memory_size": 25}),
    ("gem", {"memory_size": 25}),
    ("simplecil", {}),
]


@pytest.mark.parametrize(("strategy", "options"), PLANNED, ids=lambda v: str(v)[:40])
def test_updates_and_exemplars_are_those_of_the_run(strategy, options, digits, tmp_path):
    """The independent method is the run itself, which takes more steps than the plan."""
    options = dict(options)
    scenario = clbench.scenarios.split(digits, task_sizes=[4, 4, 2], setting=options.pop("setting", "class"))
    fields = {k: v for k, v in (FAST | options).items() if v is not None}
    plan = plan_run(resolve(scenario, strategy, fields), scenario)
    record = clbench.run(scenario, strategy, out=tmp_path / "run", **fields).record
    assert [task["updates"] for task in plan["tasks"]] == [task["steps"] for task in record["tasks"]]
    assert [task["exemplars"] for task in plan["tasks"]] == [task["n_exemplars"] for task in record["tasks"]]
    for planned, done in zip(plan["tasks"], record["tasks"], strict=True):
        counts = done["exemplars_per_class"].values() or [0]
        assert planned["exemplars_per_class"] == [min(counts), max(counts)]


@pytest.mark.parametrize(("strategy", "extra"), [("naive", 0), ("lwf", 1), ("ewc[mode=online]", 2)])
def test_bytes_are_those_worked_out_by_hand(strategy, extra, tiny):
    """mlp:16 on 28 x 28 with 10 outputs: (784 + 1) * 16 + (16 + 1) * 10 = 12,730 floats of 4 bytes; Adam holds two more
    and a step count for each of 4 tensors. A teacher has the 8 outputs of 4 tasks, importances and anchors all 10."""
    plan = plan_run(resolve(tiny, strategy, FAST), tiny)
    held, weights = plan["bytes"], 4 * 12730
    assert held["model"] == held["gradients"] == weights
    assert held["optimizer"] == 2 * weights + 4 * 4
    assert held["images"] == 700 * 784
    assert held["exemplars"] == 0
    kept = {"naive": 0, "lwf": weights - 4 * 17 * 2, "ewc[mode=online]": 2 * weights}[strategy]
    assert plan["peak_bytes"] == 4 * weights + 16 + 700 * 784 + kept
    assert len(held) == 5 + extra


def test_the_estimated_time_is_that_of_the_timed_steps(tiny, monkeypatch):
    """A clock that advances by a second at each reading: one a step, so 10 updates take 10 s beside the rest."""
    now = iter(range(10**6))
    monkeypatch.setattr("clbench.tools.plan.time.perf_counter", lambda: float(next(now)))
    plan = plan_run(resolve(tiny, "naive", FAST), tiny)
    for task in plan["tasks"]:
        # The trainer shares the clock and reads it twice in a step.
        assert task["updates"] == 6
        assert 6 * 3 < task["seconds"] < 6 * 3 + 10


def test_equal_work_is_given_equal_time_and_what_would_diverge_is_planned_all_the_same(tiny, tmp_path):
    """A rate of 1e4 with momentum ends the run itself in a loss that is not finite."""
    fields = FAST | {"optimizer": "sgd", "lr": 1e4, "momentum": 0.9, "epochs": 20}
    with pytest.raises(RunError, match="smaller learning rate"):
        clbench.run(tiny, "ewc", out=tmp_path / "diverges", quiet=True, **fields)
    plan = plan_run(resolve(tiny, "ewc", fields), tiny)
    seconds = [task["seconds"] for task in plan["tasks"]]
    # Later tasks are alike but for the tests, of which each has more.
    assert all(a <= b for a, b in itertools.pairwise(seconds[1:]))
    assert max(seconds[1:]) < 2 * min(seconds[1:])


def test_a_plan_takes_the_options_of_compare_and_survives_a_strategy_that_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("fails.py").write_text(
        "from clbench import Strategy, Traits\n\n\nclass Fails(Strategy):\n"
        "    traits = Traits(family='reference')\n\n    def end_task(self, task):\n        raise ValueError('no end')\n"
    )
    common = "split-mnist-5k naive fails.py:Fails --limit 10 --model mlp:8 --epochs 1 --threads 1"
    options = "--seeds 3 --jobs 2 --references --out there --force"
    code, out, err = command(capsys, f"plan {common} {options}")
    assert code == 0
    assert "no end" in out
    assert "9 runs" in out  # naive is named already; joint comes with --references
    assert [line.split()[1] for line in err.splitlines() if line.startswith("rehearsing")] == [
        "naive", "fails.py:Fails", "joint",
    ]  # fmt: skip
    plans = json.loads(command(capsys, f"plan {common} --seeds 3 --json")[1])
    assert [(plan["runs"], "error" in plan) for plan in plans] == [(3, False), (3, True)]
    code, out, err = command(capsys, "plan split-mnist-5k fails.py:Fails --limit 10 --model mlp:8 --epochs 1")
    assert (code, err.splitlines()[-1].startswith("clbench: ")) == (1, True)


def test_the_command_prints_a_plan_and_leaves_nothing_behind(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = "split-mnist-5k er[memory_size=20] naive --limit 20 --model mlp:16 --epochs 2 --batch-size 10 --threads 1"
    code, out, _ = command(capsys, f"plan {common}")
    assert code == 0
    assert "er[memory_size=20] on split-mnist-5k" in out
    assert "in all 40 updates" in out
    assert "exemplars 0.0 MB" in out
    code, out, _ = command(capsys, f"plan {common} --json")
    plans = json.loads(out)
    assert [plan["strategy"] for plan in plans] == ["er[memory_size=20]", "naive"]
    assert plans[0]["tasks"][0] == plans[0]["tasks"][0] | {"images": 40, "updates": 8, "exemplars": 20}
    assert list(tmp_path.iterdir()) == []
    code, _, err = command(capsys, "plan split-mnist-5k lwff")
    assert (code, err.count("\n")) == (2, 1)
    assert "did you mean 'lwf'" in err


@pytest.mark.parametrize(
    ("strategies", "wrong"),
    [
        ("naive agem --compile default", ["compile=default", "agem"]),
        pytest.param("naive avalanche:Naive", ["avalanche:Naive", "loop"], marks=pytest.mark.slow),
    ],
)
def test_all_strategies_of_a_plan_are_checked_before_the_first_is_rehearsed(strategies, wrong, capsys, monkeypatch):
    monkeypatch.setattr("clbench.tools.plan.plan_run", lambda *_, **__: pytest.fail("rehearsed"))
    code, out, err = command(capsys, f"plan split-mnist-5k {strategies} --limit 10")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert all(word in err for word in wrong)


def test_a_plan_says_what_a_reader_of_the_run_will_be_told(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = "--schedule multistep --milestones 1,9 --lr-factor 0.1"
    common = f"split-mnist-5k ewc --limit 20 --model mlp:16 --epochs 2 --threads 1 {steps}"
    code, out, _ = command(capsys, f"plan {common}")
    assert code == 0
    assert "the learning rate is not lowered at epoch 9, since training ends after 2" in out
    _, planned, _ = command(capsys, f"plan {common} --json")
    assert command(capsys, f"run {common} --quiet")[0] == 0
    told = json.loads(planned)[0]["warnings"]
    assert [w["rule"] for w in told] == ["regularisation-in-class-incremental", "milestones-not-reached"]
    record = json.loads(next(tmp_path.rglob("run.json")).read_text())
    assert record["warnings"] == told


# clbench run --overfit


def test_a_few_images_are_learnt_by_heart(tiny):
    options = FAST | {"label_smoothing": 0.3, "model": "mlp:64[batch_norm=true]"}
    learnt = learn_by_heart(resolve(tiny, "lwf", options), tiny, 20)
    assert learnt["images"] == 20
    # 20 images are 3 batches of at most 8.
    assert learnt["steps"] == 3 * learnt["epochs"]
    assert learnt["learning_rate"] == 0.01
    assert learnt["loss"] < 2.3


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_every_setting_can_be_checked(setting, cut):
    scenario = cut(setting=setting)
    assert learn_by_heart(resolve(scenario, "naive", FAST), scenario, 30)["images"] == 30


def test_a_rate_that_is_too_small_or_too_large_is_said_with_the_loss_it_got_stuck_at(tiny, monkeypatch):
    """Without learning the loss is that of chance over 10 outputs, ln 10 = 2.30."""
    monkeypatch.setattr("clbench.tools.overfit.STUCK_EPOCHS", 5)
    with pytest.raises(RunError, match=r"20 images are not learnt by heart: \d+ are right.*stuck at 2\.[2-4]\d* since"):
        learn_by_heart(resolve(tiny, "naive", FAST | {"lr": 1e-9}), tiny, 20)
    with pytest.raises(RunError, match=r"20 images are not learnt by heart: .*smaller learning rate"):
        learn_by_heart(resolve(tiny, "naive", FAST | {"lr": 1e30, "optimizer": "sgd"}), tiny, 20)


@pytest.mark.parametrize("n", [1, 101])
def test_more_images_than_there_are_are_refused(n, tiny):
    with pytest.raises(ConfigError, match=r"2 to 100"):
        learn_by_heart(resolve(tiny, "naive", FAST), tiny, n)


def test_the_command_says_whether_it_learnt_by_its_exit_code(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clbench.tools.overfit.STUCK_EPOCHS", 3)
    common = "run split-mnist-5k lwf --limit 10 --threads 1 --overfit 10"
    code, out, _ = command(capsys, common)
    assert code == 0
    assert out.startswith("10 images are learnt by heart after")
    code, _, err = command(capsys, f"{common} --lr 1e-9")
    assert (code, err.count("\n")) == (1, 1)
    assert "stuck at" in err
    code, _, err = command(capsys, f"{common} --force")
    assert code == 2
    assert "--overfit" in err
    assert list(tmp_path.iterdir()) == []


# clbench pretrain


def test_a_backbone_is_pre_trained_and_taken_up(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = "split-mnist-5k --limit 20 --epochs 3 --model mlp:32 --threads 1"
    code, out, _ = command(capsys, f"pretrain {common} --classes 5,6,7,8,9 --out backbone.pt --json")
    assert code == 0
    made = json.loads(out)
    assert made["accuracy"] > 0.5
    record = clbench.Result.load(Path(made["run"])).record
    assert record["scenario"]["tasks"][0]["classes"] == [5, 6, 7, 8, 9]
    whole = torch.load(Path(made["run"]) / "model.pt", weights_only=True)
    backbone = torch.load("backbone.pt", weights_only=True)
    assert set(whole) - set(backbone) == {"head.weight", "head.bias"}
    assert all(torch.equal(value, whole[name]) for name, value in backbone.items())

    used = common.replace("5k", "5k naive")
    code, _, _ = command(capsys, f"run {used} --weights backbone.pt --train head --out r")
    assert code == 0
    after = torch.load("r/model.pt", weights_only=True)
    assert all(torch.equal(value, after[name]) for name, value in backbone.items())


@pytest.mark.parametrize("classes", ["0,x", "cifar100-icarl", "0,1,1", "3,10"])
def test_classes_that_are_not_there_are_refused(classes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(capsys, f"pretrain split-mnist-5k --classes {classes} --out w.pt")
    assert (code, err.count("\n")) == (2, 1)
    assert list(tmp_path.iterdir()) == []


def test_the_page_on_training_names_options_and_strategies_that_exist():
    """docs/training.md against the command line's own help and the registry."""
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    options = {name.replace("_", "-") for name in (*clbench.config.run.fields(), *SplitMNIST5K._options.model_fields)}
    others = {"overfit", "explain-on-cpu", "help", "help-all", "classes", "out", "seeds"}
    others |= {"no-decay-head", "no-decay-norms", "no-references"}
    assert set(re.findall(r"--([a-z][a-z-]+)", page)) <= options | others
    strategies = [
        name
        for line in re.findall(r"clbench (?:run|plan|compare) split-\S+ ([a-z -]+?)(?: --|\n)", page)
        for name in line.split()
    ]
    assert {"lwf", "simplecil"} <= set(strategies) <= set(entry_point_names("clbench.strategies"))
