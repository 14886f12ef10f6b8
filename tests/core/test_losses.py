"""Loss terms: values and gradients worked by hand."""

import math

import pytest
import torch

from clbench.config.errors import ConfigError
from clbench.learning.losses import binary_cross_entropy, cross_entropy, distillation

LN2, LN3 = math.log(2), math.log(3)

# softmax((2 ln 3, 0) / 2) = (3/4, 1/4) for the teacher, (1/2, 1/2) for the student:
# KL = 3/4 ln(3/2) + 1/4 ln(1/2)
TEACHER = torch.tensor([[2 * LN3, 0.0]])
STUDENT = torch.zeros(1, 2)
KL = 0.75 * math.log(1.5) - 0.25 * LN2


def student(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, requires_grad=True)


# Cross-entropy


def test_cross_entropy_by_hand():
    """Softmax of (ln 3, 0, 0) is (3, 1, 1) / 5, of (0, 0, 0) a third each."""
    logits = torch.tensor([[LN3, 0.0, 0.0], [0.0, 0.0, 0.0]])
    loss = cross_entropy(logits, torch.tensor([0, 2]))
    assert loss.item() == pytest.approx((math.log(5 / 3) + LN3) / 2)


def test_cross_entropy_over_new_outputs_only():
    """Outputs 1 and 2 compete, so p = (1/2, 1/2); gradient p - onehot there, nothing for output 0."""
    logits = student([LN3, 0.0, 0.0])
    loss = cross_entropy(logits, torch.tensor([2]), slice(1, 3))
    loss.backward()
    assert loss.item() == pytest.approx(LN2)
    assert logits.grad.tolist() == [[0.0, 0.5, -0.5]]


def test_cross_entropy_with_outputs_per_sample():
    """Sample 0 competes over outputs 0 and 2: (3, 1) / 4; sample 1 over 1 and 2: a half each."""
    logits = student([LN3, 7.0, 0.0], [7.0, 0.0, 0.0])
    mask = torch.tensor([[True, False, True], [False, True, True]])
    loss = cross_entropy(logits, torch.tensor([2, 1]), mask)
    loss.backward()
    assert loss.item() == pytest.approx((math.log(4) + LN2) / 2)
    expected = torch.tensor([[0.375, 0.0, -0.375], [0.0, -0.25, 0.25]])
    torch.testing.assert_close(logits.grad, expected)


def test_cross_entropy_of_a_slice_is_that_of_its_mask():
    logits, labels = torch.randn(8, 10), torch.randint(4, 7, (8,))
    mask = torch.zeros(8, 10, dtype=torch.bool)
    mask[:, 4:7] = True
    torch.testing.assert_close(cross_entropy(logits, labels, slice(4, 7)), cross_entropy(logits, labels, mask))
    torch.testing.assert_close(cross_entropy(logits, labels, slice(10)), cross_entropy(logits, labels))


def test_label_outside_the_slice_is_never_skipped():
    """100 outputs before the slice make label 0 the -100 that torch would leave out of the mean."""
    with pytest.raises(IndexError):
        cross_entropy(torch.zeros(2, 110), torch.tensor([0, 105]), slice(100, 110))


# Distillation


def test_distillation_value_and_gradient_by_hand():
    """Gradient (softmax(student / T) - softmax(teacher / T)) / (T B) = (1/2 - 3/4, 1/2 - 1/4) / (2 * 1)."""
    logits = student([0.0, 0.0])
    loss = distillation(logits, TEACHER, 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(KL, rel=1e-5)
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.125, 0.125]]))


def test_distillation_with_squared_temperature():
    """T^2 = 4 times the value and the gradient."""
    logits = student([0.0, 0.0])
    loss = distillation(logits, TEACHER, 2.0, squared_temperature=True)
    loss.backward()
    assert loss.item() == pytest.approx(4 * KL, rel=1e-5)
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.5, 0.5]]))


def test_distillation_divides_logits_by_the_temperature():
    """At T = 1 the teacher is softmax((2 ln 3, 0)) = (9/10, 1/10), not (3/4, 1/4)."""
    expected = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    assert distillation(STUDENT, TEACHER, 1.0).item() == pytest.approx(expected, rel=1e-5)


def test_distillation_is_averaged_over_the_batch():
    """A second sample where student and teacher agree adds 0 and halves the mean."""
    loss = distillation(torch.zeros(2, 2), torch.cat([TEACHER, torch.zeros(1, 2)]))
    assert loss.item() == pytest.approx(KL / 2, rel=1e-5)


