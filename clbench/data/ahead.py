"""Reads samples that are on disk before they are needed, in threads beside the one that trains."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise, repeat

from torch import Tensor

from clbench.data.sources import Source, on_disk, when_needed

# Batches that are read while another one is in use.
AHEAD = 2


class Reader:
    """Hands out batches of a source on disk, on its device, in the order in which they are asked for.

    threads: those that read a batch together, two batches ahead; 0: a batch is read when it is needed. The ids are
        known before, so no number depends on it.
    waited: the seconds for which batches were waited for up to now.
    """

    def __init__(self, threads: int) -> None:
        self.threads, self.waited = threads, 0.0
        self._pool: ThreadPoolExecutor | None = None

    def each(self, source: Source, batches: Sequence[Tensor]) -> Iterator[Tensor | None]:
        """Return the samples of each batch of ids, int64 [B] on the CPU; None in its place for a source in memory."""
        if not on_disk(source):
            yield from repeat(None, len(batches))
            return
        # A single batch has nothing to hide behind.
        ahead = AHEAD if self.threads and len(batches) > 1 else 0
        start = self._in_threads if ahead else when_needed
        left, under_way = iter(batches), deque[Callable[[], Tensor]]()
        while True:
            started = time.perf_counter()
            for ids in islice(left, 1 + ahead - len(under_way)):
                under_way.append(source.begin(ids, start))
            if not under_way:
                return
            samples = under_way.popleft()()
            self.waited += time.perf_counter() - started
            yield samples

    def _in_threads(self, n: int, read: Callable[[slice], object]) -> Callable[[], None]:
        """Begin to read n samples, some in each thread; return what waits for them, and raises what a thread raised."""
        self._pool = self._pool or ThreadPoolExecutor(self.threads, "clbench-reading")
        ends = [n * i // self.threads for i in range(self.threads + 1)]
        parts = [self._pool.submit(read, slice(a, b)) for a, b in pairwise(ends)]

        def wait() -> None:
            for part in parts:
                part.result()

        return wait

    def close(self) -> None:
        """End the threads, which give up what nobody waits for; a batch that is asked for later is read at once."""
        self.threads = 0
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
