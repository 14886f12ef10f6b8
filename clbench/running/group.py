"""The processes of one run: those that torchrun or Ray has started, or followers that this process starts itself.

The first of them leads: it holds the folder, is observed, saves and answers. The others follow: each is told what to go
on from, does the same run without writing anything, and ends with the leader.
"""

import datetime
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import torch
import torch.distributed as dist

from clbench.config.classes import give, handed_over
from clbench.config.errors import ConfigError, RunError, one_line
from clbench.config.run import RunConfig
from clbench.results.result import Result
from clbench.running.process import process_settings
from clbench.running.resolve import classes_of
from clbench.support.cores import cores
from clbench.support.endings import SIGNALS, is_ignored
from clbench.support.processes import Processes

# Exchanges are over at once where a process is gone; this ends one that waits for a machine that fell silent.
LONGEST_EXCHANGE = datetime.timedelta(hours=2)
# Seconds that a follower has to end when the leader has, and that the reason of an end may take to be known.
FOLLOWERS_END = 5.0
# Processes that may be started on any machine: with fewer cores a run is slow, and does not bring it down.
FEWEST_ACCEPTED = 4
Follow = Callable[..., Result]
# Read by a fresh Python before it can find clbench.
_BEGIN = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from clbench.running.group import follow_leader; follow_leader(sys.stdin.buffer)"
)
# Whether the group that this process is in was started by clbench for the run under way, and is no other run's.
_ours = False


@dataclass
class Beginning:
    """The state of a run that a follower is told: the result in the folder, and its checkpoints (see Store)."""

    found: Result | None
    checkpoints: list[tuple[str, bytes | Exception]]


def outside() -> tuple[int, int]:
    """Return rank and size of the group that torchrun, Ray or the caller has put this process in; 0 and 1 for none.

    Raises ConfigError where the environment names half of one.
    """
    if _ours:
        return 0, 1
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    given = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")}
    if not all(given.values()) or "MASTER_ADDR" not in os.environ:
        return 0, 1
    if not all(value.isdigit() for value in given.values()) or not int(given["RANK"]) < int(given["WORLD_SIZE"]):
        told = " ".join(f"{name}={value}" for name, value in given.items())
        raise ConfigError(f"{told} in the environment; a rank below the number of processes is accepted")
    return int(given["RANK"]), int(given["WORLD_SIZE"])


def follows() -> bool:
    """Whether this process is one that torchrun or Ray has started to follow another."""
    return outside()[0] > 0


def refuse_many(what: str) -> None:
    """Raise ConfigError where processes that were started for one run are asked for many."""
    if (size := outside()[1]) > 1:
        raise ConfigError(
            f"{what} asked for in a group of {size} processes, which do one run together; `clbench run` is accepted"
        )


def with_processes(config: RunConfig) -> RunConfig:
    """Return the config with the number of processes that there are; raises ConfigError where another is given."""
    size = outside()[1]
    if size > 1 and config.engine.processes not in (1, size):
        raise ConfigError(
            f"processes={config.engine.processes} given in a group of {size} processes; {size}, or no number, is "
            "accepted"
        )
    return config.replace(processes=max(size, config.engine.processes))


def device_of(config: RunConfig, processes: Processes) -> torch.device:
    """Return the device of this process: each process of a machine has a GPU to itself."""
    device = torch.device(config.engine.device)
    if device.type != "cuda" or processes.size == 1:
        return device
    return torch.device("cuda", (device.index or 0) + _here(processes.rank, processes.size)[0])


def refuse_devices(config: RunConfig) -> None:
    """Raise ConfigError where there is no device for each process."""
    processes, device = config.engine.processes, torch.device(config.engine.device)
    if processes == 1:
        return
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"processes={processes} given on {device.type}; processes share a run on cpu and cuda alone")
    most = max(FEWEST_ACCEPTED, cores())
    if device.type == "cpu" and outside()[1] == 1 and processes > most:
        raise ConfigError(
            f"processes={processes} given, and each holds the data and a network of its own, on a machine of {cores()} "
            f"cores; at most {most} are accepted"
        )
    if device.type == "cuda":
        there, here = torch.cuda.device_count() - (device.index or 0), _here(0, processes)[1]
        if there < here:
            raise ConfigError(f"processes={processes} given, and each needs a GPU to itself; {there} is accepted here")


