"""Fisher diagonal and quadratic penalty: values worked by hand, and state that must not change."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clbench.config.errors import ConfigError
from clbench.learning.importance import fisher_diagonal, fisher_diagonal_of_batches, quadratic_penalty

MODES = ["empirical", "sampled", "exact"]


def softmax_regression(bias: list[float], inputs: int = 2) -> nn.Linear:
    """Zero weights: p(y|x) is the softmax of the bias, whatever x is."""
    model = nn.Linear(inputs, len(bias))
    nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.bias.copy_(torch.tensor(bias))
    return model


class BatchNormNet(nn.Module):
    """Both kinds of batch norm, dropout and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm2 = nn.BatchNorm2d(3)
        self.hidden = nn.Linear(3 * 36, 8)
        self.norm1 = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout()
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.head = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm2(self.conv(images))).flatten(1)
        return self.head(self.frozen(self.dropout(F.relu(self.norm1(self.hidden(x))))))


@pytest.fixture
def model() -> BatchNormNet:
    """A model in training mode, but for one frozen part in eval mode, with used statistics and a gradient."""
    torch.manual_seed(0)
    net = BatchNormNet()
    net(torch.randn(32, 1, 8, 8)).square().mean().backward()
    net.norm2.eval()
    return net


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(37, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.arange(37) % 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Values by hand. The gradient of log p(y|x) is (onehot(y) - p) x^T for the weights, onehot(y) - p for the bias.


def test_fisher_of_softmax_regression_by_hand():
    """Both p are 1/2. x = (1, 2), y = 0: +-(.5, 1), squared (.25, 1); x = (3, 0), y = 1: +-(1.5, 0), (2.25, 0).

    The mean of the squares is (1.25, .5). The square of the mean gradient would be (.25, .25).
    """
    fisher = fisher_diagonal(
        softmax_regression([0.0, 0.0]), torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 1])
    )
    torch.testing.assert_close(fisher["weight"], torch.tensor([[1.25, 0.5], [1.25, 0.5]]))
    torch.testing.assert_close(fisher["bias"], torch.tensor([0.25, 0.25]))


def test_label_mode_is_an_option():
    """p = (3/4, 1/4) and x = (1, 2), so x^2 = (1, 4).

    Empirical with y = 0: (1 - 3/4)^2 = 1/16; with y = 1: (3/4)^2 = 9/16. Exact, whatever the labels:
    3/4 * 1/16 + 1/4 * 9/16 = 3/16, which is p (1 - p).
    """
    model, x = softmax_regression([math.log(3), 0.0]), torch.tensor([[1.0, 2.0]])
    for label, mode, expected in ((0, "empirical", 1), (1, "empirical", 9), (0, "exact", 3), (1, "exact", 3)):
        fisher = fisher_diagonal(model, x, torch.tensor([label]), label_mode=mode)
        torch.testing.assert_close(fisher["weight"], expected / 16 * torch.tensor([[1.0, 4.0], [1.0, 4.0]]))
        torch.testing.assert_close(fisher["bias"], torch.full((2,), expected / 16))


def test_sampled_labels_follow_the_model():
    """Each draw gives 1/16 (label 0, probability 3/4) or 9/16 (label 1), so their mean tells how many are 1.

    Of 4000 draws 1000 are expected, with a standard deviation of sqrt(4000 * 3/4 * 1/4) = 27.4.
    """
    model = softmax_regression([math.log(3), 0.0])
    x, wrong = torch.ones(4000, 2), torch.ones(4000, dtype=torch.int64)
    fisher = fisher_diagonal(model, x, wrong, label_mode="sampled", generator=generator(), chunk_size=500)
    ones = (fisher["bias"][0].item() * 4000 - 4000 / 16) / (8 / 16)
    assert ones == pytest.approx(round(ones), abs=0.05)
    assert abs(ones - 1000) < 4 * 27.4
    again = fisher_diagonal(model, x, wrong, label_mode="sampled", generator=generator(), chunk_size=500)
    other = fisher_diagonal(model, x, wrong, label_mode="sampled", generator=generator(1), chunk_size=500)
    assert torch.equal(again["bias"], fisher["bias"])
    assert not torch.equal(other["bias"], fisher["bias"])


@pytest.mark.parametrize("mode", MODES)
def test_only_active_outputs_compete(mode):
    """The Fisher over outputs 2 and 3 of four is that of a head with just these two, and 0 elsewhere."""
    wide, narrow = softmax_regression([5.0, -5.0, 0.3, 0.0]), softmax_regression([0.3, 0.0])
    x = torch.randn(20, 2, generator=generator())
    y = torch.arange(20) % 2
    expected = fisher_diagonal(narrow, x, y, label_mode=mode, generator=generator())
    fisher = fisher_diagonal(wide, x, y + 2, label_mode=mode, generator=generator(), active=slice(2, 4))
    torch.testing.assert_close(fisher["weight"][2:], expected["weight"])
    torch.testing.assert_close(fisher["bias"][2:], expected["bias"])
    assert not fisher["weight"][:2].any()


