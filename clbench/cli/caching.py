"""cache: what is on disk because it was computed once, and could be again."""

import json
from datetime import datetime
from typing import Annotated

import typer

from clbench.cli.console import megabytes, screen
from clbench.cli.options import Json
from clbench.config.errors import ConfigError

ACTIONS = ("list", "clear")


def cache_verb(
    action: Annotated[str, typer.Argument(help="list (the default) or clear.")] = "list",
    entries: Annotated[
        list[str] | None, typer.Argument(help="What is cleared, by the names of the list (default: all).")
    ] = None,
    as_json: Json = False,
) -> None:
    """List what is kept in the cache, features of frozen networks and decoded images, or clear it.

    The folder is $CLBENCH_CACHE, or else the user's cache folder. What is cleared is made again when it is needed.
    """
    from clbench.support.cache import cache_folder, clear
    from clbench.support.cache import entries as there

    if action not in ACTIONS:
        raise ConfigError(f"clbench cache {action}: {' and '.join(ACTIONS)} are accepted")
    if action == "list" and entries:
        raise ConfigError(f"clbench cache list {entries[0]}: names are for clear; list alone is accepted")
    gone, kept = clear(entries or ()) if action == "clear" else ([], there())
    if as_json:
        told = {"folder": str(cache_folder()), "entries": [entry._asdict() for entry in kept]}
        print(json.dumps(told if action == "list" else told | {"cleared": [entry._asdict() for entry in gone]}))
        return
    stdout = screen()
    if action == "clear":
        for entry in kept:
            print(f"note: {entry.name} is being made by another process, and stays")
        print(f"cleared {len(gone)} entries, {megabytes(sum(entry.bytes for entry in gone))}, of {cache_folder()}")
        return
    from clbench.support.fitted import Column, Fitted

    if kept:
        columns = [
            Column("name", [entry.name for entry in kept], 9),
            Column("what it is", [entry.what for entry in kept], 8, wraps=True),
            Column("size", [megabytes(entry.bytes) for entry in kept], 7, "right"),
            Column("written", [f"{datetime.fromtimestamp(entry.written):%Y-%m-%d %H:%M}" for entry in kept], 6),
        ]
        stdout.print(Fitted(columns, more="--json has them"))
    total = megabytes(sum(entry.bytes for entry in kept))
    stdout.print(f"{len(kept)} entries, {total}, in {cache_folder()}", markup=False, highlight=False, soft_wrap=True)
