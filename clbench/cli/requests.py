"""The requests that several verbs share: a scenario and strategies, or a claim; seeds; a tracker."""

from typing import Any

from clbench.cli.options import (
    over,
)
from clbench.cli.options import seeds as read_seeds
from clbench.config.errors import ConfigError
from clbench.config.registry import text_of


def beginning(
    like: str | None, scenario: str | None, strategies: list[str], fields: dict[str, Any], params: dict[str, str]
) -> tuple[str, list[str], dict[str, Any]]:
    """Return scenario, strategies and options as given, or those of a claim under what was given.

    With a claim the first argument names a strategy too; the claim's own strategy has the claim's options.
    """
    given = {**fields.pop("strategy_options", {}), **params}
    if like is None:
        if scenario is None or not strategies:
            raise ConfigError("a scenario and a strategy are needed, such as split-mnist-5k lwf, or --like CLAIM")
        return scenario, strategies, {**fields, "strategy_options": given}
    from clbench.config.registry import DATA_FILES, entry_point_names, parse_spec
    from clbench.reports.published import claim
    from clbench.running.resolve import strategy_class

    start = claim(like)
    if scenario is not None and (scenario.endswith(DATA_FILES) or scenario in entry_point_names("clbench.scenarios")):
        raise ConfigError(
            f"{scenario} given with --like, where the scenario is the claim's, {start.scenario}; strategies alone are "
            "accepted"
        )
    names = [name for name in (scenario, *strategies) if name is not None] or [start.strategy]
    kept = start.run_fields()
    if not any(strategy_class(parse_spec(name)[0]).traits.needs_memory for name in names):
        kept = start.naive_fields()
    own = {name: text_of(value) for name, value in start.options.items() if name not in given}
    for index, spec in enumerate(names):
        name, bracket = parse_spec(spec)
        if name == start.strategy and (own or bracket):
            texts = ",".join(f"{k}={v if ',' not in v else f'[{v}]'}" for k, v in (own | bracket).items())
            names[index] = f"{name}[{texts}]"
    return start.scenario, names, {**over(kept, fields), "strategy_options": given}


def check_tracker(track: str | None) -> None:
    """Raise ConfigError for a tracker that is unknown or not installed."""
    if track is not None:
        from clbench.running.tracking import require_tracker

        require_tracker(track)


def given_seeds(text: str | None, fields: dict[str, Any]) -> int | list[int]:
    """Return the seeds asked for; a seed in a --config file counts where the command line names none."""
    seed = fields.pop("seed", None)
    return read_seeds(text) if text is not None else 5 if seed is None else [seed]
