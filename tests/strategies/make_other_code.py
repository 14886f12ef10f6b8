"""Writes other_code.npz: numbers that other people's codes of the methods give on one small network.

    python tests/strategies/make_other_code.py FOLDER

FOLDER holds clones of the repositories in SOURCES under their own names. Avalanche is avalanche-lib 0.6.0. Mammoth
wants kornia (0.9.0), and GEM wants quadprog (0.1.14); the modules in STANDINS are only imported by what is called here,
so that empty ones do. Everything is computed on a CPU in float64 (torch 2.14.1). test_other_code.py says what is
compared.

The network is 12-8-8-outputs with ReLU. The first two tasks have 24 samples and the third has 48, two classes each;
their classes take turns. A step is plain SGD. "Full" steps are on all samples of the task; BATCHES are others.
"""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SOURCES = {
    "continual-learning-baselines": "ContinualAI/continual-learning-baselines 4900462fa58d",
    "mammoth": "aimagelab/mammoth e75a491c69fd",
    "continual-learning": "GMvandeVen/continual-learning e6d795aa81b9",
    "GradientEpisodicMemory": "facebookresearch/GradientEpisodicMemory 34c6b8e9a060",
    "MAS-Memory-Aware-Synapses": "rahafaljundi/MAS-Memory-Aware-Synapses c3e6a855cdde",
    "PyCIL": "G-U-N/PyCIL 87cc4110d607",
    "hat": "joansj/hat 6fd0b9d98e08",
    "packnet": "arunmallya/packnet 7b6032cd0890",
}
STANDINS = ("open_clip", "matplotlib", "matplotlib.pyplot", "ImageFolderTrainVal")

SIZES = (24, 24, 48)
LR, STEPS = 0.2, 4
# Each batch is as large as all before it, so that a memory of everything is replayed as a whole.
BATCHES = ((3, 3, 6, 12), (24,), (48,))
FOLDER = Path()
GIVEN: dict[str, Any] = {}


def given() -> dict[str, Any]:
    """Return samples, labels and the first weights, which the test reads too."""
    rng = np.random.default_rng(8)
    labels = np.concatenate([2 * task + np.arange(size) % 2 for task, size in enumerate(SIZES)])
    centres = rng.normal(128, 45, (6, 12))
    samples = np.clip(centres[labels] + rng.normal(0, 40, (len(labels), 12)), 0, 255).astype(np.uint8)
    shapes = {"w1": (8, 12), "b1": (8,), "w2": (8, 8), "b2": (8,), "w3": (6, 8), "b3": (6,)}
    weights = {name: rng.normal(0, 0.35, shape) for name, shape in shapes.items()}
    return {"samples": samples.reshape(-1, 3, 2, 2), "labels": labels, **weights}


def task_data(task: int) -> tuple[Tensor, Tensor]:
    """Return samples as float32 [n, 3, 2, 2] in [0, 1], and labels."""
    start = sum(SIZES[:task])
    part = slice(start, start + SIZES[task])
    x = torch.from_numpy(GIVEN["samples"][part]).float() * torch.tensor(1 / 255, dtype=torch.float32)
    return x, torch.from_numpy(GIVEN["labels"][part])


