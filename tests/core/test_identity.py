"""Identity of runs: a new option with a neutral default changes nothing, and 0.1.0's runs stay themselves.

tests/fixtures/0.1.0/identities.json was written with clbench 0.1.0 installed: for each request in it, `identity` is
`clbench.resolve.resolve(scenario, strategy, options).identity()` and `folder` is `clbench.store.default_folder` of the
same config. Some options of 0.1.0 are protocols of claims since; `was` is what 0.1.0 was asked for in their place.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pydantic
import pytest
from pydantic import Field

from clbench.config import run as config_run
from clbench.config.groups import TrainingConfig
from clbench.config.run import RunConfig, config_of_record
from clbench.running.folder import default_folder
from clbench.running.resolve import resolve, scenario_class, strategy_class

FIRST = Path(__file__).parents[1] / "fixtures" / "0.1.0"
RECORDED = json.loads((FIRST / "identities.json").read_text("utf-8"))
# A dozen, over strategies and scenarios, and every protocol.
SOME = [request for place, request in enumerate(RECORDED) if place % 5 == 0 or "was" in request]


def asked(request: dict[str, Any], **more: Any) -> RunConfig:
    return resolve(request["scenario"], request["strategy"], request["options"] | more)


def strategy_of(request: dict[str, Any]) -> str:
    return str(request["strategy"].partition("[")[0])


def name_of(request: dict[str, Any]) -> str:
    return f"{request['scenario']} {request['strategy']} {request['options'].get('setting', '')}"


def test_the_recorded_requests_are_many_and_differ() -> None:
    assert len(RECORDED) > 60
    assert len({request["identity"] for request in RECORDED}) == len(RECORDED)
    assert len(SOME) > 12
    assert {"lwf", "vandeven2019-icarl", "avalanche:LwF"} <= {strategy_of(request) for request in RECORDED}


@pytest.mark.parametrize("request_", RECORDED, ids=name_of)
def test_a_run_has_the_identity_and_the_folder_that_0_1_0_gave_it(request_: dict[str, Any]) -> None:
    config = asked(request_)
    assert config.identity() == request_["identity"]
    assert default_folder(config) == Path(request_["folder"])


@pytest.mark.parametrize("folder", ["finished", "unfinished"])
def test_a_run_json_of_0_1_0_holds_the_identity_of_its_config(folder: str) -> None:
    record = json.loads((FIRST / folder / "run.json").read_text("utf-8"))
    assert config_of_record(record["config"]).identity() == record["identity"]


@pytest.mark.parametrize("request_", SOME, ids=name_of)
def test_a_run_json_of_today_holds_the_identity_of_its_config(request_: dict[str, Any]) -> None:
    config = asked(request_)
    assert config_of_record(json.loads(json.dumps(config.flat()))).identity() == request_["identity"]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that puts a training group with other fields in the place of the present one."""

    def put(**declared: Any) -> None:
        later: Any = pydantic.create_model("Later", __base__=TrainingConfig, **declared)
        run: Any = pydantic.create_model("LaterRun", __base__=RunConfig, training=(later, later()))
        monkeypatch.setitem(config_run.GROUPS, "training", later)
        monkeypatch.setattr(config_run, "RunConfig", run)
        for name in declared:
            monkeypatch.setitem(config_run._PLACES, name, ("training", name))
        config_run.fields.cache_clear()

    yield put
    monkeypatch.undo()
    config_run.fields.cache_clear()


def with_option(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, annotation: Any, default: Any) -> None:
    """Give a strategy or scenario an option, or an option it has another default."""
    options: Any = owner._options  # type: ignore[attr-defined]
    declared: dict[str, Any] = {name: (annotation, default)}
    later: Any = pydantic.create_model(owner.__name__, __base__=options, **declared)
    monkeypatch.setattr(owner, "_options", later)


@pytest.mark.parametrize("request_", SOME, ids=name_of)
def test_a_new_field_counts_only_where_it_differs_from_its_default(request_: dict[str, Any], training: Any) -> None:
    training(dithering=(Annotated[float, Field(ge=0)], 0.0))
    assert "dithering" in asked(request_).flat()
    assert asked(request_).identity() == request_["identity"]
    assert asked(request_, dithering=0.0).identity() == request_["identity"]
    found = {asked(request_, dithering=value).identity() for value in (0.5, 1.0)}
    assert len(found | {request_["identity"]}) == 3


@pytest.mark.parametrize("request_", [r for r in SOME if ":" not in r["strategy"]], ids=name_of)
def test_a_new_option_of_a_strategy_counts_only_where_it_differs_from_its_default(
    request_: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_option(monkeypatch, strategy_class(strategy_of(request_)), "dithering", float, 0.0)
    assert asked(request_).strategy_options["dithering"] == 0.0
    assert asked(request_).identity() == request_["identity"]
    assert asked(request_, strategy_options={"dithering": 0.0}).identity() == request_["identity"]
    assert asked(request_, strategy_options={"dithering": 0.5}).identity() != request_["identity"]


@pytest.mark.parametrize("request_", SOME, ids=name_of)
def test_a_new_option_of_a_scenario_counts_only_where_it_differs_from_its_default(
    request_: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_option(monkeypatch, scenario_class(request_["scenario"]), "dithering", float, 0.0)
    assert asked(request_).scenario_options["dithering"] == 0.0
    assert asked(request_).identity() == request_["identity"]
    assert asked(request_, dithering=0.0).identity() == request_["identity"]
    assert asked(request_, dithering=0.5).identity() != request_["identity"]


BASE = {"device": "cpu", "threads": 1}


def test_a_default_that_changes_leaves_the_runs_that_state_its_old_value_alone(training: Any) -> None:
    """The value counts, not whether it is the default: so the two versions agree about either value."""
    before = {value: resolve("split-mnist-5k", "naive", {**BASE, "clip": value}).identity() for value in (1.0, 2.0)}
    unstated = resolve("split-mnist-5k", "naive", BASE).identity()
    training(clip=(Annotated[float, Field(gt=0)] | None, 2.0))
    assert resolve("split-mnist-5k", "naive", {**BASE, "clip": 1.0}).identity() == before[1.0]
    assert resolve("split-mnist-5k", "naive", BASE).identity() == before[2.0] != unstated


def test_a_strategys_default_that_changes_leaves_the_runs_that_state_its_old_value_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stated = [resolve("split-mnist", f"lwf[temperature={t}]", BASE).identity() for t in (2, 3)]
    assert resolve("split-mnist", "lwf", BASE).identity() == stated[0]
    with_option(monkeypatch, strategy_class("lwf"), "temperature", float, 3.0)
    assert [resolve("split-mnist", f"lwf[temperature={t}]", BASE).identity() for t in (2, 3)] == stated
    assert resolve("split-mnist", "lwf", BASE).identity() == stated[1]


def test_a_scenarios_default_that_changes_leaves_the_runs_that_state_its_old_value_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stated = [resolve("split-mnist-5k", "naive", {**BASE, "blurry": b}).identity() for b in (0.0, 0.1)]
    assert resolve("split-mnist-5k", "naive", BASE).identity() == stated[0]
    with_option(monkeypatch, scenario_class("split-mnist-5k"), "blurry", float, 0.1)
    assert [resolve("split-mnist-5k", "naive", {**BASE, "blurry": b}).identity() for b in (0.0, 0.1)] == stated
    assert resolve("split-mnist-5k", "naive", BASE).identity() == stated[1]
