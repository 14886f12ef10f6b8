"""The classifiers of torchvision by name, without their last layer."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from clbench.config.errors import ConfigError, unknown
from clbench.models.pretrained import Asked, Preprocessing, Pretrained, check_patches
from clbench.models.weights import from_torchvision

# The networks that flatten their maps between pooling and classifier.
FLATTENING = (models.ResNet, models.RegNet, models.VGG, models.AlexNet, models.MobileNetV3)


class Torchvision(Pretrained):
    """A network of torchvision.

    classifier: the name of the layer that made the outputs.
    weights: the name of those that its own name stands for, such as ResNet50_Weights.IMAGENET1K_V2.
    """

    def __init__(
        self, backbone: nn.Module, classifier: str, feature_dim: int, weights: str, preprocessing: Preprocessing
    ) -> None:
        super().__init__(backbone, feature_dim, preprocessing)
        self.classifier, self.weights = classifier, weights

    def own_weights(self, offline: bool) -> Path:
        """Return the file of the weights from torch's cache, or fetch it."""
        return from_torchvision(models.get_weight(self.weights), self.weights, offline=offline)

    def fitted(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors without the classifier's; positions of a transformer are resized to its images."""
        kept = {name: value for name, value in stored.items() if not name.startswith(f"{self.classifier}.")}
        vit = self.backbone
        if isinstance(vit, VisionTransformer) and "encoder.pos_embedding" in kept:
            kept = dict(interpolate_embeddings(vit.image_size, vit.patch_size, kept))
        return kept


class TorchvisionWithWeights(Torchvision):
    """A network of torchvision whose name says its weights, as `resnet50.IMAGENET1K_V2` does."""

    begins_trained: ClassVar[bool] = True


@functools.cache
def network(name: str) -> Callable[..., Torchvision]:
    """Return the function that builds the network of this name; raises ConfigError for one that torchvision lacks."""
    architecture, _, version = name.partition(".")
    known = models.list_models(module=models)
    if architecture not in known:
        raise unknown("model of torchvision", architecture, known)
    weights = models.get_model_weights(architecture)
    if version and version not in weights.__members__:
        raise unknown(f"weights of torchvision:{architecture}", version, weights.__members__)
    made = functools.partial(build, architecture, weights[version or "DEFAULT"])
    if version:
        signature = inspect.signature(made, eval_str=True).replace(return_annotation=TorchvisionWithWeights)
        made.__signature__ = signature  # type: ignore[attr-defined]
    return made


def build(
    name: str,
    weights: Any,
    image_shape: tuple[int, int, int],
    **asked: Unpack[Asked],
) -> Torchvision:
    """Build a network of torchvision; what is not given is as its weights were trained.

    asked: see Preprocessing; with another size, crop is 1 unless it is given.
    """
    own = weights.transforms()
    size, resized = own.crop_size[0], own.resize_size[0]
    published = Preprocessing(size, size / resized, own.interpolation.value, tuple(own.mean), tuple(own.std))
    preprocessing = published.with_options(asked)
    sized: dict[str, Any] = {}
    if name.startswith("vit_"):
        check_patches(f"torchvision:{name}", preprocessing.size, int(name.rpartition("_")[2]))
        sized = {"image_size": preprocessing.size}
    elif name == "maxvit_t":
        sized = {"input_size": (preprocessing.size,) * 2}
    try:
        backbone = models.get_model(name, weights=None, **sized)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(f"torchvision:{name} can't be built ({str(error).splitlines()[0]})") from None
    linear = [(layer, module) for layer, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    if not linear or hasattr(backbone, "aux_logits"):
        raise ConfigError(
            f"torchvision:{name} has no single linear layer as its classifier; others, such as mobilenet_v2, accepted"
        )
    if isinstance(backbone, FLATTENING):
        # Their forward flattens between two layers; in a layer of its own it leaves a chain of layers.
        backbone.avgpool = nn.Sequential(backbone.avgpool, nn.Flatten())
    classifier, layer = linear[-1]
    parent, _, last = classifier.rpartition(".")
    setattr(backbone.get_submodule(parent), last, nn.Identity())
    return Torchvision(backbone, classifier, layer.in_features, str(weights), preprocessing)
