"""Images in other layouts than a folder for each class: a CSV file, Tiny-ImageNet, and tar files of WebDataset.

Nothing is unpacked: the members of a tar file are read where they lie.
"""

import csv
import itertools
import os
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from clbench.config.errors import ConfigError
from clbench.config.registry import natural_sorted
from clbench.scenarios.decoding import EXTENSIONS
from clbench.scenarios.encoded import Content, Encoded, Listed, file_contents, found_images, too_large
from clbench.scenarios.files import Found, content_digests
from clbench.scenarios.images import visible

# The names of the parts of a data set.
PART_NAMES = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1, "test": 2, "testing": 2}
# The names of columns that are known by themselves.
COLUMNS = {
    "image": ("file", "file_name", "filename", "image", "image_path", "path", "img"),
    "label": ("label", "labels", "class", "target", "category"),
    "split": ("split", "set", "subset", "partition"),
}
MOST_CLASS_BYTES = 1000  # of the class of a member of a tar file
MOST_CSV_BYTES = 1 << 30
ANNOTATIONS = "val_annotations.txt"


class Asked(NamedTuple):
    """The options of the user's own images; see load_dataset().

    columns: the names of the columns of images, labels and parts, where they are given.
    """

    size: int | None
    held_out: bool
    skip: bool | None
    columns: Mapping[str, str]


class Row(NamedTuple):
    """An image: its name, its class, and its part, None where nothing names one; the key by which images are sorted."""

    name: str
    label: str | int
    part: int | None
    key: str


def columns_of(text: str | None) -> dict[str, str]:
    """Return the names of columns in a text such as image=file,label=kind,split=part; raises ConfigError."""
    found = {}
    for pair in (text or "").split(",") if text else ():
        role, equals, name = (part.strip() for part in pair.partition("="))
        if role not in COLUMNS or not equals or not name or role in found:
            raise ConfigError(f"columns={text}: image=NAME,label=NAME,split=NAME, or some of these, is accepted")
        found[role] = name
    return found


def column(role: str, there: Sequence[str], asked: Mapping[str, str], what: object, *, needed: bool = True) -> str:
    """Return the name of the column of images, labels or parts; "" where there is none. Raises ConfigError."""
    if role in asked:
        if asked[role] not in there:
            raise ConfigError(f"{what} has no column {asked[role]!r}; its columns are {', '.join(there[:12])}")
        return asked[role]
    known = [name for name in there if name.strip().lower() in COLUMNS[role]]
    if len(known) == 1:
        return known[0]
    if known or needed:
        problem = f"the columns {' and '.join(known)}" if known else f"no column that is known as {role}"
        raise ConfigError(f"{what} has {problem}; columns={role}=NAME names it, of {', '.join(map(str, there[:12]))}")
    return ""


def refuse_columns(columns: object, path: Path) -> None:
    """Raise ConfigError where columns are named of data that are no table."""
    if columns:
        raise ConfigError(f"columns are of CSV and Parquet files and of folders of save_to_disk; {path} is none")


def encoded_of(
    origin: Path,
    rows: Sequence[Row],
    contents: Callable[[], Iterator[Content]],
    key: bytes,
    asked: Asked,
    classes: Sequence[str] | None = None,
) -> Encoded:
    """Return the images of rows, in the order in which they are stored; raises ConfigError for rows that don't fit.

    A row without a part is for training. Without a test, the validation part is the test.
    classes: the names of the classes, where labels are their numbers.
    """
    parts = np.array([row.part or 0 for row in rows], np.int64)
    if not len(rows) or not (parts == 0).any():
        raise ConfigError(f"{origin} has no training images")
    if asked.held_out and (parts == 2).any():
        raise ConfigError(f"{origin} has test images of its own; leave test_share out")
    if not asked.held_out and not (parts == 2).any():
        if not (parts == 1).any():
            raise ConfigError(
                f"{origin} has no test images; --test-share 0.2 (test_share=0.2) makes a fifth of each class the test"
            )
        parts[parts == 1] = 2
    labels: list[Any] = [row.label for row in rows]
    if len({type(label) for label in labels}) > 1:
        labels = [str(label) for label in labels]
    if classes is None or isinstance(labels[0], str):
        values = natural_sorted(set(labels)) if isinstance(labels[0], str) else sorted(set(labels))
        number = {value: place for place, value in enumerate(values)}
        classes, of_rows = tuple(map(str, values)), np.array([number[label] for label in labels], np.int64)
    else:
        if min(labels) < 0 or max(labels) >= len(classes):
            raise ConfigError(
                f"{origin} has labels from {min(labels)} to {max(labels)}, and names for {len(classes)} classes"
            )
        of_rows = np.array(labels, np.int64)
        used = np.unique(of_rows)
        classes, of_rows = tuple(classes[c] for c in used), np.searchsorted(used, of_rows)
    known, tested = set(of_rows[parts == 0].tolist()), set(of_rows[parts == 2].tolist())
    if not asked.held_out and known != tested:
        odd = sorted(known ^ tested)[0]
        lacking = "test" if odd in known else "training"
        raise ConfigError(f"{origin} has no {lacking} images of the class {classes[odd]!r}; each class needs both")
    names, keys = [row.name for row in rows], [row.key for row in rows]
    return Encoded(origin, names, of_rows, parts, tuple(classes), contents, key, keys if all(keys) else None)


