"""From the settings to a network, its input normalisation and the device it runs on."""

import copy
from itertools import pairwise
from pathlib import Path
from types import MethodType

import timm
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from config import Config, UserError
from medood import processes
from medood.models.encoders import (
    WEIGHT_FILES,
    downloaded,
    load_encoder_file,
    network_of,
    timm_name,
)
from medood.models.foreign import reason_of

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
DPN = ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)
# The constants of the weights, by the start of the encoder's name, if they are not ImageNet's.
# The library's get_preprocessing_fn would ask a server for them.
NORMALISATION = {
    "inception": HALF,
    "xception": HALF,
    "dpn": DPN,
    "timm-tf_efficientnet_lite": HALF,
}


def normalisation(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of RGB in 0..1 that the encoder's weights expect."""
    if name := timm_name(encoder):
        known = timm.get_pretrained_cfg(name)
        return (known.mean, known.std) if known else IMAGENET
    return next((v for start, v in NORMALISATION.items() if encoder.startswith(start)), IMAGENET)


class Normalise(nn.Module):
    """RGB (N, 3, H, W) in 0..255 -> the float input that a network with this encoder expects."""

    def __init__(self, encoder: str) -> None:
        super().__init__()
        for name, values in zip(("mean", "std"), normalisation(encoder), strict=True):
            self.register_buffer(name, 255 * torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def build_model(cfg: Config) -> nn.Module:
    """Return the network of cfg: float32 RGB (N, 3, P, P), normalised -> logits (N, C, P, P).

    Raises UserError for an unknown name, for a network that takes no patches of this size, and if
    the encoder's weights are missing.
    """
    architecture, encoder, weights = cfg.architecture, cfg.encoder, cfg.encoder_weights
    names = {"_model_class": architecture, "encoder_name": encoder}
    try:
        model = network_of({**names, "classes": len(cfg.class_names)})
    except UserError:
        raise
    except Exception as error:  # of smp and of every model of timm: each has its own kind
        raise UserError(
            f"{architecture} cannot be built on encoder {encoder} ({reason_of(error)}): choose"
            " another encoder or architecture"
        ) from None
    side_of(model, cfg)
    if Path(weights).suffix in WEIGHT_FILES:
        load_encoder_file(model, names, Path(weights))
    elif weights != "none":
        model.encoder.load_state_dict(downloaded(names, weights).encoder.state_dict())
    return model if cfg.batch_norm else remove_batch_norm(model)


def refusal(model: nn.Module, side: int) -> str:
    """Return why a network takes no images of `side` pixels, "" if it gives logits of that size."""
    training, images = model.training, torch.zeros(1, 3, side, side)
    try:
        with torch.no_grad():
            logits = model.eval()(images.to(next(model.parameters()).device))
    except Exception as error:  # each encoder has its own kind
        return reason_of(error)
    finally:
        model.train(training)
    height, width = logits.shape[2:]
    return "" if (height, width) == (side, side) else f"its output has {width} x {height} pixels"


def side_of(model: nn.Module, cfg: Config, *preferred: int) -> int:
    """Return the first of some sides that a network takes; the last of them is that of cfg.

    Encoders such as swin take images of a single side. Raises UserError if it takes none of them.
    """
    for side in (*preferred, cfg.patch_size):
        if not (reason := refusal(model, side)):
            return side
    raise UserError(
        f"{type(model).__name__.lower()} on encoder {model.config['encoder_name']} takes no images"
        f" of {cfg.patch_size} x {cfg.patch_size} pixels ({reason}): set {cfg.side_setting} to"
        " a side that it takes, such as 224, or choose another encoder"
    )


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Return every batch normalisation in `module`."""
    return [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def remove_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch normalisation in `module` by the identity, and return `module`.

    The batch normalisations of timm contain an activation: that stays.
    """
    for name, part in list(module.named_modules(remove_duplicate=False)):
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            module.set_submodule(name, getattr(part, "act", nn.Identity()))
    return module


def for_training(model: nn.Module, device: torch.device) -> nn.Module:
    """Return `model` on the device, channels last and in training mode.

    On the CPU, two kinds of strided convolution need help backward (oneDNN, torch 2.8 to 2.15). One
    of 1 x 1 with fewer than 16 channels, as at the start of MobileOne, writes outside its memory in
    this layout: here it first drops the pixels that its stride leaves out, with the same result. A
    depthwise one takes 5 to 30 times as long in bfloat16 as in float32: here it is in float32.
    """
    for module in model.modules():
        if not isinstance(module, nn.Conv2d) or module.stride == (1, 1):
            continue
        if device.type == "cpu" and 1 < module.groups == module.in_channels:
            module.forward = MethodType(_forward_in_float32, module)
        if module.kernel_size == (1, 1) and module.in_channels < 16:
            down, right = module.stride
            module.stride = (1, 1)
            module.register_forward_pre_hook(
                lambda _, inputs, down=down, right=right: (inputs[0][..., ::down, ::right],)
            )
    return model.to(device, memory_format=torch.channels_last).train()


def _forward_in_float32(module: nn.Module, features: Tensor) -> Tensor:
    """Return what the module computes in float32, in the precision of the features."""
    with torch.autocast("cpu", enabled=False):
        return type(module).forward(module, features.float()).to(features.dtype)


def folded(model: nn.Module) -> nn.Module:
    """Return a copy of a network, in eval mode, that computes the same in less time.

    A batch normalisation becomes part of the convolution before it, if an nn.Sequential ensures
    their order. This saves a fifth of the time of vgg11_bn's inference on a CPU.
    """
    model = copy.deepcopy(model)
    for part in model.modules():
        if type(part).forward is not nn.Sequential.forward:
            continue
        layers = list(part.named_children())
        for (name, layer), (next_name, following) in pairwise(layers):
            if isinstance(layer, nn.Conv2d) and type(following) is nn.BatchNorm2d:
                setattr(part, name, fuse_conv_bn_eval(layer, following))
                setattr(part, next_name, nn.Identity())
    return model


def pick_device(name: str) -> torch.device:
    """Return the device that the setting `device` names; `auto` is CUDA if available.

    Of several processes, each has a GPU of its own. From here on, convolutions of float32 are not
    computed in TF32, with 10 bits of a factor instead of 23, as torch does by default.
    """
    torch.backends.cudnn.allow_tf32 = False
    gpus, processes_here = torch.cuda.device_count(), processes.local_world_size()
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    try:
        if name.startswith("cuda") and processes.world_size() > 1:
            if ":" in name or processes_here > gpus:
                raise RuntimeError(f"{processes_here} processes need a GPU each, {gpus} exist")
            return torch.device("cuda", processes.local_rank())
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device = {name!r} cannot be used ({reason}): try auto or cpu") from None


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which a network computes: bfloat16 or float32, as the setting says."""
    if precision != "auto":
        enabled = precision == "bfloat16"
    elif device.type == "cuda":
        enabled = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # a CPU that lacks the instructions emulates bfloat16, slower than float32
        enabled = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
