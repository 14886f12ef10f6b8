"""Prompts in a vision transformer, and L2P, DualPrompt and CODA-Prompt against the numbers of published code.

The numbers in prompts.npz were made once, in float64, by running published code outside of this project on the tiny
transformer, the images and the head of this file (all by formula), with a batch of 6 images of the second of two tasks
of two classes. Its modules made queries, choices, logits and penalties, and the loss was put together as in its
training loop (logits of other tasks at minus infinity):

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
    """Return a scenario of 4 classes of 6 coloured images of 8 x 8 pixels, in 2 tasks unless it is cut otherwise."""
    labels = np.arange(4).repeat(6)
    draw = np.random.default_rng(0)
    train, test = (50 * labels[:, None, None, None] + draw.integers(0, 60, (2, 24, 8, 8, 3))).astype(np.uint8)
    return split(dataset_from_arrays(train, labels, test, labels, name="coloured"), **(options or {"tasks": 2}))


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


# Prompts in a transformer


@pytest.fixture(scope="module")
def network() -> Any:
    return by_formula(build_model(TINY, (3, 8, 8), 0))


def test_without_prompts_the_features_are_those_of_the_network_bit_for_bit(network: Any) -> None:
    assert torch.equal(prompted_features(network, IMAGES, Prompts()), network.features(IMAGES))


def test_tokens_go_through_the_blocks_up_to_tokens_of_a_later_block(network: Any) -> None:
    """The same by hand with the modules of timm: the class token, the prompts, and four patches."""
    vit, first, later = network.backbone, wave((6, 3, 16), 0.7), wave((1, 2, 16), 0.2)
    tokens = vit._pos_embed(vit.patch_embed((IMAGES - 0.5) / 0.5))
    tokens = vit.blocks[:2](torch.cat([tokens[:, :1], first, tokens[:, 1:]], 1))
    tokens = vit.norm(vit.blocks[2:](torch.cat([tokens[:, :1], later.expand(6, -1, -1), tokens[:, 4:]], 1)))
    asked = Prompts(tokens={0: first, 2: later})
    torch.testing.assert_close(prompted_features(network, IMAGES, asked), tokens[:, 0])
    torch.testing.assert_close(prompted_features(network, IMAGES, asked, "prompts"), tokens[:, 1:3].mean(1))


def test_a_prompt_for_all_images_is_the_same_prompt_for_each(network: Any) -> None:
    token, prefix = wave((1, 2, 16), 0.7), wave((1, 2, 3, 16), 0.3)
    tokens, prefixes = token.repeat(6, 1, 1), prefix.repeat(6, 1, 1, 1)
    one = prompted_features(network, IMAGES, Prompts({0: token}, {1: prefix, 4: -prefix}))
    each = prompted_features(network, IMAGES, Prompts({0: tokens}, {1: prefixes, 4: -prefixes}))
    torch.testing.assert_close(one, each)


@pytest.mark.parametrize(
    "model",
    [
        "timm:vit_tiny_patch16_224[image_size=32]",
        "timm:deit_tiny_distilled_patch16_224[image_size=32]",
        "timm:vit_small_patch14_reg4_dinov2[image_size=28]",
        "timm:vit_xsmall_patch16_clip_224[image_size=32]",
    ],
)
def test_a_prefix_of_the_keys_and_values_of_the_tokens_themselves_changes_nothing(model: str) -> None:
    """Attention to every token twice is attention to every token once, since its weights add up to 1.

    The networks have one class token, two, four registers and scaled layers, and a norm before the blocks.
    """
    made: Any = build_model(model, (3, 20, 20), 0).eval()
    first, second = made.backbone.blocks[:2]
    with torch.no_grad():
        images = IMAGES[:2].float()
        _, keys, values = second.attn.qkv(second.norm1(first(made.blocks()[0](images)))).chunk(3, -1)
        doubled = prompted_features(made, images, Prompts(prefixes={1: torch.stack([keys, values], 1)}))
        torch.testing.assert_close(doubled, made.features(images), rtol=1e-4, atol=1e-4)


# Refusals

REFUSED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "no transformer": ("l2p", {"model": "mlp:8"}, ["l2p", "'mlp:8'", "vit"]),
    "convolutions": ("dualprompt", {"model": "conv:4-4"}, ["dualprompt", "'conv:4-4'", "vit"]),
    "a network of timm that is none": ("coda-prompt", {"model": "timm:resnet10t"}, ["'timm:resnet10t'", "vit"]),
    "windows": ("l2p", {"model": "timm:swin_tiny_patch4_window7_224"}, ["swin", "vit"]),
    "other blocks": ("l2p", {"model": "timm:vit_small_patch16_18x2_224"}, ["ParallelThingsBlock", "vit"]),
    "too few blocks": (
        "dualprompt",
        {"model": "vit[depth=4]"},
        ["5 blocks", "has 4", "less than general_blocks=2 and expert_blocks=3"],
    ),
    "too few blocks for options": (
        "coda-prompt[blocks=7,components=2]",
        {},
        ["7 blocks", "has 6", "less than blocks=7"],
    ),
    "more choices than prompts": ("l2p[top=6,pool=5]", {}, ["top=6", "pool=5"]),
    "more components than dimensions": ("coda-prompt[components=9]", {}, ["components=9", "16", "at most 8"]),
    "outputs to come": ("l2p", {"loss_outputs": "all", "head": "full"}, ["loss_outputs='all'", "'seen'"]),
    "a memory": ("dualprompt", {"memory_size": 10}, ["memory"]),
    "a compiler": ("l2p", {"compile": "default"}, ["compile=default"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_prompts_cant_work_with_is_refused_by_name(case: str, refused: Any, tmp_path: Path) -> None:
    spec, options, words = REFUSED[case]
    with refused(*words):
        clbench.run(tiny(), spec, out=tmp_path / "run", **({"model": TINY, "epochs": 1, "threads": 1} | options))
    assert not (tmp_path / "run" / "run.json").exists()


# A run


def learnt(name: str, out: Path, **options: Any) -> tuple[clbench.Result, list[dict[str, Tensor]]]:
    """Run a strategy for 2 tasks; return its result, and all tensors of network and prompts at the end of each."""
    kept: list[dict[str, Tensor]] = []

    class Kept(strategy_class(name)):  # type: ignore[misc]
        """Keeps copies for the test."""

        def end_task(self, task: Any) -> None:
            held = {f"model.{n}": p for n, p in self.model.named_parameters()} | self.trainable()
            kept.append({n: p.detach().clone() for n, p in held.items()})

    fixed = {"model": TINY, "epochs": 1, "batch_size": 4, "optimizer": "adam", "lr": 0.01, "threads": 1}
    given = {"strategy_options": {"components": 4}} if name == "coda-prompt" else {}
    return clbench.run(tiny(), Kept, out=out, **(fixed | given | options)), kept


@pytest.mark.parametrize(
    ("name", "learning", "numbers"),
    [
        # By hand, for tokens of 16 and 2 tasks: prompts and keys; general prefixes, experts and their keys; for each
        # task and block 4 components of 4 keys and 4 values, with their keys and attention vectors.
        ("l2p", {"prompts", "keys"}, 10 * 5 * 16 + 10 * 16),
        ("dualprompt", {"general"}, 2 * 2 * 5 * 16 + 2 * (3 * 2 * 5 * 16 + 16)),
        ("coda-prompt", set(), 2 * 5 * 4 * (8 * 16 + 16 + 16)),
    ],
)
def test_after_the_first_task_only_prompts_and_head_move_and_the_ledger_counts_them(
    name: str, learning: set[str], numbers: int, tmp_path: Path
) -> None:
    """Experts and components of the first task stay, under weight decay and Adam's momentum, too."""
    result, (first, second) = learnt(name, tmp_path / "run", optimizer="adamw", weight_decay=0.01)
    moved = {n for n in first if not torch.equal(first[n], second[n][: len(first[n])])}
    assert moved - {"model.head.weight", "model.head.bias"} == learning
    assert {epoch["stage"] for epoch in result.record["training"]} == {"backbone", "prompts"}
    plain = clbench.run(tiny(), "naive", out=tmp_path / "naive", model=TINY, epochs=1, threads=1)
    held, without = (sum(r.record["ledger"][-1]["bytes"].values()) for r in (result, plain))
    assert held - without == 4 * numbers


