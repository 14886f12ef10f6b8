"""Measures how much time the engine adds to a hand-written PyTorch loop with the same arithmetic.

Naive, LwF, EWC and ER train on Split-MNIST (MLP 784-400-400, batch 128, Adam, one epoch). The two rivals take turns in
one process, and the result is the ratio of their training times, because a shared machine is noisy. A method's work at
the end of a task, such as EWC's Fisher information, is part of its training.

    python benchmarks/versus_bare_loop.py --data-root data [--strategies NAME ...] [--repeats 7] [--device cuda]
        [--threads 1] [--smoke] [--out FILE.csv]
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from common import ratios, where, write
from torch import Tensor, nn

import clbench
from clbench.data.scenario import Scenario
from clbench.running.resolve import prepare, resolve

MEMORY = 500


def pixels(images: Tensor) -> Tensor:
    """Return the input of every loop's model: float [B, 1, 28, 28] in 0..1."""
    return images.float() / 255


class Bare:
    """Naive fine-tuning by hand; the other loops add to its loss, and add work after steps and tasks."""

    def __init__(self, scenario: Scenario, device: str) -> None:
        self.scenario, self.device = scenario, device
        self.images, self.labels = scenario.train.images.to(device), scenario.train.labels.to(device)
        self.model = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10)
        ).to(device)

    def loss(self, index: Tensor, seen: int) -> Tensor:
        return F.cross_entropy(self.model(pixels(self.images[index]))[:, :seen], self.labels[index])

    def after_step(self, index: Tensor) -> None:
        pass

    def after_task(self, ids: Tensor, seen: int) -> None:
        pass

    def train(self) -> float:
        """Train on all tasks and return the seconds."""
        started = time.perf_counter()
        for task in self.scenario.tasks:
            optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True)
            ids = task.train.ids.to(self.device)
            for index in ids[torch.randperm(len(ids), device=self.device)].split(128):
                loss = self.loss(index, task.outputs.stop)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                self.after_step(index)
            self.after_task(ids, task.outputs.stop)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def accuracy(self) -> float:
        """Return the average task-aware accuracy."""
        accuracies = []
        with torch.inference_mode():
            for task in self.scenario.tasks:
                scores = self.model(pixels(task.test.images.to(self.device)))[:, task.outputs].cpu()
                accuracies.append(float((scores.argmax(1) + task.outputs.start == task.test.labels).float().mean()))
        return statistics.mean(accuracies)


class BareLwF(Bare):
    teacher: nn.Module | None = None

    def loss(self, index: Tensor, seen: int) -> Tensor:
        images = pixels(self.images[index])
        logits = self.model(images)
        loss = F.cross_entropy(logits[:, :seen], self.labels[index])
        if self.teacher is not None:
            with torch.no_grad():
                old = self.teacher(images)[:, : self.old]
            student, teacher = (F.log_softmax(x / 2, 1) for x in (logits[:, : self.old], old))
            loss = loss + F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return loss

    def after_task(self, ids: Tensor, seen: int) -> None:
        self.teacher, self.old = copy.deepcopy(self.model).requires_grad_(False), seen


class BareEWC(Bare):
    """EWC by hand; per-sample gradients of linear layers are outer products, and so are their squares."""

    strength = 100.0

    def __init__(self, scenario: Scenario, device: str) -> None:
        super().__init__(scenario, device)
        self.fisher: list[Tensor] = []

    def loss(self, index: Tensor, seen: int) -> Tensor:
        loss = super().loss(index, seen)
        if self.fisher:
            terms = zip(self.fisher, self.model.parameters(), self.anchor, strict=True)
            loss = loss + self.strength / 2 * sum((f * (w - a).square()).sum() for f, w, a in terms)
        return loss

    def after_task(self, ids: Tensor, seen: int) -> None:
        linear = [layer for layer in self.model if isinstance(layer, nn.Linear)]
        total = [torch.zeros_like(w) for w in self.model.parameters()]
        for index in ids.split(512):
            inputs, outputs = [], []
            x = pixels(self.images[index])
            for layer in self.model:
                inputs += [x] if layer in linear else []
                x = layer(x)
                outputs += [x] if layer in linear else []
            log_p = F.log_softmax(x[:, :seen], 1).gather(1, self.labels[index, None]).sum()
            for k, (a, g) in enumerate(zip(inputs, torch.autograd.grad(log_p, outputs), strict=True)):
                total[2 * k] += g.square().T @ a.detach().square()
                total[2 * k + 1] += g.square().sum(0)
        new = [t / len(ids) for t in total]
        now = [w.detach().clone() for w in self.model.parameters()]
        if self.fisher:
            weights = [torch.where(f + n > 0, n / (f + n), 0.5) for f, n in zip(self.fisher, new, strict=True)]
            self.anchor = [torch.lerp(a, w, by) for a, w, by in zip(self.anchor, now, weights, strict=True)]
            self.fisher = [f + n for f, n in zip(self.fisher, new, strict=True)]
        else:
            self.fisher, self.anchor = new, now