# Independent method and invariances


def test_fisher_of_batch_norm_models_is_that_of_one_sample_at_a_time(model, images, labels):
    """BatchNorm1d and BatchNorm2d, against ordinary backward passes over single samples in eval mode."""
    single = copy.deepcopy(model).eval()
    expected = {name: torch.zeros_like(p) for name, p in single.named_parameters() if p.requires_grad}
    for image, label in zip(images, labels, strict=True):
        single.zero_grad()
        F.cross_entropy(single(image[None]), label[None]).backward()
        for name in expected:
            expected[name] += single.get_parameter(name).grad ** 2 / len(images)
    fisher = fisher_diagonal(model, images, labels)
    assert fisher.keys() == expected.keys()
    assert not any(name.startswith("frozen") for name in fisher)
    for name in expected:
        torch.testing.assert_close(fisher[name], expected[name])


def test_exact_mode_is_the_expectation_of_empirical_ones(model, images):
    """One image with each label in turn, weighted by the model's own probabilities."""
    image = images[:1]
    exact = fisher_diagonal(model, image, torch.tensor([0]), label_mode="exact")
    probabilities = copy.deepcopy(model).eval()(image).softmax(dim=1)[0].tolist()
    each = [fisher_diagonal(model, image, torch.tensor([y])) for y in range(5)]
    for name, value in exact.items():
        torch.testing.assert_close(value, sum(p * f[name] for p, f in zip(probabilities, each, strict=True)))


@pytest.mark.parametrize("mode", MODES)
def test_fisher_does_not_depend_on_chunks_or_batches(model, images, labels, mode):
    whole = fisher_diagonal(model, images, labels, label_mode=mode, generator=generator(), chunk_size=37)
    for size in (1, 16, 100):
        parts = fisher_diagonal(model, images, labels, label_mode=mode, generator=generator(), chunk_size=size)
        torch.testing.assert_close(parts, whole)
    batches = zip(images.split(10), labels.split(10), strict=True)
    torch.testing.assert_close(
        fisher_diagonal_of_batches(model, batches, label_mode=mode, generator=generator()), whole
    )


