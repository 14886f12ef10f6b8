"""A network of the user's own, by its file or handed over, is a network like every other.

Networks here repeat the built-in `mlp:8` layer by layer, so their runs must give its numbers, bit for bit.
"""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from shared import StopAt, StoppedError
from torch import Tensor, nn

import clbench
from clbench.cli import main
from clbench.models import Network
from clbench.running.resolve import resolve

SCENARIO = "split-mnist-5k"
SMALL: dict[str, Any] = {"limit": 10, "epochs": 1, "batch_size": 8, "threads": 1}
WORDS = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
FILE = """
import math
from torch import nn
from clbench.models import Network

def layer(i, o):
    return nn.Sequential(nn.Flatten(), nn.Linear(i, o), nn.ReLU())

class Net(Network):
    def __init__(self, image_shape, *, width: int = 8):
        super().__init__([layer(math.prod(image_shape), width)], feature_dim=width)

class Plain(nn.Module):
    pass
"""


class Tiny(Network):
    """mlp:8 once more."""

    def __init__(self, image_shape: tuple[int, int, int], *, width: int = 8) -> None:
        layers = nn.Sequential(nn.Flatten(), nn.Linear(image_shape[1] * image_shape[2], width), nn.ReLU())
        super().__init__([layers], feature_dim=width)


class Double(nn.Flatten):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.double())


