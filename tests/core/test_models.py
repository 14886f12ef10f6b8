"""Parameter counts come from papers or hand counts, initialisations from torch's documentation."""

import math

import pytest
import torch
from torch import nn

from clbench.config.errors import ConfigError
from clbench.models import Head, build_model

SPECS = [
    "mlp",
    "mlp:30-20[batch_norm=true,activation=tanh,dropout=0.5]",
    "conv",
    "conv:8-8[dropout=0.2]",
    "resnet32",
    "resnet32[shortcut=B,last_relu=false,bn_eps=1e-4,init=default]",
    "resnet18[width=8]",
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def build(spec, image_shape=(3, 32, 32), n_outputs=10):
    model = build_model(spec, image_shape, seed=0)
    model.head.grow(n_outputs, generator())
    return model


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# The head


def test_head_starts_as_nn_linear_does():
    torch.manual_seed(3)
    head = Head(7, 4)
    torch.manual_seed(3)
    linear = nn.Linear(7, 4)
    assert torch.equal(head.weight, linear.weight)
    assert torch.equal(head.bias, linear.bias)


@pytest.mark.filterwarnings("error")
def test_head_without_outputs_gives_empty_logits():
    head = Head(7)
    assert head(torch.randn(5, 7)).shape == (5, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("trained", [True, False])
def test_growth_keeps_old_rows_and_what_the_parameters_are(dtype, trained):
    head = Head(7, 3).to(dtype).requires_grad_(trained)
    weight, bias = head.weight, head.bias
    old_weight, old_bias = weight.detach().clone(), bias.detach().clone()
    head.grow(5, generator())
    assert head.weight is not weight
    assert head.bias is not bias
    assert torch.equal(head.weight[:3], old_weight)
    assert torch.equal(head.bias[:3], old_bias)
    assert head.weight.shape == (5, 7)
    assert head.bias.shape == (5,)
    assert head.out_features == 5
    for parameter in head.parameters():
        assert isinstance(parameter, nn.Parameter)
        assert parameter.dtype == dtype
        assert parameter.requires_grad is trained
        assert parameter.is_leaf
    assert head(torch.randn(2, 7, dtype=dtype)).shape == (2, 5)


def test_growth_depends_on_its_generator_alone():
    a, b = Head(7), Head(7)
    state = torch.get_rng_state()
    a.grow(4, generator(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(10)
    b.grow(4, generator(5))
    assert same(a.state_dict(), b.state_dict())
    b = Head(7)
    b.grow(4, generator(6))
    assert not torch.equal(a.weight, b.weight)


def test_one_growth_equals_several_from_the_same_stream():
    at_once, in_steps = Head(7), Head(7)
    at_once.grow(9, generator())
    stream = generator()
    for n_outputs in (2, 2, 3, 9):
        in_steps.grow(n_outputs, stream)
    assert same(at_once.state_dict(), in_steps.state_dict())


def test_new_rows_are_uniform_as_in_nn_linear():
    """nn.Linear's documentation: U(-sqrt(k), sqrt(k)), k = 1/in_features; the variance is bound^2 / 3."""
    head = Head(16)
    head.grow(4000, generator())
    for parameter in head.parameters():
        values = parameter.detach().flatten()
        assert 0.249 < values.abs().max() <= 0.25
        assert abs(values.mean()) < 4 * 0.25 / math.sqrt(3 * len(values))
        assert values.var().item() == pytest.approx(0.25**2 / 3, rel=0.06)


def test_a_head_does_not_shrink():
    head = Head(7, 3)
    with pytest.raises(ValueError, match="n_outputs=2 given; at least the existing 3"):
        head.grow(2, generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_growth_on_cuda_draws_the_same_rows():
    on_cpu, on_cuda = Head(7), Head(7).cuda()
    on_cpu.grow(4, generator())
    on_cuda.grow(4, generator())
    assert on_cuda.weight.is_cuda
    assert torch.equal(on_cuda.weight.cpu(), on_cpu.weight)


# All models


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 32), (4, 8, 11)])
def test_any_image_becomes_features_and_logits(spec, image_shape):
    model = build(spec, image_shape, n_outputs=3).eval()
    images = torch.randn(2, *image_shape)
    features = model.features(images)
    assert features.shape == (2, model.feature_dim)
    expected = features @ model.head.weight.T + model.head.bias
    assert torch.allclose(model(images), expected, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_blocks_are_the_backbone_in_order(spec):
    model = build(spec).eval()
    x = images = torch.randn(2, 3, 32, 32)
    for block in model.blocks():
        assert n_parameters(block) > 0
        x = block(x)
    assert torch.equal(x, model.features(images))
    assert sum(n_parameters(block) for block in model.blocks()) == n_parameters(model) - n_parameters(model.head)


@pytest.mark.parametrize("spec", ["conv", "resnet32", "resnet32[shortcut=B]", "resnet18[width=8]"])
def test_channels_last_changes_nothing_but_rounding(spec):
    model = build(spec).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    assert torch.allclose(model(images.to(memory_format=torch.channels_last)), expected, atol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_weights_are_a_function_of_spec_shape_and_seed(spec):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_model(spec, (3, 16, 16), seed=11)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(build_model(spec, (3, 16, 16), seed=11).state_dict(), first.state_dict())
    assert not same(build_model(spec, (3, 16, 16), seed=12).state_dict(), first.state_dict())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_building_leaves_the_stream_of_cuda_alone():
    state = torch.cuda.get_rng_state()
    build_model("mlp", (1, 8, 8), seed=11)
    assert torch.equal(torch.cuda.get_rng_state(), state)


# Figures of the papers


def test_mlp_has_the_published_number_of_parameters():
    """478,410: van de Ven et al. 2022, 784-400-400-10 = 785*400 + 401*400 + 401*10."""
    assert n_parameters(build("mlp", (1, 28, 28))) == 478_410
    assert n_parameters(build("mlp:400-400", (1, 28, 28))) == 478_410
    # Batch norm adds a scale and a shift for each of 2 * 400 units.
    assert n_parameters(build("mlp[batch_norm=true]", (1, 28, 28))) == 478_410 + 4 * 400


def test_mlp_layers_come_in_the_documented_order():
    model = build("mlp:30-20[batch_norm=true,activation=tanh,dropout=0.5]")
    kinds = [[type(layer) for layer in block] for block in model.blocks()]
    assert kinds[1] == [nn.Linear, nn.BatchNorm1d, nn.Tanh, nn.Dropout]
    assert kinds[0] == [nn.Flatten, *kinds[1]]


def multiply_adds(model):
    """Count multiplications by weights for one 32x32 colour image: each weight once per output pixel."""
    total = 0

    def add(module, _, output):
        nonlocal total
        total += module.weight.numel() * (output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1)

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(add)
    model.eval()(torch.zeros(1, 3, 32, 32))
    return total


def test_resnet32_is_the_published_network():
    """463,504 parameters before the head (the README of "Class-Incremental Learning: A Survey"); 68.9 million
    multiply-adds an image (iCaRL's network).
    """
    model = build("resnet32", n_outputs=100)
    assert n_parameters(model) - n_parameters(model.head) == 463_504
    assert n_parameters(model.head) == 65 * 100
    assert round(multiply_adds(model) / 1e6, 1) == 68.9


def test_resnet18_is_the_published_network():
    """11.17 M parameters, 555 million multiply-adds (the network of Buzzega et al. 2020); counted by hand:
    stem 9*3*w + 2w, four stages of 3x3 and 1x1 convolutions and their batch norms, head 10 * (8w + 1).
    """

    def by_hand(w):
        total = 9 * 3 * w + 2 * w
        inputs = w
        for outputs in (w, 2 * w, 4 * w, 8 * w):
            total += 9 * inputs * outputs + 3 * 9 * outputs * outputs + 4 * 2 * outputs
            if inputs != outputs:
                total += inputs * outputs + 2 * outputs
            inputs = outputs
        return total + 10 * (8 * w + 1)

    model = build("resnet18")
    assert n_parameters(model) == by_hand(64) == 11_173_962
    assert int(multiply_adds(model) / 1e6) == 555
    assert n_parameters(build("resnet18[width=20]")) == by_hand(20)


def test_shortcut_a_has_no_parameters_and_b_has_two_projections():
    a, b = build("resnet32[shortcut=A]"), build("resnet32[shortcut=B]")
    kernels = [[m.weight.shape for m in x.modules() if isinstance(m, nn.Conv2d)] for x in (a, b)]
    assert all(shape[2:] == (3, 3) for shape in kernels[0])
    assert sorted(shape for shape in kernels[1] if shape[2:] == (1, 1)) == [(32, 16, 1, 1), (64, 32, 1, 1)]
    # Two 1x1 convolutions, each with a batch norm.
    assert n_parameters(b) - n_parameters(a) == (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)


@pytest.mark.parametrize("size", [8, 9])
def test_shortcut_a_takes_every_second_pixel_and_pads_channels_on_both_sides(size):
    """With the residual switched off a block passes on its shortcut: 8 zero channels, 16 old ones, 8 zero."""
    block = build("resnet32").blocks()[2][0].eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
    x = torch.rand(2, 16, size, size)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_features_are_signed_only_without_the_last_relu():
    images = torch.randn(8, 3, 32, 32)
    signed, rectified = build("resnet32[last_relu=false]"), build("resnet32")
    assert same(signed.state_dict(), rectified.state_dict())
    for model in (signed, rectified):
        # The last shift far below zero: at initialisation the skip connections alone keep the means positive.
        nn.init.constant_([m for m in model.modules() if isinstance(m, nn.BatchNorm2d)][-1].bias, -100)
    assert (signed.features(images) < 0).all()
    assert (rectified.features(images) == 0).all()


@pytest.mark.parametrize("spec", ["resnet32[bn_eps=1e-4]", "resnet32[shortcut=B,bn_eps=1e-4]"])
def test_bn_eps_reaches_every_batch_norm(spec):
    assert {m.eps for m in build(spec).modules() if isinstance(m, nn.BatchNorm2d)} == {1e-4}
    assert {m.eps for m in build("resnet32").modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}


@pytest.mark.parametrize(("init", "variance"), [("he", 2.0), ("default", 1 / 3)])
def test_convolutions_are_initialised_as_the_papers_say(init, variance):
    """He et al. 2015: variance 2 / fan_in; torch: uniform up to 1/sqrt(fan_in), so variance 1/3 / fan_in."""
    model = build(f"resnet32[init={init}]")
    convolutions = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d)]
    scaled = torch.cat([weight.flatten() * math.sqrt(weight[0].numel()) for weight in convolutions])
    assert scaled.var().item() == pytest.approx(variance, rel=0.02)
    if init == "he":
        assert scaled.abs().max() > 4  # a normal distribution has tails, a uniform one ends at 1
    else:
        assert scaled.abs().max() <= 1.001


# Specs


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("mpl", "unknown model 'mpl'; did you mean 'mlp'?"),
        ("mlp[width=4]", "unknown option of mlp 'width'; did you mean 'widths'?"),
        ("mlp:400-0", "mlp: widths=400-0 given, greater than or equal to 1 for each entry accepted"),
        ("mlp:", "mlp: widths= given, at least 1 item accepted"),
        ("mlp[dropout=1]", "mlp: dropout=1 given, less than 1 accepted"),
        ("mlp[activation=gelu]", "mlp: activation=gelu given, 'relu', 'tanh' or 'crelu' accepted"),
        (
            "mlp:4[widths=3]",
            "mlp:4[widths=3] gives widths twice; they are accepted once, after the colon or in the brackets",
        ),
        ("resnet18:20", "resnet18:20 given, but resnet18 has no widths; options accepted: width"),
        ("resnet32[bn_eps=0]", "resnet32: bn_eps=0 given, greater than 0 accepted"),
        (
            "torchvision[name=resnet19]",
            "torchvision: name=resnet19 given, 'resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', "
            "'resnext50_32x4d', 'resnext101_32x8d', 'resnext101_64x4d', 'wide_resnet50_2' or "
            "'wide_resnet101_2' accepted",
        ),
    ],
)
def test_a_wrong_spec_is_refused_in_one_sentence(spec, sentence):
    with pytest.raises(ConfigError) as caught:
        build_model(spec, (3, 32, 32), seed=0)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(("side", "pools", "features"), [(28, 4, 64), (32, 5, 64), (64, 5, 256)])
