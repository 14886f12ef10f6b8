"""The features of a frozen backbone, computed once and kept in the cache under a digest of all that decides them.

The folder of an entry holds the features as float32 rows, and a file that says what they are, with a checksum of each
chunk of rows. Chunks that are missing or damaged are computed, all others are kept: so a first pass, one that goes on
after an interruption and the repair of a file that was cut are the same thing. One process computes at a time, and
those that want the same features wait for it. What is whole is mapped into memory.
"""

import hashlib
import json
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from clbench.config.code import versions
from clbench.config.errors import ConfigError
from clbench.data.sources import Mapped, parts
from clbench.models.pretrained import Pretrained
from clbench.support.cache import ABOUT, cache_folder
from clbench.support.cores import cores
from clbench.support.files import write_atomically
from clbench.support.locks import InUseError, Watched, held
from clbench.support.text import tell

FEATURES = "features.f32"
# Part of the digest: another way of computing is another number.
FORM = 1
PACKAGES = ("clbench", "torch", "torchvision", "timm")
# Images of a chunk, and of one forward pass of a thread of the CPU.
CHUNK, PART = 128, 32
# Seconds between two writes of the checksums, which an interruption at most loses, and between two looks at a lock.
WRITE_EVERY, LOOK_EVERY = 2.0, 0.2


