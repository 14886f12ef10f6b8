"""Downloads of the known data sets, from torchvision's sources, with its checksums and short timeouts."""

import hashlib
import queue
import sys
import tarfile
import threading
import zlib
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

from clbench.config.errors import ConfigError
from clbench.scenarios.files import atomic_file

ANSWER_SECONDS = 6.0  # to resolve a source's name, to connect, and to get the first of its answer
STALL_SECONDS = 10.0  # the longest pause within an answer
MAX_BYTES = 1 << 30
CHUNK = 1 << 20


class Payload(NamedTuple):
    """A file to download: its name, its addresses in the order of the attempts, and its MD5 sum."""

    name: str
    urls: tuple[str, ...]
    md5: str


def payloads(torchvision_class: str) -> list[Payload]:
    """Return the files that torchvision downloads for one of its data set classes."""
    from torchvision import datasets

    source = getattr(datasets, torchvision_class)
    if hasattr(source, "mirrors"):
        return [Payload(name, tuple(mirror + name for mirror in source.mirrors), md5) for name, md5 in source.resources]
    return [Payload(source.filename, (source.url,), source.tgz_md5)]


def fetch(payload: Payload, folder: Path) -> Path:
    """Download a file into a folder from the first source whose answer has the right MD5 sum; announce each attempt.

    Raises ConnectionError, which lists the outcome of each attempt.
    """
    attempts = []
    for url in payload.urls:
        print(f"clbench: downloading {url} to {folder}", file=sys.stderr, flush=True)
        try:
            with _open(url) as answer, atomic_file(folder / payload.name) as file:
                _copy_checked(answer, file, payload.md5)
            return folder / payload.name
        except (OSError, HTTPException, ValueError) as error:
            attempts.append(f"{url}: {error or type(error).__name__}")
    raise ConnectionError(f"{payload.name} could not be downloaded ({'; '.join(attempts)})")


def _open(url: str) -> Any:
    """Return the answer to a request, or raise within ANSWER_SECONDS.

    It asks in a thread, because a socket's timeout covers neither name resolution nor the sum over a host's addresses.
    """
    outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            outcome.put(urlopen(Request(url, headers={"User-Agent": "clbench"}), timeout=STALL_SECONDS))
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = outcome.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _copy_checked(answer: Any, file: Any, md5: str) -> None:
    digest, start, n_bytes = hashlib.md5(usedforsecurity=False), b"", 0
    while chunk := answer.read(CHUNK):
        start = start or chunk[:64]
        digest.update(chunk)
        n_bytes += len(chunk)
        if n_bytes > MAX_BYTES:
            raise ValueError(f"the answer is longer than {MAX_BYTES:,} bytes")
        file.write(chunk)
    if digest.hexdigest() != md5:
        kind = "an HTML page" if start.lstrip().lower().startswith((b"<!doctype", b"<html")) else f"{n_bytes:,} bytes"
        raise ValueError(f"answered {kind} with the MD5 sum {digest.hexdigest()}, expected {md5}")


def unpack(archive: Path, folder: Path, names: Iterable[str]) -> None:
    """Copy the named regular files, which a tar archive holds under the folder's name, into it, and nothing else.

    Raises ConfigError for a damaged archive or one that lacks a file.
    """
    try:
        with tarfile.open(archive) as tar:
            for name in names:
                member = tar.getmember(f"{folder.name}/{name}")
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise ConfigError(f"{archive}: {member.name} is not a regular file")
                with atomic_file(folder / name) as file:
                    while chunk := content.read(CHUNK):
                        file.write(chunk)
    except (OSError, EOFError, KeyError, zlib.error, tarfile.TarError) as error:
        raise ConfigError(f"{archive} can't be unpacked into {folder}: {error}") from error