def test_a_pyramid_of_convolutions_pools_while_there_is_something_to_pool(side, pools, features):
    """28 px halve to 14, 7, 3, 1; 32 px to 16, 8, 4, 2, 1; 64 px to 32, 16, 8, 4, 2: 2 x 2 x 64 features."""
    model = build_model("conv:64-128-256-128-64", (1, side, side), seed=0).eval()
    assert sum(isinstance(module, nn.MaxPool2d) for module in model.modules()) == pools
    assert model.features(torch.zeros(2, 1, side, side)).shape == (2, features)
    kinds = [type(layer) for layer in model.blocks()[0]]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]


def test_widths_may_be_written_three_ways():
    specs = ["mlp:30-20", "mlp[widths=30-20]", "mlp[widths=[30,20]]"]
    states = [build_model(spec, (1, 8, 8), seed=0).state_dict() for spec in specs]
    assert same(states[0], states[1])
    assert same(states[0], states[2])


def test_a_class_of_the_users_own_must_be_a_network(tmp_path):
    (tmp_path / "net.py").write_text("from torch.nn import Linear\n")
    with pytest.raises(ConfigError, match=r"a subclass of clbench\.models\.Network is accepted"):
        build_model(f"{tmp_path / 'net.py'}:Linear", (1, 8, 8), seed=0)
