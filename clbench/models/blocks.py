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