class Precise(Tiny):
    """mlp:8 in float64."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape)
        self.backbone[0][0] = Double()
        self.double()


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with net.py, in which the test stands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(FILE)
    return tmp_path


def rows(result: clbench.Result) -> str:
    return str(result.accuracy.tolist())


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of the command line."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    printed = capsys.readouterr()
    return int(str(ended.value.code)), printed.out, printed.err


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> clbench.Result:
    return clbench.run(SCENARIO, "naive", model="mlp:8", out=tmp_path_factory.mktemp("run"), **SMALL)


@pytest.mark.parametrize("model", ["net.py:Net", "net.py:Net[width=8]", Tiny], ids=str)
def test_it_gives_the_numbers_of_the_same_layers_built_in(model: Any, net: Path, built_in: clbench.Result) -> None:
    result = clbench.run(SCENARIO, "naive", model=model, out="run", **SMALL)
    assert rows(result) == rows(built_in)
    assert result.recorded.identity != built_in.recorded.identity


def test_every_verb_takes_it(net: Path, built_in: clbench.Result, capsys: pytest.CaptureFixture[str]) -> None:
    """run, compare, sweep and plan; what the first has done is the same run in the others."""
    by_file = ["--model", "net.py:Net", *WORDS]
    code, out, err = called(capsys, "run", SCENARIO, "naive", *by_file, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["accuracy"]["class_incremental"] == built_in.record["accuracy"]["class_incremental"]
    code, _, err = called(capsys, "compare", SCENARIO, "naive", *by_file, "--seeds", "1", "--no-references")
    assert code == 0
    assert "1 of 1 runs reused" in err
    grid = f'scenario = "{SCENARIO}"\nstrategy = "naive"\nseeds = 1\nmodel = ["net.py:Net", "mlp:8"]\n'
    Path("grid.toml").write_text(grid + "".join(f"{k} = {v}\n" for k, v in SMALL.items()))
    code, out, err = called(capsys, "sweep", "grid.toml")
    assert code == 0
    assert "1 done now, 1 done before" in out
    code, out, _ = called(capsys, "plan", SCENARIO, "naive", *by_file, "--json")
    assert (code, json.loads(out)[0]["updates"]) == (0, built_in_updates(built_in))
    assert "path/to/net.py:Net" in called(capsys, "list", "models")[1]


def built_in_updates(result: clbench.Result) -> int:
    return sum(task["steps"] for task in result.record["tasks"])


@pytest.mark.parametrize("strategy", ["hat", "pnn", "ranpac[projections=20]", "slca"])
def test_methods_with_tensors_of_their_own_take_a_network_in_float64(strategy: str, tmp_path: Path) -> None:
    setting = "task" if strategy in ("hat", "pnn") else "class"
    result = clbench.run(f"{SCENARIO}[setting={setting}]", strategy, model=Precise, out=tmp_path, **SMALL)
    assert len(result.accuracy) == 5


def test_a_sweep_takes_classes_and_names_them(net: Path) -> None:
    grid = {"scenario": SCENARIO, "strategy": "naive", "model": [Tiny, "mlp:8"], "seeds": 1, **SMALL}
    results = clbench.sweep(grid)
    assert [result.strategy for result in results] == ["naive[model=Tiny]", "naive[model=mlp:8]"]
    assert rows(results[0]) == rows(results[1])


class Other:
    pass


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("net.py:Nett", ("unknown class or function in net.py 'Nett'", "'Net'")),
        ("other.py:Net", ("there is no file other.py", "path/to/file.py:Class")),
        ("net.py:", ("net.py",)),
        ("net.py", ("names no class", "net.py:Class")),
        ("net.py:Plain", ("no features()", "a subclass of clbench.models.Network")),
        ("net.py:layer", ("a subclass of clbench.models.Network",)),
        ("net.py:Net[widht=8]", ("unknown option of net.py:Net", "'width'")),
        ("net.py:Net[width=wide]", ("width=wide", "integer")),
        ("net.py:Net[width=8,width=9]", ("width given twice",)),
        (nn.Linear, ("no features()", "a subclass of clbench.models.Network")),
        (nn.Linear(2, 2), ("no features()", "a subclass of clbench.models.Network")),
        (Tiny((1, 4, 4)), ("the class Tiny itself",)),
        (Other, ("a subclass of clbench.models.Network",)),
        (Other(), ("a subclass of clbench.models.Network",)),
        (8, ("8", "a subclass of clbench.models.Network")),
        ([Tiny], ("a subclass of clbench.models.Network",)),
        (type("mlp", (Tiny,), {}), ("mlp", "registered", "clbench.models.mlp:MLP", "another name")),
    ],
    ids=lambda v: re.sub(" at 0x.*", "", str(v))[:30],
)
def test_what_is_no_network_is_refused_in_one_sentence(
    model: Any, words: tuple[str, ...], net: Path, refused: Any
) -> None:
    with refused(*words):
        clbench.run(SCENARIO, "naive", model=model, **SMALL)
    assert not (net / "runs").exists()


@pytest.mark.parametrize(
    ("constructor", "words"),
    [
        ("def __init__(self): pass", ("Net(image_shape, *, options)", "TypeError")),
        ("def __init__(self, image_shape, *, width=8): pass", ("option width has no type", "width: int = 8")),
        ("def __init__(self, image_shape, *, width: int): pass", ("width is required",)),
        ("def __init__(self, image_shape): pass", ("AttributeError", "[1, 28, 28]")),
        ("def __new__(cls, image_shape): return 5", ("[1, 28, 28]",)),
        (
            "def __init__(self, image_shape): super().__init__([nn.Flatten(), nn.LazyLinear(8)], 8)",
            ("backbone.1.weight has no shape before the first image", "layers of a known size"),
        ),
        (
            "def __init__(self, image_shape): raise KeyError('no such layer')",
            ("KeyError: 'no such layer'", "[1, 28, 28]"),
        ),
    ],
)
def test_a_constructor_that_can_not_be_called_is_refused_in_one_sentence(
    constructor: str, words: tuple[str, ...], net: Path, refused: Any
) -> None:
    Path("wrong.py").write_text(
        f"from torch import nn\nfrom clbench.models import Network\nclass Net(Network):\n    {constructor}\n"
    )
    for verb in (clbench.run, clbench.compare):
        with refused(*words):
            verb(SCENARIO, "naive", model="wrong.py:Net", **SMALL)


def test_its_code_counts_and_not_where_it_lies(net: Path) -> None:
    """An edit of a layer makes another run, a copy of the file elsewhere the same, and so do options that are equal."""

    def identity(model: Any) -> str:
        return resolve(SCENARIO, "naive", {"model": model}).identity()

    first = identity("net.py:Net")
    (net / "copy").mkdir()
    (net / "copy" / "net.py").write_text(FILE)
    assert identity("copy/net.py:Net") == first
    Path("net.py").write_text(FILE.replace("nn.ReLU()", "nn.Tanh()"))
    assert identity("net.py:Net") != first
    handed = identity(Tiny)
    assert handed == identity(Tiny)
    assert handed != identity(type("Tiny", (Tiny,), {"features": lambda self, images: 2 * self.backbone(images)}))


def test_strategy_and_network_may_stand_in_one_file(net: Path, built_in: clbench.Result) -> None:
    more = "from clbench import Strategy, Traits\nclass Mine(Strategy):\n    traits = Traits(family='replay')\n"
    Path("net.py").write_text(FILE + more)
    result = clbench.run(SCENARIO, "net.py:Mine", model="net.py:Net", **SMALL)
    assert rows(result) == rows(built_in)
    assert list(result.config["code"]) == ["net.py"]


def test_a_run_with_it_is_continued_to_the_same_numbers(net: Path, built_in: clbench.Result) -> None:
    with pytest.raises(StoppedError):
        clbench.run(SCENARIO, "naive", model="net.py:Net", out="run", observer=StopAt(1), **SMALL)
    result = clbench.run(SCENARIO, "naive", model="net.py:Net", out="run", resume=True, **SMALL)
    assert result.record["resumes"] != []
    assert rows(result) == rows(built_in)


def test_an_entry_point_names_a_network_of_another_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built_in: clbench.Result
) -> None:
    """A package as pip leaves it: a module, and a folder with its name, its version and its entry points."""
    (tmp_path / "net_of_a_package.py").write_text(FILE)
    info = tmp_path / "net_of_a_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: net-of-a-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[clbench.models]\nnet-of-a-package = net_of_a_package:Net\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = clbench.run(SCENARIO, "naive", model="net-of-a-package[width=8]", **SMALL)
    assert rows(result) == rows(built_in)
    assert set(result.config["code"]) == {"net_of_a_package.py:Net", "net_of_a_package.py:layer"}


SCRIPT = (
    FILE
    + """
import clbench

if __name__ == "__main__":
    options = dict(limit=10, epochs=1, batch_size=8, threads=1, model=Net)
    several = clbench.compare("split-mnist-5k", ["naive"], seeds=2, jobs=2, out="two", references=False, **options)
    one = clbench.compare("split-mnist-5k", ["naive"], seeds=2, jobs=1, out="one", references=False, **options)
    print([str(r.accuracy.tolist()) for r in one] == [str(r.accuracy.tolist()) for r in several])
    print(one[0].recorded.identity == several[0].recorded.identity)
"""
)


@pytest.mark.slow
def test_worker_processes_have_a_network_that_is_defined_in_a_script(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    ended = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.stdout == "True\nTrue\n", ended.stderr
