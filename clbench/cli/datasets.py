"""data: what is in files of images before a run, and a copy of them at one size."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clbench.cli.console import megabytes
from clbench.cli.options import Json
from clbench.config.errors import ConfigError, RunError, one_line

if TYPE_CHECKING:
    from clbench.scenarios.files import Found

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
    from clbench.scenarios.datasets import find_dataset
    from clbench.scenarios.files import Found

    if action not in ACTIONS:
        raise ConfigError(f"clbench data {action}: {' and '.join(ACTIONS)} are accepted")
    if action == "check":
        for name, given in (("--size", size), ("--to", to), ("--skip-unreadable", skip_unreadable), ("--force", force)):
            if given:
                raise ConfigError(f"clbench data check: {name} is for pack; leave it out")
        found = find_dataset(place, data_root, True, None, test_share=test_share, columns=columns)
        if not isinstance(found, Found):
            raise ConfigError(f"{place} is made by a package; files of your own are accepted")
        _check(found, as_json)
        return
    if to is None or to.suffix.lower() != ".npy":
        raise ConfigError(f"clbench data pack {'--to ' + str(to) if to else place}: --to NAME.npy is accepted")
    if os.path.lexists(to) and (to.is_dir() or not force):
        hint = "another name" if to.is_dir() else "--force, which writes over it,"
        raise ConfigError(f"--to {to} is there; {hint} is accepted")
    _pack(place, to, as_json, data_root, size, test_share, skip_unreadable, columns)


def _check(found: "Found", as_json: bool) -> None:
    from clbench.config.registry import natural_sorted
    from clbench.scenarios.examined import examine

    seen = examine(found)
    if as_json:
        print(json.dumps(seen.as_json()))
    else:
        parts = ", ".join(f"{n:,} for {part}" for part, n in seen.images.items() if n)
        names = ", ".join(seen.classes[:6]) + (", ..." if len(seen.classes) > 6 else "")
        print(f"{seen.origin}: {seen.layout}")
        print(f"{len(seen.classes):,} classes: {one_line(names, 200)}")
        print(f"images: {parts or 'none'}" + (f"; {seen.grey:,} of them are grey" if seen.grey else ""))
        if seen.sizes == 1:
            print(f"size: {seen.smallest[0]} x {seen.smallest[1]}")
        elif seen.sizes:
            widths, heights = (f"{low} to {high}" for low, high in zip(seen.smallest, seen.largest, strict=True))
            print(f"sizes: {seen.sizes:,}, widths {widths}, heights {heights}; --image-size S makes all S x S")
        for change, n in sorted(seen.remarks.items()):
            print(f"note: {n:,} images {change}")
        for name in natural_sorted(seen.broken)[:LISTED]:
            print(f"broken: {one_line(f'{name} {seen.broken[name]}', 300)}")
        if len(seen.broken) > LISTED:
            print(f"broken: {len(seen.broken) - LISTED:,} more, which --json lists")
    if seen.broken:
        raise RunError(f"{len(seen.broken):,} files of {seen.origin} can't be used; --skip-unreadable leaves them out")


def _pack(
    place: str,
    to: Path,
    as_json: bool,
    data_root: str,
    size: int | None,
    test_share: float | None,
    skip_unreadable: bool,
    columns: str | None,
) -> None:
    from clbench.scenarios.datasets import load_dataset
    from clbench.scenarios.packed import write_packed

    data = load_dataset(
        place,
        data_root,
        image_size=size,
        test_share=test_share,
        skip_unreadable=skip_unreadable,
        columns=columns,
    )
    try:
        n_bytes = write_packed(data, to)
    except OSError as error:
        raise ConfigError(f"--to {to} can't be written: {error.strerror or error}") from error
    c, height, width = data.x_train.shape[1:]
    told = {"file": str(to), "bytes": n_bytes, "train": len(data.x_train), "test": len(data.x_test)}
    if as_json:
        print(json.dumps(told | {"shape": [c, height, width], "classes": len(data.class_names)}))
        return
    print(
        f"{to}: {len(data.x_train):,} training and {len(data.x_test):,} test images of {c}x{height}x{width}, "
        f"{len(data.class_names):,} classes, {megabytes(n_bytes)}; clbench run {to} takes it as a scenario"
    )
