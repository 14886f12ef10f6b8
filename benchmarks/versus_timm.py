"""Measures what clbench adds to a large vision transformer of timm, forward and in a step of training, and its memory.

The rival is the transformer itself with a linear layer, in a loop written by hand: forward under autocast,
cross-entropy, backward, SGD. Both have random weights, and images of the size that the transformer wants. They take
turns in one process, a step of one after a step of the other; the result is the ratio of their times, in CPU seconds,
because a shared machine is noisy. Memory is counted and not read off: parameters, gradients, and the tensors that are
kept for the backward pass.

    python benchmarks/versus_timm.py [--strategies NAME ...] [--model vit_base_patch16_224] [--precisions fp32 bf16]
        [--batch 16] [--turns 5] [--threads 1] [--out FILE.csv]
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ratios, where, write
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.learning.fit import Fit
from clbench.learning.strategy import Strategy
from clbench.learning.trainer import Trainer
from clbench.models import build_model
from clbench.running.resolve import resolve, strategy_class
from clbench.running.run import Run
from clbench.scenarios import dataset_from_arrays, split

RATE = 1e-4


class Bare:
    """The transformer of timm and a linear layer, by hand."""

    def __init__(self, model: str, n_outputs: int, precision: str) -> None:
        import timm

        self.vit = timm.create_model(model, num_classes=0)
        self.head = nn.Linear(self.vit.num_features, n_outputs)
        self.optimizer = torch.optim.SGD([*self.vit.parameters(), *self.head.parameters()], lr=RATE, fused=True)
        self.bf16 = precision == "bf16"

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.vit((images - 0.5) / 0.5))
        return logits

    def step(self, images: Tensor, labels: Tensor) -> None:
        self.vit.train()
        with self.autocast():
            loss = F.cross_entropy(self.forward(images).float(), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def score(self, images: Tensor) -> None:
        self.vit.eval()
        with torch.inference_mode(), self.autocast():
            self.forward(images)

    def parameters(self) -> list[nn.Parameter]:
        return [*self.vit.parameters(), *self.head.parameters()]


class TakingTurns(Trainer):
    """Trains as ever; each step is timed, and followed by one of the rival."""

    rival: Bare

    def fit(self, stage: Any, **hooks: Any) -> Any:
        self.turns: list[tuple[float, float]] = []
        self.kept: tuple[int, int] = (0, 0)
        return super().fit(stage, **hooks)

    def _step(self, fit: Fit, ids: Tensor, read: Tensor | None) -> None:
        images, labels = inputs(self, ids)
        ours, theirs = lambda: super(TakingTurns, self)._step(fit, ids, read), lambda: self.rival.step(images, labels)
        if not fit.tally.steps and not self.kept[0]:
            # The first step loads what is loaded lazily, and is where tensors are counted.
            mine = kept_for_backward(ours, list(self.strategy.model.parameters()))
            self.kept = mine, kept_for_backward(theirs, self.rival.parameters())
        else:
            self.turns.append((seconds(ours), seconds(theirs)))


def inputs(trainer: Trainer, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images of a step, float [B, 3, H, W] in [0, 1], and their labels."""
    data = trainer.context.scenario.train
    return data.images[ids].float() / 255, data.labels[ids]


def seconds(call: Callable[[], object]) -> float:
    """Return the CPU seconds of a call, of all its threads."""
    started = time.process_time()
    call()
    return time.process_time() - started


def kept_for_backward(call: Callable[[], object], parameters: list[nn.Parameter]) -> int:
    """Return the bytes of the tensors that a call keeps for its backward pass, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(kept.values())


def measured(name: str, args: argparse.Namespace, precision: str, weights: str) -> dict[str, object]:
    """Return the row of a strategy."""
    rng = np.random.default_rng(0)
    side = build_model(f"timm:{args.model}", (3, 32, 32), 0).preprocessing.size
    x, y = rng.integers(0, 256, (args.batch, 3, side, side), dtype=np.uint8), np.arange(args.batch) % 2
    scenario = split(dataset_from_arrays(x, y, x[:2], y[:2], name="noise"), tasks=1)
    options = dict(
        model=f"timm:{args.model}[crop=1.0]", weights=weights, optimizer="sgd", lr=RATE, threads=args.threads
    )
    options |= dict(batch_size=args.batch, epochs=args.turns + 1, precision=precision, device="cpu", normalize="none")
    config = resolve(scenario, name, options)
    strategy: Strategy = strategy_class(name)(**config.strategy_options)
    run = Run(config, scenario, strategy, trainer=TakingTurns)
    run.trainer.rival = rival = Bare(args.model, 2, precision)
    run.learn(scenario.tasks[0])
    turns, images = run.trainer.turns, torch.from_numpy(x).float() / 255

    def score() -> None:
        with torch.inference_mode(), run.context.autocast():
            strategy.scores(images)

    strategy.model.eval()
    forward = [(seconds(score), seconds(lambda: rival.score(images))) for _ in range(args.turns)]
    trained = sum(p.numel() * p.element_size() for p in strategy.model.parameters())
    return {
        "model": args.model,
        "strategy": name,
        "precision": precision,
        "batch": args.batch,
        "repeats": args.turns,
        **ratios("forward", [ours / theirs for ours, theirs in forward]),
        **ratios("step", [ours / theirs for ours, theirs in turns]),
        "forward_images_per_second": round(args.batch / statistics.median(ours for ours, _ in forward), 2),
        "step_images_per_second": round(args.batch / statistics.median(ours for ours, _ in turns), 2),
        "parameters_mb": round(trained / 1e6, 1),
        "kept_mb": round(run.trainer.kept[0] / 1e6, 1),
        "timm_kept_mb": round(run.trainer.kept[1] / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", default=["naive", "slca", "inflora", "l2p"])
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV file for the result")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "random.pt")
        torch.save(build_model(f"timm:{args.model}", (3, 32, 32), 0).state_dict(), weights)
        for precision in args.precisions:
            for name in args.strategies:
                load = os.getloadavg()[0]
                row = measured(name, args, precision, weights)
                print(row, flush=True)
                rows.append(row | where(load, "cpu", "clbench", "torch", "timm"))
                write(rows, args.out)


if __name__ == "__main__":
    main()
