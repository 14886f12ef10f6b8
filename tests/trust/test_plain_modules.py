"""A plain torch.nn.Module, or a function that makes one, is a network once it is said which layer makes its outputs.

The modules repeat the built-in `mlp:8` layer by layer, with a last layer more; their runs give its numbers, since the
layers before draw the same random numbers in the same order, and the last one is replaced by a head that grows.
"""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from shared import StopAt, StoppedError
from torch import nn

import clbench
from clbench.config.errors import ConfigError
from clbench.models import build_model, from_module
from clbench.running.resolve import resolve

SCENARIO = "split-mnist-5k"
SMALL: dict[str, Any] = {"limit": 10, "epochs": 1, "batch_size": 8, "threads": 1}
FILE = """
import torch
from torch import nn
from torch.nn import functional as F
from clbench.models import Network


class Net(nn.Module):
    def __init__(self, n_classes=10, width: int = 8, activation=nn.ReLU):
        super().__init__()
        self.fc1 = nn.Linear(784, width)
        self.act = activation()
        self.fc2 = nn.Linear(width, n_classes)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x.flatten(1))))


class Soft(Net):
    def forward(self, x):
        return F.log_softmax(super().forward(x), dim=1)


def sequence(image_shape, *, width: int = 8):
    c, h, w = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, width), nn.ReLU(), nn.Linear(width, 3))


def nested(width=8):
    net = nn.Module()
    net.body = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU())
    net.top = nn.ModuleDict({"out": nn.Linear(width, 10)})
    net.forward = lambda x: net.top["out"](net.body(x))
    return net


def network(image_shape, *, width: int = 8):
    return Network([nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU())], feature_dim=width)


def number():
    return 5


def untyped(width):
    return nn.Linear(width, 2)


class Twice(Net):
    def forward(self, x):
        h = self.act(self.fc1(x.flatten(1)))
        return self.fc2(h) + self.fc2(h)


class Never(Net):
    def forward(self, x):
        return self.act(self.fc1(x.flatten(1)))


class Bare(nn.Module):
    def forward(self, x):
        return x
"""


class Net(nn.Module):
    """mlp:8 with a last layer of ten outputs."""

    def __init__(self, n_classes: int = 10, width: int = 8) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, width)
        self.fc2 = nn.Linear(width, n_classes)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def sequence() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 3))


def rows(result: clbench.Result) -> str:
    return str(result.accuracy.tolist())


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(FILE)
    return tmp_path


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> clbench.Result:
    return clbench.run(SCENARIO, "lwf", model="mlp:8", out=tmp_path_factory.mktemp("run"), **SMALL)


@pytest.mark.parametrize(
    "model",
    [
        "net.py:Net[head=fc2]",
        "net.py:Net[head=fc2,width=8,n_classes=3]",
        "net.py:Soft[head=fc2]",
        "net.py:sequence[head=3]",
        "net.py:sequence[head=3,width=8]",
        "net.py:network",
        "net.py:network[width=8]",
        from_module(Net, head="fc2"),
        from_module(sequence, head="3"),
        from_module(functools.partial(Net, 3), head="fc2"),
    ],
    ids=str,
)
def test_it_gives_the_numbers_of_the_same_layers_built_in(model: Any, net: Path, built_in: clbench.Result) -> None:
    """lwf keeps a copy of the network, so the copy is saved and restored too."""
    result = clbench.run(SCENARIO, "lwf", model=model, out="run", **SMALL)
    assert rows(result) == rows(built_in)


@pytest.mark.parametrize("model", ["net.py:Soft[head=fc2]", from_module(Net, head="fc2")], ids=str)
def test_a_run_with_it_is_continued_to_the_same_numbers(model: Any, net: Path, built_in: clbench.Result) -> None:
    with pytest.raises(StoppedError):
        clbench.run(SCENARIO, "lwf", model=model, out="run", observer=StopAt(2), **SMALL)
    result = clbench.run(SCENARIO, "lwf", model=model, out="run", resume=True, **SMALL)
    assert result.record["resumes"] != []
    assert rows(result) == rows(built_in)


def test_the_head_and_the_code_belong_to_the_identity(net: Path) -> None:
    def identity(model: Any) -> str:
        return resolve(SCENARIO, "naive", {"model": model}).identity()

    by_file = identity("net.py:Net[head=fc2]")
    assert identity("net.py:Net[head=fc1]") != by_file
    handed = identity(from_module(Net, head="fc2"))
    assert handed == identity(from_module(Net, head="fc2"))
    assert handed != identity(from_module(Net, head="fc1"))
    other = type("Net", (Net,), {"forward": lambda self, x: self.fc2(self.fc1(x.flatten(1)))})
    assert handed != identity(from_module(other, head="fc2"))
    Path("net.py").write_text(FILE.replace("self.act = activation()", "self.act = nn.Tanh()"))
    assert identity("net.py:Net[head=fc2]") != by_file


