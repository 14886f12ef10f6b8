"""Bad inputs by the thousand, in this one process: `fuzz.py options|files|calls|classes CASES SEED`.

CASES is the number for each option, kind of file, function (fuzz_calls.py) or kind of class (fuzz_classes.py). Every
case must end in success or in a refusal of one short line, in seconds, and within MEMORY bytes more than the process
had at its start. It prints a line of JSON for each of them: the figures, and what went wrong. A case depends only on
SEED, its target and its number.
"""

import contextlib
import functools
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from fuzz_calls import call_targets
from fuzz_classes import class_targets
from PIL import Image
from shared import network_of

import clbench.running.observer
import clbench.running.run
from clbench import cli
from clbench.cli.options import read_config, scenario_options
from clbench.config.errors import ConfigError
from clbench.config.registry import entry_point_names
from clbench.config.run import INTERNAL
from clbench.config.run import fields as run_fields
from clbench.results.result import Result, load_results
from clbench.running.checkpoint import newest
from clbench.running.folder import RunFolder
from clbench.running.packing import pack, unpack
from clbench.running.resolve import prepare, resolve, scenario_class, strategy_class
from clbench.running.run import execute

SECONDS = 30.0
MEMORY = 3 << 30
LONGEST = 300

Outcome = tuple[int, str]


class Hang(BaseException):
    """A case took too long."""


# Inputs ----------------------------------------------------------------------------------------------------------


WORDS = (
    *("", " ", "\t", "\n", "nan", "NaN", "-nan", "inf", "-inf", "Infinity", "1e400", "-1e400", "1e-400", "5e-324"),
    *("-1", "0", "-0", "1", "2", "3.0", "0.5", "1e3", "0x10", "1_000", "1.", ".1", "+1", "--1", "1-1"),
    *("\uff11\uff12", "\u0663", "\u00b2"),
    *("9" * 30, "-" + "9" * 30, "9" * 5000, "1e" + "9" * 400, "9223372036854775808", "-9223372036854775809"),
    *("4294967296", "1000000000", "1000000001", "none", "None", "null", "true", "True", "false", "yes", "on", "auto"),
    *("[", "]", "[]", "[[]]", "[1,2", "1,2]", "1,2", "1,,2", ",", "1,2,", "1;2", "=", "a=b", "[a=b]", "{", "{}"),
    *("{0}", "%s", "%", "[bold]", "[/]", "[/bold]", "'", '"', "\\", "/", "..", "../..", "~", "~nobody", "-", "--"),
    *("é", "ß", "漢字", "😀", "\u202e", "\u200b", "\udcff", "\x1b[31m", "a" * 400, "é" * 400, "x y", "a\nb"),
    *("mlp:9999999999", "mlp:99999-99999", "resnet32[width=99999]", "1,2,3,4,5,6,7,8,9,0", "50-steps"),
    *("cpu", "all", "epoch", "task", "class", "1:2:3", "mlp:4", "a.py:B", "x.npz", "/", "/dev/null", "/dev/zero"),
)
PLAIN: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 10**9, 10**9 + 1, 2**63, -(2**63) - 1, 10**30, 10**400, 0.5, -0.5, 1e308, 5e-324),
    *(float("nan"), float("inf"), float("-inf"), "", "a", "1", "nan", "é", "😀", "a" * 400, "\x00", [], {}, [[]], [{}]),
    *([1], [1, 2], [1, 1], [-1], [10**30], ["a"], [None], [0.5], [True], {"a": 1}, {"": {}}, [[1, 2], [3]]),
)


