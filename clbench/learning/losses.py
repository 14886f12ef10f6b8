"""Loss terms as pure functions, computed in float32 where the logits come in half precision.

Logits are float [B, outputs]; labels are int64 [B], indices into all outputs of the head. Every loss is a
scalar, a mean over the batch.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.config.arguments import check_shapes, checked
from clbench.config.errors import ConfigError


class LabelError(ConfigError, IndexError):
    """A label is no output that competes; an IndexError too, as torch has it."""


# torch skips labels of -100 unless told otherwise, and a label minus the start of a slice may be just that.
_NEVER = -(2**31)


@checked
def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    active: slice | Tensor | None = None,
    *,
    reduction: Literal["mean", "none"] = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the mean of -log softmax(logits)[label], the softmax being over the `active` outputs.

    label_smoothing a: the target is (1 - a) one-hot + a uniform over the active outputs (Szegedy et al. 2016,
    arXiv:1512.00567, section 7).

    `reduction="none"` returns each sample's own, [B].

    `active` is a slice of the outputs, a bool mask [B, outputs] with the outputs that compete for each
    sample, or None for all. A label outside a slice is refused on the CPU (on CUDA it is a device-side assertion),
    and outside a mask an infinite loss. Raises ConfigError.
    """
    _check("cross_entropy", logits, labels)
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"cross_entropy: label_smoothing={label_smoothing:g} given; a share below 1 is accepted")
    logits = _full_precision(logits)
    if isinstance(active, Tensor):
        if active.dtype != torch.bool or active.shape != logits.shape:
            raise ConfigError(
                f"cross_entropy: active is {active.dtype} {tuple(active.shape)}; bool {tuple(logits.shape)} is accepted"
            )
        logits = logits.masked_fill(~active, -torch.inf)
        loss = F.cross_entropy(logits, labels, ignore_index=_NEVER, reduction=reduction)
        if label_smoothing == 0:
            return loss
        log_p = F.log_softmax(logits, 1).masked_fill(~active, 0.0)
        uniform = -log_p.sum(1) / active.sum(1)
        return (1 - label_smoothing) * loss + label_smoothing * (uniform.mean() if reduction == "mean" else uniform)
    start, stop, step = (active or slice(None)).indices(logits.shape[1])
    if step != 1 or stop <= start:
        raise ConfigError(
            f"cross_entropy: active={active} of {logits.shape[1]} outputs; one or more in a row are accepted"
        )
    try:
        return F.cross_entropy(
            logits if active is None else logits[:, active],
            labels - start if start else labels,
            ignore_index=_NEVER,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    except IndexError:
        raise LabelError(
            f"cross_entropy: labels {int(labels.min())} to {int(labels.max())} given; {start} to {stop - 1} compete "
            "and are accepted"
        ) from None


@checked
def distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 2.0,
    *,
    groups: Sequence[slice] | None = None,
    squared_temperature: bool = False,
) -> Tensor:
    """Return KL(softmax(teacher / T) || softmax(student / T)), summed over classes, averaged over the batch.

    Only the teacher's columns are compared, the first ones of a student that has grown. `groups` are slices
    of them with one softmax each, whose divergences add up; None is one softmax over all.
    `squared_temperature` multiplies by T^2, so that the gradient does not shrink with T. The teacher gets
    no gradient. Hinton et al. 2015, arXiv:1503.02531; Li &
    Hoiem 2016, arXiv:1606.09282, eq. 2-3. Raises ConfigError for a temperature that is not above 0, a
    student narrower than its teacher and a group outside the teacher's columns.
    """
    check_shapes("distillation", student_logits=(student_logits, "B outputs"), teacher_logits=(teacher_logits, "B old"))
    _check_floats("distillation", student_logits, teacher_logits)
    n_old = teacher_logits.shape[1]
    if not 0 < temperature < torch.inf:
        raise ConfigError(f"distillation temperature {temperature:g}; accepted: above 0")
    if student_logits.shape[1] < n_old:
        raise ConfigError(f"a student of {student_logits.shape[1]} outputs can't learn from a teacher of {n_old}")
    student = _full_precision(student_logits[:, :n_old]) / temperature
    teacher = _full_precision(teacher_logits.detach()) / temperature
    loss = student.new_zeros(())
    for group in groups if groups is not None else [slice(0, n_old)]:
        if not 0 <= (group.start or 0) <= (n_old if group.stop is None else group.stop) <= n_old:
            raise ConfigError(f"distillation group {group} is outside the teacher's {n_old} outputs")
        # Written out: F.kl_div has no batched form, which seeds that are trained together need.
        expected, found = teacher[:, group].log_softmax(dim=1), student[:, group].log_softmax(dim=1)
        loss = loss + (expected.exp() * (expected - found)).sum() / len(found)
    return loss * temperature**2 if squared_temperature else loss


