"""The conformance kit for networks: separate, named checks that any network must pass, built-in or your own."""

import copy
import functools
import io
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clbench.config.arguments import checked
from clbench.config.classes import give
from clbench.config.errors import ConfigError, unknown
from clbench.models import as_network, build_model
from clbench.models.network import Network, blocks_of, check_network
from clbench.results.result import Result
from clbench.running.observer import Observer
from clbench.running.run import run
from clbench.support.surroundings import undisturbed
from clbench.tools.outcomes import CheckResult, NotApplicableError, checks_of, demand, found_by

# The shapes that are tried, where none is given: digits, small and larger photographs.
SHAPES = ((1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 224, 224))
SMALL: dict[str, Any] = {"limit": 8, "epochs": 1, "batch_size": 8, "threads": 1, "tasks": 3, "optimizer": "adam"}


class _StopHereError(Exception):
    pass


class _Stop(Observer):
    def task(self, task: int, row: list[float | None]) -> None:
        raise _StopHereError


class Bench:
    """Builds one network, and remembers what several checks look at."""

    def __init__(self, model: str, image_shape: tuple[int, int, int], folder: Path) -> None:
        self.model, self.image_shape, self.folder = model, image_shape, folder

    def build(self, seed: int = 0) -> Network:
        """Return a new network."""
        return build_model(self.model, self.image_shape, seed)

    @functools.cached_property
    def images(self) -> Tensor:
        """Six images, normalised float [6, C, H, W]."""
        return torch.randn(6, *self.image_shape, generator=torch.Generator().manual_seed(0))

    def trained(self, steps: int = 1) -> tuple[Network, list[float]]:
        """Return a network with two outputs after some steps on the images, and the loss before each."""
        model = self.build()
        model.head.grow(2, torch.Generator().manual_seed(0))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model.train()(self.images), torch.arange(6) % 2)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return model, losses

    def run(self, name: str, **options: Any) -> Result:
        """Do a small run in a folder of this name."""
        if self.image_shape != SHAPES[0]:
            raise NotApplicableError(
                f"the digits that it would be trained on are no images of {list(self.image_shape)}"
            )
        given = SMALL | options
        return run("split-mnist-5k", "naive", model=self.model, out=self.folder / name, quiet=True, **given)


# The checks. Each has one sentence that says what it holds a network to; an AssertionError says what is wrong.


def check_features(bench: Bench) -> None:
    """Features are finite, float [B, feature_dim], and in eval mode of an image alone, whatever stands beside it."""
    model = bench.build()
    try:
        check_network(copy.deepcopy(model), bench.images[:2], bench.model)
    except ConfigError as error:
        raise AssertionError(str(error)) from None
    with torch.no_grad():
        together = model.eval().features(bench.images)
        alone = torch.cat([model.features(image[None]) for image in bench.images])
        turned = model.features(bench.images.flip(0)).flip(0)
    size = max(1.0, float(together.abs().max()))
    for what, other in (("alone", alone), ("in another order", turned)):
        far = float((together - other).abs().max()) / size
        demand(far < 1e-3, f"an image {what} has other features than in a batch, by {far:.2g} of the largest")
    demand(bool((together != together[:1]).any()), "all images have the same features")


def check_blocks(bench: Bench) -> None:
    """Every parameter of the backbone is in one block, each block has some, and the head is in none."""
    model = bench.build()
    blocks = blocks_of(model, bench.model)
    demand(blocks, "blocks() is empty: there are no layers to train alone")
    of_blocks = [{id(p) for p in block.parameters()} for block in blocks]
    for index, ids in enumerate(of_blocks):
        demand(ids, f"block {index} of {len(blocks)} holds no parameters")
    names = {id(p): name for name, p in model.named_parameters()}
    head = {id(p) for p in model.head.parameters()}
    counted = [i for ids in of_blocks for i in ids]
    twice = sorted({names.get(i, "one of no layer") for i in counted if counted.count(i) > 1})
    demand(not twice, f"{', '.join(twice[:3])} is in several blocks")
    demand(not head & set(counted), "a block holds the head")
    missing = [name for i, name in names.items() if i not in head and i not in counted]
    demand(not missing, f"no block holds {', '.join(missing[:3])}, so train='last-N' never trains it")


def check_gradients(bench: Bench) -> None:
    """A training step gives every parameter that trains a finite gradient."""
    model, _ = bench.trained()
    trains = {name: p for name, p in model.named_parameters() if p.requires_grad}
    without = [name for name, p in trains.items() if p.grad is None]
    demand(not without, f"the loss does not depend on {', '.join(without[:3])}")
    wrong = [name for name, p in trains.items() if p.grad is not None and not bool(p.grad.isfinite().all())]
    demand(not wrong, f"the gradient of {', '.join(wrong[:3])} is not finite")