def batches(sizes: tuple[tuple[int, ...], ...] = BATCHES) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Walk over the batches with their tasks."""
    for task, parts in enumerate(sizes):
        x, y = task_data(task)
        yield from ((task, bx, by) for bx, by in zip(x.split(parts), y.split(parts), strict=True))


def filled(net: nn.Module, outputs: int = 6) -> Any:
    """Put the given weights into a network, whose parameters come in the order of layers."""
    names = ("w1", "b1", "w2", "b2", "w3", "b3")
    with torch.no_grad():
        for name, parameter in zip(names, list(net.parameters())[:6], strict=True):
            parameter.data = torch.from_numpy(GIVEN[name][:outputs] if "3" in name else GIVEN[name]).clone()
    return net


def flat(net: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy().copy()


class Net(nn.Module):
    """The network in the form that most codes take: a backbone and a linear head."""

    def __init__(self, outputs: int = 6) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, outputs)
        filled(self, outputs)

    def features(self, x: Tensor) -> Tensor:
        return self.backbone(x.double())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@contextmanager
def source(name: str, *under: str) -> Iterator[None]:
    """Import from a clone, and forget what was imported from it at the end."""
    known, path = set(sys.modules), list(sys.path)
    sys.path[:0] = [str(FOLDER / name / part) for part in under or ("",)]
    for module in STANDINS:
        if module not in sys.modules:
            sys.modules[module] = MagicMock()
    try:
        yield
    finally:
        sys.path[:] = path
        for module in set(sys.modules) - known:
            file = getattr(sys.modules[module], "__file__", None)
            if isinstance(sys.modules[module], MagicMock) or str(FOLDER / name) in str(file):
                del sys.modules[module]


@contextmanager
def without_gpu() -> Iterator[None]:
    """Run code of 2018: .cuda() leaves a tensor where it is, variables are tensors, and nothing is shuffled."""
    kept = Tensor.cuda, torch.autograd.Variable, np.random.shuffle
    Tensor.cuda = lambda self, *_: self  # type: ignore[method-assign, assignment]
    torch.autograd.Variable = lambda tensor, **_: tensor  # type: ignore[misc, assignment]
    np.random.shuffle = lambda _: None  # type: ignore[assignment]
    try:
        yield
    finally:
        Tensor.cuda, torch.autograd.Variable, np.random.shuffle = kept  # type: ignore[method-assign, misc]


# Avalanche


def avalanche(
    net: nn.Module, plugin: Any, before: Callable[[int], None] | None = None, template: Any = None, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Train with a plugin or a template, all steps full; return losses and the weights after each task."""
    from avalanche.benchmarks.scenarios.deprecated.generators import tensors_benchmark
    from avalanche.training.plugins import SupervisedPlugin
    from avalanche.training.templates import SupervisedTemplate

    losses: list[float] = []

    class Watch(SupervisedPlugin):
        def before_training_exp(self, strategy: Any, **_: Any) -> None:
            if before is not None:
                before(strategy.experience.current_experience)

        def before_update(self, strategy: Any, **_: Any) -> None:
            losses.append(float(strategy.loss.detach()))

    data = [task_data(task) for task in range(3)]
    stream = tensors_benchmark(data, data, task_labels=[0, 0, 0], complete_test_set_only=False).train_stream
    strategy = (template or SupervisedTemplate)(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), LR),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10**4,
        train_epochs=STEPS,
        plugins=[*([plugin] if plugin else []), Watch()],
        evaluator=None,
        **options,
    )
    weights = []
    for experience in stream:
        strategy.train(experience, drop_last=False)
        weights.append(flat(strategy.model))
    return np.array(losses), np.concatenate(weights)


