"""The processes that do one run together."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clbench.config.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


def _one_ended() -> str:
    return "another process of this run ended"


@dataclass(frozen=True)
class Processes:
    """The processes of a run, of which this one is number `rank`; a run alone has one, and nothing is exchanged.

    All of them compute the same. Each computes the features of a part of every batch, and they are put together (see
    clbench.learning.shared). Collective methods are called by all processes in the same order.

    rank: 0 for the process that writes.
    size: how many there are.
    why_lost: says in words what happened when an exchange has failed.
    """

    rank: int = 0
    size: int = 1
    why_lost: "Callable[[], str]" = _one_ended

    def part(self, n: int) -> slice:
        """Return which of n samples are this process's: contiguous parts whose sizes differ by one at most."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def sum_(self, tensor: "Tensor") -> "Tensor":
        """Put the sum over all processes in the place of a contiguous tensor, and return it.

        Every process gets the same bits. Raises RunError where a process is gone.
        """
        if self.size > 1:
            import torch.distributed as dist

            try:
                dist.all_reduce(tensor)
            except RuntimeError as error:
                raise RunError(
                    f"{self.why_lost()}; what was saved is kept, and --resume (resume=True) goes on from there"
                ) from error
        return tensor

    def average_(self, tensors: "Sequence[Tensor]") -> None:
        """Put the mean over all processes in the place of each tensor, in one exchange."""
        if self.size == 1 or not tensors:
            return
        import torch

        flat = self.sum_(torch.cat([tensor.reshape(-1) for tensor in tensors])).div_(self.size)
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view(tensor.shape))

    def agree(self, number: int) -> bool:
        """Whether all processes have the same number, 0 to 2^53."""
        if self.size == 1:
            return True
        import torch
        import torch.distributed as dist

        device = "cuda" if "gloo" not in str(dist.get_backend_config()) else "cpu"
        told = torch.zeros(self.size, dtype=torch.float64, device=device)
        told[self.rank] = number
        return len(set(self.sum_(told).tolist())) == 1


ALONE = Processes()