def _here(rank: int, size: int) -> tuple[int, int]:
    """Return rank and size of the part of a group that is on this machine."""
    if _ours or "LOCAL_WORLD_SIZE" not in os.environ:
        return rank, size
    return int(os.environ.get("LOCAL_RANK", rank)), int(os.environ["LOCAL_WORLD_SIZE"])


class Group:
    """The processes of one run, seen from one of them; a context that lets go of them.

    config: of the run, with the number of its processes.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        # Rank and size of a group that is there already; our own group is started when the run begins.
        self.rank, self.outside = outside()
        self._followers: list[_Follower] = []
        self._is_ours = False
        # Whether the followers of a group that is there know how it goes on.
        self._told = self.outside == 1 or self.rank > 0
        if self.outside > 1 and not dist.is_initialized():
            # The group is left with the process: addresses of a second one would be mistaken for those of the first.
            _join()

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        global _ours
        try:
            if not self._told:
                # A refusal is an answer for all.
                kind = ConfigError if isinstance(error, ConfigError) else RunError
                self._tell(kind(str(error)))
        finally:
            for follower in self._followers:
                follower.end()
            if self._is_ours:
                _ours = False
                if dist.is_initialized():
                    dist.destroy_process_group()

    def answer(self, result: Result) -> Result:
        """Return the result of a run that was done before, which is the answer for all."""
        if not self._told:
            self._tell(result)
        return result

    def begin(self, beginning: Beginning, follow: Follow, *given: Any) -> Processes:
        """Start the followers, or tell those that wait; return the processes of the run.

        follow: the work of a follower that is started here, called with config, beginning, processes and `given`.
        """
        global _ours
        if self.outside > 1:
            self._tell(beginning)
            return _use(self.config, Processes(0, self.outside))
        if (size := self.config.engine.processes) == 1:
            return Processes()
        self._is_ours = _ours = True
        with _loopback():
            self._store = _store(0, leads=True)
            content = _pickled(self.config, (beginning, self._store.port, follow, given))
            self._followers = [_Follower(rank, content) for rank in range(1, size)]
            while int(self._store.add("ready", 0)) < size - 1:
                if any(follower.has_ended() for follower in self._followers):
                    raise RunError(f"before the run began, {self._why_lost()}")
                time.sleep(0.01)
            _join(store=self._store, rank=0, world_size=size)
        return _use(self.config, Processes(0, size, self._why_lost))

    def follow(self, follow: Follow, *given: Any) -> Result:
        """Do, in a follower of a group that is there, what the leader says; return the result of the run."""
        with _signals_ignored():
            told = _broadcast(None)
            if isinstance(told, Exception):
                raise told
            if isinstance(told, Result):
                return told
            return follow(self.config, told, _use(self.config, Processes(self.rank, self.outside)), *given)

    def _tell(self, what: "Result | Beginning | Exception") -> None:
        self._told = True
        _broadcast(what)

    def _why_lost(self) -> str:
        until = time.monotonic() + FOLLOWERS_END
        while not any(follower.has_ended() for follower in self._followers) and time.monotonic() < until:
            time.sleep(0.01)
        for follower in self._followers:
            if follower.has_ended():
                return f"one of the {1 + len(self._followers)} processes of this run {follower.how_it_ended()}"
        return "an exchange with another process of this run failed"


class _Follower:
    """A process that this one has started; it ends when its standard input does."""

    def __init__(self, rank: int, given: bytes) -> None:
        self.rank = rank
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BEGIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            # Ctrl-C in a terminal is for the leader, which saves first.
            start_new_session=True,
        )
        # A thread writes, since a pipe holds little and the others are to start meanwhile.
        threading.Thread(
            target=self._tell, args=(pickle.dumps(sys.path) + pickle.dumps((rank, given)),), daemon=True
        ).start()

    def _tell(self, content: bytes) -> None:
        with suppress(OSError):
            self._input.write(content)
            self._input.flush()

    @property
    def _input(self) -> BinaryIO:
        stream: Any = self._process.stdin
        found: BinaryIO = stream
        return found

    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def how_it_ended(self) -> str:
        """Say how, once it has."""
        code = self._process.returncode
        if code < 0:
            why = ", as happens when memory runs out" if code == -signal.SIGKILL else ""
            return f"was ended by {signal.Signals(-code).name}{why}"
        self._said.seek(0)
        last = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
        return f"ended: {one_line(last[0], 200)}" if last else f"ended with code {code}"

    def end(self) -> None:
        """End the process and wait for it."""
        with suppress(OSError):
            self._input.close()
        try:
            self._process.wait(FOLLOWERS_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()


def follow_leader(stdin: BinaryIO) -> NoReturn:
    """Do a run as a follower of the process that has started this one and tells it through `stdin` what to do."""
    code = 1
    with _signals_ignored():
        rank, given = pickle.load(stdin)
        threading.Thread(target=_end_with, args=(stdin,), daemon=True).start()
        try:
            _follow(rank, given)
            code = 0
        except BaseException as error:
            text = str(error) if isinstance(error, ConfigError | RunError) else f"{type(error).__name__}: {error}"
            print(one_line(text, 300), file=sys.stderr)
    # The process ends at once and waits for nothing that is left, such as a thread of a library.
    sys.stderr.flush()
    os._exit(code)


def _follow(rank: int, content: bytes) -> None:
    global _ours
    _ours = True
    warnings.simplefilter("ignore")
    try:
        config, classes, rest = pickle.loads(content)
        for kind, cls in classes.items():
            give(kind, cls)
        # Classes of files have to be there before an object of one of them can be read.
        classes_of(config)
        beginning, port, follow, given = pickle.loads(rest)
    except Exception as error:  # of any kind, as it imports what the user's objects are made of
        raise ConfigError(
            f"{type(error).__name__}: {error}; classes of a script, or of a module that can be imported, are accepted"
        ) from error
    size = config.engine.processes
    with _loopback():
        store = _store(port, leads=False)
        store.add("ready", 1)
        _join(store=store, rank=rank, world_size=size)
    with process_settings(config):
        follow(config, beginning, _use(config, Processes(rank, size)), *given)


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """Leave signals to the leader, which saves before it ends, and whose end ends the others."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS if not is_ignored(number)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with(stdin: BinaryIO) -> None:
    with suppress(OSError):
        stdin.read()
    os._exit(1)