def some_text(chance: random.Random, right: list[str]) -> str:
    """Return a text that is usually wrong: a known nuisance, a number, noise, or a correct text with a change."""
    kind = chance.randrange(5)
    if kind == 0:
        return chance.choice(WORDS)
    if kind == 1:
        number = chance.choice((1, -1)) * 10 ** chance.uniform(-20, 20)
        return chance.choice((f"{number:g}", f"{number:.0f}", f"{number!r}"))
    if kind == 2:
        # As on a command line, without NUL.
        return "".join(chance.choice("0123456789-+.,:=[]{}()eE aZ_/\\'\"é😀\n%") for _ in range(chance.randint(1, 12)))
    text = list(chance.choice(right or list(WORDS)))
    for _ in range(chance.randint(1, 3)):
        at = chance.randint(0, len(text))
        text[at : at + chance.randint(0, 2)] = chance.choice(WORDS)
    return "".join(text)


def some_value(chance: random.Random) -> Any:
    """Return a value of JSON of any type."""
    if chance.random() < 0.8:
        return chance.choice(PLAIN)
    inside = [some_value(chance) for _ in range(chance.randint(0, 3))]
    return inside if chance.random() < 0.5 else {chance.choice(WORDS): value for value in inside}


def spoilt(chance: random.Random, content: bytes) -> bytes:
    """Return bytes with a change: cut, flipped, overwritten, lengthened, repeated, or nothing left of them."""
    data = bytearray(content)
    kind = chance.randrange(8)
    if kind == 0:
        return bytes(data[: chance.randint(0, len(data))])
    if kind == 1:
        return chance.randbytes(chance.randint(0, 200))
    if kind == 2:
        return bytes(data) + chance.randbytes(chance.randint(1, 50))
    # Readers decide mostly by bytes near the beginning, and in archives near the end.
    ends = chance.choice((len(data), 64, 512))
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(min(ends, len(data)) or 1) if data else 0
        at = len(data) - 1 - at if kind == 3 and data else at
        if not data:
            break
        if kind in (3, 4):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 5:
            data[at : at + 4] = chance.choice(
                (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")
            )
        elif kind == 6:
            data[at:at] = data[at : at + chance.randint(1, 40)]
        else:
            del data[at : at + chance.randint(1, 40)]
    return bytes(data)


def changed(chance: random.Random, tree: Any) -> Any:
    """Return a nested value with one of its nodes replaced, removed or renamed."""
    if isinstance(tree, dict) and tree and chance.random() < 0.85:
        key = chance.choice(list(tree))
        if chance.random() < 0.15:
            return {k: v for k, v in tree.items() if k != key}
        return {**tree, key: changed(chance, tree[key])}
    if isinstance(tree, list | tuple) and tree and chance.random() < 0.85:
        at = chance.randrange(len(tree))
        return [*tree[:at], *([] if chance.random() < 0.15 else [changed(chance, tree[at])]), *tree[at + 1 :]]
    return some_value(chance)


# Expected outcomes ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise Hang in code that takes too long."""

    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def command(*arguments: str) -> Outcome:
    """Run the command line here; return its exit code and what it said on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(arguments)
        except SystemExit as ended:
            if ended.code in (130, 143):
                raise
            return int(ended.code or 0), err.getvalue()


def reading(read: Callable[[], object]) -> Outcome:
    """Return the exit code and stderr with which the command line would end after reading a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except ConfigError as error:
        return 2, f"clbench: {error}\n"
    return 0, ""


def fault(case: Callable[[], Outcome]) -> tuple[int, str | None]:
    """Do a case; return its exit code and what is wrong with its end, or None."""
    try:
        with limited():
            code, err = case()
    except Hang:
        return -1, f"not done after {SECONDS:g} s"
    except BaseException:
        return -1, traceback.format_exc()
    if code == 0:
        return code, "a traceback" if "Traceback" in err else None
    lines = err.splitlines()
    if code != 2:
        return code, f"exit code {code}: {err}"
    if len(lines) != 1 or not lines[0].startswith("clbench: ") or "Traceback" in err:
        return code, f"not one line: {err}"
    if len(lines[0]) >= LONGEST:
        return code, f"{len(lines[0])} characters: {err}"
    if not lines[0].isprintable():
        return code, f"not printable: {err!r}"
    return code, None


# Options ---------------------------------------------------------------------------------------------------------


# The options that an option needs beside it to be checked.
BESIDE = {
    "milestones": ["--schedule=multistep"],
    "step_epochs": ["--schedule=step"],
    "lr_patience": ["--schedule=plateau", "--validation=0.3"],
    "min_delta": ["--patience=2", "--validation=0.3"],
    "patience": ["--validation=0.3"],
    "schedule_scope": ["--schedule=cosine"],
    "lr_factor": ["--schedule=step", "--step-epochs=1"],
    "nesterov": ["--momentum=0.5", "--optimizer=sgd"],
    "momentum": ["--optimizer=sgd"],
    "loss_outputs": ["--head=full"],
    "memory_policy": ["--memory-size=4"],
    "image_size": [],
}


def option_targets(place: Path) -> dict[str, Callable[[random.Random], Outcome]]:
    """Return for each option how a case of it is made and done."""
    data, photos = place / "tiny.npz", place / "photos"
    tiny_npz(data)
    tiny_photos(photos)

    def of_field(name: str) -> Callable[[random.Random], Outcome]:
        field = {**scenario_options(), **run_fields()}[name]
        right = [str(field.default), *[str(c) for c in getattr(field.annotation, "__args__", ()) if isinstance(c, str)]]
        scenario = photos if name == "image_size" else "permuted-mnist-5k" if name == "padding" else data
        pairs = scenario_class(str(scenario)).pairs()
        displaced = {b for pair in pairs for a, b in (pair, pair[::-1]) if a == name}
        quick = {"model": "mlp:4", "epochs": "1", "threads": "1", "tasks": "2", "offline": ""}
        base = [f"--{k}={v}" if v else f"--{k}" for k, v in quick.items() if k != name and k not in displaced]
        strategy = "er" if name.startswith("memory") else "naive"

        def case(chance: random.Random) -> Outcome:
            beside = [*base, *BESIDE.get(name, [])]
            if field.annotation is bool or chance.random() < 0.4:
                file = place / "config.json"
                file.write_text(json.dumps({name: some_value(chance)}), "utf-8")
                given = [f"--config={file}"]
            else:
                given = [f"--{name.replace('_', '-')}={some_text(chance, right)}"]
            if name == "offline":
                beside.remove("--offline") if "--offline" in beside else None
            if chance.random() < 0.2 and name in ("tasks", "task_sizes", "class_order", "limit", "validation", "seed"):
                cut = ["--tasks=2"] if "--tasks=2" in base else []
                return command("describe", str(data), *[g for g in given if "--config" not in g], *cut, "--json")
            return command("run", str(scenario), strategy, *given, *beside, "--quiet", "--json")

        return case

    def of_word(right: list[str], *line: str) -> Callable[[random.Random], Outcome]:
        def case(chance: random.Random) -> Outcome:
            text = some_text(chance, right)
            return command(*(word.replace("{}", text) if "{}" in word else word for word in line))

        return case

    def of_strategy(name: str) -> Callable[[random.Random], Outcome]:
        options = list(strategy_class(name)._options.model_fields)
        scenario = str(data)
        setting = strategy_class(name).traits.settings[0]

        def case(chance: random.Random) -> Outcome:
            key = chance.choice(options) if options and chance.random() < 0.9 else some_text(chance, options)
            value = some_text(chance, ["1", "0.5", "true"])
            at = [f"{name}[{key}={value}]"] if chance.random() < 0.3 else [name, "-p", f"{key}={value}"]
            network = network_of(name, "mlp:4")["model"]
            quick = [
                "--epochs=1",
                "--threads=1",
                "--tasks=2",
                "--offline",
                f"--model={network}",
                f"--setting={setting}",
            ]
            return command("run", scenario, *at, *quick, "--quiet", "--json")

        return case

    fields = [name for name in (*scenario_options(), *run_fields()) if name not in INTERNAL]
    quick = ("--model=mlp:4", "--epochs=1", "--threads=1", "--tasks=2", "--offline", "--quiet", "--json")
    strategies = list(entry_point_names("clbench.strategies"))
    scenarios = [*entry_point_names("clbench.scenarios"), str(data)]
    words = {
        "SCENARIO": of_word(scenarios, "describe", "{}", "--offline"),
        "STRATEGY": of_word(strategies, "run", str(data), "{}", *quick),
        "--like": of_word(["lwf-2016", "icarl-2017"], "run", "--like={}", "--offline", "--quiet"),
        "--out": of_word(["runs/a"], "run", str(data), "naive", f"--out={place}/outs/{{}}", *quick),
        "--config": of_word([str(data)], "run", str(data), "naive", "--config={}", *quick),
        "--seeds": of_word(["3", "0,1"], "compare", str(data), "no-such", "--seeds={}", "--offline"),
        "--shard": of_word(["1/3"], "sweep", str(grid_file(place)), "--shard={}", "--dry-run", "--json"),
        "--backend": of_word(["processes"], "sweep", str(grid_file(place)), "--backend={}", "--dry-run", "--json"),
        "--budget": of_word(["10m", "3h"], "reproduce", "no-such", "--budget={}", "--dry-run"),
        "--tier": of_word(["A", "B"], "reproduce", "no-such", "--tier={}", "--dry-run"),
        "--space": of_word(
            ["strength=log:0.1:10", "lr=0.1|0.2"], "tune", "no-such.npz", "lwf", "--space={}", "--quiet"
        ),
        "--protocol": of_word(["oracle"], "tune", "no-such.npz", "lwf", "--protocol={}", "--quiet"),
        "--classes": of_word(["0,1"], "pretrain", "no-such.npz", "--classes={}", f"--out={place}/w.pt", "--quiet"),
        "--family": of_word(["replay"], "list", "strategies", "--family={}"),
        "list": of_word(["models", "claims"], "list", "{}", "--json"),
        "report": of_word([str(place)], "report", "{}", f"--out={place}/report"),
        "VERB": of_word(["run", "report"], "{}"),
    }
    return {
        **{f"--{name.replace('_', '-')}": of_field(name) for name in fields},
        **words,
        **{f"-p of {name}": of_strategy(name) for name in strategies},
    }


def not_trained(run: Any, found: Any) -> Result:
    """Stand in for the training; a wrong option is refused before it."""
    return run.result


# Files -----------------------------------------------------------------------------------------------------------


def tiny_arrays() -> dict[str, Any]:
    """Return 4 classes of 6 training and 2 test images of 4 x 4 pixels."""
    noise = np.random.default_rng(0)
    y_train, y_test = np.repeat(np.arange(4), 6), np.repeat(np.arange(4), 2)
    images = [noise.integers(0, 256, (len(y), 4, 4), dtype=np.uint8) for y in (y_train, y_test)]
    return {"x_train": images[0], "y_train": y_train, "x_test": images[1], "y_test": y_test}


def tiny_npz(path: Path) -> bytes:
    np.savez(path, **tiny_arrays())
    return path.read_bytes()


def tiny_photos(folder: Path) -> list[Path]:
    files = []
    for part, n in (("train", 2), ("test", 1)):
        for name, level in (("cat", 40), ("dog", 200)):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                files.append(folder / part / name / f"{i}.png")
                Image.new("RGB", (8, 6), (level, i, 0)).save(files[-1])
    return files


def grid_file(place: Path) -> Path:
    file = place / "grid.toml"
    file.write_text(
        f'scenario = "{place}/tiny.npz"\nstrategy = ["naive", "er[memory_size=4]"]\nseeds = 2\nlr = [0.1, 0.2]\n'
        'epochs = 1\noffline = true\nmodel = "mlp:4"\ntasks = 2\n\n[strategies.er]\nshare = 0.5\n\n'
        '[[exclude]]\nlr = 0.2\nseed = 1\n\n[[include]]\nstrategy = "lwf"\nseeds = [3]\n',
        "utf-8",
    )
    return file


def hostile_npz(chance: random.Random) -> bytes:
    """Return an archive whose arrays claim missing bytes, or are not numbers."""
    arrays = tiny_arrays()
    name = chance.choice(list(arrays))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for key, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array)
            data = member.getvalue()
            if key == name:
                shapes = ((10**12,), (10**6, 10**6), (-1,), (2**63,), (0, 10**18), (), (1,) * 40, (10**30,))
                descrs = ("|u1", "<i8", "|O", "<f8", "|V1000000000", "<U100000000", "|S0", [("a", "<i8"), ("b", "|O")])
                shape: Any = chance.choice((*shapes, array.shape, "abc", (1.5,), None))
                descr: Any = chance.choice((*descrs, "zz", 3))
                header = repr({"descr": descr, "fortran_order": chance.choice((True, False, 3)), "shape": shape})
                header = chance.choice((header, header, "[" * 5000, "{'a':" * 200, "__import__('os').abort()", ""))
                form = chance.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"))
                size = chance.choice((len(header), 65535, 0)) if form == b"\x01\x00" else len(header)
                packed = struct.pack("<H" if form == b"\x01\x00" else "<I", size)
                data = b"\x93NUMPY" + form + packed + header.encode() + data[-chance.randint(1, 64) :]
            archive.writestr(chance.choice((key, f"{key}.npy", f"../{key}.npy") if key == name else (key,)), data)
        if chance.random() < 0.2:
            archive.writestr(chance.choice(("evil.npy", "x_train.npy", "class_names.npy")), b"\x93NUMPY\x01\x00\xff")
    return content.getvalue()