def by_avalanche() -> dict[str, Any]:
    from avalanche.models import IncrementalClassifier
    from avalanche.training.plugins import AGEMPlugin, EWCPlugin, LwFPlugin, MASPlugin
    from avalanche.training.plugins.mir import MIRPlugin
    from avalanche.training.regularization import ACECriterion, cross_entropy_with_oh_targets

    found: dict[str, Any] = {}

    def keep(name: str, losses: Any, weights: Any) -> None:
        found[f"{name}_losses"], found[f"{name}_weights"] = losses, weights

    def growing() -> tuple[nn.Module, Callable[[int], None]]:
        net = Net(2)
        net.head = IncrementalClassifier(8, 2)
        filled(net, 2)

        def before(task: int) -> None:
            """The rows that Avalanche has just drawn become those that are given."""
            with torch.no_grad():
                rows = slice(2 * task, 2 * task + 2)
                net.head.classifier.weight[rows] = torch.from_numpy(GIVEN["w3"][rows])
                net.head.classifier.bias[rows] = torch.from_numpy(GIVEN["b3"][rows])

        return net, before

    keep("avalanche_naive", *avalanche(Net(), None))
    net, before = growing()
    keep("avalanche_lwf", *avalanche(net, LwFPlugin(alpha=1.5, temperature=2), before))

    class Single(EWCPlugin):
        """Its importances with one sample in each batch of that pass."""

        def compute_importances(self, *args: Any, **options: Any) -> Any:
            return super().compute_importances(*args[:5], 1, **options)

    for name, kind in (("ewc", EWCPlugin), ("ewc_single", Single)):
        keep(f"avalanche_{name}", *avalanche(Net(), plugin := kind(ewc_lambda=3.0)))
        found[f"avalanche_{name}_fisher"] = np.concatenate(
            [p.data.numpy().reshape(-1) for p in plugin.importances[0].values()]
        )

    class SingleMAS(MASPlugin):
        def _get_importance(self, strategy: Any) -> Any:
            kept, strategy.train_mb_size = strategy.train_mb_size, 1
            found = super()._get_importance(strategy)
            strategy.train_mb_size = kept
            return found

    keep("avalanche_mas", *avalanche(Net(), SingleMAS(lambda_reg=0.02, alpha=0.5)))
    keep("avalanche_agem", *avalanche(Net(), AGEMPlugin(48, 48)))

    with source("continual-learning-baselines"):
        from experiments.split_mnist.lwf import LwFCEPenalty

        alphas = {"alpha": [0, 1 / 2, 4 / 3], "temperature": 2}
        keep("baselines_lwf", *avalanche(Net(), None, template=LwFCEPenalty, **alphas))

    # MIR: the plugin on a memory of all samples that went by, which are its candidates. It adds the two losses, and ER
    # takes their mean, so the step is half as long; the step that is tried is not.
    net, losses = Net(), []
    optimizer, x_seen, y_seen = torch.optim.SGD(net.parameters(), LR), torch.empty(0), torch.empty(0)
    plugin = MIRPlugin(6)
    for _, x, y in batches(((24,), (6,) * 4, (6,) * 8)):
        now = SimpleNamespace(
            model=net,
            optimizer=optimizer,
            _criterion=nn.CrossEntropyLoss(),
            device="cpu",
            loss=F.cross_entropy(net(x), y),
        )
        optimizer.param_groups[0]["lr"] = LR
        if len(x_seen):
            plugin.replay_loader = iter([(x_seen, y_seen, torch.zeros(len(y_seen)))])
            plugin.before_backward(now)
            optimizer.param_groups[0]["lr"] = LR / 2
        losses.append(float(now.loss.detach()))
        optimizer.zero_grad()
        now.loss.backward()
        optimizer.step()
        x_seen, y_seen = (x, y) if not len(x_seen) else (torch.cat([x_seen, x]), torch.cat([y_seen, y]))
    keep("avalanche_mir", np.array(losses), flat(net))

    # ER-ACE: its criterion, on a memory of all that went by; it takes half the sum of the two losses.
    net, losses, weights = Net(), [], []
    x_seen = y_seen = None
    for _, x, y in batches():
        for group in (optimizer := torch.optim.SGD(net.parameters(), 2 * LR)).param_groups:
            group["lr"] = 2 * LR if x_seen is not None else LR
        if x_seen is None:
            present = y.unique()
            loss = cross_entropy_with_oh_targets(net(x)[:, present], F.one_hot(y, 6)[:, present])
        else:
            loss = ACECriterion()(net(x), y, net(x_seen), y_seen)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        weights.append(flat(net))
        x_seen, y_seen = (x, y) if x_seen is None else (torch.cat([x_seen, x]), torch.cat([y_seen, y]))
    keep("avalanche_er_ace", np.array(losses), weights[-1])
    return found


# van de Ven's code


def by_vandeven() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with source("continual-learning"):
        from models.classifier import Classifier
        from torch.utils.data import TensorDataset

        def new() -> Any:
            net = filled(Classifier(2, 3, 6, depth=0, fc_layers=3, fc_units=8, fc_drop=0, fc_bn=False))
            net.optimizer = torch.optim.SGD(net.parameters(), LR)
            # Its layers are float64; the images are not.
            net.convE.register_forward_hook(lambda _, __, out: out.double())
            return net

        def trained(
            name: str, net: Any, end: Callable[[int, Any], None], step: Any = lambda: None, **options: Any
        ) -> None:
            losses, weights = [], []
            for task in range(3):
                x, y = task_data(task)
                for _ in range(STEPS):
                    losses.append(net.train_a_batch(x, y, **options)["loss_total"])
                    step()
                end(task, TensorDataset(x, y))
                weights.append(flat(net))
                if task == 1:
                    kept = [v.reshape(-1) for n, v in net.named_buffers() if n.endswith(("fisher", "fisher1", "omega"))]
                    found[f"{name}_importance"] = np.concatenate(kept)
            found[f"{name}_losses"], found[f"{name}_weights"] = np.array(losses), np.concatenate(weights)

        for name, labels, offline, gamma in (
            ("ewc", "true", True, 1.0),
            ("ewc_exact", "all", True, 1.0),
            ("online_ewc", "true", False, 0.6),
        ):
            net = new()
            net.weight_penalty, net.reg_strength, net.importance_weighting = True, 3.0, "fisher"
            net.fisher_labels, net.offline, net.gamma = labels, offline, gamma
            trained(f"vandeven_{name}", net, lambda _, data, net=net: net.estimate_fisher(data))

        net = new()
        net.weight_penalty, net.reg_strength, net.importance_weighting = True, 0.8, "si"
        net.register_starting_param_values()
        path = dict(zip("wp", net.prepare_importance_estimates_dicts(), strict=True))

        def end(_: int, __: Any) -> None:
            net.update_omega(path["w"], 0.1)
            path.update(zip("wp", net.prepare_importance_estimates_dicts(), strict=True))

        trained("vandeven_si", net, end, lambda: net.update_importance_estimates(path["w"], path["p"]))
    return found


