"""A backbone as a chain of blocks: the outputs between them, with or without gates, and the layer in each block."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.scenario import Scenario
from clbench.models import build_model
from clbench.models.network import Network, blocks_of

Layer = nn.Linear | nn.Conv2d


def block_outputs(model: Network, images: Tensor, gates: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Return the output of each block of the model, float [B, channels, ...]; the last output is the features.

    gates: for each block float [channels]; they multiply its units (for convolutions: its maps) on the way to the
    next block. Maps that a block has flattened keep one gate each.
    """
    outputs = []
    for index, block in enumerate(model.blocks()):
        images = block(images)
        if gates is not None:
            images = (images.flatten(1).unflatten(1, (len(gates[index]), -1)) * gates[index][:, None]).view_as(images)
        outputs.append(images)
    return outputs


def layers_of(block: nn.Module) -> list[Layer]:
    """Return the linear and convolutional layers of a block, first to last."""
    return [layer for layer in block.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def chain(model: Network) -> list[Layer]:
    """Return the layer of each block of a model that passed `check_chain`."""
    return [layers_of(block)[0] for block in model.blocks()]


def widths(model: Network) -> list[int]:
    """Return the number of units (for convolutions: maps) in each block's output."""
    return [layers_of(block)[-1].weight.shape[0] for block in model.blocks()]


def check_chain(config: RunConfig, scenario: Scenario) -> None:
    """Raise ConfigError unless each block of the run's model holds exactly one linear or convolutional layer."""
    with torch.device("meta"):
        model = build_model(config.model.name, scenario.image_shape, 0, config.code)
        blocks = blocks_of(model, config.model.name)
    most = max(len(layers_of(block)) for block in blocks)
    if most != 1:
        raise ConfigError(
            f"{config.strategy} can't work on model={config.model.name!r}, which has {most} layers in a block; "
            "accepted: models with one layer in each, such as mlp and conv"
        )


def check_maps(config: RunConfig, scenario: Scenario) -> None:
    """Raise ConfigError unless the blocks of the run's model are a chain whose outputs are [B, channels, ...].

    The chain is tried on two images of noise: it has to give the features of the model.
    """
    name = config.model.name
    model = build_model(name, scenario.image_shape, 0, config.code).eval()
    images = torch.rand(2, *scenario.image_shape, generator=torch.Generator().manual_seed(0))
    blocks = blocks_of(model, name)
    accepted = "accepted: models such as mlp, conv, resnet32 and efficientnet-lite0"
    with torch.no_grad():
        features = model.features(images)
        try:
            outputs = block_outputs(model, images)
        except Exception:  # whatever a block raises of what is no output of the block before it
            outputs = []
    if not outputs or outputs[-1].shape != features.shape or not torch.allclose(outputs[-1], features, atol=1e-4):
        raise ConfigError(
            f"{config.strategy} can't work on model={name!r}: its blocks, one after another, do not give its features; "
            f"{accepted}"
        )
    for index, (block, output) in enumerate(zip(blocks, outputs, strict=True)):
        channels = layers_of(block)[-1].weight.shape[0] if layers_of(block) else 0
        flat = output.dim() == 2
        if not channels or (output.shape[1] % channels if flat else output.shape[1] != channels):
            raise ConfigError(
                f"{config.strategy} can't work on model={name!r}: block {index} gives {list(output.shape[1:])} for an "
                f"image, and channels come first in maps; {accepted}"
            )
