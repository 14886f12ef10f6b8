"""Parameters put into a backbone: without effect at the start, taken out without a trace, kept with the network.

`tests/strategies/test_adapters.py` holds them against the authors' code.
"""

import copy

import pytest
import torch
from torch import nn

import clbench
from clbench.config.errors import ConfigError
from clbench.learning.strategy import Stage, Strategy, Traits
from clbench.learning.trainer import backbone_below
from clbench.models import build_model, inserted
from clbench.models.inserted import DeepPrompts, LoRA, ParallelAdapters, ScaleShift, SequentialAdapters

VIT = "vit[width=16,depth=2,heads=2,patch_size=8]"
RESNET = "torchvision[name=resnet18]"
ALL = LoRA(2, layers=())
FITTING = [
    *((VIT, kind) for kind in (ParallelAdapters(4), SequentialAdapters(4), LoRA(2), ALL, ScaleShift(), DeepPrompts(2))),
    *((spec, kind) for spec in ("mlp:8[batch_norm=true]", "conv:4-4", RESNET) for kind in (ALL, ScaleShift())),
    ("timm:mobilenetv3_small_050[image_size=32]", ALL),
    ("timm:convnext_atto[image_size=32]", ScaleShift()),
]
REFUSED = [
    *((spec, kind) for spec in ("mlp:8", "conv:4-4", RESNET) for kind in (ParallelAdapters(), SequentialAdapters())),
    ("mlp:8", DeepPrompts()),
    ("conv:4-4", LoRA()),
    (VIT, LoRA(layers=("qvk",))),
    # It reads the weights of its layers without calling them.
    ("timm:eva02_tiny_patch14_224[image_size=28]", ALL),
]


def build(spec):
    return build_model(spec, (3, 16, 16), 0).eval()


IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("spec", "kind"), FITTING, ids=str)
def test_an_insertion_begins_without_effect_and_leaves_no_trace(spec, kind):
    network = build(spec)
    before, tensors = network.features(IMAGES), network.state_dict(keep_vars=True)
    values = {name: tensor.clone() for name, tensor in tensors.items()}
    put_in = inserted.insert(network, kind)
    if not isinstance(kind, DeepPrompts):
        torch.testing.assert_close(network.features(IMAGES), before, rtol=0, atol=1e-6)
    with torch.no_grad():
        for parameter in put_in:
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    again = inserted.insert(network, kind)
    assert inserted.count(network) == 2
    assert len(again) == len(put_in)
    assert {id(p) for p in again}.isdisjoint({id(p) for p in put_in})
    with inserted.using(network, 0):
        assert not torch.allclose(network.features(IMAGES), before, atol=1e-5)
    with inserted.using(network, None):
        assert torch.equal(network.features(IMAGES), before)
    inserted.remove(network)
    left = network.state_dict(keep_vars=True)
    assert list(left) == list(tensors)
    assert all(left[name] is tensor for name, tensor in tensors.items())
    assert all(torch.equal(left[name], value) for name, value in values.items())
    assert torch.equal(network.features(IMAGES), before)


@pytest.mark.parametrize(("spec", "kind"), REFUSED, ids=str)
def test_a_network_without_a_place_is_refused_by_name(spec, kind):
    with pytest.raises(ConfigError, match=f"{kind.described} can't be put into .* is accepted"):
        inserted.check_insertion(build(spec), kind, (3, 16, 16))


def test_lora_is_an_addition_to_the_weights():
    """The independent method: W + alpha / rank * B A in the place of W, in linear and strided convolutional layers."""
    for layer, x in ((nn.Linear(5, 7), torch.rand(4, 5)), (nn.Conv2d(4, 6, 3, 2, 1), torch.rand(2, 4, 9, 9))):
        part = LoRA(rank=3, alpha=1.5).part(layer)
        nn.init.normal_(part.up.weight)
        merged = copy.deepcopy(layer)
        up, down = part.up.weight.flatten(1), part.down.weight.flatten(1)
        with torch.no_grad():
            merged.weight += 0.5 * (up @ down).view_as(merged.weight)
        torch.testing.assert_close(part(layer, x), merged(x), rtol=1e-5, atol=1e-5)


def test_a_copy_has_insertions_of_its_own():
    network = build(VIT)
    inserted.insert(network, ParallelAdapters(4))
    other = copy.deepcopy(network)
    nn.init.ones_(inserted.parameters(other)[2])
    assert not torch.equal(other.features(IMAGES), network.features(IMAGES))
    with inserted.using(other, None), inserted.using(network, None):
        assert torch.equal(other.features(IMAGES), network.features(IMAGES))


def test_train_head_keeps_the_backbone_and_not_what_was_put_in():
    network = build(VIT)
    own = {id(p) for p in network.backbone.parameters()}
    inserted.insert(network, ScaleShift())
    assert {id(p) for p in backbone_below(network, "head")} == own


class Sideways(Strategy):
    """Trains adapters put into the backbone; what it was told of them is kept for the tests."""

    traits = Traits(family="frozen")

    def begin_run(self):
        """Put them in."""
        with self.seeded("adapters"):
            inserted.insert(self.model, ParallelAdapters(3))

    def stages(self, task):
        """Train them and the head."""
        return [Stage(task.train, parameters=[*inserted.parameters(self.model), *self.model.head.parameters()])]

    def end_task(self, task):
        """Keep the network."""
        Sideways.left = self.model


def test_they_are_trained_and_listed_in_the_ledger(tmp_path):
    """Two adapters of 16 x 3 + 3 and 3 x 16 + 16 floats are 2 * 115 * 4 bytes; nothing else of the backbone moves."""
    options = {"model": "vit[width=16,depth=2,heads=2,patch_size=14]", "limit": 10, "epochs": 2, "threads": 1}
    options |= {"tasks": 2, "lr": 0.5, "backbone_lr_factor": 1e-9}
    result = clbench.run("split-mnist-5k", Sideways, out=tmp_path / "run", **options)
    assert [entry["bytes"]["inserted"] for entry in result.record["ledger"]] == [920, 920]
    left = Sideways.left
    # The second weight of an adapter began with zeros, and a rate of its own that small would have kept it there.
    assert inserted.parameters(left)[2].abs().max() > 1e-3
    inserted.remove(left)
    stored = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    names = [name for name in stored if ".parts." not in name]
    assert {name.replace(".layer", "") for name in names} == left.state_dict().keys()
    assert all(torch.equal(stored[name], left.state_dict()[name.replace(".layer", "")]) for name in names)
