"""One of the processes that torchrun starts for runs in double precision: `one_of_many.py FOLDER RUNS`.

RUNS is JSON, a list of name, strategy, network and options. Each run leaves its folder, and each process the losses
and accuracies that it has found itself.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import clbench
from clbench.models.network import Network

OPTIONS: dict[str, Any] = {
    "limit": 10,
    "epochs": 1,
    "batch_size": 7,
    "optimizer": "sgd",
    "lr": 0.05,
    "momentum": 0.9,
    "threads": 1,
    "tasks": 5,
    "quiet": True,
}


class ToDouble(nn.Module):
    """Casts images, which are float32, as the weights behind it are cast."""

    def forward(self, images: Tensor) -> Tensor:
        return images.double()


class Double(Network):
    """Two layers in double precision, so that rounding can't be taken for a difference."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        pixels = image_shape[0] * image_shape[1] * image_shape[2]
        first = nn.Sequential(ToDouble(), nn.Flatten(), nn.Linear(pixels, 12), nn.ReLU())
        super().__init__([first, nn.Sequential(nn.Linear(12, 8), nn.ReLU())], feature_dim=8)
        self.double()


class DoubleNorm(Network):
    """Two convolutions with batch norm and dropout, in double precision.

    The gradient of a bias before batch norm is zero but for rounding, which Adam would take for a direction.
    """

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        convolutions = [nn.Conv2d(n, 4, 3, 2, bias=False) for n in (image_shape[0], 4)]
        first = nn.Sequential(ToDouble(), convolutions[0], nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3))
        second = nn.Sequential(convolutions[1], nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.Flatten())
        super().__init__([first, second], feature_dim=4 * 6 * 6)
        self.double()


class Alone(clbench.Strategy):
    """Takes a gradient by itself, which is that of a part of the batch, and moves the head by it."""

    traits = clbench.Traits(family="reference")

    def after_backward(self, batch: clbench.Batch) -> None:
        loss = self.classification_loss(self.model(batch.images), batch)
        (gradient,) = torch.autograd.grad(loss, [self.model.backbone[0][2].weight])
        self.model.backbone[0][2].weight.grad.copy_(gradient)


class Failing(clbench.Strategy):
    """Fails in one of the processes, as where a machine is at fault."""

    traits = clbench.Traits(family="reference")

    def begin_task(self, task: clbench.Task) -> None:
        if self._context.processes.rank == 1 and task.index == 1:
            raise ValueError("only here")


NETWORKS: dict[str, Any] = {"double": Double, "norm": DoubleNorm}


def run(out: Path, strategy: str, network: str, options: dict[str, Any]) -> clbench.Result:
    """Do a run in a folder."""
    return clbench.run("split-mnist-5k", strategy, model=NETWORKS[network], out=out, **{**OPTIONS, **options})


def main() -> None:
    """Do the runs one after the other, all in the group that torchrun has started."""
    folder = Path(sys.argv[1])
    for name, strategy, network, options in json.loads(sys.argv[2]):
        result = run(folder / name, strategy, network, options)
        found = {"training": [e["losses"] for e in result.record["training"]], "accuracy": result.record["accuracy"]}
        (folder / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