@dataclass(frozen=True)
class FrozenFeatures:
    """The features that a frozen network gives to images, kept in the cache.

    network: on the device and in the memory format in which it is used; it goes into eval mode.
    pixels: turns images, uint8 [B, C, H, W] on the network's device, into what the network is given.
    settings: what else decides the bits of a feature, by name; it is part of the digest.
    autocast: the context of a forward pass.
    told: is called with the numbers of images that are done and of all, after each chunk; it is called without the
        first, None, while another process computes them.

    On a CPU the images go in parts of 32, each in one thread, so that the number of threads changes no bit.
    """

    network: Pretrained
    pixels: Callable[[Tensor], Tensor]
    settings: Mapping[str, str]
    autocast: Callable[[], AbstractContextManager[Any]]
    told: Callable[[int | None, int], None]

    def of(self, images: Tensor | Mapped, what: str) -> tuple[Tensor, str]:
        """Return the features of images, uint8 [N, C, H, W] on the CPU, as float32 [N, D], and their digest.

        They are mapped from disk. what: the images in words, for the list of the cache. Raises ConfigError where the
        cache can't keep or read them.
        """
        entry = _Entry(self._digest(images), len(images), self.network.feature_dim, what)
        try:
            self._complete(entry, images)
            return entry.mapped(), entry.key
        except OSError as error:
            raise ConfigError(
                f"{entry.folder} can't keep {entry.bytes:,} bytes of features ({error.strerror or error}); "
                "CLBENCH_CACHE=FOLDER on a disk with room, or --no-cache-features, is accepted"
            ) from error

    def lacking(self, images: Tensor | Mapped) -> int:
        """Return how many features of images the cache does not hold."""
        entry = _Entry(self._digest(images), len(images), self.network.feature_dim, "")
        return sum(entry.rows(chunk) for chunk in entry.missing())

    def seconds(self, images: Tensor) -> float:
        """Return how long the features of an image take, by those of a few images that are computed twice."""
        # The first pass warms caches up.
        with self.passing() as features:
            for _ in range(2):
                started = time.perf_counter()
                features(images)
        return (time.perf_counter() - started) / len(images)

    def _complete(self, entry: "_Entry", images: Tensor | Mapped) -> None:
        """Compute what the entry lacks, or wait for the process that does."""
        watched, missing = Watched(entry.folder), entry.missing()
        while missing:
            entry.folder.mkdir(parents=True, exist_ok=True)
            if watched.is_free():
                try:
                    with held(entry.folder):
                        # Another process may have been here between the two looks.
                        if missing := entry.missing():
                            self._compute(entry, images, missing)
                        return
                except InUseError:
                    pass
            self.told(None, entry.n)
            time.sleep(LOOK_EVERY)

    def _compute(self, entry: "_Entry", images: Tensor | Mapped, missing: list[int]) -> None:
        """Compute chunks and write them; what is written is kept if this is interrupted."""
        if entry.remark:
            tell(f"{entry.folder} {entry.remark}")
        needed, free = entry.bytes - entry.bytes_there, shutil.disk_usage(entry.folder).free
        if needed > free:
            raise OSError(f"{free:,} bytes are free")
        done, wrote = entry.n - sum(entry.rows(chunk) for chunk in missing), time.monotonic()
        self.told(done, entry.n)
        try:
            with entry.opened() as file, self.passing() as features:
                for chunk in missing:
                    computed = features(images[chunk * CHUNK : (chunk + 1) * CHUNK])
                    entry.put(file, chunk, computed.numpy().tobytes())
                    done += len(computed)
                    self.told(done, entry.n)
                    if time.monotonic() - wrote > WRITE_EVERY:
                        entry.write()
                        wrote = time.monotonic()
        finally:
            entry.write()

    @contextmanager
    def passing(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Give the function that maps images, uint8 [B, C, H, W], to features, float32 [B, D], both on the CPU."""
        device = next(self.network.parameters()).device
        self.network.eval()

        def of_part(part: Tensor) -> Tensor:
            # Modes and numbers of threads are those of a thread.
            if device.type == "cpu":
                torch.set_num_threads(1)
            with torch.inference_mode(), self.autocast():
                return self.network.features(self.pixels(part.to(device))).float().cpu()

        if device.type != "cpu":
            yield of_part
            return
        threads = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(cores()) as pool:
                yield lambda images: torch.cat(list(pool.map(of_part, images.split(PART))))
        finally:
            # New threads take over the last number that was set anywhere.
            torch.set_num_threads(threads)

    def _digest(self, images: Tensor | Mapped) -> str:
        of_network = [*self.network.named_parameters(), *self.network.named_buffers()]
        tensors = {name: tensor for name, tensor in of_network if not name.startswith("head.")}
        settings = sorted({**self.settings, **versions(PACKAGES)}.items())
        state = hashlib.sha256(f"{FORM} {settings} {self.network.preprocessing!r}".encode())
        for name, source in [*tensors.items(), ("", images)]:
            state.update(f"{name} {source.dtype} {tuple(source.shape)}".encode())
            # Images may be on disk, so they are read in parts; a number has no rows to cut.
            for part in parts(source) if source.ndim else [source[...]]:
                state.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return state.hexdigest()[:32]


class _Entry:
    """The folder of n features of some width in the cache, and which chunks of them it holds whole."""

    def __init__(self, key: str, n: int, width: int, what: str) -> None:
        self.folder = cache_folder() / f"features-{key}"
        self.key, self.n, self.width, self.what = key, n, width, what
        self.bytes = 4 * n * width
        # The fault of an entry that is there; and the checksum of each chunk, None for one that is not there.
        self.remark = ""
        self._sums: list[int | None] = []

    @property
    def bytes_there(self) -> int:
        """The length of the file of features."""
        return (self.folder / FEATURES).stat().st_size if (self.folder / FEATURES).exists() else 0

    def rows(self, chunk: int) -> int:
        """Return the number of features in a chunk."""
        return min(CHUNK, self.n - chunk * CHUNK)

    def missing(self) -> list[int]:
        """Return the chunks that are not there or damaged, and remark what was wrong."""
        chunks = range(-(-self.n // CHUNK))
        self._sums = [None for _ in chunks]
        try:
            about = json.loads((self.folder / ABOUT).read_bytes())
            ours, sums = about["key"] == self.key, list(about["sums"])
        except (OSError, ValueError, TypeError, LookupError):
            if (self.folder / FEATURES).exists():
                self.remark = "does not say what it holds, and is made anew"
            return [*chunks]
        if not ours or len(sums) != len(chunks):
            self.remark = "belongs to other weights, images or settings, and is made anew"
            return [*chunks]
        if (self.folder / FEATURES).exists():
            with (self.folder / FEATURES).open("rb") as file:
                found = [zlib.crc32(file.read(4 * self.width * self.rows(chunk))) for chunk in chunks]
            self._sums = [one if one == other else None for one, other in zip(sums, found, strict=True)]
        if lost := sum(self.rows(i) for i in chunks if sums[i] is not None and self._sums[i] is None):
            self.remark = f"was cut or damaged; {lost:,} of its {self.n:,} features are made anew"
        return [chunk for chunk in chunks if self._sums[chunk] is None]

    def opened(self) -> IO[bytes]:
        """Open the file of features to write chunks into it."""
        path = self.folder / FEATURES
        return path.open("r+b" if path.exists() else "w+b")

    def put(self, file: IO[bytes], chunk: int, features: bytes) -> None:
        """Write a chunk."""
        file.seek(4 * self.width * CHUNK * chunk)
        file.write(features)
        file.flush()
        self._sums[chunk] = zlib.crc32(features)

    def write(self) -> None:
        """Write down which chunks are there."""
        done = sum(self.rows(chunk) for chunk, one in enumerate(self._sums) if one is not None)
        about = {"what": self.what, "images": self.n, "done": done, "key": self.key, "sums": self._sums}
        write_atomically(self.folder / ABOUT, json.dumps(about))

    def mapped(self) -> Tensor:
        """Return the features, float32 [n, width]; what is written into them stays in this process."""
        mapped = np.memmap(self.folder / FEATURES, np.float32, mode="c", shape=(self.n, self.width))
        return torch.from_numpy(mapped)
