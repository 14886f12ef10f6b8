"""Images in folders, one folder for each class; decoded once, then kept in the cache as one memory-mapped array."""

import os
import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clbench.config.errors import ConfigError
from clbench.config.registry import natural_sorted
from clbench.scenarios.decoding import EXTENSIONS
from clbench.scenarios.encoded import Encoded, Listed, file_contents, found_images, too_large
from clbench.scenarios.files import Found, content_digests

VALIDATION = ("val", "valid", "validation")
# Files that systems and programs leave in folders; names that begin with a dot are left out too.
LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin")


class Parts(NamedTuple):
    """The folders of a data set, the images in them by class, or their numbers."""

    train: Any
    validation: Any
    test: Any


def find_image_folder(
    folder: Path,
    image_size: int | None,
    class_order: tuple[str, ...] = (),
    *,
    held_out: bool = False,
    skip: bool | None = None,
) -> Found:
    """Return the data set in FOLDER/{train,test}/CLASS/*; reading it gives RGB images, or grey ones if all are grey.

    A folder val, valid or validation beside them is a validation split; without a folder test it is the test data.

    image_size: S resizes the shorter side to S (bilinear, antialiased) and cuts out the centre S x S; without it all
        sizes must agree.
    class_order: the order of the classes, if these are their names; otherwise they are in natural order.
    held_out: there is no test yet: the images are in FOLDER/CLASS/*, or in FOLDER/train/CLASS/* with or without a
        validation split.
    skip: leave out files that can't be used, and name them in Raw.left_out; None: nobody can ask for that.
    Transparent parts become white. Raises ConfigError for training and test classes that differ; reading does so for
    all files together that are damaged or no images, and for images that don't fit onto the cache's disk.
    """
    folders = _parts(folder, held_out)
    problems: dict[Path, str] = {}
    parts = Parts(*({} if part is None else _scan(part, problems, flat=part == folder) for part in folders))
    for part, found in zip(folders, parts, strict=True):
        if part is not None and found.keys() != parts.train.keys():
            odd = sorted(found.keys() ^ parts.train.keys())[0]
            missing = part if odd in parts.train else folders.train
            there = found if odd in parts.train else parts.train
            alike = [name for name in there if _composed(name) == _composed(odd)]
            # They look the same on a screen; file systems of other machines write them in the other way.
            hint = f", and {alike[0]!a}, of the same letters, is {odd!a} there" if alike else ""
            raise ConfigError(
                f"{missing} has no folder for the class {odd!r}; each class needs training and test images{hint}"
            )
    names = class_order if set(class_order) == parts.train.keys() else tuple(natural_sorted(parts.train))
    paths = [path for part in parts for name in names for path in part.get(name, ())]
    numbers = Parts(*([len(part.get(name, ())) for name in names] for part in parts))
    layout = " and ".join(f"{part.name}/CLASS/IMAGE" if part != folder else "CLASS/IMAGE" for part in folders if part)
    listed = partial(listed_files, folder, paths, names, numbers, problems)
    return found_images(folder, layout, paths, listed, image_size, skip)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def listed_files(
    folder: Path, paths: list[Path], names: tuple[str, ...], numbers: Parts, problems: dict[Path, str]
) -> Listed:
    """Return files of images, in order of part and class, as encoded images; problems: files that are none, and why."""
    digests = content_digests(paths)
    encoded = Encoded(
        folder,
        [str(path.relative_to(folder)) for path in paths],
        np.concatenate([np.repeat(np.arange(len(names)), of_part) for of_part in numbers if of_part]),
        np.repeat(np.arange(3), [sum(of_part) for of_part in numbers]),
        names,
        partial(file_contents, paths, digests),
        b"".join(digests),
    )
    known = {str(path.relative_to(folder)): why for path, why in problems.items()}
    return Listed(encoded, known)


def _parts(folder: Path, held_out: bool) -> Parts:
    there = {path.name: path for path in visible(folder) if path.is_dir()}
    held = [name for name in VALIDATION if name in there]
    # A class may be called train, too: its folder holds images, and no folders.
    by_class = not any(path.is_dir() for path in visible(there["train"])) if "train" in there else True
    if held_out and by_class:
        return Parts(folder, None, None)
    if held_out and "test" in there:
        raise ConfigError(f"{folder} has test images of its own; leave test_share out")
    if "train" not in there or len(held) > 1 or not (held_out or "test" in there or held):
        hint = ""
        if by_class and any(path.suffix.lower() in EXTENSIONS for sub in there.values() for path in visible(sub)):
            hint = "; if these are the classes, --test-share 0.2 (test_share=0.2) makes a fifth of each class the test"
        raise ConfigError(
            f"{folder} must hold one folder 'train' and one folder 'test' or 'val', each CLASS/IMAGES, or all three; "
            f"its folders are {', '.join(list(there)[:6]) or 'none'}{hint}"
        )
    validation = there[held[0]] if held else None
    if held_out:
        return Parts(there["train"], validation, None)
    return Parts(there["train"], validation if "test" in there else None, there.get("test", validation))


def _scan(folder: Path, problems: dict[Path, str], *, flat: bool) -> dict[str, list[Path]]:
    """Return the image files of each class; what is none is added to the problems.

    flat: the folder is the whole data set, which may hold other files beside the classes.
    """
    classes = {}
    for class_folder in visible(folder):
        if not class_folder.is_dir():
            if flat and class_folder.suffix.lower() not in EXTENSIONS:
                continue
            raise ConfigError(f"{class_folder} is not a folder; expected one folder for each class")
        files = dict(_files(class_folder))
        problems |= {path: why for path, why in files.items() if why}
        classes[class_folder.name] = [path for path, why in files.items() if not why]
        if not files:
            raise ConfigError(f"{class_folder} holds no images")
    if not classes:
        raise ConfigError(f"{folder} holds no folders of images, one for each class")
    return classes


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Give the paths in the folder of a class, and why each is no image file, "" where it may be one."""
    paths = visible(folder)
    # The folder knows what most are, so that the system is not asked about each.
    with os.scandir(folder) as entries:
        plain = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    for path in paths:
        yield path, _no_image(path, plain=path.name in plain)


def _no_image(path: Path, *, plain: bool) -> str:
    """Return why a path in the folder of a class is no image file, "" where it may be one; refuses a folder."""
    if not plain and path.is_dir():
        raise ConfigError(
            f"{path} is a folder in the folder of a class; train/CLASS/IMAGE and test/CLASS/IMAGE are read, "
            "val/CLASS/IMAGE for validation, and CLASS/IMAGE with test_share"
        )
    if not plain and not path.exists():
        return "is a link to a file that is not there"
    if path.suffix.lower() not in EXTENSIONS or not (plain or path.is_file()):
        return f"is not an image file; accepted: {', '.join(EXTENSIONS)}"
    return too_large(path.stat().st_size) if os.access(path, os.R_OK) else "can't be read: permission denied"


def visible(folder: Path) -> list[Path]:
    """Return what is in a folder but what systems and programs leave there; raises ConfigError if it can't be read."""
    try:
        names = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise ConfigError(f"{folder} can't be read: {error}") from error
    return sorted(path for path in names if path.name.lower() not in LITTER)
