"""Pre-trained backbones: files of tensors, loaded without running any code; errors name what does not fit."""

import io
import socket
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor

from clbench.config.errors import ConfigError, unknown
from clbench.config.run import NAMED_WEIGHTS, OWN_WEIGHTS, weights_file
from clbench.models.network import Network
from clbench.models.pretrained import Pretrained
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


def load_backbone(model: Network, source: str, name: str, *, offline: bool = False) -> None:
    """Copy pre-trained tensors into the model, all but the head; raises ConfigError naming what doesn't fit.

    source: a file of named tensors, a snapshot folder of Hugging Face, "pretrained" for the weights of the model's own
        name, or the name of weights in torchvision; named ones are fetched once, unless `offline`.
    name: the model's spec, as errors call it.
    """
    if source == OWN_WEIGHTS:
        if not isinstance(model, Pretrained):
            raise ConfigError(
                f"weights={source} given, and {name} has no weights of its own; a file, or a model such as "
                "efficientnet-lite0 and timm:NAME.TAG, is accepted"
            )
        stored = read_tensors(model.own_weights(offline))
    elif not NAMED_WEIGHTS.fullmatch(source):
        stored = read_tensors(Path(weights_file(source)))
    elif isinstance(model, Pretrained):
        version = source.partition(".")[2]
        raise ConfigError(
            f"weights={source} given for {name}, whose preprocessing goes with its weights; the network with its "
            f"weights, as in torchvision:NAME.{version}, is accepted"
        )
    else:
        stored = _of_torchvision(source, offline)
    given = {layer: value for layer, value in stored.items() if not layer.startswith("head.")}
    if isinstance(model, Pretrained):
        given = _of_pretrained(model, stored, source)
    own = {layer: value for layer, value in model.state_dict().items() if not layer.startswith("head.")}
    # Before PyTorch 0.4.1 batch norm counted no batches, and other frameworks don't.
    counts = {layer: value for layer, value in own.items() if layer.endswith(".num_batches_tracked")}
    given = counts | given if isinstance(model, Pretrained) else given
    _refuse_misfits(given, own, source)
    model.load_state_dict(given, strict=False)
    if wrong := not_finite(model, ""):
        raise ConfigError(f"weights={source}: layer {wrong}; finite numbers are accepted")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the named tensors in a file, safetensors or of torch, on the CPU; raises ConfigError.

    In a file of torch they may stand in a table of their own, as training scripts write them.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the readers raise; without safetensors, that it is not there
        # Some of these errors hold no words.
        said = str(error) if " " in str(error) else f"it is no file of tensors: {type(error).__name__} {error}".strip()
        reason = textwrap.shorten(said, 100, placeholder=" ...")
        raise ConfigError(f"weights={path}: can't be read ({reason}); a state dict of tensors is accepted") from None
    for table in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(stored, dict) and isinstance(stored.get(table), dict):
            stored = stored[table]
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise ConfigError(f"weights={path}: not a state dict; a file of named tensors is accepted")
    # A network that was trained on several devices has this before each of its names.
    return {str(layer).removeprefix("module."): value for layer, value in stored.items()}


def fetched(url: str, file: Path, what: str, *, offline: bool, digest: str | None = None) -> Path:
    """Return the file at which an address is kept, and fetch it where it is not there.

    what: what the errors are about, such as `weights of NAME`. digest: the beginning of the file's SHA-256.
    Raises ConfigError, which says which file to put where.
    """
    if file.exists():
        return file
    remedy = f"put {url} at {file}"
    if offline:
        raise ConfigError(f"{what} are not on this machine, and offline is set; {remedy}")
    print(f"fetching {url}", file=sys.stderr)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # torch.hub would wait for ever
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), digest, progress=False)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:100]
        raise ConfigError(f"{what}: {reason}; {remedy}") from None
    finally:
        socket.setdefaulttimeout(patience)
    return file


def in_hub(name: str) -> Path:
    """Return where torch keeps a downloaded file of this name."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def from_torchvision(weights: Any, name: str, *, offline: bool) -> Path:
    """Return the file of a member of a torchvision enumeration of weights; its name says how its digest begins."""
    file = in_hub(Path(urlparse(weights.url).path).name)
    return fetched(weights.url, file, f"weights={name}", offline=offline, digest=file.stem.rpartition("-")[2])


def _of_torchvision(name: str, offline: bool) -> dict[str, Tensor]:
    """Return the weights of a ResNet of torchvision by their name, without the classifier."""
    from torchvision import models

    kind, _, version = name.partition(".")
    kinds = {w.__name__: w for m in models.list_models(module=models) for w in [models.get_model_weights(m)]}
    if kind not in kinds:
        raise unknown("weights", kind, kinds)
    if version not in kinds[kind].__members__:
        raise unknown(f"weights of {kind}", version, kinds[kind].__members__)
    stored = read_tensors(from_torchvision(kinds[kind][version], name, offline=offline))
    return {f"backbone.{layer}": value for layer, value in stored.items() if not layer.startswith("fc.")}


def _of_pretrained(model: Pretrained, stored: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return tensors under the names of a model: those of a run of clbench, or as the network was published."""
    ours = {layer: value for layer, value in stored.items() if layer.startswith("backbone.")}
    plain = {layer.removeprefix("backbone."): value for layer, value in ours.items()} or dict(stored)
    try:
        fitting = model.fitted(plain)
    except Exception as error:  # a filter of timm's takes the names that it expects for granted
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 100, placeholder=" ...")
        raise ConfigError(
            f"weights={source}: of another network ({reason}); those of its architecture are accepted"
        ) from None
    return {f"backbone.{layer}": value for layer, value in fitting.items()}


def _refuse_misfits(given: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """Raise ConfigError for layers that are unknown, missing, or of another shape; it names the first two."""
    misfits = [f"layer {layer} is missing" for layer in own if layer not in given]
    misfits += [
        f"layer {layer} has shape {list(given[layer].shape)}, the model's is {list(value.shape)}"
        for layer, value in own.items()
        if layer in given and given[layer].shape != value.shape
    ]
    strange = [layer for layer in given if layer not in own]
    if strange and not misfits:
        more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
        raise unknown(f"layer in weights={source}{more}:", strange[0], own)
    if misfits:
        count = len(misfits) + len(strange)
        more = f"; and {count - 2} more misfits" if count > 2 else ""
        raise ConfigError(f"weights={source}: {'; '.join(misfits[:2])}{more}")
