"""The residual networks that continual-learning papers use on small images.

He, Zhang, Ren & Sun 2016, arXiv:1512.03385. Papers that say "ResNet-32" differ in four details, which are the options.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.models.network import Network


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class _PaddedShortcut(nn.Module):
    """Option A: every `stride`-th pixel; the new channels are zero, half of them before the old ones."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (outputs - inputs) // 2
        self.padding = (0, 0, 0, 0, before, outputs - inputs - before)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


def _projection(inputs: int, outputs: int, stride: int, bn_eps: float) -> nn.Module:
    """Option B: a 1x1 convolution and batch norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs, eps=bn_eps))


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is the identity if the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Literal["A", "B"], bn_eps: float) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _conv3x3(inputs, outputs, stride),
            nn.BatchNorm2d(outputs, eps=bn_eps),
            nn.ReLU(),
            _conv3x3(outputs, outputs),
            nn.BatchNorm2d(outputs, eps=bn_eps),
        )
        self.shortcut: nn.Module
        if stride == 1 and inputs == outputs:
            self.shortcut = nn.Identity()
        elif shortcut == "A":
            self.shortcut = _PaddedShortcut(inputs, outputs, stride)
        else:
            self.shortcut = _projection(inputs, outputs, stride, bn_eps)
        self.activation: nn.Module = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.residual(x) + self.shortcut(x))
        return y


def _resnet(
    channels: int, widths: list[int], depth: int, shortcut: Literal["A", "B"], bn_eps: float
) -> list[nn.Module]:
    """Return the stem and one module per stage of `depth` blocks; all stages but the first halve the image.

    Global average pooling belongs to the last stage: the output is float [B, widths[-1]].
    """
    stem = nn.Sequential(_conv3x3(channels, widths[0]), nn.BatchNorm2d(widths[0], eps=bn_eps), nn.ReLU())
    blocks: list[nn.Module] = [stem]
    inputs = widths[0]
    for stage, outputs in enumerate(widths):
        layers: list[nn.Module] = []
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(_BasicBlock(inputs, outputs, stride, shortcut, bn_eps))
            inputs = outputs
        if stage == len(widths) - 1:
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        blocks.append(nn.Sequential(*layers))
    return blocks


class ResNet32(Network):
    """The CIFAR ResNet with three stages of five blocks (He et al. 2016, section 4.2); 64 features.

    iCaRL's network is `shortcut=A, last_relu=false, bn_eps=1e-4` (arXiv:1611.07725 and its code), where
    features have both signs. `init=he` draws the convolutions from N(0, 2/fan_in) (arXiv:1502.01852),
    `default` as torch does.
    """

    needs_images: ClassVar[bool] = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        shortcut: Literal["A", "B"] = "A",
        last_relu: bool = True,
        bn_eps: Annotated[float, Field(gt=0)] = 1e-5,
        init: Literal["default", "he"] = "he",
    ) -> None:
        super().__init__(_resnet(image_shape[0], [16, 32, 64], 5, shortcut, bn_eps), feature_dim=64)
        if not last_relu:
            last = [module for module in self.modules() if isinstance(module, _BasicBlock)][-1]
            last.activation = nn.Identity()
        if init == "he":
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")


class ResNet18(Network):
    """ResNet-18 for 32x32 images: 3x3 stem, no max pooling, option B; 8 * `width` features.

    `width=20` is the slim network of GEM (Lopez-Paz & Ranzato 2017, arXiv:1706.08840).
    """

    needs_images: ClassVar[bool] = True

    def __init__(self, image_shape: tuple[int, int, int], *, width: Annotated[int, Field(ge=1)] = 64) -> None:
        widths = [width, 2 * width, 4 * width, 8 * width]
        super().__init__(_resnet(image_shape[0], widths, 2, "B", bn_eps=1e-5), feature_dim=8 * width)
