"""Weights from elsewhere: read out of any file without running any code that is in it.

A whole network saved with torch.save(model) is a pickle that names classes to build. Here inert
stand-ins are built in their place, and only the tensors are taken out of them; a file that names
anything but parts of networks is refused, and says what it asked for.
"""

import functools
import re
import zipfile
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import get_encoder, get_encoder_names
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from config import UserError

PARTS_OF_NETWORKS = (
    *("torch.nn.", "torchvision.", "timm.", "segmentation_models_pytorch."),
    *("efficientnet_pytorch.", "pretrainedmodels."),  # held encoders of smp before 0.4
)
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which trainers file weights
MOST_PARTS, LONGEST_NAME = 100_000, 1000  # parts of a network, letters of the name of one
Weights = dict[str, Tensor]


class Inert:
    """Stands in for a class of a pickle: takes any state, and has no behaviour."""

    def __new__(cls, *_: object, **__: object) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_weights(path: Path) -> tuple[Weights, dict[str, str]]:
    """Return the weights in a .pth, .pt or .safetensors file, and what it says of its network.

    The latter is architecture and encoder of a whole network of segmentation-models-pytorch, else
    empty. Raises UserError for a file that asks for anything but weights and parts of networks.
    """
    if path.suffix == ".safetensors":
        return load_file(path), {}
    try:
        return _unpickled(path)
    except UserError:
        raise
    except Exception as error:  # torch raises many kinds, and advises what nobody should do
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks for {named[1]}" if named else "is not a whole file of weights"
        raise UserError(
            f"{path} {what}, and was not opened: ask its author for the weights alone, as"
            " .safetensors"
        ) from None


def _unpickled(path: Path) -> tuple[Weights, dict[str, str]]:
    names = _globals_of(path)
    if strange := sorted(name for name in names if not name.startswith(PARTS_OF_NETWORKS)):
        raise UserError(
            f"{path} asks for {', '.join(strange[:3])}, which is no part of a network, and was not"
            " opened: ask its author for the weights alone, as .safetensors"
        )
    stand_ins = [(type(name.rpartition(".")[2], (Inert,), {}), name) for name in names]
    with safe_globals(stand_ins):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, Inert):
        name_of = {cls: name for cls, name in stand_ins}
        return _tensors_of(content), _described(content, name_of)
    for _ in WRAPPERS:  # one in another, but no dict in itself for ever
        if isinstance(content, dict) and (found := [k for k in WRAPPERS if k in content]):
            content = content[found[0]]
    if isinstance(content, Inert):
        return _tensors_of(content), {}
    is_weights = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )
    if not is_weights or not content:
        raise UserError(f"{path} holds no weights: give a file with the state_dict of a network")
    return _without_prefix(content), {}


def _without_prefix(weights: Weights) -> Weights:
    """Return weights under their names in the network itself: DataParallel puts one in front."""
    return {name.removeprefix("module."): value for name, value in weights.items()}


def _globals_of(path: Path) -> list[str]:
    """Return the classes and functions that a file names, beyond what tensors need."""
    if not zipfile.is_zipfile(path):
        return []  # of torch before 1.6: torch.load itself refuses whatever it names
    with zipfile.ZipFile(path) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise UserError(f"{path} is compressed, as torch writes no file: unpack it")
    return get_unsafe_globals_in_checkpoint(path)


def _tensors_of(network: Inert) -> Weights:
    """Return what state_dict would give for the network that `network` stands in for."""
    found: Weights = {}
    waiting, seen = [("", network)], 0
    while waiting:
        prefix, module = waiting.pop()
        held = vars(module)
        seen += 1
        # parts that hold themselves, or each other many times over
        if seen + len(waiting) + len(found) > MOST_PARTS or len(prefix) > LONGEST_NAME:
            raise UserError("the network has more parts than any: it was not opened")
        passing = held.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers"):
            for name, value in (held.get(kind) or {}).items():
                if isinstance(value, Tensor) and name not in passing:
                    found[prefix + name] = value.detach()
        for name, child in (held.get("_modules") or {}).items():
            if isinstance(child, Inert):
                waiting.append((f"{prefix}{name}.", child))
    return _without_prefix(found)


def _described(network: Inert, name_of: dict[type, str]) -> dict[str, str]:
    """Return architecture and encoder of a network of smp: `Unet`, called `u-vgg11_bn`."""
    inner = (vars(network).get("_modules") or {}).get("module")  # of DataParallel
    network = inner if isinstance(inner, Inert) else network
    architecture = name_of[type(network)].rpartition(".")[2].lower()
    called = vars(network).get("name")
    if architecture not in smp.MODEL_ARCHITECTURES_MAPPING or not isinstance(called, str):
        return {}
    return {"architecture": architecture, "encoder": called.partition("-")[2]}


def recognise(weights: Weights) -> dict[str, str]:
    """Return architecture and encoder of the network of smp that has just these weights, or {}.

    Every native encoder of smp is told from the others by the names and shapes of its weights.
    """
    prefix = "encoder."
    of_encoder = {
        name.removeprefix(prefix): tuple(value.shape)
        for name, value in weights.items()
        if name.startswith(prefix)
    }
    encoders = [name for name in get_encoder_names() if _shapes(name) == of_encoder]
    head = weights.get("segmentation_head.0.weight")
    if len(encoders) != 1 or head is None:
        return {}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    for architecture in smp.MODEL_ARCHITECTURES_MAPPING:
        try:
            with torch.device("meta"):
                network = smp.create_model(architecture, encoders[0], None, classes=len(head))
        except Exception:  # not every architecture takes every encoder
            continue
        if {name: tuple(value.shape) for name, value in network.state_dict().items()} == shapes:
            return {"architecture": architecture, "encoder": encoders[0]}
    return {}


@functools.cache
def _shapes(encoder: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of an encoder of smp."""
    try:
        with torch.device("meta"):  # no memory, no time
            network = get_encoder(encoder, weights=None)
    except RuntimeError:  # some look at their values while they are built
        network = get_encoder(encoder, weights=None)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}
