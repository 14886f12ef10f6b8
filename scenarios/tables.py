"""Images in tables of Arrow: Parquet files, and folders that save_to_disk of Hugging Face's `datasets` writes.

They are read by pyarrow, of the extra `arrow`. Nothing of a table is run, and no path in it is opened.
"""

import importlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from clbench.config.errors import ConfigError
from clbench.scenarios.encoded import Content, Encoded, Listed, found_images, too_large
from clbench.scenarios.files import Found, content_digests
from clbench.scenarios.layouts import PART_NAMES, Asked, Row, column, encoded_of, part_of, same_files

ROWS = 32  # images in memory at a time
MOST_GROUP_BYTES = 1 << 32  # of a group of rows, as its file claims
MOST_ROWS = 1 << 31


class Shard(NamedTuple):
    """A file of a table, and the part of the data set that it holds, None where nothing says so."""

    path: Path
    part: int | None


def _arrow() -> ModuleType:
    try:
        return importlib.import_module("pyarrow")
    except ModuleNotFoundError:
        raise ConfigError("tables of Arrow and Parquet need pyarrow; pip install 'clbench[arrow]' brings it") from None


def find_parquet(paths: Sequence[Path], origin: Path, asked: Asked) -> Found:
    """Return the data set in Parquet files with a column of images and one of labels.

    Images are bytes, or Hugging Face's pairs of bytes and path. The name of a file tells its part, as of tar files.
    Raises ConfigError for another schema.
    """
    _arrow()
    return _found([Shard(path, part_of(path)) for path in paths], origin, asked, "Parquet")


def find_arrow(folder: Path, asked: Asked) -> Found:
    """Return the data set that `save_to_disk` wrote into a folder, with or without parts; raises ConfigError."""
    _arrow()
    shards = []
    splits = [""]
    if (folder / "dataset_dict.json").is_file():
        splits = _strings(_json(folder / "dataset_dict.json").get("splits"), folder / "dataset_dict.json")
    for split in splits:
        about = folder / split / "state.json"
        files = _json(about).get("_data_files")
        names = [entry.get("filename") if isinstance(entry, dict) else None for entry in files or ()]
        if split and split.lower() not in PART_NAMES:
            raise ConfigError(f"{folder} has the part {split!r}; train, validation and test are accepted")
        paths = [folder / split / name for name in _strings(names, about)]
        shards += [Shard(path, PART_NAMES[split.lower()] if split else None) for path in paths]
    for shard in shards:
        if not shard.path.is_file():
            raise ConfigError(f"{shard.path} is named in {folder} and not there")
    return _found(shards, folder, asked, "Arrow")


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > 1 << 24:
            raise ValueError("more than 16 MB")
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    return found


def _strings(names: Any, what: Path) -> list[str]:
    """Return the names of files in a folder; raises ConfigError for others, such as paths that lead out of it."""
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{what} names no files or parts; a list of names is accepted")
    for name in names:
        if name != Path(name).name or name in (".", "..") or "\\" in name or "\0" in name:
            raise ConfigError(f"{what} names {name!r}; files in its own folder are accepted")
    return names


def _found(shards: list[Shard], origin: Path, asked: Asked, kind: str) -> Found:
    paths = [shard.path for shard in shards]
    layout = f"{len(shards):,} {kind} files"
    return found_images(origin, layout, paths, partial(_listed, shards, origin, asked), asked.size, asked.skip)


def _listed(shards: list[Shard], origin: Path, asked: Asked) -> Listed:
    pa = _arrow()
    paths = [shard.path for shard in shards]
    digests, rows, image, classes = content_digests(paths), list[Row](), "", None
    for shard in shards:
        try:
            schema = _schema(shard.path)
            image = _image_column(schema, asked, shard.path)
            label = column("label", schema.names, asked.columns, shard.path)
            split = column("split", schema.names, asked.columns, shard.path, needed=False)
            classes = _class_names(schema, label)
            kind = schema.field(label).type
            if not (pa.types.is_integer(kind) or _is_text(kind)):
                raise ConfigError(f"{shard.path}: the column {label} is {kind}; whole numbers or text are accepted")
            wanted, first = [label, *([split] if split else [])], len(rows)
            for batch in _batches(shard.path, wanted):
                labels = batch.column(0).to_pylist()
                splits = batch.column(1).to_pylist() if split else [None] * len(labels)
                for value, own in zip(labels, splits, strict=True):
                    rows.append(_row(value, own, shard, len(rows) - first, split))
        except ConfigError:
            raise
        except Exception as error:  # pyarrow raises almost anything on a damaged file
            raise ConfigError(f"{shard.path} is not a readable table: {error or type(error).__name__}") from error
    contents = partial(_contents, paths, digests, image)
    encoded: Encoded = encoded_of(origin, rows, contents, b"".join(digests), asked, classes)
    return Listed(encoded, {})


