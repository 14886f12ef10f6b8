"""Paths as people type them, and files that are written in one step, so that no reader ever finds half a file."""

import os
import uuid
from pathlib import Path

from clbench.config.errors import ConfigError

MOST_BYTES = 10_000_000


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home folder in the place of `~` or `~user`; raises ConfigError where there is none."""
    text = os.path.expanduser(os.fspath(path))
    if text.startswith("~") and not os.path.lexists(text):
        raise ConfigError(f"{text}: there is no such home folder; ./{text} means a file of that name")
    found = Path(text)
    # A file of such a name is itself when its path is read again.
    return found.absolute() if str(found).startswith("~") else found


def write_atomically(
    path: str | os.PathLike[str], data: bytes | str, *, previous: str | os.PathLike[str] | None = None
) -> None:
    """Write `data` (text as UTF-8) to `path` in one step, creating its folder; raises OSError when it can't.

    The old content stays until the new one is on the disk, and is kept as `previous` if that is given.
    """
    path = expanded(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A plain open, not tempfile: its files are readable by their owner only, and the replacement keeps that.
    unfinished = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(unfinished, "xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):
        # The new name is on the disk only when its folder has been flushed too.
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_small(path: Path) -> str:
    """Return the text of a file that a person wrote; raises OSError, and ValueError for more than 10 MB."""
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES // 10**6} MB")
    # Some editors begin a file with a byte order mark.
    return content.decode("utf-8-sig")


def remove_unfinished(folder: Path) -> None:
    """Remove the files of a process that was killed while writing; no other process may be writing there."""
    for unfinished in folder.glob(f".{'[0-9a-f]' * 32}.tmp"):
        unfinished.unlink(missing_ok=True)