@checked
def binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Return iCaRL's loss: -sum over classes of q log g + (1 - q) log(1 - g) with g = sigmoid(logits).

    The targets q are one-hot; with a teacher [B, old] the first `old` columns are its sigmoids instead, for
    every sample. `reduction` is the mean (as published in code) or the sum over classes; both are averaged
    over the batch. The teacher gets no gradient. Rebuffi et al. 2017, arXiv:1611.07725, algorithm 3.
    """
    _check("binary_cross_entropy", logits, labels)
    if teacher_logits is not None:
        check_shapes("binary_cross_entropy", logits=(logits, "B outputs"), teacher_logits=(teacher_logits, "B old"))
        _check_floats("binary_cross_entropy", teacher_logits)
        if teacher_logits.shape[1] > logits.shape[1]:
            n = teacher_logits.shape[1]
            raise ConfigError(f"a student of {logits.shape[1]} outputs can't learn from a teacher of {n}")
    logits = _full_precision(logits)
    # A comparison, since scatter_ has no batched form, which seeds that are trained together need.
    targets = (labels[:, None] == torch.arange(logits.shape[1], device=logits.device)).to(logits.dtype)
    if teacher_logits is not None:
        old = _full_precision(teacher_logits.detach()).sigmoid()
        targets = torch.cat([old, targets[:, old.shape[1] :]], dim=1)
    loss = F.binary_cross_entropy_with_logits(logits, targets)
    return loss * logits.shape[1] if reduction == "sum" else loss


@checked
def supervised_contrastive(
    anchors: Tensor,
    labels: Tensor,
    temperature: float,
    *,
    others: Tensor | None = None,
    other_labels: Tensor | None = None,
) -> Tensor:
    """Return the mean over anchors of -1 / |P| sum over P of log softmax(anchor . others / temperature).

    P are the others with the anchor's label; an anchor that has none is left out. Without `others` the anchors are
    compared with one another, none with itself. anchors: float [B, D], of norm 1; others: float [M, D], the same, with
    `other_labels` [M]. Khosla et al. 2020, arXiv:2004.11362, equation 2. Raises ConfigError for a temperature that is
    not above 0 and for shapes that do not fit.
    """
    if not 0 < temperature < torch.inf:
        raise ConfigError(f"supervised_contrastive temperature {temperature:g}; accepted: above 0")
    if (others is None) != (other_labels is None):
        raise ConfigError("supervised_contrastive got others or other_labels alone; both or neither are accepted")
    _check("supervised_contrastive", anchors, labels)
    first = _full_precision(anchors)
    if others is None or other_labels is None:
        itself = torch.eye(len(first), dtype=torch.bool, device=first.device)
        similarity = (first @ first.T / temperature).masked_fill(itself, -torch.inf)
        positive = (labels[:, None] == labels) & ~itself
    else:
        _check("supervised_contrastive", others, other_labels)
        check_shapes("supervised_contrastive", anchors=(anchors, "B D"), others=(others, "M D"))
        similarity = first @ _full_precision(others).to(first.dtype).T / temperature
        positive = labels[:, None] == other_labels
    # A masked pair has a log probability of -inf, which a factor of 0 would make NaN.
    log_p = similarity.log_softmax(1).masked_fill(~positive, 0.0)
    count = positive.sum(1)
    return -(log_p.sum(1) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)


def _full_precision(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _check(owner: str, logits: Tensor, labels: Tensor) -> None:
    check_shapes(owner, logits=(logits, "B outputs"), labels=(labels, "B"))
    _check_floats(owner, logits)
    if labels.dtype != torch.int64:
        raise ConfigError(f"{owner}: labels are {labels.dtype}; int64 is accepted")


def _check_floats(owner: str, *logits: Tensor) -> None:
    for given in logits:
        if not given.is_floating_point():
            raise ConfigError(f"{owner}: logits are {given.dtype}; floating point is accepted")
