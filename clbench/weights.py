"""Pre-trained backbones: a file of tensors, loaded without executing anything, mismatches named."""

import io
from pathlib import Path

import torch

from clbench.errors import ConfigError, unknown
from clbench.files import write_atomically
from clbench.models.network import Network


def save_backbone(source: Path, path: Path) -> None:
    """Write the tensors of a run's model.pt, all but the head's, to a file; raises ConfigError when it can't."""
    state = torch.load(source, map_location="cpu", weights_only=True)
    buffer = io.BytesIO()
    torch.save({name: value for name, value in state.items() if not name.startswith("head.")}, buffer)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise ConfigError(f"out={path}: {error.strerror or error}; a file that can be written is accepted") from None


def load_backbone(model: Network, path: str) -> None:
    """Copy the tensors of a state dict into the model, all but the head; raises ConfigError naming what doesn't fit."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise ConfigError(f"weights={path}: can't be read ({reason}); a state dict of tensors is accepted") from None
    if not isinstance(stored, dict) or not all(isinstance(v, torch.Tensor) for v in stored.values()):
        raise ConfigError(f"weights={path}: not a state dict; a file of named tensors is accepted")
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    given = {name: value for name, value in stored.items() if not name.startswith("head.")}
    for name in given:
        if name not in own:
            raise unknown(f"layer in weights={path}:", name, own)
    for name, value in own.items():
        if name not in given:
            raise ConfigError(f"weights={path}: layer {name} is missing")
        if given[name].shape != value.shape:
            raise ConfigError(
                f"weights={path}: layer {name} has shape {list(given[name].shape)}, the model's is {list(value.shape)}"
            )
    model.load_state_dict(given, strict=False)
