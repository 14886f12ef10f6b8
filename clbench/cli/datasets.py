"""data: what is in files of images before a run, and a copy of them at one size."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from clbench.cli.console import megabytes
from clbench.cli.options import Json
from clbench.config.errors import ConfigError, RunError, one_line

ACTIONS = ("check", "pack")
LISTED = 1000  # broken files that are printed; --json has all


def data_verb(
    action: Annotated[str, typer.Argument(help="check or pack.")],
    place: Annotated[str, typer.Argument(help="A folder or file of images, as for run; for pack also a known name.")],
    size: Annotated[
        int | None, typer.Option(min=4, help="pack: pixels of a side; the shorter side is resized, the centre cut out.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="pack: the file that is written, NAME.npy.")] = None,
    test_share: Annotated[
        float | None, typer.Option(help="Share of each class that becomes the test, of data without one.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Of a table, such as image=file,label=kind,split=part.")] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="pack: leave out files that can't be used.")
    ] = False,
    data_root: Annotated[str, typer.Option(help="Folder in which known data sets are looked for.")] = "data",
    force: Annotated[bool, typer.Option("--force", help="pack: write over a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Check files of images before a run (layout, classes, sizes, broken files), or pack them at one size.

    check ends with 1 where a file is broken. A packed file is a scenario like a folder, and is mapped, not read.
    """
    from clbench.running.resolve import scenario_class

    files: Any = scenario_class("files")
    if action not in ACTIONS:
        raise ConfigError(f"clbench data {action}: {' and '.join(ACTIONS)} are accepted")
    if action == "check":
        for name, given in (("--size", size), ("--to", to), ("--skip-unreadable", skip_unreadable), ("--force", force)):
            if given:
                raise ConfigError(f"clbench data check: {name} is for pack; leave it out")
        _show(files.examined(place, data_root, test_share=test_share, columns=columns), as_json)
        return
    if to is None or to.suffix.lower() != ".npy":
        raise ConfigError(f"clbench data pack {'--to ' + str(to) if to else place}: --to NAME.npy is accepted")
    if os.path.lexists(to) and (to.is_dir() or not force):
        hint = "another name" if to.is_dir() else "--force, which writes over it,"
        raise ConfigError(f"--to {to} is there; {hint} is accepted")
    asked = {"image_size": size, "test_share": test_share, "skip_unreadable": skip_unreadable, "columns": columns}
    told = files.packed(place, to, data_root, **asked)
    if as_json:
        print(json.dumps(told))
        return
    print(
        f"{to}: {told['train']:,} training and {told['test']:,} test images of {'x'.join(map(str, told['shape']))}, "
        f"{told['classes']:,} classes, {megabytes(told['bytes'])}; clbench run {to} takes it as a scenario"
    )


def _show(seen: dict[str, Any], as_json: bool) -> None:
    """Print what was found in files of images; raises RunError where some are broken."""
    from clbench.config.registry import natural_sorted

    broken, classes = seen["broken"], seen["classes"]
    if as_json:
        print(json.dumps(seen))
    else:
        parts = ", ".join(f"{n:,} for {part}" for part, n in seen["images"].items() if n)
        names = ", ".join(classes[:6]) + (", ..." if len(classes) > 6 else "")
        print(f"{seen['origin']}: {seen['layout']}")
        print(f"{len(classes):,} classes: {one_line(names, 200)}")
        print(f"images: {parts or 'none'}" + (f"; {seen['grey']:,} of them are grey" if seen["grey"] else ""))
        if seen["sizes"] == 1:
            print(f"size: {seen['smallest'][0]} x {seen['smallest'][1]}")
        elif seen["sizes"]:
            widths, heights = (f"{low} to {high}" for low, high in zip(seen["smallest"], seen["largest"], strict=True))
            print(f"sizes: {seen['sizes']:,}, widths {widths}, heights {heights}; --image-size S makes all S x S")
        for change, n in sorted(seen["remarks"].items()):
            print(f"note: {n:,} images {change}")
        for name in natural_sorted(broken)[:LISTED]:
            print(f"broken: {one_line(f'{name} {broken[name]}', 300)}")
        if len(broken) > LISTED:
            print(f"broken: {len(broken) - LISTED:,} more, which --json lists")
    if broken:
        raise RunError(f"{len(broken):,} files of {seen['origin']} can't be used; --skip-unreadable leaves them out")
