"""Prompts in a vision transformer, and L2P, DualPrompt and CODA-Prompt against the numbers of published code.

The numbers in prompts.npz were made once, in float64, by running published code outside of this project on the tiny
transformer, the images and the head of this file (all by formula), with a batch of 6 images of the second of two tasks
of two classes: its modules made queries, choices, logits and penalties, and the loss was put together as in its training
loop (logits of other tasks at minus infinity):

- l2p: JH-LEE-KR/l2p-pytorch, commit f7bc994365f51221e059b7be18c9b08c369444e6, without the vote of a batch, and with 0
  as the position of prompts.
- dualprompt: JH-LEE-KR/dualprompt-pytorch, commit 7eb457d988409a6abf97af2b121ffa62dd4b498a, one image at a time,
  since at more its reshape mixes keys and values of different images.
- coda: GT-RIPL/CODA-Prompt, commit 6417d4f68754be68b697c7ca2323ee61e791e1a3, with 3 components a task.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import clbench
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario
from clbench.models import build_model
from clbench.models.prompts import Prompts, prompted_features
from clbench.running.resolve import resolve, strategy_class
from clbench.running.run import Run
from clbench.scenarios import dataset_from_arrays, split
from clbench.tools.conformance import TRANSFORMER

TINY = "vit[patch_size=4,width=16,depth=6,heads=2]"
NAMES = ("l2p", "dualprompt", "coda-prompt")
LABELS = torch.tensor([2, 3, 2, 2, 3, 3])


def wave(shape: Any, k: float) -> Tensor:
    return torch.sin(k * torch.arange(int(np.prod(shape)), dtype=torch.float64) ** 2 + k).view(shape)


IMAGES = wave((6, 3, 8, 8), 0.37) / 2 + 0.5


def by_formula(model: Any) -> Any:
    """Give the transformer and a head of four outputs the weights that the numbers were made with."""
    model.double()
    if not model.head.out_features:
        model.head.grow(4, torch.Generator())
    with torch.no_grad():
        for i, (name, tensor) in enumerate(sorted(model.backbone.named_parameters())):
            value = torch.sin(0.37 * torch.arange(tensor.numel(), dtype=torch.float64) ** 2 + i).view(tensor.shape)
            scale = 1.5 if "patch" in name else 0.05 if "cls" in name or "pos" in name else 0.4
            norm = "norm" in name and name.endswith("weight")
            tensor.copy_(1 + 0.1 * value if norm else scale * value)
        model.head.weight.copy_(wave(model.head.weight.shape, 0.9) * 0.5)
        model.head.bias.copy_(torch.tensor([0.1, -0.2, 0.3, -0.4]))
    return model.eval()


def tiny(**options: Any) -> Scenario:
    """Return a scenario of 4 classes of 6 coloured images of 8 x 8 pixels, by default in 2 tasks."""
    labels = np.arange(4).repeat(6)
    draw = np.random.default_rng(0)
    train, test = (50 * labels[:, None, None, None] + draw.integers(0, 60, (2, 24, 8, 8, 3))).astype(np.uint8)
    return split(dataset_from_arrays(train, labels, test, labels, name="coloured"), **({"tasks": 2} | options))


def in_second_task(spec: str) -> Any:
    """Return a strategy in the second of two tasks, on the transformer by formula."""
    scenario = tiny()
    config = resolve(scenario, spec, {"model": TINY, "threads": 1})
    strategy = strategy_class(config.strategy)(**config.strategy_options)
    Run(config, scenario, strategy)
    strategy.progress.task = 1
    by_formula(strategy.model).backbone.requires_grad_(False)
    return strategy


def batch() -> Batch:
    ids = torch.arange(6)
    return Batch(IMAGES, (IMAGES * 255).byte(), LABELS, ids * 0 + 1, ids, slice(0, 4))


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    with np.load(Path(__file__).with_name("prompts.npz")) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def close(found: Any, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach().double(), expected.double(), rtol=1e-5, atol=1e-5)


def test_l2p_gives_the_numbers_of_published_code(published: dict[str, Tensor]) -> None:
    strategy = in_second_task("l2p[pool=5,length=2,top=3]")
    strategy.prompts = nn.Parameter(wave((5, 2, 16), 2.3))
    strategy.keys = nn.Parameter(published["l2p/keys"])
    close(strategy.model.features(IMAGES), published["l2p/queries"])
    terms = strategy.loss(batch())
    sum(terms.values()).backward()
    close(sum(terms.values()), published["l2p/loss"])
    close(-terms["pull"] / 0.1, published["l2p/pull"])
    close(strategy.scores(IMAGES), published["l2p/logits"])
    close(strategy.prompts.grad, published["l2p/grad_prompts"])
    close(strategy.keys.grad, published["l2p/grad_keys"])
    close(strategy.model.head.weight.grad, published["l2p/grad_weight"])
    close(strategy.model.head.bias.grad, published["l2p/grad_bias"])
    found, _ = strategy.prompt(published["l2p/queries"], training=True)
    chosen = strategy.prompts[published["l2p/chosen"]].flatten(1, 2)
    assert torch.equal(found.tokens[0], chosen)


def test_dualprompt_gives_the_numbers_of_published_code(published: dict[str, Tensor]) -> None:
    strategy = in_second_task("dualprompt[general_length=2,expert_length=3]")
    strategy.general = nn.Parameter(wave((2, 2, 2, 16), 2.3))
    experts = wave((3, 2, 2, 3, 16), 1.9).permute(2, 0, 1, 3, 4)
    strategy.experts = nn.ParameterList(list(experts.contiguous()))
    strategy.keys = nn.ParameterList(list(published["dualprompt/keys"]))
    terms = strategy.loss(batch())
    sum(terms.values()).backward()
    close(sum(terms.values()), published["dualprompt/loss"])
    close(-terms["pull"], published["dualprompt/pull"])
    close(strategy.prompted(IMAGES, training=True)[0], published["dualprompt/logits"])
    close(strategy.general.grad, published["dualprompt/grad_general"])
    close(strategy.experts[1].grad, published["dualprompt/grad_experts"][1])
    close(strategy.keys[1].grad, published["dualprompt/grad_keys"][1])
    close(strategy.model.head.weight.grad, published["dualprompt/grad_weight"])
    # At test each image chooses its expert; both are chosen.
    assert set(published["dualprompt/chosen"].tolist()) == {0, 1}
    close(strategy.scores(IMAGES), published["dualprompt/test_logits"])


def test_coda_prompt_gives_the_numbers_of_published_code(published: dict[str, Tensor]) -> None:
    strategy = in_second_task("coda-prompt[components=3,length=2,orthogonality=0.001]")
    kinds = {"parts": ((6, 4, 16), 2.3), "keys": ((6, 16), 3.1), "attention": ((6, 16), 1.9)}
    for name, (shape, k) in kinds.items():
        whole = torch.stack([wave(shape, k + block / 7).flatten(1) for block in range(5)])
        setattr(strategy, name, nn.ParameterList([whole[:, :3].clone(), whole[:, 3:].clone()]))
        getattr(strategy, name)[0].requires_grad_(False)  # as the stage does to those of earlier tasks
    terms = strategy.loss(batch())
    sum(terms.values()).backward()
    close(sum(terms.values()), published["coda/loss"])
    close(terms["orthogonality"], published["coda/penalty"])
    close(strategy.prompted(IMAGES, training=True)[0], published["coda/logits"])
    close(strategy.scores(IMAGES), published["coda/test_logits"])
    close(strategy.model.head.weight.grad, published["coda/grad_weight"])
    for name in kinds:
        assert not published[f"coda/grad_{name}"][:, :3].any()
        close(getattr(strategy, name)[1].grad, published[f"coda/grad_{name}"][:, 3:])
