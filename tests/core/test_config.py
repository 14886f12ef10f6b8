"""Nothing is silently ignored: every wrong request is refused in one sentence, before anything is written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import clbench
from clbench import ConfigError, ScenarioSpec, Strategy, Traits
from clbench.cli import main
from clbench.config.run import RunConfig, config_of_record
from clbench.running.folder import default_folder
from clbench.running.resolve import prepare, resolve

NAN, INF = float("nan"), float("inf")
DIGITS = "split-mnist-5k"

# Requests, and the words that the message must hold: the value, and the nearest valid name or what is accepted.
UNKNOWN = [
    ({"scenario": "split-mnst-5k"}, ["split-mnst-5k", "'split-mnist-5k'"]),
    ({"scenario": "imagenet"}, ["imagenet", "'split-imagenet"]),
    ({"strategy": "icrl"}, ["icrl", "'icarl'"]),
    ({"strategy": "zzz"}, ["zzz", "accepted: "]),
    ({"epoch": 1}, ["epoch", "'epochs'"]),
    ({"Learning_rate": 1}, ["Learning_rate"]),
    ({"strategy": "lwf", "strategy_options": {"temprature": 2.0}}, ["lwf", "temprature", "'temperature'"]),
    ({"strategy": "naive", "strategy_options": {"strength": 2.0}}, ["naive", "strength"]),
    ({"strategy": "lwf[temprature=2]"}, ["lwf", "temprature", "'temperature'"]),
    ({"strategy": "er[memory_sise=3]"}, ["er", "memory_sise", "'memory_size'"]),
    ({"strategy": "naive[seed=3]"}, ["naive", "seed"]),
    ({"model": "mpl"}, ["mpl", "'mlp'"]),
    ({"model": "mlp[droput=0.1]"}, ["mlp", "droput", "'dropout'"]),
    ({"class_order": "cifar100-1994"}, ["cifar100-1994", "'cifar100-1993'"]),
    ({"setting": "tsk"}, ["setting", "tsk", "'class'", "'task'", "'domain'"]),
    ({"optimizer": "sdg"}, ["optimizer", "sdg", "'sgd'", "'adam'"]),
    ({"head": "grow"}, ["head", "grow", "'growing'", "'full'"]),
    ({"loss_outputs": "old"}, ["loss_outputs", "old", "'new'", "'seen'"]),
    ({"augment": "flip-flop"}, ["augment", "flip-flop", "'crop-flip'"]),
    ({"memory_policy": "hording", "memory_size": 5}, ["memory_policy", "hording", "'herding'"]),
    ({"precision": "fp16"}, ["precision", "fp16", "'bf16'"]),
    ({"compile": "reduce-overheads"}, ["compile", "reduce-overheads", "'reduce-overhead'"]),
    ({"eval_every": "batch"}, ["eval_every", "batch", "'task'", "'epoch'"]),
    ({"evaluate": "none"}, ["evaluate", "none", "'seen'", "'all'"]),
    ({"strategy": "ewc[mode=offline]"}, ["ewc", "mode", "offline", "'separate'", "'online'"]),
    ({"strategy": "icarl[loss_form=bce]"}, ["icarl", "loss_form", "bce", "'sigmoid'", "'softmax'"]),
]
WRONG_TYPE = [
    ({"epochs": True}, ["epochs", "True", "integer"]),
    ({"epochs": 1.5}, ["epochs", "1.5", "integer"]),
    ({"epochs": "3"}, ["epochs", "3", "integer"]),
    ({"seed": 1.0}, ["seed", "1.0", "integer"]),
    ({"seed": False}, ["seed", "False", "integer"]),
    ({"lr": "0.1"}, ["lr", "0.1", "number"]),
    ({"lr": True}, ["lr", "True", "number"]),
    ({"lr": [0.1]}, ["lr", "[0.1]", "number"]),
    ({"drop_last": 1}, ["drop_last", "1", "boolean"]),
    ({"drop_last": "yes"}, ["drop_last", "yes", "boolean"]),
    ({"task_sizes": [5, True, 4]}, ["task_sizes", "True", "integer"]),
    ({"task_sizes": 5}, ["task_sizes", "5", "list"]),
    ({"class_order": [0, 1.5]}, ["class_order", "integer"]),
    ({"data_root": 3}, ["data_root", "3", "string"]),
    ({"tasks": 5.0}, ["tasks", "5.0", "integer"]),
    ({"strategy": "lwf", "strategy_options": {"strength": True}}, ["lwf", "strength", "True", "number"]),
    ({"strategy": "lwf", "strategy_options": {"recorded": 1}}, ["lwf", "recorded", "1", "boolean"]),
    ({"strategy": "ewc", "strategy_options": {"fisher_samples": 2.5}}, ["ewc", "fisher_samples", "2.5", "integer"]),
    ({"strategy": "naive[epochs=abc]"}, ["epochs", "abc", "integer"]),
    ({"strategy": "lwf[strength=abc]"}, ["lwf", "strength", "abc", "number"]),
    ({"strategy": "er[share]"}, ["er[share]", "key=value"]),
    ({"strategy": "er[share=0.5"}, ["er[share=0.5", "accepted"]),
    ({"model": "mlp:big"}, ["mlp", "big", "integer"]),
]
OUT_OF_RANGE = [
    ({"epochs": 0}, ["epochs", "0", "greater than or equal to 1"]),
    ({"iterations": -5}, ["iterations", "-5", "greater than or equal to 1"]),
    ({"batch_size": 0}, ["batch_size", "0", "greater than or equal to 1"]),
    ({"lr": 0.0}, ["lr", "0.0", "greater than 0"]),
    ({"lr": -0.1}, ["lr", "-0.1", "greater than 0"]),
    ({"momentum": 1.0, "optimizer": "sgd"}, ["momentum", "1.0", "less than 1"]),
    ({"weight_decay": -1e-4}, ["weight_decay", "-0.0001", "greater than or equal to 0"]),
    ({"clip": 0.0}, ["clip", "0.0", "greater than 0"]),
    ({"validation": 1.0}, ["validation", "1.0", "less than 1"]),
    ({"validation": -0.1}, ["validation", "-0.1", "greater than or equal to 0"]),
    ({"seed": -1}, ["seed", "-1", "greater than or equal to 0"]),
    ({"memory_size": -1, "strategy": "er"}, ["memory_size", "-1", "greater than or equal to 0"]),
    ({"memory_per_class": -1, "strategy": "er"}, ["memory_per_class", "-1", "greater than or equal to 0"]),
    ({"threads": 0}, ["threads", "0", "greater than or equal to 1"]),
    ({"limit": 0}, ["limit", "0", "greater than or equal to 1"]),
    ({"eval_every": 0}, ["eval_every", "0", "1"]),
    ({"tasks": 0}, ["tasks", "0", "1"]),
    ({"tasks": 11}, ["tasks", "11", "1 to 10"]),
    ({"strategy": "er[share=1]"}, ["er", "share", "less than 1"]),
    ({"strategy": "lwf[temperature=0]"}, ["lwf", "temperature", "greater than 0"]),
    ({"strategy": "lwf[strength=-1]"}, ["lwf", "strength", "greater than or equal to 0"]),
    ({"strategy": "lwf[warmup_epochs=-1]"}, ["lwf", "warmup_epochs", "greater than or equal to 0"]),
    ({"strategy": "ewc[decay=1.1,mode=online]"}, ["ewc", "decay", "less than or equal to 1"]),
    ({"strategy": "ewc[fisher_samples=0]"}, ["ewc", "fisher_samples", "greater than or equal to 1"]),
    ({"strategy": "icarl[temperature=-2]"}, ["icarl", "temperature", "greater than 0"]),
    ({"model": "mlp:0"}, ["mlp", "0", "greater than or equal to 1"]),
    ({"model": "mlp[dropout=1]"}, ["mlp", "dropout", "less than 1"]),
]
NOT_FINITE = [
    ({"lr": NAN}, ["lr", "nan", "finite"]),
    ({"lr": INF}, ["lr", "inf", "finite"]),
    ({"momentum": NAN, "optimizer": "sgd"}, ["momentum", "nan", "finite"]),
    ({"weight_decay": INF}, ["weight_decay", "inf", "finite"]),
    ({"clip": INF}, ["clip", "inf", "finite"]),
    ({"validation": NAN}, ["validation", "nan", "finite"]),
    ({"strategy": "lwf", "strategy_options": {"strength": INF}}, ["lwf", "strength", "inf", "finite"]),
    ({"strategy": "ewc", "strategy_options": {"strength": NAN}}, ["ewc", "strength", "nan", "finite"]),
    ({"strategy": "lwf[strength=nan]"}, ["lwf", "strength", "nan", "finite"]),
    ({"strategy": "naive[lr=inf]"}, ["lr", "inf", "finite"]),
]
# The message names both and says that they exclude each other.
EXCLUDING = [
    ({"tasks": 5, "task_sizes": [5, 5]}, ["tasks", "task_sizes", "exclude"]),
    ({"class_order": list(range(10)), "class_order_seed": 1}, ["class_order", "class_order_seed", "exclude"]),
    ({"epochs": 1, "iterations": 5}, ["epochs", "iterations", "exclude"]),
    ({"strategy": "naive[epochs=1,iterations=5]"}, ["epochs", "iterations", "exclude"]),
    ({"strategy": "er[memory_size=5,memory_per_class=1]"}, ["memory_size", "memory_per_class", "exclude"]),
    ({"optimizer": "adam", "momentum": 0.9}, ["momentum", "0.9", "'sgd'", "'adam'"]),
    ({"loss_outputs": "all"}, ["loss_outputs", "'all'", "head='full'"]),
    ({"loss_outputs": "new", "setting": "task"}, ["loss_outputs", "'new'", "task"]),
    ({"loss_outputs": "all", "head": "full", "setting": "domain"}, ["loss_outputs", "'all'", "domain"]),
    ({"strategy": "icarl", "loss_outputs": "new"}, ["icarl", "loss_outputs", "'new'", "'seen'"]),
    ({"strategy": "lwf[recorded=true]", "augment": "crop-flip"}, ["lwf", "recorded", "augment", "crop-flip"]),
    ({"drop_last": True, "batch_size": 21, "limit": 10}, ["batch_size", "21", "drop_last", "20"]),
    ({"image_size": 32}, ["image-size", "32"]),
    ({"validation": 0.6, "limit": 1}, ["validation", "0.6"]),
    ({"model": "conv:4-0"}, ["conv", "4-0", "1"]),
]
# The setting, or the data, against the sizes of the tasks.
SIZES = [
    ({"setting": "task", "tasks": 10}, ["one class", "task"]),
    ({"setting": "domain", "tasks": 10}, ["one class", "domain"]),
    ({"setting": "task", "task_sizes": [1, 9]}, ["1,9", "one class", "task"]),
    ({"setting": "domain", "task_sizes": [4, 3, 3]}, ["4,3,3", "domain", "equal"]),
    ({"setting": "domain", "tasks": 3}, ["4,3,3", "domain", "equal"]),
    ({"task_sizes": [4, 4]}, ["4,4", "8", "10"]),
    ({"task_sizes": [8, 4]}, ["8,4", "12", "10"]),
    ({"task_sizes": [0, 10]}, ["task_sizes", "0", "greater than or equal to 1"]),
    ({"task_sizes": []}, ["task_sizes", "10"]),
    ({"class_order": [0, 1, 2, 2]}, ["class_order", "twice"]),
    ({"class_order": [0, 1, 10]}, ["class_order", "10", "0..9"]),
    ({"class_order": [-1, 1]}, ["class_order", "-1", "0..9"]),
    ({"class_order": []}, ["class_order", "0..9"]),
    ({"class_order": [3, 1, 4], "tasks": 5}, ["tasks", "5", "1 to 3"]),
    ({"class_order": "cifar100-1993"}, ["100", "10"]),
]
MEMORY = [
    ({"strategy": "er", "memory_size": 5, "memory_per_class": 1}, ["memory_size", "memory_per_class", "exclude"]),
    ({"strategy": "icarl", "memory_size": 0, "memory_per_class": 0}, ["memory_size", "memory_per_class", "exclude"]),
    ({"strategy": "naive", "memory_policy": "herding"}, ["memory_policy", "memory_size"]),
    ({"strategy": "er", "memory_per_class": 2, "memory_policy": "reservoir"}, ["reservoir", "per class"]),
    ({"strategy": "joint", "memory_size": 5}, ["joint", "memory_size"]),
    ({"strategy": "joint", "memory_per_class": 5}, ["joint", "memory_per_class"]),
    ({"strategy": "joint[memory_size=5]"}, ["joint", "memory_size"]),
]


def asked(request: dict[str, object], out: Path) -> None:
    """Request a run whose only fault is in the request."""
    options = dict(request)
    scenario, strategy = options.pop("scenario", DIGITS), options.pop("strategy", "naive")
    clbench.run(scenario, strategy, out=out, **({"threads": 1} | options))


def name_of(case: object) -> str | None:
    return ",".join(f"{k}={v}" for k, v in case.items())[:50] if isinstance(case, dict) else ""


@pytest.mark.parametrize(
    ("request_", "words"), UNKNOWN + WRONG_TYPE + OUT_OF_RANGE + NOT_FINITE + EXCLUDING + SIZES, ids=name_of
)
def test_a_wrong_request_is_refused_in_one_sentence(request_, words, refused, tmp_path):
    with refused(*words):
        asked(request_, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(("request_", "words"), MEMORY, ids=name_of)
def test_budgets_that_exclude_each_other_are_refused(request_, words, refused, tmp_path):
    with refused(*words):
        asked(request_, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_was_refused_was_refused_for_its_fault_alone(tmp_path):
    """Without the faults the same call trains, so each refusal above is for its own fault."""
    asked({"epochs": 1, "limit": 2, "model": "mlp:8"}, tmp_path / "run")
    assert (tmp_path / "run" / "run.json").exists()


def test_a_setting_that_a_strategy_does_not_support_is_refused_naming_those_it_does(refused, tiny, tmp_path):
    class OneHeadPerTask(Strategy):
        traits = Traits(family="isolation", settings=("task",))

    with refused("icarl", "domain", "class", "task"):
        asked({"strategy": "icarl", "setting": "domain"}, tmp_path / "run")
    with refused("OneHeadPerTask", "class", "task"):
        clbench.run(tiny, OneHeadPerTask, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "mps", "cuda", "CPU", ""])
def test_a_device_that_is_not_there_is_refused(device, refused, tmp_path):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has an MPS device")
    with refused("device", device, "cpu"):
        asked({"device": device}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_can_not_be_made_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with refused("file"):
        asked({}, tmp_path / "file")
    with refused("file"):
        asked({}, tmp_path / "file" / "below")


@pytest.mark.parametrize("content", [None, b"", b"not a state dict"])
def test_weights_that_can_not_be_read_are_refused_with_their_path(content, refused, tmp_path):
    if content is not None:
        (tmp_path / "given.pt").write_bytes(content)
    with refused("weights", "given.pt"):
        asked({"weights": str(tmp_path / "given.pt")}, tmp_path / "run")


def test_a_scenario_that_was_handed_over_is_not_cut_again(refused, tiny, tmp_path):
    for name, value in {"tasks": 2, "setting": "task", "class_order_seed": 3, "validation": 0.1, "limit": 3}.items():
        with refused(name, str(value), "split()"):
            clbench.run(tiny, "naive", out=tmp_path / "run", **{name: value})


# The same on the command line: every value arrives as text.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "abc"], ["epochs", "abc", "integer"]),
        (["--epochs", "1.5"], ["epochs", "1.5", "integer"]),
        (["--epochs", "0"], ["epochs", "0", "greater than or equal to 1"]),
        (["--epochs", ""], ["epochs"]),
        (["--lr", "nan"], ["lr", "nan", "finite"]),
        (["--lr", "fast"], ["lr", "fast", "number"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--task-sizes", "4,3"], ["4,3", "7", "10"]),
        (["--task-sizes", "4,x,3"], ["task_sizes", "integer"]),
        (["--class-order", "0,0"], ["class_order", "twice"]),
        (["--class-order", "cifar100-1994"], ["cifar100-1994", "cifar100-1993"]),
        (["--setting", "tsk"], ["setting", "tsk", "task"]),
        (["--device", "cuda:99"], ["cuda:99", "cpu"]),
        (["--epochs", "1", "--iterations", "2"], ["epochs", "iterations", "exclude"]),
        (["--tasks", "5", "--task-sizes", "5,5"], ["tasks", "task_sizes", "exclude"]),
        (["--class-order", "0,1", "--class-order-seed", "1"], ["class_order", "class_order_seed", "exclude"]),
        (["--memory-size", "5", "--memory-per-class", "2"], ["memory_size", "memory_per_class", "exclude"]),
        (["--resume", "--force"], ["--resume", "--force", "exclude"]),
        (["-p", "strength"], ["strength", "key=value"]),
        (["-p", "strength=1"], ["naive", "strength"]),
        (["-p", "a=1", "-p", "a=2"], ["a", "twice"]),
        (["--epoch", "1"], ["--epoch"]),
        (["surplus"], ["surplus"]),
    ],
    ids=" ".join,
)
def test_the_command_line_refuses_in_one_line_with_exit_code_2(arguments, words, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["run", DIGITS, "naive", "--out", str(tmp_path / "run"), *arguments])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert len(printed.err) < 300
    assert all(word in printed.err for word in words), printed.err
    assert not (tmp_path / "run").exists()


# A comparison is refused as a whole, before its first run.


@pytest.mark.parametrize(
    ("strategies", "options", "words"),
    [
        (["naive", "lfw"], {}, ["lfw", "'lwf'"]),
        (["naive", "lwf[strength=-1]"], {}, ["lwf", "strength"]),
        (["icarl", "er"], {"setting": "domain"}, ["icarl", "domain"]),
        (["lwf", "lwf"], {}, ["lwf", "same run"]),
        (["lwf", "lwf[strength=1.0]"], {}, ["lwf", "same run"]),
        (["naive"], {"seeds": 0}, ["seeds", "0"]),
        (["naive"], {"seeds": []}, ["seed"]),
        (["naive"], {"seeds": [1, 1]}, ["seeds", "1,1"]),
        (["naive"], {"seeds": [-1]}, ["seed", "-1"]),
        (["naive"], {"seeds": True}, ["seeds", "True"]),
        (["naive"], {"memory_size": 5}, ["memory_size"]),
        (["naive"], {"epoch": 5}, ["epoch", "'epochs'"]),
        (["naive"], {"seed": 5}, ["seed"]),
    ],
)
def test_a_wrong_comparison_is_refused_before_its_first_run(strategies, options, words, refused, tiny, tmp_path):
    scenario = DIGITS if "setting" in options else tiny
    with refused(*words):
        clbench.compare(scenario, strategies, out=tmp_path / "runs", model="mlp:8", epochs=1, **options)
    assert not (tmp_path / "runs").exists()


# Identity


def config(**options: object) -> RunConfig:
    strategy = options.pop("strategy", "er")
    return resolve(DIGITS, strategy, {"threads": 1, "epochs": 1, "memory_size": 5} | options)


@pytest.mark.parametrize("changed", [{"data_root": "elsewhere"}, {"offline": True}, {"label": "my run"}])
def test_what_can_not_change_the_numbers_is_not_in_the_identity(changed):
    assert config(**changed).identity() == config().identity()
    assert config(**changed) != config()


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"threads": 2},
        {"lr": 0.02},
        {"epochs": 2},
        {"epochs": None, "iterations": 5},
        {"batch_size": 7},
        {"drop_last": True},
        {"optimizer": "adamw"},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decay_head": False},
        {"optimizer_state": "keep"},
        {"clip": 1.0},
        {"model": "mlp:20"},
        {"head": "full"},
        {"loss_outputs": "new"},
        {"setting": "task"},
        {"tasks": 2},
        {"tasks": None, "task_sizes": [6, 4]},
        {"class_order": [1, 0, *range(2, 10)]},
        {"class_order_seed": 0},
        {"class_order_seed": "per-seed"},
        {"limit": 100},
        {"validation": 0.1},
        {"normalize": "channel"},
        {"augment": "crop-flip"},
        {"memory_size": 6},
        {"memory_size": None, "memory_per_class": 1, "memory_policy": "balanced"},
        {"memory_policy": "herding"},
        {"strategy": "er[share=0.25]"},
        {"strategy": "icarl"},
        {"precision": "bf16"},
        {"compile": "default"},
        {"deterministic": True},
        {"evaluate": "seen"},
    ],
    ids=name_of,
)
def test_what_can_change_the_numbers_is_in_the_identity(changed):
    assert config(**changed).identity() != config().identity()


def test_the_identity_is_the_same_however_a_value_is_asked_for():
    """A default that is named, an int for a float, a text in brackets: the same run."""
    same = [
        config(strategy_options={"share": 0.5}),
        config(strategy="er[share=0.5]"),
        config(strategy="er[memory_size=5]", memory_size=None),
        config(momentum=0),
        config(head="growing"),
    ]
    assert {c.identity() for c in same} == {config().identity()}
    assert config(weight_decay=1).identity() == config(weight_decay=1.0).identity()


def test_runs_are_pooled_by_the_identity_without_their_seed():
    assert config(seed=1).identity(without_seed=True) == config(seed=2).identity(without_seed=True)
    assert config(seed=1).identity(without_seed=True) != config(seed=1, lr=0.5).identity(without_seed=True)


def test_the_config_of_run_json_is_the_whole_config(tmp_path, digits):
    """Read back from JSON it is the same run, a user's own data included."""
    given, _ = prepare(config(class_order=[3, 1, 4, 5], tasks=2, strategy="icarl[flip_means=true]"))
    again = config_of_record(json.loads(json.dumps(given.flat())))
    assert again == given
    assert again.identity() == given.identity()


