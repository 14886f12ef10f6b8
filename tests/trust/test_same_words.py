"""The same words mean the same in run, compare, plan and sweep, and text in the place of a number is shown as text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clbench
from clbench import ConfigError
from clbench.cli.options import read_config
from clbench.config.run import RunConfig, make_config
from clbench.many.compare import plan as plan_comparison
from clbench.many.sweeps import plan_sweep
from clbench.running.resolve import resolve

SCENARIO = "split-mnist-5k"
FAST: dict[str, Any] = {"limit": 4, "epochs": 1, "model": "mlp:8", "tasks": 2, "batch_size": 4}
FLAGS = ["--limit", "4", "--epochs", "1", "--model", "mlp:8", "--tasks", "2", "--batch-size", "4"]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Do a command in this process, in a folder of its own; return what it prints as JSON."""
    from typer.testing import CliRunner

    from clbench.cli import app

    monkeypatch.chdir(tmp_path)

    def done(*arguments: str) -> Any:
        ended = CliRunner().invoke(app, [*arguments, "--json"])
        if ended.exception is not None and not isinstance(ended.exception, SystemExit):
            raise ended.exception
        assert ended.exit_code == 0, ended.output
        return json.loads(ended.stdout)

    return done


# Several strategies with a memory option, and what each of them then keeps.
LINES: list[tuple[list[str], list[str], dict[str, Any], list[int]]] = [
    (["er", "ewc"], ["--memory-size", "5"], {"memory_size": 5}, [5, 0]),
    (["ewc", "er"], ["--memory-size", "5"], {"memory_size": 5}, [0, 5]),
    (["er", "naive", "lwf"], ["--memory-per-class", "1"], {"memory_per_class": 1}, [10, 0, 0]),
    (["er[memory_size=3]", "er", "lwf"], ["--memory-size", "5"], {"memory_size": 5}, [3, 5, 0]),
    (["er", "ewc[memory_size=4]"], ["--memory-size", "5"], {"memory_size": 5}, [5, 4]),
    (
        ["icarl", "naive"],
        ["--memory-size", "5", "--memory-policy", "random"],
        {"memory_size": 5, "memory_policy": "random"},
        [5, 0],
    ),
    (["er[lr=0.5]", "naive"], ["--lr", "0.01", "--memory-size", "2"], {"lr": 0.01, "memory_size": 2}, [2, 0]),
]