def hostile_png(chance: random.Random) -> bytes:
    """Return a small PNG that claims to be large, or holds a stream that never seems to end."""
    sizes = ((60000, 60000), (2**31 - 1, 1), (1, 2**31 - 1), (12000, 14000), (0, 5), (9400, 9400), (8000, 8000))
    width, height = chance.choice(sizes)
    depth, colour = chance.choice(((8, 2), (8, 6), (16, 0), (1, 0), (8, 3), (7, 9)))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(chance.choice((10, 100_000_000))), 1))
    pixels = chunk(b"IDAT", zlib.compress(bytes(chance.choice((10, 1_000_000)))))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chance.choice((b"", text)) + pixels + chunk(b"IEND", b"")


def file_targets(place: Path) -> dict[str, Callable[[random.Random], Outcome]]:
    """Return for each kind of file how a case of it is made and read."""
    from clbench.many.sweeps import expand, read_grid
    from clbench.reports.comparison import compare
    from clbench.reports.published import read_claims
    from clbench.reports.run_tables import render_run
    from clbench.scenarios.files import read_idx, read_npz
    from clbench.scenarios.images import find_image_folder

    arrays, npz = tiny_arrays(), tiny_npz(place / "tiny.npz")
    idx = bytes((0, 0, 8, 3)) + struct.pack(">III", *arrays["x_train"].shape) + arrays["x_train"].tobytes()
    file = place / "case"

    def of_bytes(right: bytes, read: Callable[[Path], object], name: str) -> Callable[[random.Random], Outcome]:
        path = place / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(right)
        assert reading(lambda: read(path)) == (0, ""), f"{name} is refused as it is"

        def case(chance: random.Random) -> Outcome:
            path.write_bytes(spoilt(chance, right))
            return reading(lambda: read(path))

        return case

    bomb = gzip.compress(bytes(100_000_000), 1)

    def idx_header(chance: random.Random, zipped: bool) -> Outcome:
        sizes = [chance.choice((0, 1, 4, 24, 2**16, 2**31, 2**32 - 1)) for _ in range(3)]
        data = bytes((0, 0, chance.choice((8, 8, 8, 9)), chance.choice((3, 3, 3, 1, 255)))) + struct.pack(
            ">III", *sizes
        )
        data += chance.randbytes(chance.choice((0, 5, 400)))
        if zipped:
            data = gzip.compress(data, 1) + (bomb if chance.random() < 0.3 else b"")
        file.write_bytes(data)
        return reading(lambda: read_idx(file, 3))

    def npz_header(chance: random.Random) -> Outcome:
        file.write_bytes(hostile_npz(chance))
        return reading(lambda: read_npz(file))

    photos = tiny_photos(place / "photos")
    originals = {path: path.read_bytes() for path in photos}
    pictures = []
    for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        content = io.BytesIO()
        Image.new("RGB", (8, 6), (3, 2, 1)).save(content, form)
        pictures.append(content.getvalue())

    def photo(chance: random.Random) -> Outcome:
        victim = chance.choice(photos)
        hostile = chance.random() < 0.3
        victim.write_bytes(hostile_png(chance) if hostile else spoilt(chance, chance.choice(pictures)))
        try:
            return reading(lambda: find_image_folder(place / "photos", chance.choice((None, 4))).read())
        finally:
            victim.write_bytes(originals[victim])

    def grid(path: Path) -> None:
        requests = expand(read_grid(path), str(path))
        for request in requests[:20]:
            resolve(request.scenario, request.strategy, request.options, shared=True)

    def config(path: Path) -> None:
        fields = {**read_config(path), "offline": True}
        own = fields.pop("strategy_options", {})
        prepare(resolve(str(place / "tiny.npz"), "er", {**fields, "strategy_options": own}))

    toml = (
        b'setting = "class"\ntasks = 2\nepochs = 3\nmilestones = [1, 2]\nschedule = "multistep"\nlr = 0.05\n'
        b'model = "mlp:4-4"\nmemory_size = 8\n[strategy_options]\nshare = 0.5\n'
    )
    claims = Path(read_claims.__code__.co_filename).with_name("claims")
    claim = min(claims.glob("*.toml"), key=lambda path: path.stat().st_size).read_bytes()

    def read_claim(path: Path) -> None:
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            return  # claims come with the package, as text
        read_claims(text, "paper")

    folder = place / "run"
    options = {"tasks": 2, "epochs": 2, "model": "mlp:4", "threads": 1, "offline": True, "batch_size": 4}
    run_config, scenario = prepare(resolve(str(place / "tiny.npz"), "er", options | {"memory_size": 4}))
    execute(run_config, scenario, RunFolder(folder))
    record = (folder / "run.json").read_bytes()

    def look(path: Path) -> None:
        for result in load_results(path):
            io.StringIO().write(str(render_run(result)))
            compare([result])

    def record_tree(chance: random.Random) -> Outcome:
        file.with_suffix(".json").write_text(json.dumps(changed(chance, json.loads(record))), "utf-8")
        return reading(lambda: look(file.with_suffix(".json")))

    def report(chance: random.Random) -> Outcome:
        (place / "reported").mkdir(exist_ok=True)
        tree = json.dumps(changed(chance, json.loads(record))).encode()
        (place / "reported" / "run.json").write_bytes(tree if chance.random() < 0.8 else spoilt(chance, record))
        return command("report", str(place / "reported"), f"--out={place}/report")

    unfinished = place / "unfinished"
    interrupt(run_config, scenario, unfinished)
    checkpoint = (unfinished / "checkpoint.pt").read_bytes()
    kind = strategy_class("er")

    def load(path: Path) -> None:
        newest(RunFolder(path.parent), kind)

    def checkpoint_tree(chance: random.Random) -> Outcome:
        copy = place / "continued"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(unfinished, copy)
        tree = unpack(checkpoint, kind)
        part = chance.choice(("within", "record", None))
        if part is None:
            tree = {**tree, chance.choice([k for k in tree if k != "identity"]): some_value(chance)}
        else:
            tree[part] = changed(chance, tree[part])
        (copy / "checkpoint.pt").write_bytes(pack(tree))
        (copy / "checkpoint-previous.pt").unlink(missing_ok=True)
        given = [f"--{key.replace('_', '-')}={value}" for key, value in options.items() if key != "offline"]
        line = ("run", str(place / "tiny.npz"), "er", "--memory-size=4", *given, "--offline", "--quiet", "--json")
        code, err = command(*line, f"--out={copy}", "--resume")
        if code == 1 and err.startswith("clbench: ") and err.count("\n") == 1:
            return 2, "clbench: what shows only when it is used fails the run, in one line too"
        return code, err

    return {
        "IDX": of_bytes(idx, lambda path: read_idx(path, 3), "case.idx"),
        "IDX, gzipped": of_bytes(gzip.compress(idx), lambda path: read_idx(path, 3), "case.idx.gz"),
        "IDX headers": lambda chance: idx_header(chance, False),
        "IDX headers, gzipped": lambda chance: idx_header(chance, True),
        "NPZ": of_bytes(npz, read_npz, "case.npz"),
        "NPZ headers": npz_header,
        "images": photo,
        "config TOML": of_bytes(toml, config, "case.toml"),
        "config JSON": of_bytes(json.dumps({"epochs": 3, "lr": 0.1, "tasks": 4}).encode(), config, "c.json"),
        "sweep TOML": of_bytes(grid_file(place).read_bytes(), grid, "sweep.toml"),
        "claims TOML": of_bytes(claim, read_claim, "claims.toml"),
        "run.json": of_bytes(record, look, "run.json"),
        "run.json values": record_tree,
        "run.json reported": report,
        "checkpoint.pt": of_bytes(checkpoint, load, "checkpoints/checkpoint.pt"),
        "checkpoint.pt values": checkpoint_tree,
    }