def test_files_count_by_their_content_not_by_their_place(tmp_path, digits):
    """The same .npz in another folder is the same data; one pixel makes another run. The same for weights."""

    def saved(folder: str, change: int = 0) -> str:
        (tmp_path / folder).mkdir()
        images = digits.x_train.copy()
        images[0, 0, 0, 0] += change
        path = tmp_path / folder / "mine.npz"
        np.savez(path, x_train=images, y_train=digits.y_train, x_test=digits.x_test, y_test=digits.y_test)
        return str(path)

    def identity(path: str, **options: object) -> str:
        return prepare(resolve(path, "naive", {"threads": 1, "tasks": 5} | options))[0].identity()

    first, moved, changed = (identity(saved(f, c)) for f, c in (("a", 0), ("b", 0), ("c", 1)))
    assert first == moved
    assert first != changed

    weights = [tmp_path / name for name in ("one.pt", "two.pt", "three.pt")]
    torch.save({"x": torch.zeros(2)}, weights[0])
    shutil.copy(weights[0], weights[1])
    torch.save({"x": torch.ones(2)}, weights[2])
    with_weights = [config(weights=str(path)).identity() for path in weights]
    assert with_weights[0] == with_weights[1]
    assert with_weights[0] != with_weights[2]


def test_a_run_goes_to_scenario_strategy_seed_and_hash():
    given = config(seed=7)
    assert default_folder(given) == Path("runs/split-mnist-5k/er") / f"7-{given.identity()[:8]}"