# Mammoth, which holds the DER authors' own code


class Samples(torch.utils.data.Dataset[Any]):
    """A data set as Mammoth cuts it: all samples and labels, and one of them."""

    def __init__(self, data: Tensor, targets: np.ndarray) -> None:
        self.data, self.targets = data, targets

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        return self.data[index], int(self.targets[index]), self.data[index]


def by_mammoth() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with source("mammoth"):
        from backbone import MammothBackbone
        from models.agem import AGem
        from models.der import Der
        from models.derpp import Derpp
        from models.er import Er
        from models.icarl import ICarl
        from models.lwf_mc import LwFMC

        class Backbone(MammothBackbone):
            def __init__(self) -> None:
                super().__init__()
                net = Net()
                self.backbone, self.classifier = net.backbone, net.head

            def forward(self, x: Tensor, returnt: str = "out") -> Tensor:
                features = self.backbone(x.double())
                return features if returnt == "features" else self.classifier(features)

        setting = {"lr": LR, "optimizer": "sgd", "optim_wd": 0, "optim_mom": 0, "optim_nesterov": 0, "label_perc": 1}
        setting |= {"nowand": 1, "batch_size": 10**4, "buffer_size": 96, "minibatch_size": 96}

        def data(task: int, buffer_size: int = 96) -> Any:
            x, y = task_data(task)

            class Loader(list):  # type: ignore[type-arg]
                dataset = SimpleNamespace(data=x.numpy(), targets=y.numpy())

            return SimpleNamespace(
                N_CLASSES=6,
                N_TASKS=3,
                SETTING="class-il",
                N_CLASSES_PER_TASK=2,
                get_offsets=lambda t: (2 * t, 2 * t + 2),
                get_normalization_transform=lambda: None,
                train_loader=Loader([(x, y, x)]),
                args=Namespace(buffer_size=buffer_size),
            )

        def new(kind: Any, **options: Any) -> Any:
            return kind(Backbone(), nn.CrossEntropyLoss(), Namespace(**setting, **options), None, data(0))

        # The memory holds all that went by, and the whole of it is replayed.
        for name, kind, options in (
            ("er", Er, {}),
            ("der", Der, {"alpha": 0.7}),
            ("derpp", Derpp, {"alpha": 0.7, "beta": 0.4}),
        ):
            model = new(kind, **options)
            losses = []
            for _, x, y in batches():
                losses.append(model.observe(x, y, x))
            found[f"mammoth_{name}_losses"] = np.array(losses)
            found[f"mammoth_{name}_weights"] = flat(model.net)
            if "der" in name:
                found[f"mammoth_{name}_logits"] = model.buffer.logits[: len(model.buffer)].numpy()

        model = new(AGem)
        losses, weights = [], []
        for task in range(3):
            x, y = task_data(task)
            losses += [model.observe(x, y, x) for _ in range(STEPS)]
            model.end_task(data(task))
            weights.append(flat(model.net))
        found["mammoth_agem_losses"], found["mammoth_agem_weights"] = np.array(losses), np.concatenate(weights)

        import datasets
        import models.lwf_mc

        models.lwf_mc.get_dataset = datasets.get_dataset = lambda _: data(0)
        model = new(LwFMC, wd_reg=0.0)
        losses, weights = [], []
        for task in range(3):
            x, y = task_data(task)
            losses += [model.observe(x, y, x) for _ in range(STEPS)]
            model.meta_end_task(data(task))
            weights.append(flat(model.net))
        found["mammoth_lwf_mc_losses"], found["mammoth_lwf_mc_weights"] = np.array(losses), np.concatenate(weights)

        # iCaRL: its loss on the task and the exemplars, its herding, its class means without mirror images.
        setting["buffer_size"] = 24
        model = new(ICarl, opt_wd=0.0, compute_theoretical_best=0, use_original_icarl_transform=0)
        losses, weights, memories = [], [], []
        for task in range(3):
            model._n_past_classes = 2 * task
            x, y = task_data(task)
            if task:
                old_x, old_y = model.buffer.get_all_data()[:2]
                x, y = torch.cat([x, old_x]), torch.cat([y, old_y])
            losses += [model.observe(x, y, x) for _ in range(STEPS)]
            model.meta_end_task(data(task, 24))
            weights.append(flat(model.net))
            kept = (model.buffer.get_all_data()[0] * 255).round().to(torch.uint8)
            memories.append(kept.reshape(-1, 12).numpy())
        found["mammoth_icarl_losses"], found["mammoth_icarl_weights"] = np.array(losses), np.concatenate(weights)
        found["mammoth_icarl_memories"] = np.concatenate(memories)

        # LUCIR: all samples are kept. It stops at the classes that were seen, and its features stay in float64.
        import models.lucir

        models.lucir.get_dataset = lambda _: data(0)
        setting |= {"buffer_size": 96, "dataset": "given", "n_epochs": STEPS, "num_workers": 0, "seed": 0}
        kept, Tensor.float = Tensor.float, lambda self: self  # type: ignore[method-assign, assignment]
        options = {"lamda_base": 1.5, "lamda_mr": 2.0, "k_mr": 2, "mr_margin": 0.5, "fitting_epochs": 0}
        model = new(models.lucir.Lucir, imprint_weights=1, **options)
        classifier = model.net.classifier
        for rows, part in zip(classifier.weights, torch.from_numpy(GIVEN["w3"]).split(2), strict=True):
            rows.data = part.clone()
        losses, weights = [], []
        for task in range(3):
            now = data(task)
            x, y = task_data(task)
            now.train_loader.dataset = Samples(x, y.numpy())
            model.meta_begin_task(now) if task else None
            classifier.n_tasks = task + 1
            model.lamda_cos_sim = 1.5 * np.sqrt(task)
            if task:
                old_x, old_y = model.buffer.get_all_data()[:2]
                x, y = torch.cat([x, old_x]), torch.cat([y, old_y])
            losses += [model.observe(x, y, x) for _ in range(STEPS)]
            model.meta_end_task(data(task))
            weights += [flat(model.net.backbone)]
            weights += [rows.detach().numpy().reshape(-1).copy() for rows in classifier.weights[: task + 1]]
            weights += [classifier.sigma.detach().numpy().copy()]
        Tensor.float = kept  # type: ignore[method-assign]
        found["mammoth_lucir_losses"], found["mammoth_lucir_weights"] = np.array(losses), np.concatenate(weights)
    return found