@pytest.mark.parametrize("name", NAMES)
def test_given_weights_stay_to_the_bit(name: str, tmp_path: Path) -> None:
    model: Any = build_model(TINY, (3, 8, 8), 5)
    torch.save({f"backbone.{n}": p for n, p in model.backbone.state_dict().items()}, tmp_path / "given.pt")
    result, kept = learnt(name, tmp_path / "run", weights=str(tmp_path / "given.pt"))
    assert {epoch["stage"] for epoch in result.record["training"]} == {"prompts"}
    for n, p in model.backbone.named_parameters():
        assert torch.equal(kept[-1][f"model.backbone.{n}"], p)


def test_components_begin_orthonormal_to_each_other_and_to_those_that_were_learnt() -> None:
    """Of 16 dimensions; what was learnt is orthogonal no longer."""
    strategy = in_second_task("coda-prompt[components=5,length=2]")
    strategy.begin_run()
    for task in tiny(task_sizes=[2, 1, 1]).tasks:
        strategy.progress.task = task.index
        strategy.begin_task(task)
        new = strategy.keys[-1].detach()
        torch.testing.assert_close(new @ new.mT, torch.eye(5).expand(5, -1, -1), rtol=0, atol=1e-5)
        for old in list(strategy.keys)[:-1]:
            assert (old.detach() @ new.mT).abs().max() < 1e-5
        with torch.no_grad():
            strategy.keys[-1] += wave(new.shape, 0.4).float() / 4