def interrupt(config: Any, scenario: Any, out: Path) -> None:
    """Leave a run unfinished, with a checkpoint inside its second task."""

    class EnoughError(Exception):
        pass

    class Stop(clbench.running.observer.Observer):
        def step(self, progress: Any, loss: float | None) -> None:
            if progress.task == 1 and progress.step == 3:
                raise EnoughError

    config = config.replace(checkpoint_every="1-steps")
    with contextlib.suppress(EnoughError):
        execute(config, scenario, RunFolder(out), observer=Stop())


# All of it -------------------------------------------------------------------------------------------------------


def fuzz(kind: str, cases: int, seed: int, only: str = "") -> Iterator[dict[str, Any]]:
    """Do `cases` cases of each target and yield its figures."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        place = Path(name)
        os.environ["CLBENCH_CACHE"] = str(place / "cache")
        os.fsync = lambda fd: None  # type: ignore[assignment]
        if kind == "options":
            targets = option_targets(place)
            clbench.running.run.Run.go = not_trained  # type: ignore[method-assign]
            # The commands are the same each time, and making them takes half of a case's time.
            cli.typer.main.get_command = functools.cache(cli.typer.main.get_command)
        elif kind == "files":
            targets = file_targets(place)
        else:
            tiny_npz(place / "tiny.npz")
            targets = call_targets(place) if kind == "calls" else class_targets(place)
        process = psutil.Process()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (process.memory_info().vms + MEMORY, hard))
        for target, case in targets.items():
            if only not in target:
                continue
            started, before = time.monotonic(), process.memory_info().rss
            codes: dict[int, int] = {}
            faults = []
            # A report with its plots takes a second.
            number_of = max(1, cases // 10) if "reported" in target else cases
            for number in range(number_of):
                chance = random.Random(f"{seed}/{target}/{number}")
                code, wrong = fault(lambda case=case, chance=chance: case(chance))
                codes[code] = codes.get(code, 0) + 1
                if wrong is not None:
                    faults.append(f"{target} {number}: {wrong}")
            yield {
                "kind": kind,
                "target": target,
                "cases": number_of,
                "accepted": codes.get(0, 0),
                "refused": codes.get(2, 0),
                "faults": faults,
                "megabytes": round((process.memory_info().rss - before) / 1e6),
                "seed": seed,
                "seconds": round(time.monotonic() - started, 1),
            }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for found in fuzz(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]):
        print(json.dumps(found), flush=True)