@pytest.mark.parametrize("mode", MODES)
def test_fisher_leaves_no_trace_in_the_model(model, images, labels, mode):
    state = copy.deepcopy(model.state_dict())
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    modes = {name: module.training for name, module in model.named_modules()}
    fisher = fisher_diagonal(model, images, labels, label_mode=mode, generator=generator())
    with pytest.raises(ConfigError):
        fisher_diagonal(model, images, labels + 5)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: p.grad is not None for name, p in model.named_parameters()} == {
        name: name in gradients for name, _ in model.named_parameters()
    }
    assert all(torch.equal(model.get_parameter(name).grad, g) for name, g in gradients.items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not modes["norm2"]
    assert modes["norm1"]
    assert not any(f.requires_grad for f in fisher.values())


class InPlace(nn.Module):
    """Linear layers alone, their outputs changed in place, one of them frozen; `twice` uses one of them again."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.twice = twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.frozen(F.relu_(self.first(x)))
        x = torch.tanh_(self.second(x))
        return self.head(torch.tanh(self.second(x)) if self.twice else x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("twice", [False, True])
def test_fisher_of_linear_layers_is_that_of_one_sample_at_a_time(twice, mode):
    """Linear layers take a short cut if each is used once; the reference is one backward pass for each sample.

    Exact: the sum over labels, weighted by their probability; sampled: labels that the same generator has drawn.
    """
    torch.manual_seed(3)
    net = InPlace(twice)
    x, y = torch.randn(20, 6), torch.arange(20) % 3 + 1
    fisher = fisher_diagonal(net, x, y, label_mode=mode, active=slice(1, 4), generator=generator())
    drawn = torch.rand(20, 1, dtype=torch.float64, generator=generator())
    expected = {name: torch.zeros_like(p) for name, p in net.named_parameters() if p.requires_grad}
    for i in range(20):
        p = net(x[i : i + 1])[0, 1:].softmax(0).tolist()
        cumulative = torch.tensor(p, dtype=torch.float64).cumsum(0)
        sampled = int((cumulative <= drawn[i] * cumulative[-1]).sum())
        labels = {"empirical": [(int(y[i]) - 1, 1.0)], "sampled": [(sampled, 1.0)], "exact": list(enumerate(p))}[mode]
        for label, weight in labels:
            net.zero_grad()
            F.cross_entropy(net(x[i : i + 1])[:, 1:], torch.tensor([label])).backward()
            for name in expected:
                expected[name] += weight * net.get_parameter(name).grad ** 2 / 20
    assert fisher.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(fisher[name], expected[name], rtol=1e-4, atol=1e-8)


def test_fisher_of_tied_linear_layers_is_that_of_one_sample_at_a_time():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    x, y = torch.randn(5, 4), torch.arange(5) % 4
    expected = torch.zeros(4, 4)
    for i in range(5):
        net.zero_grad()
        F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
        expected += net[0].weight.grad ** 2 / 5
    torch.testing.assert_close(fisher_diagonal(net, x, y)["0.weight"], expected)


def test_fisher_is_computed_in_float32_whatever_surrounds_it(model, images, labels):
    expected = fisher_diagonal(model, images, labels)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(fisher_diagonal(model, images, labels), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_mode": "true"}, "unknown label mode 'true'; accepted: empirical, sampled, exact"),
        ({"label_mode": "sampled"}, "without a generator"),
        ({"active": slice(0, 3)}, r"labels 0..4 are not all among the 3 active outputs"),
        ({"active": slice(2, 5)}, r"labels 0..4 are not all among the 3 active outputs from 2 on"),
        ({"chunk_size": 0}, "chunk size 0"),
    ],
)
def test_fisher_refuses(model, images, labels, options, message):
    with pytest.raises(ConfigError, match=message):
        fisher_diagonal(model, images, labels, **options)


def test_fisher_of_no_samples_is_refused(model, images, labels):
    with pytest.raises(ConfigError, match="no samples"):
        fisher_diagonal(model, images[:0], labels[:0])


# Penalty


def test_quadratic_penalty_by_hand():
    """2 (1 - 0)^2 + 5 (2 - 2)^2 + .5 (3 - 1)^2 + 3 (4 - 5)^2 = 2 + 0 + 2 + 3; gradients 2 F (w - w*)."""
    parameters = {"a": nn.Parameter(torch.tensor([[1.0, 2.0, 3.0]])), "b": nn.Parameter(torch.tensor([4.0]))}
    importance = {"a": torch.tensor([[2.0, 5.0, 0.5]]), "b": torch.tensor([3.0])}
    anchor = {"a": torch.tensor([[0.0, 2.0, 1.0]]), "b": torch.tensor([5.0])}
    penalty = quadratic_penalty(parameters, importance, anchor)
    (penalty / 2).backward()
    assert penalty.item() == 7
    assert parameters["a"].grad.tolist() == [[2.0, 0.0, 1.0]]
    assert parameters["b"].grad.tolist() == [-3.0]


def test_quadratic_penalty_of_a_grown_head_compares_its_first_rows():
    """One old row: 1 (2 - 1)^2 + 10 (3 - 1)^2 = 41, gradients 2 and 40; the new row is free, as is another name."""
    head = nn.Parameter(torch.tensor([[2.0, 3.0], [9.0, 9.0]]))
    penalty = quadratic_penalty(
        {"head": head, "new": nn.Parameter(torch.ones(3))},
        {"head": torch.tensor([[1.0, 10.0]])},
        {"head": torch.ones(1, 2)},
    )
    penalty.backward()
    assert penalty.item() == 41
    assert head.grad.tolist() == [[2.0, 40.0], [0.0, 0.0]]


def test_quadratic_penalty_gradient_agrees_with_finite_differences():
    torch.manual_seed(0)
    weights = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    channels_last = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    channels_last.requires_grad_()
    importance = {"w": torch.rand(2, 4, dtype=torch.float64), "c": torch.rand(2, 3, 4, 5, dtype=torch.float64)}
    anchor = {name: torch.randn_like(value) for name, value in importance.items()}

    def penalty(w: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return quadratic_penalty({"w": w, "c": c}, importance, anchor)

    assert torch.autograd.gradcheck(penalty, (weights, channels_last))


def test_quadratic_penalty_of_nothing_is_zero():
    assert quadratic_penalty({"w": torch.ones(2)}, {}, {}).item() == 0


@pytest.mark.parametrize(
    ("weight", "importance", "anchor"),
    [((1, 2), (2, 2), (2, 2)), ((2, 3), (2, 1), (2, 1)), ((2, 2), (2, 2), (1, 2)), ((4, 2), (2, 2), (3, 2))],
)
def test_quadratic_penalty_refuses_shapes_that_do_not_fit(weight, importance, anchor):
    with pytest.raises(ConfigError, match="accepted: equal shapes, or more rows"):
        quadratic_penalty({"w": torch.ones(weight)}, {"w": torch.ones(importance)}, {"w": torch.ones(anchor)})
