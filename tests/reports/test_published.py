"""Published claims as data: each resolves to a complete run, and a mistake in a file is refused by its name."""

import re
import tomllib
from importlib import resources

import pytest

from clbench.config.errors import ConfigError
from clbench.reports import published
from clbench.reports.published import chosen, claims, read_claims
from clbench.running.resolve import resolve, strategy_class
from clbench.scenarios.registered import presets

GOOD = """
citation = "A paper"
[defaults]
tier = "A"
metric = "average_accuracy"
error_kind = "std"
error_runs = 10
seeds = 5
cost = "minutes on CPU"
provenance = "primary"
source = "table 1"
[protocols.first]
scenario = "split-mnist-5k"
epochs = 1
lr = 0.1
naive_seconds = 2
[protocols.second]
like = "first"
lr = 0.2
[[claims]]
protocol = "second"
strategy = "lwf"
options = { strength = 2.0 }
value = 50.0
error = 1.0
tolerance = 1.0
seconds = 3
"""


@pytest.mark.parametrize("name", list(claims()))
def test_every_claim_resolves_to_the_run_that_it_describes(name: str) -> None:
    """The run has the fields that are written in the file, and so has that of its naive reference."""
    claim = claims()[name]
    for role, strategy, fields, options in (
        ("claim", claim.strategy, claim.run_fields(), claim.options),
        ("naive", claim.naive.strategy, claim.naive_fields(), claim.naive.options),
    ):
        config = resolve(claim.scenario, strategy, {**fields, "strategy_options": options})
        assert {key: config.flat()[key] for key in fields} == fields
        assert config.strategy_options == strategy_class(strategy).validate(options)
        assert (config.memory.budget > 0) == (role == "claim" and strategy_class(strategy).traits.needs_memory)


def test_no_preset_reaches_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim names every field of a run that has a default, so a preset for it changes nothing."""
    claim = claims()["vandeven2022/split-mnist-class/lwf"]
    before = resolve(claim.scenario, "lwf", {**claim.run_fields(), "strategy_options": claim.options})
    monkeypatch.setitem(presets()["split-mnist"], "label_smoothing", 0.3)
    monkeypatch.setitem(presets()["split-mnist"], "weight_decay", 0.3)
    after = resolve(claim.scenario, "lwf", {**claim.run_fields(), "strategy_options": claim.options})
    assert before == after


def test_a_claim_is_read_from_its_file() -> None:
    """By hand: the second protocol is the first one with another lr; a sd of 1 over 10 runs is a SEM of 0.316."""
    (claim,) = read_claims(GOOD, "paper")
    assert claim.id == "paper/second/lwf"
    assert claim.fields == {"epochs": 1, "lr": 0.2}
    assert (claim.scenario, claim.naive_seconds, claim.seeds) == ("split-mnist-5k", 2, 5)
    assert claim.sem == pytest.approx(0.31622777)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('protocol = "second"', 'protocol = "scond"', ("scond", "second")),
        ('like = "first"', 'like = "frist"', ("frist", "first")),
        ("lr = 0.2", "learning = 0.2", ("learning", "no field of a protocol")),
        ("lr = 0.2", 'device = "cpu"', ("device", "no field of a protocol")),
        ('metric = "average_accuracy"', 'metric = "accuracy"', ("metric=accuracy", "average_accuracy")),
        ("value = 50.0", "value = 500.0", ("value", "500")),
        ("error = 1.0", "", ("error=0", "give both")),
        ("seconds = 3", "", ("seconds", "required")),
        ("seconds = 3", "seconds = 3\nguess = 1", ("guess",)),
        ('provenance = "primary"', 'provenance = "hearsay"', ("provenance", "hearsay")),
        ("tolerance = 1.0", "tolerance = 1.0.0", ("paper.toml",)),
    ],
)
def test_a_mistake_in_a_file_is_named(old: str, new: str, words: tuple[str, ...]) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        read_claims(
            GOOD.replace(old, new, 1) if old != "seconds = 3" else re.sub(r"^seconds = 3", new, GOOD, flags=re.M),
            "paper",
        )
    assert "paper" in str(caught.value) or words[0] in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_claims_are_chosen_by_id_by_what_an_id_begins_with_and_by_tier() -> None:
    names = {c.id for c in chosen(["avalanche_baselines/split-mnist-task-si"])}
    assert names == {f"avalanche_baselines/split-mnist-task-si/{name}" for name in ("si", "rwalk")}
    assert [c.id for c in chosen(["vandeven2022/split-mnist-class/er"])] == ["vandeven2022/split-mnist-class/er"]
    assert {c.tier for c in chosen([], "A")} == {"A"}
    assert {c.id for tier in "ABC" for c in chosen([], tier)} == set(claims())
    with pytest.raises(ConfigError, match="vandeven2022"):
        chosen(["vandeven2023"])
    with pytest.raises(ConfigError, match="'A4'"):
        chosen(["A4"])
    with pytest.raises(ConfigError, match="tier"):
        chosen([], "D")


def test_claims_are_in_order_of_their_tiers_then_of_their_ids() -> None:
    listed = [(c.tier, c.id) for c in chosen([])]
    assert listed == sorted(listed)
    assert len(listed) == len(claims())


def test_each_claim_names_its_source_and_a_quick_one_has_five_seeds() -> None:
    """Reads the files themselves."""
    folder = resources.files("clbench.reports").joinpath("claims")
    files = [tomllib.loads(file.read_text("utf-8")) for file in folder.iterdir() if file.name.endswith(".toml")]
    listed = [table["defaults"] | claim for table in files for claim in table["claims"]]
    assert len(listed) == len(claims())
    assert all(
        claim["source"] and table["citation"] for table in files for claim in [table["defaults"] | table["claims"][0]]
    )
    assert all(claim["seeds"] >= 5 for claim in listed if claim["cost"] == "minutes on CPU")


def test_a_claim_is_found_by_its_id_and_a_misspelt_id_names_the_nearest_one() -> None:
    assert published.claim("vandeven2022/split-mnist-class/er").value == 88.79
    with pytest.raises(ConfigError, match="split-mnist-class/er"):
        published.claim("vandeven2022/split-mnist-class/err")