def _row(value: Any, own: Any, shard: Shard, number: int, split: str) -> Row:
    name = f"{shard.path.name}:{number}"
    if value is None or value == "":
        raise ConfigError(f"{shard.path} has no label in row {number}; each image needs one")
    part = shard.part
    if own is not None or split:
        if not isinstance(own, str) or own.lower() not in PART_NAMES:
            raise ConfigError(f"{shard.path} has the {split} {own!r}; train, val and test are accepted")
        part = PART_NAMES[own.lower()]
    return Row(name, value, part, "")


def _is_text(kind: Any) -> bool:
    pa = _arrow()
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: Any) -> bool:
    pa = _arrow()
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _image_column(schema: Any, asked: Asked, what: Path) -> str:
    """Return the column of encoded images; raises ConfigError."""
    pa = _arrow()

    def fits(name: str) -> bool:
        kind = schema.field(name).type
        if not pa.types.is_struct(kind):
            return _is_bytes(kind)
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        return "bytes" in fields and _is_bytes(fields["bytes"])

    if len(set(schema.names)) < len(schema.names):
        raise ConfigError(f"{what} has a column twice; its columns are {', '.join(schema.names[:12])}")
    fitting = [name for name in schema.names if fits(name)]
    if "image" in asked.columns or len(fitting) != 1:
        name = column("image", schema.names, asked.columns, what)
        if not fits(name):
            kind = str(schema.field(name).type)[:60]
            raise ConfigError(f"{what}: the column {name} is {kind}; encoded images, as bytes, are accepted")
        return name
    return str(fitting[0])


def _class_names(schema: Any, label: str) -> list[str] | None:
    """Return the names of classes that Hugging Face's `datasets` writes into a schema."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        names = about["info"]["features"][label]["names"]
        return names if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None
    except (LookupError, TypeError, ValueError, RecursionError):
        return None


def _schema(path: Path) -> Any:
    pa = _arrow()
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as parquet

        with parquet.ParquetFile(path) as file:
            about = file.metadata
            sizes = [about.row_group(i).total_byte_size for i in range(about.num_row_groups)]
            largest = max(sizes, default=0)
            if not 0 <= about.num_rows <= MOST_ROWS or largest > MOST_GROUP_BYTES or min(sizes, default=0) < 0:
                raise ConfigError(
                    f"{path} claims {about.num_rows:,} rows and groups of up to {largest:,} bytes; at most "
                    f"{MOST_ROWS:,} and {MOST_GROUP_BYTES:,} are accepted"
                )
            return file.schema_arrow
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
        return reader.schema


def _batches(path: Path, columns: list[str]) -> Iterator[Any]:
    """Give a table's columns in parts of a few rows."""
    pa = _arrow()
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as parquet

        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS, columns=columns, use_threads=False):
                yield batch.select(columns)
        return
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
        for batch in reader:
            picked = batch.select(columns)
            # The file may hold no valid array.
            picked.validate(full=True)
            for start in range(0, len(picked), ROWS):
                yield picked.slice(start, ROWS)


def _contents(paths: Sequence[Path], digests: Sequence[bytes], image: str) -> Iterator[Content]:
    """Give the contents of images; the files must still be those that were digested when all are read."""
    for path in paths:
        try:
            for batch in _batches(path, [image]):
                for value in batch.column(0):
                    yield partial(_content, value)
        except Exception as error:  # pyarrow raises almost anything on a damaged file
            raise ConfigError(f"{path} is not a readable table: {error or type(error).__name__}") from error
    same_files(paths, digests)


def _content(value: Any) -> bytes | str:
    found = value.as_py()
    found = found.get("bytes") if isinstance(found, dict) else found
    if found is None:
        return "holds no image, or only its path"
    return too_large(len(found)) or bytes(found)