@pytest.mark.parametrize("new", [1, 3])
def test_distillation_compares_only_the_columns_of_the_teacher(new):
    """A head that has grown by any number of outputs gives the same value, and new outputs no gradient."""
    logits = student([0.0, 0.0, *[5.0] * new])
    loss = distillation(logits, TEACHER)
    loss.backward()
    assert loss.item() == pytest.approx(KL, rel=1e-5)
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.125, 0.125, *[0.0] * new]]))


def test_distillation_groups_have_a_softmax_each():
    """Two groups as in the hand-worked example, shifted against each other, which no softmax sees: KL twice."""
    teacher = torch.cat([TEACHER, TEACHER + 3], dim=1)
    logits = student([0.0, 0.0, 9.0, 9.0])
    loss = distillation(logits, teacher, groups=[slice(0, 2), slice(2, 4)])
    loss.backward()
    assert loss.item() == pytest.approx(2 * KL, rel=1e-5)
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.125, 0.125, -0.125, 0.125]]))
    assert distillation(logits, teacher).item() > 2 * KL + 0.1


def test_teacher_gets_no_gradient():
    teacher = TEACHER.clone().requires_grad_()
    logits = student([0.0, 0.0])
    (distillation(logits, teacher) + binary_cross_entropy(logits, torch.tensor([0]), teacher)).backward()
    assert teacher.grad is None
    assert logits.grad is not None


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((STUDENT, TEACHER, 0.0), {}, "temperature 0; accepted: above 0"),
        ((STUDENT, torch.zeros(1, 3)), {}, "2 outputs can't learn from a teacher of 3"),
        ((torch.zeros(1, 4), TEACHER), {"groups": [slice(0, 2), slice(2, 4)]}, "outside the teacher's 2 outputs"),
    ],
)
def test_distillation_refuses(arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        distillation(*arguments, **options)


# Sigmoid form


def test_binary_cross_entropy_by_hand():
    """One-hot target (1, 0), both sigmoids 1/2: ln 2 for each of two classes; gradient (g - q) / (B C)."""
    logits = student([0.0, 0.0])
    loss = binary_cross_entropy(logits, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(LN2)
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.25, 0.25]]))
    assert binary_cross_entropy(logits, torch.tensor([0]), reduction="sum").item() == pytest.approx(2 * LN2)


@pytest.mark.parametrize(("label", "new_class_term"), [(1, -math.log(0.75)), (0, math.log(4))])
def test_binary_cross_entropy_learns_old_outputs_from_the_teacher(label, new_class_term):
    """The teacher's sigmoid(ln 3) = 3/4 replaces the old column, for a new sample (1) and an old one (0).

    Student: sigmoid(0) = 1/2 on the old output, where any target gives ln 2 and the gradient is 1/2 - 3/4;
    sigmoid(ln 3) = 3/4 on the new one: -ln(3/4) for a sample of that class, -ln(1/4) otherwise.
    """
    logits = student([0.0, LN3])
    loss = binary_cross_entropy(logits, torch.tensor([label]), torch.tensor([[LN3]]), reduction="sum")
    loss.backward()
    assert loss.item() == pytest.approx(LN2 + new_class_term, rel=1e-5)
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.25, 0.75 - label]]))


def test_binary_cross_entropy_is_averaged_over_the_batch():
    """Four samples of 2 ln 2 each are 2 ln 2 summed over classes, ln 2 averaged."""
    logits, labels = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    assert binary_cross_entropy(logits, labels, reduction="sum").item() == pytest.approx(2 * LN2)
    assert binary_cross_entropy(logits, labels).item() == pytest.approx(LN2)


def test_binary_cross_entropy_refuses_an_unknown_reduction():
    with pytest.raises(ConfigError, match="unknown reduction 'means'; did you mean 'mean'"):
        binary_cross_entropy(STUDENT, torch.tensor([0]), reduction="means")


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    """The losses of rounded logits are those of the same numbers in float32, bit for bit."""
    torch.manual_seed(0)
    logits, teacher, labels = torch.randn(16, 10).to(dtype), torch.randn(16, 6).to(dtype), torch.arange(16) % 10
    mask = torch.ones(16, 10, dtype=torch.bool)
    for loss in (
        lambda s, t: cross_entropy(s, labels),
        lambda s, t: cross_entropy(s, labels % 3 + 2, slice(2, 5)),
        lambda s, t: cross_entropy(s, labels, mask),
        lambda s, t: distillation(s, t),
        lambda s, t: binary_cross_entropy(s, labels, t),
    ):
        half = loss(logits, teacher)
        assert half.dtype == torch.float32
        assert torch.equal(half, loss(logits.float(), teacher.float()))
