"""Loss terms as pure functions, computed in float32 where the logits come in half precision.

Logits are float [B, outputs]; labels are int64 [B], indices into all outputs of the head. Every loss is a
scalar, a mean over the batch.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.config.errors import ConfigError, unknown

# torch skips labels of -100 unless told otherwise, and a label minus the start of a slice may be just that.
_NEVER = -(2**31)


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
    sample, or None for all. A label outside a slice is an IndexError (on CUDA a device-side assertion),
    outside a mask an infinite loss.
    """
    logits = _full_precision(logits)
    if isinstance(active, Tensor):
        logits = logits.masked_fill(~active, -torch.inf)
        loss = F.cross_entropy(logits, labels, ignore_index=_NEVER, reduction=reduction)
        if label_smoothing == 0:
            return loss
        log_p = F.log_softmax(logits, 1).masked_fill(~active, 0.0)
        uniform = -log_p.sum(1) / active.sum(1)
        return (1 - label_smoothing) * loss + label_smoothing * (uniform.mean() if reduction == "mean" else uniform)
    start = 0 if active is None else active.indices(logits.shape[1])[0]
    return F.cross_entropy(
        logits if active is None else logits[:, active],
        labels - start if start else labels,
        ignore_index=_NEVER,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


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
    n_old = teacher_logits.shape[1]
    if temperature <= 0:
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
    if reduction not in ("mean", "sum"):
        raise unknown("reduction", reduction, ["mean", "sum"])
    logits = _full_precision(logits)
    # A comparison, since scatter_ has no batched form, which seeds that are trained together need.
    targets = (labels[:, None] == torch.arange(logits.shape[1], device=logits.device)).to(logits.dtype)
    if teacher_logits is not None:
        old = _full_precision(teacher_logits.detach()).sigmoid()
        targets = torch.cat([old, targets[:, old.shape[1] :]], dim=1)
    loss = F.binary_cross_entropy_with_logits(logits, targets)
    return loss * logits.shape[1] if reduction == "sum" else loss


def _full_precision(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