# Files that a table names


def find_csv(tables: Sequence[Path], asked: Asked) -> Found:
    """Return the data set of images that CSV files name, below the folder of these; see columns_of().

    Several tables are train.csv, val.csv and test.csv. Raises ConfigError for a file that is named twice, lies
    elsewhere or has no label.
    """
    folder, rows, problems = tables[0].parent, list[Row](), dict[str, str]()
    first: dict[str, str] = {}
    for table in tables:
        part = PART_NAMES.get(table.stem.lower()) if len(tables) > 1 else None
        for place, row in _csv_rows(table, part, asked):
            if row.name in first:
                raise ConfigError(f"{table} names {row.name} twice, in {first[row.name]} and {place}; once is accepted")
            first[row.name] = place
            if why := _no_file(folder / row.name):
                problems[row.name] = why
            else:
                rows.append(row)
    there = [folder / row.name for row in rows]

    def listed() -> Listed:
        digests = content_digests(there)
        return Listed(
            encoded_of(folder, rows, partial(file_contents, there, digests), b"".join(digests), asked), problems
        )

    layout = f"images that {' and '.join(table.name for table in tables)} names"
    return found_images(folder, layout, [*tables, *there], listed, asked.size, asked.skip)


def _csv_rows(table: Path, part: int | None, asked: Asked) -> Iterator[tuple[str, Row]]:
    try:
        if table.stat().st_size > MOST_CSV_BYTES:
            raise ConfigError(f"{table} has {table.stat().st_size:,} bytes; at most {MOST_CSV_BYTES:,} are accepted")
        with table.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline(1 << 16)
            file.seek(0)
            found = csv.DictReader(file, delimiter=max(",;\t", key=head.count), strict=True)
            names = [name or "" for name in found.fieldnames or ()]
            if len(set(names)) < len(names):
                raise ConfigError(f"{table} has a column twice; its columns are {', '.join(names[:12])}")
            image, label = (column(role, names, asked.columns, table) for role in ("image", "label"))
            split = column("split", names, asked.columns, table, needed=False)
            for row in found:
                place = f"line {found.line_num}"
                if None in row:
                    raise ConfigError(f"{table}, {place}, has more values than there are columns")
                name, kind = (row[image] or "").strip(), (row[label] or "").strip()
                if not name or not kind:
                    raise ConfigError(f"{table}, {place}, has no {'label' if name else 'file'}; each row needs both")
                own = (row[split] or "").strip().lower() if split else None
                if own is not None and own not in PART_NAMES:
                    raise ConfigError(f"{table}, {place}, has the {split} {own!r}; train, val and test are accepted")
                path = _below(name, f"{table}, {place},", table.parent)
                yield place, Row(path, kind, part if own is None else PART_NAMES[own], path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{table} can't be read: {getattr(error, 'strerror', None) or error}") from error


def _below(name: str, what: str, folder: Path) -> str:
    """Return the path of a file below a folder, which may lack its extension; raises ConfigError for one elsewhere."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or Path(name).is_absolute() or "\0" in name or not path.parts:
        raise ConfigError(f"{what} names {name!r}; a file below {folder} is accepted")
    if path.suffix.lower() not in EXTENSIONS and not os.path.exists(folder / path):
        for extension in EXTENSIONS:
            if os.path.exists(folder / f"{path}{extension}"):
                return f"{path}{extension}"
    return str(path)


def _no_file(path: Path) -> str:
    try:
        if not path.is_file():
            return "is named and not there"
        if path.suffix.lower() not in EXTENSIONS:
            return f"is not an image file; accepted: {', '.join(EXTENSIONS)}"
        return too_large(path.stat().st_size) if os.access(path, os.R_OK) else "can't be read: permission denied"
    except OSError as error:  # a name that is too long
        return f"can't be read: {error.strerror}"


def find_tiny_imagenet(folder: Path, asked: Asked) -> Found:
    """Return the data set in FOLDER/train/CLASS/images and FOLDER/val/images, whose classes val_annotations.txt names.

    The classes have the names of the folders. The part test, whose classes were not published, is left out.
    """
    refuse_columns(asked.columns, folder)
    rows = list[Row]()
    for images in sorted((folder / "train").glob("*/images")):
        rows += [_row(folder, path, images.parent.name, 0) for path in sorted(images.iterdir())]
    table = folder / "val" / ANNOTATIONS
    try:
        lines = table.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{table} can't be read: {error}") from error
    seen = set()
    for number, line in enumerate(lines, 1):
        name, tab, rest = line.partition("\t")
        kind = rest.partition("\t")[0].strip()
        if not tab or not kind or name in seen:
            problem = "names a file again" if tab and kind else "has no class"
            raise ConfigError(f"{table}, line {number}, {problem}; a file, its class and its box are accepted")
        seen.add(name)
        path = _below(name, f"{table}, line {number},", folder / "val" / "images")
        rows.append(_row(folder, folder / "val" / "images" / path, kind, 1))
    problems = {row.name: why for row in rows if (why := _no_file(folder / row.name))}
    rows = [row for row in rows if row.name not in problems]
    there = [folder / row.name for row in rows]

    def listed() -> Listed:
        digests = content_digests(there)
        key = b"".join(digests)
        return Listed(encoded_of(folder, rows, partial(file_contents, there, digests), key, asked), problems)

    layout = "Tiny-ImageNet: train/CLASS/images and val/images"
    return found_images(folder, layout, [table, *there], listed, asked.size, asked.skip)


def _row(folder: Path, path: Path, kind: str, part: int) -> Row:
    return Row(str(path.relative_to(folder)), kind, part, path.name)


# Tar files


def find_tar(shards: Sequence[Path], origin: Path, asked: Asked) -> Found:
    """Return the data set in tar files of WebDataset: for each sample KEY.jpg, or another image, and KEY.cls.

    The name of a file tells its part: train-0000.tar, val.tar, test-*.tar; others are for training. Raises ConfigError
    for a compressed or damaged file, links and devices, and names that lead out of it, though nothing is unpacked.
    """
    refuse_columns(asked.columns, origin)

    def listed() -> Listed:
        digests = content_digests(shards)
        rows, places, problems = list[Row](), list[tuple[int, int, int]](), dict[str, str]()
        for number, shard in enumerate(shards):
            for row, place in _members(shard, part_of(shard), problems):
                rows.append(row)
                places.append((number, *place))
        key = b"".join(digests)
        return Listed(encoded_of(origin, rows, partial(_of_tars, shards, digests, places), key, asked), problems)

    layout = f"{len(shards):,} tar files, in each KEY.jpg and KEY.cls"
    return found_images(origin, layout, shards, listed, asked.size, asked.skip)


def part_of(shard: Path) -> int | None:
    """Return the part that the name of a file tells, as train-00001-of-00010.tar does."""
    return PART_NAMES.get(shard.stem.lower().partition("-")[0].partition("_")[0].partition(".")[0])


def _members(shard: Path, part: int | None, problems: dict[str, str]) -> Iterator[tuple[Row, tuple[int, int]]]:
    """Give a row for each image of a tar file, and where in the file it lies."""
    images: dict[str, tuple[str, int, int]] = {}
    kinds: dict[str, str] = {}
    size = shard.stat().st_size
    try:
        # Uncompressed, so that members can be read in any order.
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # they are not needed again
                name = member.name
                if name.startswith("/") or ".." in PurePosixPath(name.replace("\\", "/")).parts:
                    raise ConfigError(f"{shard} has the member {name!r}, which leads out of it; others are accepted")
                if member.isdir():
                    continue
                if not member.isreg() or member.sparse is not None:
                    raise ConfigError(f"{shard} has {name!r}, which is a link, a device or sparse; files are accepted")
                if member.size < 0 or member.offset_data + member.size > size:
                    raise ConfigError(f"{shard} is cut: {name!r} is to have {member.size:,} bytes")
                folder, _, base = name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if base.startswith("."):
                    continue
                if f".{extension.lower()}" in EXTENSIONS:
                    if key in images:
                        raise ConfigError(f"{shard} has two images of the key {key!r}; one is accepted")
                    images[key] = name, member.offset_data, member.size
                elif extension.lower() in ("cls", "cls.txt"):
                    kind = _kind(archive, member)
                    if key in kinds or not kind:
                        problem = "twice" if key in kinds else "without a class"
                        raise ConfigError(f"{shard} has {name!r} {problem}; a class, once, is accepted")
                    kinds[key] = kind
            archive.fileobj.seek(archive.offset)
            # Python takes a member that it can't read for the end.
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ConfigError(f"{shard} is cut or damaged at byte {archive.offset:,}: its end is not there")
    except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{shard} is not a readable tar file without compression: {error}") from error
    if lacking := next((images[key][0] for key in images if key not in kinds), ""):
        raise ConfigError(f"{shard} has {lacking!r} and no class for it, in a file of the same name that ends in .cls")
    whole = all(kind.isascii() and kind.isdecimal() and len(kind) < 19 for kind in kinds.values())
    for key, (name, offset, length) in images.items():
        if why := too_large(length):
            problems[f"{shard.name}/{name}"] = why
            continue
        yield Row(f"{shard.name}/{name}", int(kinds[key]) if whole else kinds[key], part, name), (offset, length)


def _kind(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = archive.extractfile(member)
    content = b"" if file is None or member.size > MOST_CLASS_BYTES else file.read()
    return content.decode("utf-8").strip()


def _of_tars(
    shards: Sequence[Path], digests: Sequence[bytes], places: Sequence[tuple[int, int, int]]
) -> Iterator[Content]:
    """Give the contents of members; the files must still be those that were digested when all are read."""
    for number, of_shard in itertools.groupby(places, key=lambda place: place[0]):
        with shards[number].open("rb") as file:
            for _, offset, length in of_shard:
                file.seek(offset)
                content = file.read(length)
                yield partial(bytes, content)
    same_files(shards, digests)


def same_files(paths: Sequence[Path], digests: Sequence[bytes]) -> None:
    """Raise ConfigError where files are no longer those that were digested."""
    for path, before, now in zip(paths, digests, content_digests(paths), strict=True):
        if before != now:
            raise ConfigError(f"{path} was changed while it was read; begin again")


def find_own(path: Path, asked: Asked) -> Found | None:
    """Return the data set in a file or folder of the user's in one of these layouts, or None.

    Raises ConfigError for a folder of several CSV files that are not train, val and test.
    """
    from clbench.scenarios.tables import find_arrow, find_parquet

    if path.is_file():
        finders: dict[str, Callable[[Sequence[Path], Path, Asked], Found]] = {
            ".tar": find_tar,
            ".parquet": find_parquet,
            ".csv": lambda tables, _, asked: find_csv(tables, asked),
        }
        finder = finders.get(path.suffix.lower())
        return None if finder is None else finder([path], path if path.suffix != ".csv" else path.parent, asked)
    if (path / "train").is_dir() and (path / "val" / ANNOTATIONS).is_file():
        return find_tiny_imagenet(path, asked)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return find_arrow(path, asked)
    by_suffix = {suffix: _files(path, suffix) for suffix in (".tar", ".parquet", ".csv")}
    by_suffix[".parquet"] = by_suffix[".parquet"] or _files(path / "data", ".parquet")
    # Such files are mostly somebody's notes or copies where they lie beside folders of classes.
    folders = [inside for inside in visible(path) if inside.is_dir() and inside.name != "data"]
    if (shards := by_suffix[".tar"]) and not folders:
        return find_tar(shards, path, asked)
    if (shards := by_suffix[".parquet"]) and not folders:
        return find_parquet(shards, path, asked)
    tables = [table for table in by_suffix[".csv"] if asked.columns or not folders or _names_images(table)]
    if left := [table.name for table in by_suffix[".csv"] if table not in tables]:
        warnings.warn(
            f"{path}: {left[0]} is left aside, and folders are the classes; columns=image=NAME,label=NAME reads it",
            stacklevel=2,
        )
    named = [table for table in tables if table.stem.lower() in PART_NAMES]
    if not tables or ((path / "train").is_dir() and not named):
        return None
    if len(tables) > 1 and len(named) < 2:
        names = ", ".join(table.name for table in tables[:6])
        raise ConfigError(f"{path} has the tables {names}; one, or train.csv, val.csv and test.csv, is accepted")
    return find_csv(named if len(tables) > 1 else tables, asked)


def _names_images(table: Path) -> bool:
    """Whether a CSV file has columns that are known as images and labels."""
    with table.open(encoding="utf-8-sig", errors="replace") as file:
        head = file.readline(1 << 16)
    names = {name.strip().strip('"').lower() for name in head.split(max(",;\t", key=head.count))}
    return all(names.intersection(COLUMNS[role]) for role in ("image", "label"))


def _files(folder: Path, suffix: str) -> list[Path]:
    try:
        names = [name for name in os.listdir(folder) if name.lower().endswith(suffix) and not name.startswith(".")]
    except OSError:
        return []
    return sorted(path for name in names if (path := folder / name).is_file())
