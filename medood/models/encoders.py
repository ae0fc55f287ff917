"""What smp and timm give: a network by its description, and weights for its encoder."""

import difflib
import logging
from collections.abc import Callable
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders import get_encoder_names
from torch import nn

from config import UserError
from medood.models.foreign import read_weights

logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a try that failed is no news
WEIGHT_FILES = (".pth", ".pt", ".safetensors")


def require_known(architecture: str, encoder: str) -> None:
    """Raise UserError, with the nearest names, for an architecture or encoder that is not known."""
    if encoder.startswith("tu-"):
        encoders = [f"tu-{name}" for name in timm.list_models()]
    else:
        encoders = [*get_encoder_names(), "tu-<name of timm>"]
    for kind, name, known in (
        ("architecture", architecture, list(smp.MODEL_ARCHITECTURES_MAPPING)),
        ("encoder", encoder.split(".")[0], encoders),  # timm has a name of weights after the point
    ):
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name, known, n=4, cutoff=0.5) or known)
            raise UserError(f"{kind} = {name!r} is unknown: the nearest names are {close}")


def network_of(description: dict, pretrained: str | bool | None = None) -> nn.Module:
    """Return the network of a description, which is what smp's config.json holds.

    description: `_model_class`, `encoder_name` and other parameters of that class.
    pretrained: weights of the encoder to download, as smp names them; None: all are random.
    Raises UserError for an unknown name, and what smp raises where it cannot build the network.
    """
    architecture = str(description.get("_model_class", "")).lower()
    require_known(architecture, str(description.get("encoder_name")))
    parameters = {name: value for name, value in description.items() if not name.startswith("_")}
    if "checkpoint_path" in parameters:  # timm opens it, and old versions run the code in it
        raise ValueError("checkpoint_path is no parameter of a network")
    parameters["encoder_weights"] = pretrained
    return smp.MODEL_ARCHITECTURES_MAPPING[architecture](**parameters)


def without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    """Return the network that `build` builds, with names and shapes of weights but no values."""
    try:
        with torch.device("meta"):
            return build()
    except RuntimeError:  # smp's mit encoders read values while they are built
        return build()


def downloaded(names: dict[str, str], weights: str) -> nn.Module:
    """Return a network whose encoder has pretrained weights of the library."""
    encoder = names["encoder_name"]
    if of_timm := encoder.startswith("tu-"):
        known = ["imagenet"]
    else:
        known = list(smp.encoders.encoders[encoder]["pretrained_settings"])
    files = f"the path of a {' or '.join(WEIGHT_FILES)} file"
    if weights not in known:
        raise UserError(
            f"encoder_weights = {weights!r}: encoder {encoder} has {', '.join(known)}: give one of"
            f" them, or none, or {files}"
        )
    try:
        return network_of(names, of_timm or weights)
    except Exception as error:  # the libraries raise what their network layer happens to raise
        raise UserError(
            f"the {weights} weights of encoder {encoder} could not be downloaded"
            f" ({type(error).__name__}): set encoder_weights to {files}, or to none for random"
            " weights"
        ) from None


def load_encoder_file(model: nn.Module, names: dict[str, str], path: Path) -> None:
    """Copy the weights of a local file, such as one from torchvision or timm, into the encoder."""
    if not path.is_file():
        raise UserError(f"encoder_weights: there is no file {path}: give another path, or none")
    encoder = names["encoder_name"]
    try:
        weights, _ = read_weights(path)
        if encoder.startswith("tu-"):  # smp has other names for them than timm
            from_file = {"pretrained_cfg_overlay": {"state_dict": weights}}
            weights = network_of(names | from_file, pretrained=True).encoder.state_dict()
        model.encoder.load_state_dict(weights)
    except UserError:
        raise
    except Exception as error:  # unpickling, tensor shapes and key names each have their own kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} does not hold weights of encoder {encoder} ({reason}):"
            " give the file of that encoder, or set encoder to the file's"
        ) from None