@pytest.mark.parametrize(("strategies", "flags", "options", "exemplars"), LINES)
def test_plan_tells_what_compare_does(
    strategies: list[str],
    flags: list[str],
    options: dict[str, Any],
    exemplars: list[int],
    verb: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Exemplars after the last task and updates; --memory-size goes to the strategies that live on a memory."""
    plans = verb("plan", SCENARIO, *strategies, *FLAGS, *flags)
    assert [plan["tasks"][-1]["exemplars"] for plan in plans] == exemplars
    results = clbench.compare(SCENARIO, strategies, seeds=1, references=False, out=tmp_path / "runs", **FAST, **options)
    assert [result.record["tasks"][-1]["n_exemplars"] for result in results] == exemplars
    assert [plan["updates"] for plan in plans] == [result.steps for result in results]
    assert [plan["strategy"] for plan in plans] == [result.strategy for result in results]


@pytest.mark.parametrize(("strategies", "flags", "options", "exemplars"), LINES)
def test_a_sweep_asks_for_what_compare_asks_for(
    strategies: list[str], flags: list[str], options: dict[str, Any], exemplars: list[int], tmp_path: Path
) -> None:
    grid = {"scenario": SCENARIO, "strategy": strategies, "seeds": 2, **FAST, **options}
    swept = plan_sweep(grid, out=tmp_path)
    compared = plan_comparison(SCENARIO, strategies, seeds=2, references=False, out=tmp_path, **FAST, **options)
    assert [item.config.identity() for item in swept] == [item.config.identity() for item in compared]


@pytest.mark.parametrize("strategy", ["ewc", "er", "er[memory_size=3]", "naive"])
def test_plan_of_one_strategy_tells_what_run_does(strategy: str, verb: Callable[..., Any]) -> None:
    flags = [*FLAGS, *([] if "memory" in strategy else ["--memory-size", "5"])]
    (plan,) = verb("plan", SCENARIO, strategy, *flags)
    record = verb("run", SCENARIO, strategy, *flags)
    assert plan["tasks"][-1]["exemplars"] == record["tasks"][-1]["n_exemplars"]
    assert plan["updates"] == sum(task["steps"] for task in record["tasks"])


@pytest.mark.parametrize("name", ["plan", "compare"])
def test_a_hyper_parameter_that_one_strategy_lacks_is_refused_by_both(name: str, verb: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="strength"):
        verb(name, SCENARIO, "lwf", "er", *FLAGS, "-p", "strength=2")


@pytest.mark.parametrize("name", ["plan", "compare"])
def test_a_memory_that_no_strategy_lives_on_is_refused_by_both(name: str, verb: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="none of the strategies needs a memory"):
        verb(name, SCENARIO, "lwf", "naive", *FLAGS, "--memory-size", "5")


# Spellings of one run.
SPELLINGS: list[list[tuple[str, str, dict[str, Any]]]] = [
    [
        (SCENARIO, "er[memory_size=5,lr=0.5]", {}),
        (SCENARIO, "er[lr=0.5,memory_size=5]", {}),
        (SCENARIO, " er[ lr = 0.50 , memory_size = 5 ]", {}),
        (SCENARIO, "er", {"lr": 0.5, "memory_size": 5}),
        (SCENARIO, "er[lr=0.5]", {"memory_size": 5}),
    ],
    [
        (SCENARIO, "lwf[strength=2,temperature=1]", {}),
        (SCENARIO, "lwf", {"strategy_options": {"temperature": 1, "strength": 2.0}}),
        (SCENARIO, "lwf[temperature=1.0]", {"strategy_options": {"strength": "2"}}),
    ],
    [
        (f"{SCENARIO}[limit=3,tasks=5]", "naive", {}),
        (f"{SCENARIO}[tasks=5,limit=3]", "naive", {}),
        (f"{SCENARIO}[limit=3]", "naive", {"tasks": 5}),
        (SCENARIO, "naive", {"limit": 3}),  # five tasks are the preset's
    ],
    [
        # The preset's own values, said again.
        (SCENARIO, "naive", {}),
        (SCENARIO, "naive", {"epochs": 5, "model": "mlp:400-400", "optimizer": "adam", "lr": 0.001}),
        (SCENARIO, "naive[lr=0.001,epochs=5]", {"batch_size": 32, "normalize": "none"}),
    ],
]


@pytest.mark.parametrize("spellings", SPELLINGS)
def test_order_spaces_and_place_of_options_make_no_other_run(spellings: list[tuple[str, str, dict[str, Any]]]) -> None:
    identities = {
        resolve(scenario, strategy, {"threads": 1, **options}).identity() for scenario, strategy, options in spellings
    }
    assert len(identities) == 1


@pytest.mark.parametrize("seeds", [3, [0, 1, 2], range(3), (0, 1, 2)])
def test_seeds_are_a_number_of_them_or_a_list_in_each_verb(seeds: Any, tmp_path: Path) -> None:
    compared = plan_comparison(SCENARIO, ["naive"], seeds=seeds, references=False, out=tmp_path, **FAST)
    swept = plan_sweep({"scenario": SCENARIO, "strategy": "naive", "seeds": seeds, **FAST}, out=tmp_path)
    for planned in (compared, swept):
        assert [item.config.seed for item in planned] == [0, 1, 2]


def test_reproduce_takes_a_number_of_seeds_or_a_list_too(tmp_path: Path) -> None:
    from clbench.cli.claim_runs import needed
    from clbench.reports.published import chosen

    claim = chosen([])[:1]
    for seeds, expected in ((2, {0, 1}), ([3, 5], {3, 5}), (None, set(range(claim[0].seeds)))):
        runs, refused = needed(claim, out=tmp_path, seeds=seeds)
        assert refused == {}
        assert {run.planned.config.seed for run in runs} == expected


# Text

TEXTS = [
    ("drop_last", "False", "a valid boolean"),
    ("nesterov", "true", "a valid boolean"),
    ("deterministic", "no", "a valid boolean"),
    ("epochs", "5", "a valid integer"),
    ("lr", "0.1", "a valid number"),
    ("lr", "high", "a valid number"),
    ("clip", "none", "a valid number"),
    ("memory_size", "200", "a valid integer"),
    ("milestones", "3", "a valid list"),
    ("eval_every", "5", "a valid integer"),
    ("validation", "0.1", "a valid number"),
    ("seed", "1", "a valid integer"),
]


@pytest.mark.parametrize(("name", "text", "accepted"), TEXTS)
@pytest.mark.parametrize("source", ["python", "toml", "json", "sweep"])
def test_text_in_the_place_of_another_type_is_shown_in_quotes(
    source: str, name: str, text: str, accepted: str, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    """Otherwise "drop_last=False given, a valid boolean accepted" would refuse what it accepts."""
    toml, as_json = tmp_path / "options.toml", tmp_path / "options.json"
    toml.write_text(f'{name} = "{text}"\n')
    as_json.write_text(json.dumps({name: text}))
    with refused(f"{name}='{text}' given", f"{accepted}"):
        if source == "sweep" and name != "seed":
            plan_sweep({"scenario": SCENARIO, "strategy": "er", "seeds": 1, name: text}, out=tmp_path)
        else:
            given = {"toml": lambda: read_config(toml), "json": lambda: read_config(as_json)}
            resolve(SCENARIO, "naive", given.get(source, lambda: {name: text})())


@pytest.mark.parametrize(("name", "text", "shown"), [("lr", "high", "lr=high"), ("epochs", "many", "epochs=many")])
def test_on_the_command_line_and_in_brackets_all_is_text_and_has_no_quotes(
    name: str, text: str, shown: str, verb: Callable[..., Any]
) -> None:
    for line in (["naive", f"--{name}", text], [f"naive[{name}={text}]"]):
        with pytest.raises(ConfigError, match=f"{shown} given"):
            verb("run", SCENARIO, *line)


@pytest.mark.parametrize(("name", "text"), [("optimizer", "sdg"), ("head", "grown"), ("eval_every", "sometimes")])
def test_text_of_the_right_type_is_refused_by_its_value(name: str, text: str) -> None:
    """Of a field that takes both names and numbers the text stands in quotes too."""
    shown = f"{name}='{text}'" if name == "eval_every" else f"{name}={text}"
    with pytest.raises(ConfigError) as caught:
        make_config({"scenario": "s", "strategy": "naive", name: text})
    assert f"{shown} given" in str(caught.value)


def test_what_was_typed_is_a_plain_value_in_the_config() -> None:
    config = resolve(SCENARIO, "er[lr=0.5,memory_policy=balanced,memory_size=5]", {})
    assert isinstance(config, RunConfig)
    assert {type(config.training.lr), type(config.memory.policy), type(config.model.name)} == {float, str}