def test_what_comes_behind_the_last_layer_is_left_out_and_nothing_that_trains_with_it(net: Path) -> None:
    """Features are those before fc2, by hand; the gradient reaches every parameter that is left."""
    model = build_model("net.py:Soft[head=fc2,width=5]", (1, 28, 28), seed=3)
    images = torch.rand(4, 1, 28, 28)
    weight, bias = model.get_parameter("backbone.fc1.weight"), model.get_parameter("backbone.fc1.bias")
    expected = torch.relu(images.flatten(1) @ weight.T + bias)
    assert torch.allclose(model.features(images), expected, atol=1e-6)
    assert model.feature_dim == 5
    model.head.grow(2, torch.Generator())
    model(images).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_photographs_go_through_a_network_of_torchvision(net: Path) -> None:
    Path("photo.py").write_text("import torchvision\ndef make():\n    return torchvision.models.resnet18()\n")
    model = build_model("photo.py:make[head=fc]", (3, 32, 32), seed=0)
    assert (model.feature_dim, len(model.blocks())) == (512, 6)
    assert sum(p.numel() for block in model.blocks() for p in block.parameters()) == sum(
        p.numel() for p in model.backbone.parameters()
    )


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("net.py:Net", ("no features() and no head that grows", "Net[head=LAYER]", "a subclass of")),
        ("net.py:sequence", ("gives a Sequential", "sequence[head=3] with its last layer")),
        ("net.py:Net[head=fc3]", ("unknown layer of Net 'fc3'", "did you mean 'fc2'")),
        ("net.py:Net[head=fc2,widht=3]", ("unknown option of net.py:Net 'widht'", "'width'")),
        ("net.py:Net[head=fc2,width=wide]", ("width=wide", "integer")),
        ("net.py:Net[head=fc2,activation=tanh]", ("unknown option", "activation")),
        ("net.py:network[head=0]", ("gives", "a torch.nn.Module is accepted")),
        ("net.py:number", ("gives 5", "is accepted")),
        ("net.py:untyped[head=0]", ("its parameter width has neither a default nor a type",)),
        ("net.py:Twice[head=fc2]", ("2 times", "used once")),
        ("net.py:Never[head=fc2]", ("0 times",)),
        ("net.py:Bare[head=fc2]", ("unknown layer of Bare 'fc2'",)),
        (Net, ("the class Net", "from_module(Net, head='LAYER')")),
        (Net(), ("each run builds a network of its own", "from_module(Net, head='fc')")),
    ],
    ids=lambda v: str(v)[:40],
)
def test_what_is_missing_or_wrong_is_said(model: Any, words: tuple[str, ...], net: Path, refused: Any) -> None:
    with refused(*words):
        clbench.run(SCENARIO, "naive", model=model, **SMALL)
    assert list(net.rglob("run.json")) == []


def raising(image_shape: tuple[int, int, int]) -> None:
    raise KeyError("no such layer")


def test_the_error_of_a_function_is_told(net: Path, refused: Any) -> None:
    with refused("'raising.network' can't be built for images of [1, 28, 28]", "KeyError: 'no such layer'"):
        clbench.run(SCENARIO, "naive", model=raising, **SMALL)


def test_images_that_do_not_fit_are_refused_with_their_shape(net: Path, refused: Any) -> None:
    with refused("images of [3, 32, 32] don't fit it", "mat1 and mat2"):
        build_model("net.py:Net[head=fc2]", (3, 32, 32), seed=0)


def test_a_network_has_a_head_already(refused: Any) -> None:
    from clbench.models.mlp import MLP

    with refused("the class MLP", "without head=fc it is accepted"):
        from_module(MLP, head="fc")
    with pytest.raises(ConfigError, match="made=5"):
        from_module(5)  # type: ignore[arg-type]


def test_a_comparison_and_a_sweep_take_it(net: Path, built_in: clbench.Result) -> None:
    (result,) = clbench.compare(
        SCENARIO, ["lwf"], seeds=1, references=False, model=from_module(Net, head="fc2"), **SMALL
    )
    assert rows(result) == rows(built_in)
    grid = {"scenario": SCENARIO, "strategy": "lwf", "model": ["net.py:Net[head=fc2]", "mlp:8"], "seeds": 1, **SMALL}
    assert [rows(result) for result in clbench.sweep(grid)] == [rows(built_in)] * 2


SCRIPT = (
    FILE
    + """
import clbench

if __name__ == "__main__":
    model = clbench.models.from_module(Net, head="fc2")
    options = dict(limit=10, epochs=1, batch_size=8, threads=1, references=False)
    for name, jobs, model in (("two", 2, model), ("one", 1, model), ("made", 2, network)):
        results = clbench.compare("split-mnist-5k", ["lwf"], seeds=2, jobs=jobs, out=name, model=model, **options)
        print([str(r.accuracy.tolist()) for r in results])
"""
)


@pytest.mark.slow
def test_worker_processes_have_a_module_that_is_defined_in_a_script(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert len(ended.stdout.splitlines()) == 3, ended.stderr
    assert len(set(ended.stdout.splitlines())) == 1