def check_head(bench: Bench) -> None:
    """The outputs are those of the head on the features, and old ones stay as they are when it grows."""
    model = bench.build().eval()
    generator = torch.Generator().manual_seed(0)
    model.head.grow(2, generator)
    with torch.no_grad():
        two = model(bench.images)
        model.head.grow(5, generator)
        five = model(bench.images)
        expected = model.head(model.features(bench.images))
    demand(tuple(five.shape) == (6, 5), f"5 outputs were added up to, and 6 images give {list(five.shape)}")
    demand(torch.allclose(five[:, :2], two, atol=1e-5), "old outputs are others after the head has grown")
    demand(torch.allclose(five, expected, atol=1e-5), "the outputs are not head(features(images))")


def check_state(bench: Bench) -> None:
    """A copy, and a network into which what was saved is loaded, give the same features after training."""
    model, _ = bench.trained(steps=2)
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    loaded = bench.build(seed=1)
    loaded.head.grow(2, torch.Generator())
    saved.seek(0)
    loaded.load_state_dict(torch.load(saved, weights_only=True))
    with torch.no_grad():
        features = model.eval().features(bench.images)
        for what, other in (("a copy", copy.deepcopy(model)), ("what was saved and loaded", loaded)):
            same = torch.equal(other.eval().features(bench.images), features)
            demand(same, f"{what} gives other features: something that decides them is no parameter and no buffer")


def check_seed(bench: Bench) -> None:
    """The same seed gives the same weights, another one others, and torch's own random stream does not move."""
    before = torch.get_rng_state()
    one, again, other = (bench.build(seed).state_dict() for seed in (0, 0, 1))
    demand(torch.equal(before, torch.get_rng_state()), "building it moved torch's random stream")
    changed = [name for name in one if not torch.equal(one[name], again[name])]
    demand(not changed, f"the same seed gives other values of {', '.join(changed[:3])}")
    demand(any(not torch.equal(one[name], other[name]) for name in one), "another seed gives the same weights")


def check_determinism(bench: Bench) -> None:
    """Two runs with it give the same matrices, to the byte."""
    one, other = (bench.run(name).record["classifiers"] for name in ("one", "other"))
    demand(one == other, "the same run gave another matrix")


def check_resuming(bench: Bench) -> None:
    """A run with it that is stopped after a task and continued gives the matrices of one in one go."""
    whole = bench.run("whole")
    with suppress(_StopHereError):
        bench.run("stopped", observer=_Stop())
    resumed = bench.run("stopped", resume=True)
    demand(whole.record["classifiers"] == resumed.record["classifiers"], "continued, the matrix is another one")


def check_learning(bench: Bench) -> None:
    """The loss on six images falls within 30 steps to less than half."""
    losses = bench.trained(steps=31)[1]
    demand(
        losses[-1] < losses[0] / 2, f"after 30 steps on six images the loss is {losses[-1]:.3g}, from {losses[0]:.3g}"
    )


CHECKS = checks_of(globals())


@checked
@undisturbed()
def check_model(
    model: str | Callable[..., object],
    *,
    image_shape: tuple[int, int, int] | None = None,
    checks: list[str] | None = None,
) -> list[CheckResult]:
    """Run the checks on a network (a class, a function, a registered name, or path.py:Net) and return what each found.

    A name may carry options in brackets.

    image_shape: [C, H, W] of the images; by default the first of digits of 28 x 28 and photographs of 32, 64 and 224
        pixels that it takes.
    checks: those that are done, by name; by default all.
    Raises ConfigError for a network that can't be built.
    """
    for check in checks or ():
        if check not in CHECKS:
            raise unknown("check", check, CHECKS)
    name = model if isinstance(model, str) else give("model", as_network(model, "model is given as"))
    shape = image_shape or _shape_of(name)
    build_model(name, shape, 0)
    outcomes = []
    for check in CHECKS if checks is None else checks:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(name, shape, Path(folder))
            outcomes.append(found_by(check, functools.partial(CHECKS[check], bench)))
    return outcomes


def _shape_of(model: str) -> tuple[int, int, int]:
    """Return the first shape of images that a network takes; the last one where it takes none."""
    first: ConfigError | None = None
    for shape in SHAPES:
        try:
            built = build_model(model, shape, 0).eval()
            with torch.no_grad():
                built.features(torch.zeros(2, *shape))
        except ConfigError as error:
            first = first or error
        except Exception:  # whatever torch raises for images that don't fit
            continue
        else:
            return shape
    if first is not None:
        raise first
    return SHAPES[0]
