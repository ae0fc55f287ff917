"""From smp and timm: a network by its description, and weights for its encoder."""

import difflib
import functools
import inspect
import logging
from collections.abc import Callable
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders import get_encoder_names
from torch import nn

from config import UserError
from medood.models.foreign import Weights, fill, read_weights, reason_of, refuse_not_finite

logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # no warning for a failed attempt
logging.getLogger("timm.models._builder").setLevel(logging.ERROR)  # names that are checked here
WEIGHT_FILES = (".pth", ".pt", ".safetensors")
# parameters that smp accepts but its signatures no longer list
OLD_PARAMETERS = {"decoder_use_batchnorm", "psp_use_batchnorm", "upscale_mode"}
# not built: a network gives logits of pixels, and nothing else
LEFT_OUT = ("activation", "aux_params")


def timm_name(encoder: str) -> str:
    """Return timm's name of an encoder, "" for one of smp's own.

    smp uses timm for `tu-`, and for some names of its earlier versions: `timm-regnetx_002`.
    """
    if smp.encoders.is_equivalent_to_timm_universal(encoder):
        encoder = encoder.replace("timm-", "tu-tf_" if "mobilenetv3" in encoder else "tu-")
    return encoder[3:] if encoder.startswith("tu-") else ""


def _require(kind: str, name: str, known: list[str]) -> None:
    """Raise UserError, with the nearest names, for an unknown architecture or encoder."""
    if name not in known:
        close = ", ".join(difflib.get_close_matches(name, known, n=4, cutoff=0.5) or known)
        raise UserError(f"{kind} = {name!r} is unknown: the nearest names are {close}")


def network_of(description: dict, pretrained: str | bool | None = None) -> nn.Module:
    """Return the network of a description, as in smp's config.json.

    It gives logits: an activation, or a head that classifies images, is not built. description:
    `_model_class`, `encoder_name` and other parameters of that class. pretrained: weights of the
    encoder to download, as smp names them; None: all are random. Raises UserError for an unknown
    name, and what smp raises where it cannot build the network.
    """
    architecture = str(description.get("_model_class", "")).lower()
    encoder = str(description.get("encoder_name"))
    _require("architecture", architecture, list(smp.MODEL_ARCHITECTURES_MAPPING))
    if of_timm := timm_name(encoder):  # in timm, the name of the weights follows the point
        _require("encoder", f"tu-{of_timm.split('.')[0]}", [f"tu-{n}" for n in timm.list_models()])
    else:
        _require("encoder", encoder, [*get_encoder_names(), "tu-<name of timm>"])
    kind = smp.MODEL_ARCHITECTURES_MAPPING[architecture]
    parameters = {name: value for name, value in description.items() if not name.startswith("_")}
    for name in LEFT_OUT:
        parameters.pop(name, None)
    known = OLD_PARAMETERS.union(inspect.signature(kind.__init__).parameters)
    # timm opens a checkpoint_path, and old versions run the code in it; timm refuses unknown
    # parameters, smp's own encoders do not
    strange = {"checkpoint_path"} if of_timm else set(parameters) - known
    if wrong := sorted(strange.intersection(parameters)):
        raise ValueError(f"{', '.join(wrong)} is not a parameter of a network")
    parameters["encoder_weights"] = pretrained
    return kind(**parameters)


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
    known = ["imagenet"]
    if not (of_timm := bool(timm_name(encoder))):
        known = list(smp.encoders.encoders[encoder]["pretrained_settings"])
    reason = f"only {', '.join(known)} can"
    try:
        if weights in known:
            return network_of(names, of_timm or weights)
    except Exception as error:  # any error of the libraries' network layers
        reason = type(error).__name__
    raise UserError(
        f"the {weights} weights of encoder {encoder} could not be downloaded ({reason}): set"
        f" encoder_weights to the path of a {' or '.join(WEIGHT_FILES)} file, or to none for random"
        " weights"
    )


def load_encoder_file(model: nn.Module, names: dict[str, str], path: Path) -> None:
    """Copy the weights of a local file, such as one from torchvision or timm, into the encoder.

    Of the file of a whole network, its encoder is taken. Raises UserError unless the file gives
    every weight of the encoder.
    """
    if not path.is_file():
        raise UserError(f"encoder_weights: there is no file {path}: set another path, or none")
    encoder = names["encoder_name"]
    weights, _ = read_weights(path)
    part = {n.removeprefix("encoder."): v for n, v in weights.items() if n.startswith("encoder.")}
    try:
        fill(model.encoder, _as_smp_names(model.encoder, names, part or weights))
    except Exception as error:  # timm's functions that rename weights raise many kinds
        raise UserError(
            f"{path} does not contain weights of encoder {encoder} ({reason_of(error)}):"
            " use the file of that encoder, or set encoder to that of the file"
        ) from None
    refuse_not_finite(path, model.encoder)


def _as_smp_names(encoder: nn.Module, names: dict[str, str], weights: Weights) -> Weights:
    """Return the weights of a file with the names that they have in smp's encoder.

    timm renames, and sometimes reshapes, its own while it builds a network. Of a network of
    features it leaves random what a file lacks: its classifier, which takes all or none, is first.
    """
    name = timm_name(names["encoder_name"])
    own = {f"model.{part.removeprefix('model.')}": value for part, value in weights.items()}
    if not name or encoder.state_dict().keys() == own.keys():  # of smp
        return own if name else weights
    known = timm.get_pretrained_cfg(name)
    heads = (known and known.classifier) or ()
    heads = tuple(f"{h.split('.')[0]}." for h in ((heads,) if isinstance(heads, str) else heads))
    bare = without_memory(functools.partial(timm.create_model, name, num_classes=0)).state_dict()
    given = {part.removeprefix("model."): value for part, value in weights.items()}
    given = {n: value for n, value in given.items() if n in bare or not n.startswith(heads)}
    overlay = {"state_dict": given, "num_classes": 0, "classifier": None}
    once = overlay | {"state_dict": dict(given)}  # timm may take parts out of it
    timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=once)
    return network_of(names | {"pretrained_cfg_overlay": overlay}, True).encoder.state_dict()
