"""Weights from elsewhere: read from any file without running any code in it.

A whole network saved by torch.save(model) is a pickle, which names classes to build. Here inert
stand-ins are built instead, and only tensors and plain values are taken from them. A file that
names anything but parts of networks is refused, with that name.
"""

import re
import textwrap
import zipfile
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from config import UserError

PARTS_OF_NETWORKS = (
    *("torch.nn.", "torchvision.", "timm.", "segmentation_models_pytorch."),
    *("efficientnet_pytorch.", "pretrainedmodels."),  # contained encoders of smp before 0.4
)
# keys under which trainers save weights, and the parts in which they wrap a network
WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "module"),
    *("ema", "model_ema", "ema_state_dict", "state_dict_ema"),
)
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
NUMBERS = (torch.int64, torch.int32, torch.bool)  # apart from floats: counts and indices
NOT_OPENED = "and was not opened: copy it again, or ask its author for a .safetensors file"
Weights = dict[str, Tensor]


class Inert:
    """Stands in for a class of a pickle: takes any state, and has no behaviour."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_weights(path: Path) -> tuple[Weights, dict]:
    """Return the weights in a .pth, .pt or .safetensors file, and the description of its network.

    Names are without prefixes that all of them have, such as those of torch.compile. The
    description is the config.json of smp, if a whole network of smp was saved, else empty. Raises
    UserError for a file that needs anything but weights and parts of networks, and for one whose
    weights are not plain numbers.
    """
    try:
        is_plain = path.suffix == ".safetensors"
        weights, description = (load_file(path), {}) if is_plain else _unpickled(path)
    except UserError:
        raise
    except Exception as error:  # torch raises many kinds, with unsafe advice
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"needs {named[1]}" if named else "is not a complete file of weights"
        raise UserError(f"{path} {what}, {NOT_OPENED}") from None
    are_named = isinstance(weights, dict) and all(isinstance(name, str) for name in weights)
    if not are_named or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        raise UserError(f"{path} contains no weights: save the state_dict of a network")
    for name, value in weights.items():
        plain = value.layout == torch.strided and not value.is_meta
        if not plain or not (value.is_floating_point() or value.dtype in NUMBERS):
            kind = f"as {value.dtype}, {value.layout}, on {value.device}"
            raise UserError(f"{path} contains {name} {kind}: save the weights as dense float32")
    # a view can claim any size; a network may use weights of the file twice
    if sum(value.numel() * value.itemsize for value in weights.values()) > 2 * path.stat().st_size:
        raise UserError(f"{path} contains weights that are larger than the file, {NOT_OPENED}")
    return without_prefixes(weights), description


def without_prefixes(weights: Weights) -> Weights:
    """Return the weights without what wrappers of a network put before each of their names.

    Other values in the wrapper, such as `loss.weight` or `mean`, have short names.
    """
    while long := [name for name in weights if name.count(".") > 1]:
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in long)), None)
        if prefix is None:
            break
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def reason_of(error: Exception) -> str:
    """Return the message of a library's error, in one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    # torch begins with "Error(s) in loading state_dict for Unet:", and may list all weights
    said = (line for line in lines if line and not line.endswith(":"))
    return textwrap.shorten(next(said, type(error).__name__), 200, placeholder=" ...")


def fill(module: nn.Module, weights: Weights, assign: bool = False) -> None:
    """Copy weights into a network or an encoder; ValueError that says what does not fit.

    assign: take the tensors themselves, for a network without memory.
    """
    options = {"assign": True} if assign else {}  # some encoders of smp take none
    try:  # of a copy: smp renames in it the weights of its earlier versions
        module.load_state_dict(dict(weights), **options)
    except RuntimeError as error:
        raise ValueError(reason_of(error)) from None


def refuse_not_finite(path: Path, module: nn.Module) -> None:
    """Raise UserError if a weight of a network that was loaded from a file is not finite."""
    wrong = [name for name, value in module.state_dict().items() if not value.isfinite().all()]
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} weight(s) are not finite ({'; '.join(wrong[:3])}): use those of"
            " a training that did not diverge"
        )


def _unpickled(path: Path) -> tuple[object, dict]:
    """Return what a file of torch.save contains, out of its wrappers, and a description."""
    names: list[str] = []
    if zipfile.is_zipfile(path):  # else of torch before 1.6: torch.load refuses all names in it
        with zipfile.ZipFile(path) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise UserError(f"{path} is compressed, as torch writes no file: unpack it")
        names = get_unsafe_globals_in_checkpoint(path)
    if strange := sorted(name for name in names if not name.startswith(PARTS_OF_NETWORKS)):
        needed = ", ".join(strange[:3])
        raise UserError(f"{path} needs {needed}, which is not part of a network, {NOT_OPENED}")
    stand_ins = {type(name.rpartition(".")[2], (Inert,), {}): name for name in names}
    with safe_globals(list(stand_ins.items())):
        content = torch.load(path, map_location="cpu", weights_only=True)
    for _ in WRAPPERS:  # one may contain another; a dict that contains itself has no end
        parts = content if isinstance(content, dict) else {}
        found = [k for k in WRAPPERS if isinstance(parts.get(k), dict | Inert) and parts[k]]
        if len(found) > 1:
            raise UserError(
                f"{path} contains several networks ({', '.join(found)}): save the weights of one in"
                " a separate file"
            )
        content = parts[found[0]] if found else content
    if isinstance(content, Inert):
        return _tensors_of(content), _description_of(content, stand_ins)
    return content, {}


def _tensors_of(network: Inert) -> Weights:
    """Return the state_dict of the network that `network` stands in for."""
    found: Weights = {}
    waiting, seen = [("", network)], set()
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen:  # a part may contain itself
            continue
        seen.add(id(module))
        state = vars(module)
        left_out = state.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers"):
            for name, value in (state.get(kind) or {}).items():
                if isinstance(value, Tensor) and name not in left_out:
                    found[prefix + name] = value.detach()
        children = (state.get("_modules") or {}).items()
        waiting += [(f"{prefix}{n}.", child) for n, child in children if isinstance(child, Inert)]
    return found


def _description_of(network: Inert, name_of: dict[type, str]) -> dict:
    """Return smp's config.json of a network, or {} if smp has no such network.

    smp 0.3 saves architecture and encoder (the name `u-vgg11_bn`), later versions all parameters.
    """
    inner = (vars(network).get("_modules") or {}).get("module")  # of DataParallel
    network = inner if isinstance(inner, Inert) else network
    architecture = name_of[type(network)].rpartition(".")[2]
    name, config = (vars(network).get(key) for key in ("name", "_hub_mixin_config"))
    if architecture.lower() not in smp.MODEL_ARCHITECTURES_MAPPING or not isinstance(name, str):
        return {}
    parameters = config if isinstance(config, dict) else {"encoder_name": name.partition("-")[2]}
    return parameters | {"_model_class": architecture}