# The GEM authors' code


def by_gem() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with source("GradientEpisodicMemory"):
        from model import gem

        for name, ridge in (("gem", 1e-3), ("gem_exact", 0.0)):
            gem.project2cone2.__defaults__ = (0.5, ridge)
            options = Namespace(
                n_layers=2, n_hiddens=8, memory_strength=0.5, data_file="mnist", lr=LR, n_memories=24, cuda=False
            )
            net = gem.Net(12, 6, 3, options)
            # Its memory holds 24 samples of each task: those of the third are cut to as many.
            filled(net.net)
            net.memory_data = net.memory_data.double()
            weights = []
            for task in range(3):
                x, y = (part[:24] for part in task_data(task))
                for _ in range(STEPS):
                    net.observe(x.reshape(-1, 12).double(), task, y)
                weights.append(flat(net))
            found[f"authors_{name}_weights"] = np.concatenate(weights)
    return found


# The MAS authors' code


def by_mas() -> dict[str, Any]:
    with source("MAS-Memory-Aware-Synapses", "MAS_to_be_published/MAS_utils"), without_gpu():
        import MAS_based_Training as mas

        net, weights = Net(), []
        for task in range(3):
            x, y = task_data(task)
            optimizer = (mas.Weight_Regularized_SGD if task else torch.optim.SGD)(net.parameters(), LR)
            for _ in range(STEPS):
                optimizer.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimizer.step(net.reg_params) if task else optimizer.step()
            weights.append(flat(net))
            net.reg_params = mas.initialize_store_reg_params(net) if task else mas.initialize_reg_params(net)
            update = mas.MAS_Omega_update(net.parameters(), lr=0.0001, momentum=0.9)
            samples = [(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
            mas.compute_importance_l2(net, update, lambda optimizer, *_: optimizer, [samples], False)
            net.reg_params = mas.accumelate_reg_params(net) if task else net.reg_params
            net.reg_params["lambda"] = 0.01
        omega = np.concatenate([net.reg_params[p]["omega"].numpy().reshape(-1) for p in net.parameters()])
    return {"authors_mas_weights": np.concatenate(weights), "authors_mas_omega": omega}


# PyCIL


def by_pycil() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with source("PyCIL"):
        from models import base, bic, icarl, podnet, wa
        from utils import inc_net

        class Features(nn.Module):
            out_dim = 8

            def __init__(self) -> None:
                super().__init__()
                self.backbone = Net().backbone

            def forward(self, x: Tensor) -> dict[str, Tensor]:
                return {"features": self.backbone(x.double())}

        class Manager:
            """A task's data, as their code asks for them: one batch of everything."""

            def get_dataset(self, classes: Any, appendent: Any = None, ret_data: bool = False, **_: Any) -> Any:
                x, y = (torch.cat(parts) for parts in zip(*map(task_data, range(3)), strict=True))
                own = torch.isin(y, torch.as_tensor(np.array(classes)))
                x, y = x[own], y[own]
                if appendent is not None:
                    x, y = torch.cat([x, torch.as_tensor(appendent[0])]), torch.cat([y, torch.as_tensor(appendent[1])])
                y = y.long()
                return (x.numpy(), y.numpy(), [(None, x, y)]) if ret_data else [(None, x, y)]

        inc_net.get_convnet = lambda *_: Features()
        base.DataLoader = lambda dataset, **_: dataset
        for module in (icarl, wa, bic):
            module.init_epoch = module.epochs = STEPS
        rng = np.random.default_rng(5)
        for name in ("student", "teacher"):
            found[f"maps_{name}"] = rng.normal(0, 1, (2, 4, 3, 2, 2))
        maps = (list(torch.from_numpy(found[f"maps_{name}"])) for name in ("teacher", "student"))
        found["pycil_pod_spatial"] = podnet.pod_spatial_loss(*maps).numpy()
        manager = Manager()
        for name, kind, size in (("icarl", icarl.iCaRL, 24), ("wa", wa.WA, 24), ("bic", bic.BiC, 0)):
            learner = kind({"memory_size": size, "device": ["cpu"], "convnet_type": "given"})
            weights, memories, means = [], [], []
            for task in range(3):
                learner._cur_task, learner._total_classes = task, 2 * task + 2
                net = learner._network
                net.update_fc(2 * task + 2)
                rows = slice(2 * task, 2 * task + 2)
                with torch.no_grad():
                    net.fc.weight[rows] = torch.from_numpy(GIVEN["w3"][rows])
                    net.fc.bias[rows] = torch.from_numpy(GIVEN["b3"][rows])
                loader = manager.get_dataset(np.arange(2 * task, 2 * task + 2), appendent=learner._get_memory())
                optimizer = torch.optim.SGD(net.parameters(), LR)
                scheduler = SimpleNamespace(step=lambda: None)
                if name == "bic":
                    learner.lamda = 2 * task / (2 * task + 2)
                    learner._run(loader, loader, torch.optim.SGD([*net.convnet.parameters(), *net.fc.parameters()], LR),
                                 scheduler, "training")  # fmt: skip
                elif task == 0:
                    learner._init_train(loader, loader, optimizer, scheduler)
                else:
                    learner._update_representation(loader, loader, optimizer, scheduler)
                if size:
                    learner.build_rehearsal_memory(manager, learner.samples_per_class)
                    memories.append((learner._data_memory * 255).round().astype(np.uint8).reshape(-1, 12))
                    means.append(learner._class_means.reshape(-1))
                learner.after_task()
                weights += [flat(net.convnet), flat(net.fc)]
            found[f"pycil_{name}_weights"] = np.concatenate(weights)
            if name == "icarl":
                found["pycil_icarl_memories"], found["pycil_icarl_means"] = np.concatenate(memories), means[-1]
    return found


# The HAT authors' code


def by_hat() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    found: dict[str, Any] = {f"e{layer}": rng.normal(0, 1, (3, 8)) for layer in (1, 2)}
    with source("hat", "src", "src/networks", "src/approaches"), without_gpu():
        import hat
        import mlp_hat

        net = mlp_hat.Net((3, 2, 2), [(0, 2), (1, 2), (2, 2)], nlayers=2, nhid=8, pdrop1=0, pdrop2=0)
        for name, parameter in net.named_parameters():
            layer, _, kind = name.rpartition(".")
            value = found.get(layer[:1] + layer[-1:]) if layer.startswith("e") else GIVEN.get(kind[0] + layer[-1])
            if layer.startswith("last"):
                task = int(layer[-1])
                value = GIVEN[kind[0] + "3"][2 * task : 2 * task + 2]
            parameter.data = torch.from_numpy(value).clone()
        options = SimpleNamespace(parameter="")
        approach = hat.Appr(net, nepochs=1, sbatch=6, lr=LR, lamb=0.75, smax=40, args=options)
        weights = []
        for task in range(3):
            x, y = task_data(task)
            approach.train(task, x.double(), y - 2 * task, x.double(), y - 2 * task)
            weights += [flat(net.fc1), flat(net.fc2), net.last[task].weight.detach().numpy().reshape(-1).copy()]
            weights += [net.last[task].bias.detach().numpy().copy()]
            weights += [gate.detach().numpy().reshape(-1).copy() for gate in approach.mask_pre]
        found["authors_hat_weights"] = np.concatenate(weights)
    return found


# The PackNet authors' code


def by_packnet() -> dict[str, Any]:
    weights, owners = [], []
    kept = Tensor.kthvalue
    # It takes [0][0] of the value, which was a vector of one number then.
    Tensor.kthvalue = lambda self, k: (kept(self, k)[0].reshape(1),)  # type: ignore[method-assign, assignment]
    with source("packnet", "src"), without_gpu():
        from prune import SparsePruner

        net = Net()
        heads = [nn.Linear(8, 2) for _ in range(3)]
        for head, weight, bias in zip(heads, net.head.weight.split(2), net.head.bias.split(2), strict=True):
            head.weight.data, head.bias.data = weight.detach().clone(), bias.detach().clone()
        model = SimpleNamespace(shared=net.backbone)
        layers = [i for i, module in enumerate(net.backbone.modules()) if isinstance(module, nn.Linear)]
        modules = list(net.backbone.modules())
        masks = {i: torch.ones_like(modules[i].weight, dtype=torch.uint8) for i in layers}
        for task, head in enumerate(heads):
            x, y = task_data(task)
            # Biases learn in the first task, which was done before pruning began.
            pruner = SparsePruner(model, 0.5, masks, task == 0, False)
            if task:
                pruner.make_finetuning_mask()
            for stage, steps in enumerate((STEPS, STEPS // 2)):
                if stage:
                    pruner = SparsePruner(model, 0.5, pruner.previous_masks, task == 0, False)
                    pruner.prune()
                optimizer = torch.optim.SGD([*net.backbone.parameters(), *head.parameters()], LR)
                for _ in range(steps):
                    optimizer.zero_grad()
                    F.cross_entropy(head(net.features(x)), y - 2 * task).backward()
                    if task or stage:
                        pruner.make_grads_zero()
                    optimizer.step()
                    if task or stage:
                        pruner.make_pruned_zero()
            masks = pruner.current_masks
            weights += [flat(net.backbone), flat(head)]
            owners += [masks[i].numpy().reshape(-1).copy() for i in layers]
    Tensor.kthvalue = kept  # type: ignore[method-assign]
    return {"authors_packnet_weights": np.concatenate(weights), "authors_packnet_owners": np.concatenate(owners)}


def main() -> None:
    global FOLDER
    FOLDER = Path(sys.argv[1]).resolve()
    for name, wanted in SOURCES.items():
        command = ["git", "-C", str(FOLDER / name), "rev-parse", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert commit.startswith(wanted.split()[1]), f"{name} is at {commit.strip()}, not at {wanted}"
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    GIVEN.update(given())
    found = dict(GIVEN)
    for code in (by_avalanche, by_vandeven, by_mammoth, by_gem, by_mas, by_pycil, by_hat, by_packnet):
        if len(sys.argv) > 2 and code.__name__ not in sys.argv[2:]:
            continue
        found |= code()
    for name, value in found.items():
        if name not in GIVEN:
            print(name, value.shape, value.reshape(-1)[:3])
    np.savez_compressed(Path(__file__).with_name("other_code.npz"), **found)


if __name__ == "__main__":
    main()
