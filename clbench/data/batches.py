"""Turns sample ids into batches on the device: one index, augmentation and normalisation for all images at once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from clbench.config.run import RunConfig
from clbench.data.ahead import Reader
from clbench.data.augment import AUGMENTATIONS
from clbench.data.scenario import Images, ImageSet, Scenario
from clbench.data.sources import Source, parts
from clbench.support.streams import stream, stream_seed

# Images in one forward pass without gradients: large enough to fill two cores, small enough for a laptop.
PASS_SIZE = 512
# A CPU that convolves returns larger activations to the system after each layer and must fault them in again.
CONVOLVING_PASS_SIZE = 128


@dataclass(frozen=True)
class Partners:
    """The samples that were mixed into those of a batch.

    share: of the batch's own samples in a mixture, 0 to 1.
    labels, active: those of the other samples, as in Batch.
    """

    share: float
    labels: Tensor
    active: slice | Tensor


@dataclass(frozen=True)
class Batch:
    """Samples of one step; all tensors but `ids` are on the device.

    images: float [B, C, H, W], augmented and normalised, or other samples, [B, ...]; or the features of a frozen
        network, float [B, D], where they are computed once (Strategy.frozen_features).
    originals: uint8 [B, C, H, W], or other samples, float32 [B, ...].
    labels: head outputs, int64 [B]; tasks: int64 [B]; ids: int64 [B], on the CPU.
    active: the outputs that compete in the loss; a slice, or bool [B, outputs] if they differ between samples.
    partners: what was mixed into `images` (mixup); None where nothing was.
    """

    images: Tensor
    originals: Tensor
    labels: Tensor
    tasks: Tensor
    ids: Tensor
    active: slice | Tensor
    partners: Partners | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Features:
    """The features of a frozen network in the place of images: those of image i are row `places[i]`.

    values: float32 [n, D]; places: int64 [N], for all N images of a split; both on the device.
    """

    values: Tensor
    places: Tensor

    def of(self, index: Tensor) -> Tensor:
        """Return the features of images, int64 [B] -> float32 [B, D]."""
        return self.values.index_select(0, self.places.index_select(0, index))


class Pipeline:
    """Holds the training and test images on the device and cuts batches from them.

    train_features, test_features: given out in the place of normalised images, where they are there.
    reader: reads what is on disk.
    scale, shift: of normalize(), float32 [1, ...] on the device: x * scale + shift.
    """

    train_features: Features | None = None
    test_features: Features | None = None

    def __init__(self, scenario: Scenario, config: RunConfig, device: torch.device) -> None:
        self.scenario, self.config, self.device = scenario, config, device
        self._train = self._move(scenario.train)
        self._test = self._move(scenario.test)
        self.scale, self.shift = (tensor.to(device) for tensor in normalisation(scenario, config))
        self.pass_size = PASS_SIZE
        self.reader = Reader(config.data.reading_threads)
        self._augment = AUGMENTATIONS[config.data.augment]
        self._own = torch.zeros(len(scenario.tasks), scenario.n_outputs, dtype=torch.bool)
        for task in scenario.tasks:
            self._own[task.index, task.outputs] = True

    def _move(self, images: Images) -> Images:
        return Images(
            images.images.to(self.device),
            images.labels.to(self.device),
            images.classes,
            images.tasks.to(self.device),
        )

    def normalize(self, originals: Tensor) -> Tensor:
        """uint8 [B, C, H, W], or float32 [B, ...], on the device -> normalised float32 of the same shape."""
        # In place, because addcmul of uint8 with broadcasting takes twenty times as long on a CPU.
        return originals.to(torch.float32, copy=True).mul_(self.scale).add_(self.shift)

    def ahead(self, batches: Sequence[Tensor]) -> Iterator[Tensor | None]:
        """Return what batch() takes as `read` for each batch of training ids in turn; see Reader.each."""
        return self.reader.each(self._train.images, batches)

    def batch(
        self,
        ids: Tensor,
        active: slice | Tensor,
        keys: tuple[int | str, ...] | None,
        read: Tensor | None = None,
    ) -> Batch:
        """Cut a batch of training samples.

        keys: names the augmentation stream; None: no augmentation. read: the samples, where they were read ahead.
        """
        index = ids.to(self.device, non_blocking=True)
        originals = self._samples(self._train.images, ids, index, read)
        if self.train_features is not None:
            images = self.train_features.of(index)
        elif self._augment is not None and keys is not None:
            generator = stream(self.config.seed, "augmentation", *keys)
            if self.config.data.normalize == "pixel-mean":
                # Normalised first, so that a crop moves the image and its mean together and pads with the mean.
                images = self._augment(self.normalize(originals), generator)
            else:
                images = self.normalize(self._augment(originals, generator))
        else:
            images = self.normalize(originals)
        batch = Batch(
            images,
            originals,
            self._train.labels.index_select(0, index),
            self._train.tasks.index_select(0, index),
            ids,
            active,
        )
        return self._mixed(batch, keys) if keys is not None and self.config.data.mixup else batch

    def _mixed(self, batch: Batch, keys: tuple[int | str, ...]) -> Batch:
        """Mix each image with another one of the batch: share * x_i + (1 - share) * x_j.

        Zhang et al. 2018, arXiv:1710.09412, section 2; one share for a batch, as in the authors' code.
        """
        draws = np.random.default_rng(stream_seed(self.config.seed, "mixup", *keys))
        share = float(draws.beta(self.config.data.mixup, self.config.data.mixup))
        order = torch.from_numpy(draws.permutation(len(batch))).to(self.device, non_blocking=True)
        active = batch.active[order] if isinstance(batch.active, Tensor) else batch.active
        images = share * batch.images + (1 - share) * batch.images[order]
        return replace(batch, images=images, partners=Partners(share, batch.labels[order], active))

    def passes(self, data: ImageSet, active: Callable[[Tensor], slice | Tensor]) -> Iterator[Batch]:
        """Walk over training samples in order, in large batches without augmentation."""
        batches = self.cut(data.ids)
        for ids, read in zip(batches, self.ahead(batches), strict=True):
            yield self.batch(ids, active(ids), None, read)

    def test_passes(self, ids: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Walk over test samples: (images as in Batch, labels, ids) in large batches, all on the device."""
        batches, features = self.cut(ids), self.test_features
        ahead = self.reader.each(self._test.images, batches) if features is None else repeat(None, len(batches))
        for part, read in zip(batches, ahead, strict=True):
            index = part.to(self.device, non_blocking=True)
            if features is not None:
                images = features.of(index)
            else:
                images = self.normalize(self._samples(self._test.images, part, index, read))
            yield images, self._test.labels.index_select(0, index), index

    def _samples(self, images: Source, ids: Tensor, index: Tensor, read: Tensor | None) -> Tensor:
        """Return samples by id, which `index` holds on the device; those on disk may have been read ahead."""
        if read is None:
            read = next(self.reader.each(images, [ids]))
        return images.index_select(0, index) if read is None else read

    def cut(self, samples: Tensor) -> tuple[Tensor, ...]:
        """Cut samples into parts of nearly equal size, so that no part has a single one, as batch norm demands."""
        return samples.tensor_split(-(-len(samples) // self.pass_size)) if len(samples) else ()

    def active_outputs(self, ids: Tensor, task: int, loss_outputs: str) -> slice | Tensor:
        """Return the outputs that compete in the loss for these training samples while `task` is learnt.

        class-incremental: "all" outputs of the head; those "seen" so far; or "new": a sample of the current task
        competes among its task's outputs, an exemplar among all seen. Otherwise the outputs of the sample's own task.
        """
        scenario = self.scenario
        seen = slice(0, scenario.seen_outputs(task))
        if scenario.setting == "domain" or (scenario.setting == "class" and loss_outputs == "seen"):
            return seen
        if scenario.setting == "class" and loss_outputs == "all":
            return slice(0, scenario.n_outputs)
        tasks = scenario.train.tasks[ids]
        if bool((tasks == tasks[0]).all()) and (scenario.setting == "task" or tasks[0] == task):
            return scenario.tasks[int(tasks[0])].outputs
        width = scenario.n_outputs if self.config.model.head == "full" else seen.stop
        table = self._own[:, :width].clone()
        if scenario.setting == "class":
            table[:task, seen] = True
        return table[tasks].to(self.device, non_blocking=True)


def normalisation(scenario: Scenario, config: RunConfig) -> tuple[Tensor, Tensor]:
    """Return scale and shift, float32 [1, ...], by which samples x are normalised: x * scale + shift.

    That is (x / 255 - mean) / std, or (x - mean) / std of floats, as one multiplication and one addition.
    """
    shape = (1, -1, *[1] * (len(scenario.image_shape) - 1))
    unit = 255 if scenario.of_images else 1
    mean, std = torch.tensor(scenario.mean), torch.tensor(scenario.std)
    if config.data.normalize != "channel":
        mean, std = torch.zeros_like(mean), torch.ones_like(std)
    scale, shift = (1 / (unit * std)).view(shape), (-mean / std).view(shape)
    if config.data.normalize == "pixel-mean":
        shift = (-_mean_image(scenario.train.images) / unit)[None]
    return scale, shift


def gathered(parts: Iterable[Tensor], n: int, device: torch.device | str = "cpu") -> Tensor:
    """Return parts [b, ...], n rows in all, as one tensor [n, ...], as torch.cat does.

    It is there before the second part is made. Parts that are kept until the end would lie between the large blocks of
    the passes that make them, and the C library could not use the gaps again.
    """
    whole, start = torch.empty(0), 0
    for part in parts:
        if not start:
            whole = torch.empty(n, *part.shape[1:], dtype=part.dtype, device=device)
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def _mean_image(images: Source) -> Tensor:
    """Return the mean of images, uint8 [N, C, H, W] -> float32 [C, H, W], in parts that fit into memory."""
    total = torch.zeros(images.shape[1:], dtype=torch.float64)
    for part in parts(images):
        total += part.double().sum(0)
    return (total / max(len(images), 1)).float()