def test_the_users_choice_displaces_the_presets_other_one():
    """The preset says 5 tasks, 10 epochs and a memory of 200 in all; each gives way to its alternative."""
    given = resolve(DIGITS, "icarl", {"task_sizes": [6, 4], "iterations": 3, "memory_per_class": 2})
    flat = given.flat()
    assert (flat["tasks"], flat["epochs"], flat["memory_size"]) == (None, None, None)
    assert (flat["task_sizes"], flat["iterations"], flat["memory_per_class"]) == ([6, 4], 3, 2)
    bracket = resolve(DIGITS, "naive[iterations=3]", {"epochs": 7})
    assert (bracket.training.epochs, bracket.training.iterations) == (None, 3)


def test_a_field_that_0_1_0_had_at_the_top_answers_with_its_group():
    with pytest.raises(AttributeError, match=r"config\.lr is config\.training\.lr since 0\.2"):
        config().lr  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'lrr'"):
        config().lrr  # noqa: B018


def test_options_of_the_scenario_may_come_as_a_table_and_are_never_dropped():
    given = resolve(DIGITS, "naive", {"scenario_options": {"tasks": 2}})
    assert given.scenario_options["tasks"] == 2
    assert given.identity() == resolve(DIGITS, "naive", {"tasks": 2}).identity()
    with pytest.raises(ConfigError, match="unknown option of split-mnist-5k 'taks'; did you mean 'tasks'"):
        resolve(DIGITS, "naive", {"scenario_options": {"taks": 2}})
    with pytest.raises(ConfigError, match="tasks is given in scenario_options and outside"):
        resolve(DIGITS, "naive", {"scenario_options": {"tasks": 2}, "tasks": 2})