class BareER(Bare):
    """ER by hand; a reservoir, filled after each step, adds as many images to a step as the task gives."""

    def __init__(self, scenario: Scenario, device: str) -> None:
        super().__init__(scenario, device)
        # The last slot takes the images that are not kept.
        self.memory, self.stored, self.offered = torch.empty(MEMORY + 1, dtype=torch.int64, device=device), 0, 0

    def loss(self, index: Tensor, seen: int) -> Tensor:
        drawn = torch.randperm(self.stored, device=self.device)[: len(index)]
        index = torch.cat([index, self.memory[drawn]])
        return super().loss(index, seen)

    def after_step(self, index: Tensor) -> None:
        position = torch.arange(self.offered, self.offered + len(index), device=self.device)
        random = (torch.rand(len(index), device=self.device) * (position + 1)).long()
        self.memory[torch.where(position < MEMORY, position, random).clamp(max=MEMORY)] = index
        self.offered += len(index)
        self.stored = min(self.offered, MEMORY)


BARE: dict[str, Callable[[Scenario, str], Bare]] = {"naive": Bare, "lwf": BareLwF, "ewc": BareEWC, "er": BareER}


def bare_loop(scenario: Scenario, name: str, seed: int, device: str) -> tuple[float, float]:
    """Train with a plain loop; return seconds of training and the average task-aware accuracy at the end."""
    torch.manual_seed(seed)
    loop = BARE[name](scenario, device)
    return loop.train(), loop.accuracy()


def engine(scenario: Scenario, name: str, seed: int, device: str, threads: int) -> tuple[float, float]:
    """Train with clbench; return the same two numbers."""
    options = dict(model="mlp:400-400", optimizer="adam", lr=1e-3, batch_size=128, epochs=1, normalize="none")
    own = {"lwf": {"temperature": 2.0, "softmax": "joint"}, "ewc": {"strength": BareEWC.strength}}.get(name, {})
    if name == "er":
        options["memory_size"] = MEMORY
    with tempfile.TemporaryDirectory() as folder:
        result = clbench.run(
            scenario, name, out=folder, seed=seed, device=device, threads=threads, strategy_options=own, **options
        )
    aware = result.summary(matrix="task_aware")["average_accuracy"]
    assert aware is not None
    return sum(task["seconds"]["train"] + task["seconds"]["memory"] for task in result.record["tasks"]), aware


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--strategies", nargs="+", choices=list(BARE), default=list(BARE))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="once, on the embedded digits: does it work?")
    parser.add_argument("--out", type=Path, help="CSV file for the result")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scenario_name = "split-mnist-5k" if args.smoke else "split-mnist"
    scenario = prepare(resolve(scenario_name, "naive", {"data_root": args.data_root}))[1]
    repeats = 1 if args.smoke else args.repeats
    n = sum(len(task.train) for task in scenario.tasks)
    rows = []
    for name in args.strategies:
        load = os.getloadavg()[0]
        # This first turn, which does not count, loads everything that is loaded lazily.
        engine(scenario, name, 0, args.device, args.threads), bare_loop(scenario, name, 0, args.device)
        turns = []
        for seed in range(repeats):
            # The rivals take turns in being first.
            ours = engine(scenario, name, seed, args.device, args.threads) if seed % 2 else None
            bare = bare_loop(scenario, name, seed, args.device)
            turns.append((bare, ours or engine(scenario, name, seed, args.device, args.threads)))
        row: dict[str, object] = {
            "scenario": scenario_name, "strategy": name, "repeats": repeats, "threads": args.threads,
            **ratios("ratio", [ours[0] / bare[0] for bare, ours in turns]),
        }  # fmt: skip
        for rival, of in zip(("bare", "clbench"), zip(*turns, strict=True), strict=True):
            row[f"{rival}_images_per_second"] = round(n / statistics.median(seconds for seconds, _ in of))
            row[f"{rival}_accuracy"] = round(statistics.mean(accuracy for _, accuracy in of), 4)
        rows.append(row | where(load, args.device, "clbench", "torch"))
        print({key: value for key, value in row.items() if key != "scenario"}, flush=True)
        assert abs(float(str(row["bare_accuracy"])) - float(str(row["clbench_accuracy"]))) < 0.15
    write(rows, args.out)


if __name__ == "__main__":
    main()