def _pickled(config: RunConfig, given: tuple[Any, ...]) -> bytes:
    """Return what a follower is given; classes of a script or a notebook travel with their code. Raises ConfigError."""
    from joblib.externals.loky.backend.reduction import dumps

    names = {"strategy": config.strategy, "model": config.model.name, "scenario": config.scenario}
    try:
        content = bytes(dumps((config, handed_over(names), bytes(dumps(given)))))
    except Exception as error:  # of any kind, as the user's objects may hold anything
        raise ConfigError(
            f"processes={config.engine.processes}: what the run is made of can't be sent to other processes "
            f"({type(error).__name__}: {one_line(str(error), 120)}); processes=1 is accepted"
        ) from error
    return content


def _store(port: int, *, leads: bool) -> Any:
    """Return the store by which the processes of one machine find one another; port 0 is a free one."""
    make: Any = dist.TCPStore  # type: ignore[attr-defined]
    return make("127.0.0.1", port, None, leads, LONGEST_EXCHANGE, wait_for_workers=False)


def _join(**given: Any) -> None:
    """Join the group that the environment names, or that of a store."""
    kinds = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(kinds, timeout=LONGEST_EXCHANGE, **given)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the processes of the run can't reach one another: {one_line(str(error), 200)}") from error


def _use(config: RunConfig, processes: Processes) -> Processes:
    """Give this process its part of the machine: its threads, and its GPU."""
    _, here = _here(processes.rank, processes.size)
    torch.set_num_threads(max(1, (config.engine.threads or torch.get_num_threads()) // here))
    if (device := device_of(config, processes)).type == "cuda":
        torch.cuda.set_device(device)
    return processes


def _broadcast(told: Any) -> Any:
    """Send what the leader says to all, and return it."""
    box = [told]
    try:
        dist.broadcast_object_list(box)
    except RuntimeError as error:
        raise RunError("another process of this run ended before it began") from error
    return box[0]


@contextmanager
def _loopback() -> Iterator[None]:
    """Let processes of one machine talk through its loopback interface; the name of a host may lead nowhere."""
    name = "GLOO_SOCKET_IFNAME"
    before = os.environ.get(name)
    with suppress(OSError, AttributeError):
        os.environ[name] = next(n for _, n in socket.if_nameindex() if n in ("lo", "lo0"))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