def test_an_option_that_a_scenario_lacks_is_refused_with_those_that_it_has():
    with pytest.raises(ConfigError, match="unknown option of split-mnist-5k 'padding'; accepted: setting, tasks"):
        resolve(DIGITS, "naive", {"padding": 2})
    with pytest.raises(ConfigError, match="unknown option of split-mnist-5k 'epoch'; did you mean 'epochs'"):
        resolve(DIGITS, "naive", {"epoch": 2})


@pytest.mark.parametrize("scenario", [None, 5, ScenarioSpec, object()])
def test_what_is_no_scenario_is_refused_in_a_sentence(scenario):
    with pytest.raises(ConfigError, match=r"a name, a path or a clbench\.Scenario is accepted"):
        resolve(scenario, "naive", {})


@pytest.mark.parametrize("returned", [None, 3, ZeroDivisionError("no images")])
def test_a_scenario_that_can_not_be_built_is_refused_in_a_sentence(returned, monkeypatch):
    class Broken(ScenarioSpec):
        def build(self, config):
            if isinstance(returned, Exception):
                raise returned
            return returned

    monkeypatch.setattr("clbench.running.resolve.scenario_class", lambda name: Broken)
    with pytest.raises(
        ConfigError, match=r"Broken\.build\(\) returned|can't be built \(ZeroDivisionError: no images\)"
    ):
        prepare(resolve(DIGITS, "naive", {"epochs": 1}))
