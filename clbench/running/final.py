"""Final: the state that a finished run keeps, from which it predicts and goes on without the data it was trained on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config.errors import ConfigError
from clbench.learning.strategy import Context, Strategy
from clbench.running.packing import pack, unpack

# The form that is written.
FORM = 1


@dataclass(frozen=True)
class Final:
    """All that a run has learnt, and what its pipeline derived from the training data.

    identity: of the run.
    tasks: the number of tasks that it has learnt.
    image_shape: (C, H, W) of an image, or the shape of another sample.
    of_images: whether the samples are images of bytes; others are floats.
    scale, shift: turn a sample x into what the network is given, x * scale + shift; float32 [1, ...].
    exemplars: ids, labels, original classes and tasks of the samples in the memory, int64 [4, n].
    learnt: packed, see checkpoint.learnt().
    """

    identity: str
    tasks: int
    image_shape: tuple[int, ...]
    of_images: bool
    scale: Tensor
    shift: Tensor
    exemplars: Tensor
    learnt: bytes

    @classmethod
    def of(cls, context: Context, strategy: Strategy, learnt: bytes) -> "Final":
        """Return the final state of a run."""
        scenario, pipeline, kept = context.scenario, context.pipeline, strategy.exemplars()
        return cls(
            identity=context.config.identity(),
            tasks=len(scenario.tasks),
            image_shape=scenario.image_shape,
            of_images=scenario.of_images,
            scale=pipeline.scale.cpu(),
            shift=pipeline.shift.cpu(),
            exemplars=torch.stack([kept.ids, kept.labels, kept.classes, kept.tasks]),
            learnt=learnt,
        )

    def to_bytes(self) -> bytes:
        """Return the state as bytes, with a checksum of each tensor."""
        learnt = torch.frombuffer(bytearray(self.learnt), dtype=torch.uint8)
        return pack({"form": FORM, **vars(self), "learnt": learnt})

    @classmethod
    def from_bytes(cls, content: bytes) -> "Final":
        """Read a state; raises an exception of some kind for what is none, ConfigError for its form.

        Only what `packing` knows is unpacked.
        """
        stored = unpack(content, Strategy, torch.device("cpu"))
        if stored.pop("form", None) != FORM:
            raise ConfigError("it is of another clbench; the run made again with --force has one that is read")
        made = cls(**stored | {"learnt": stored["learnt"].numpy().tobytes()})
        fits = (
            isinstance(made.identity, str)
            and isinstance(made.tasks, int)
            and isinstance(made.of_images, bool)
            and isinstance(made.image_shape, tuple)
            and all(isinstance(size, int) and size > 0 for size in made.image_shape)
            and all(isinstance(t, Tensor) and t.dtype == torch.float32 for t in (made.scale, made.shift))
            and isinstance(made.exemplars, Tensor)
            and made.exemplars.dtype == torch.int64
            and made.exemplars.ndim == 2
            and len(made.exemplars) == 4
        )
        if not fits:
            raise ValueError("it is no final state")
        return made
