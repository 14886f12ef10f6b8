"""Pre-trained backbones: files of tensors, loaded without running any code; errors name what does not fit."""

import io
import os
import socket
import sys
import textwrap
from pathlib import Path
from urllib.parse import urlparse

import torch

from clbench.config.errors import ConfigError, unknown
from clbench.config.run import NAMED_WEIGHTS
from clbench.models.network import Network
from clbench.support.files import write_atomically
from clbench.support.finite import not_finite


def save_backbone(source: Path, path: Path) -> None:
    """Write the tensors of a run's model.pt, all but the head's, to a file; raises ConfigError when it can't."""
    state = torch.load(source, map_location="cpu", weights_only=True)
    buffer = io.BytesIO()
    torch.save({name: value for name, value in state.items() if not name.startswith("head.")}, buffer)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise ConfigError(f"out={path}: {error.strerror or error}; a file that can be written is accepted") from None


def load_backbone(model: Network, source: str, *, offline: bool = False) -> None:
    """Copy pre-trained tensors into the model, all but the head; raises ConfigError naming what doesn't fit.

    source: a file of named tensors, or the name of weights in torchvision (fetched once, unless `offline`).
    """
    stored = _named(source, offline) if NAMED_WEIGHTS.fullmatch(source) else _from_file(source)
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    given = {name: value for name, value in stored.items() if not name.startswith("head.")}
    for name in given:
        if name not in own:
            raise unknown(f"layer in weights={source}:", name, own)
    for name, value in own.items():
        if name not in given:
            raise ConfigError(f"weights={source}: layer {name} is missing")
        if given[name].shape != value.shape:
            raise ConfigError(
                f"weights={source}: layer {name} has shape {list(given[name].shape)}, the model's is "
                f"{list(value.shape)}"
            )
    model.load_state_dict(given, strict=False)
    if wrong := not_finite(model, ""):
        raise ConfigError(f"weights={source}: layer {wrong}; finite numbers are accepted")


def _from_file(path: str) -> dict[str, torch.Tensor]:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 100, placeholder=" ...")
        raise ConfigError(f"weights={path}: can't be read ({reason}); a state dict of tensors is accepted") from None
    if not isinstance(stored, dict) or not all(isinstance(v, torch.Tensor) for v in stored.values()):
        raise ConfigError(f"weights={path}: not a state dict; a file of named tensors is accepted")
    return stored


def _named(name: str, offline: bool) -> dict[str, torch.Tensor]:
    """Return torchvision's weights without their classifier, from torch's cache or its server (checksum verified)."""
    from torchvision import models

    kind, _, version = name.partition(".")
    kinds = {w.__name__: w for m in models.list_models(module=models) for w in [models.get_model_weights(m)]}
    if kind not in kinds:
        raise unknown("weights", kind, kinds)
    if version not in kinds[kind].__members__:
        raise unknown(f"weights of {kind}", version, kinds[kind].__members__)
    url: str = kinds[kind][version].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    remedy = f"put {url} at {file}"
    if not os.path.exists(file):
        if offline:
            raise ConfigError(f"weights={name} are not on this machine, and offline is set; {remedy}")
        print(f"fetching {url}", file=sys.stderr)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # torch.hub would wait for ever
    try:
        stored: dict[str, torch.Tensor] = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:100]
        raise ConfigError(f"weights={name}: {reason}; {remedy}") from None
    finally:
        socket.setdefaulttimeout(patience)
    return {f"backbone.{layer}": value for layer, value in stored.items() if not layer.startswith("fc.")}
