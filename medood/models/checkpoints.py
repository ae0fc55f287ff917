"""Networks on disk: weights, settings and scores together, in a folder that smp can open.

models/<fold>_<architecture>_<encoder>[_ood]/
    config.json + model.safetensors   as segmentation-models-pytorch's save_pretrained writes them
    run.json                          all settings, fold, versions, training-set sizes, scores
    log.csv                           a row per epoch
    trained_on.txt                    the names of the ID patches it was trained on
    README.md                         a model card, ready to be published with the weights
"""

import dataclasses
import fnmatch
import functools
import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders import get_encoder, get_encoder_names
from torch import nn

from config import Config, UserError
from medood.data.files import read_json
from medood.data.names import plain
from medood.data.patients import region_of
from medood.data.records import RUN
from medood.data.workspace import require_network
from medood.models.encoders import network_of, without_memory
from medood.models.foreign import Weights, fill, read_weights, reason_of, refuse_not_finite
from medood.models.network import remove_batch_norm, require_side

TRAINED_ON = "trained_on.txt"
IN_RUN = {  # the content of run.json
    **dict.fromkeys(("fold", "epoch", "id_patches", "ood_patches", "processes"), int),
    **dict.fromkeys(("settings", "versions", "made_from", "outputs", "scores"), dict),
    "data": str,
}
HEADS = {"segmentation_head.0.weight", "segmentation_head.head.4.weight"}  # classes; of dpt
NOT_USED = "classification_head."  # of images, built if smp's aux_params are set
BLOCKS = "decoder.blocks.*.conv2.0.weight"
# architecture, a parameter of its decoder, and the weights whose number of outputs gives it
WIDTHS = (
    ("unet", "decoder_channels", BLOCKS),
    ("unetplusplus", "decoder_channels", "decoder.blocks.x_0_*.conv2.0.weight"),
    ("manet", "decoder_channels", BLOCKS),
    ("manet", "decoder_pab_channels", "decoder.center.top_conv.weight"),
    ("fpn", "decoder_pyramid_channels", "decoder.p5.weight"),
    ("fpn", "decoder_segmentation_channels", "decoder.seg_blocks.0.block.0.block.0.weight"),
    ("pspnet", "psp_out_channels", "decoder.conv.0.weight"),
    ("deeplabv3", "decoder_channels", "decoder.conv.weight"),
    ("deeplabv3plus", "decoder_channels", "decoder.aspp.1.1.weight"),
    ("pan", "decoder_channels", "decoder.fpa.mid.0.conv.weight"),
    ("upernet", "decoder_channels", "decoder.fusion_block.0.weight"),
    ("segformer", "decoder_segmentation_channels", "decoder.fuse_stage.0.weight"),
)
PACKAGES = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute a network."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def load_model(checkpoint: Path, cfg: Config) -> nn.Module:
    """Return a trained network, for patches of cfg, in eval mode.

    checkpoint: a folder that train.py or smp's save_pretrained wrote, or a file: weights, or a
    whole network as torch.save wrote it. No code in it is run. Raises UserError if there is no
    network, or one for other classes or other patches than cfg's.
    """
    model = open_model(checkpoint, cfg)
    require_side(model, cfg)
    return model


def open_model(checkpoint: Path, cfg: Config) -> nn.Module:
    """Return a trained network as load_model does, but for images of any size."""
    require_network(checkpoint)
    expected = [name for name, _ in cfg.classes]
    known = [name for name, _ in with_settings_of(cfg, checkpoint).classes]
    model = _of_file(checkpoint, cfg) if checkpoint.is_file() else _of_folder(checkpoint)
    refuse_not_finite(checkpoint, model)
    channels, outputs = model.config["in_channels"], model.config["classes"]
    if channels != 3:
        raise UserError(
            f"the network in {checkpoint} has in_channels = {channels}, but the images have three"
            " channels, RGB: use a network that was trained on such images"
        )
    if outputs != 1 + len(expected) or known != expected:
        raise UserError(
            f"the network in {checkpoint} has other classes ({outputs} outputs with background"
            f"{': ' + ', '.join(known) if known != expected else ''}) than the settings"
            f" ({', '.join(expected)}): set classes to the network's"
        )
    return model.eval()


def _of_folder(folder: Path) -> nn.Module:
    """Return the network in a folder as smp writes them; UserError if it cannot be used."""
    if not (weights := folder / "model.safetensors").is_file():
        raise UserError(f"there is no {weights}: copy the folder again, with its weights")
    given = read_weights(weights)[0]
    try:
        return _load(network_of(read_json(folder / "config.json") or {}), given)
    except UserError:
        raise
    except Exception as error:  # smp and timm each have their own kinds
        raise UserError(
            f"{folder} contains no usable network ({reason_of(error)}): train or copy it again;"
            " other versions of segmentation-models-pytorch or timm may have written it"
        ) from None


def _of_file(path: Path, cfg: Config) -> nn.Module:
    """Return the likeliest network that fits the weights in a file.

    Each network is tried without memory first, so that a small file cannot make it huge. Raises
    UserError if the weights fit none.
    """
    weights, own = read_weights(path)
    reasons = []
    for known in _candidates(path, cfg, weights, own):
        try:
            description = parameters_of(known, weights) | known
            empty = without_memory(functools.partial(network_of, description))
            _load(empty, weights, assign=True)
        except Exception as error:  # names or shapes differ, or smp cannot build this network
            name = f"{known['_model_class']} on encoder {known['encoder_name']}".lower()
            reasons.append(f"{name} ({reason_of(error)})")
            continue
        return _load(network_of(description), weights)
    raise UserError(
        f"{path} contains weights that do not fit {reasons[0]}, nor any other network tried: save"
        " only the weights of the network, and set its architecture and encoder, or use the folder"
        " that smp's save_pretrained writes"
    )


def _load(model: nn.Module, weights: Weights, assign: bool = False) -> nn.Module:
    """Return `model` with the weights, and without batch normalisation if they have none."""
    weights = {name: value for name, value in weights.items() if not name.startswith(NOT_USED)}
    if not any(name.endswith("running_mean") for name in weights):
        remove_batch_norm(model)
    fill(model, weights, assign)
    return model


def _candidates(path: Path, cfg: Config, weights: Weights, own: dict) -> Iterator[dict]:
    """Yield descriptions of a network (see network_of), the likeliest first.

    They come from the file itself, from config.json in its folder, from the settings, and from the
    names and shapes of the weights, which distinguish all native encoders of smp.
    """
    saved = read_json(path.with_name("config.json")) if path.name == "model.safetensors" else None
    for description in (own, saved or {}):
        if {"_model_class", "encoder_name"} <= description.keys():
            yield description
    for settings in (with_settings_of(cfg, path), cfg):
        yield {"_model_class": settings.architecture, "encoder_name": settings.encoder}
    shapes = {name: value.shape for name, value in weights.items()}
    for encoder in get_encoder_names():
        of_images = first_convolutions(encoder)
        rest = {(n, shape) for n, shape in encoder_shapes(encoder).items() if n not in of_images}
        if rest <= shapes.items():
            for architecture in smp.MODEL_ARCHITECTURES_MAPPING:
                yield {"_model_class": architecture, "encoder_name": encoder}


def parameters_of(description: dict, weights: Weights) -> dict:
    """Return the parameters of a network that follow from the shapes of its weights.

    They are classes, channels of the images, and widths of the decoder. description: its
    `_model_class` and `encoder_name`.
    """
    architecture = description["_model_class"].lower()
    found = {}
    for head in HEADS & weights.keys():
        found["classes"] = len(weights[head])
    if architecture != "dpt":  # no other architecture has its encoders
        for name in first_convolutions(description["encoder_name"]) & weights.keys():
            found["in_channels"] = weights[name].shape[1]
    for name, parameter, pattern in WIDTHS:
        matches = sorted(fnmatch.filter(weights, pattern)) if name == architecture else []
        if matches and "*" in pattern:  # a width for each block
            widths = tuple(len(weights[match]) for match in matches)
            found |= {parameter: widths, "encoder_depth": len(widths)}
        elif matches:
            found[parameter] = len(weights[pattern])
    if any(".attention1." in name for name in weights):
        found["decoder_attention_type"] = "scse"
    return found


@functools.cache
def encoder_shapes(encoder: str) -> dict[str, torch.Size]:
    """Return the names and shapes of the weights that an encoder of smp has in a network."""
    network = without_memory(functools.partial(get_encoder, encoder, weights=None))
    return {f"encoder.{name}": value.shape for name, value in network.state_dict().items()}


def first_convolutions(encoder: str) -> set[str]:
    """Return the names of the weights that an encoder of smp applies to an RGB image."""
    shapes = encoder_shapes(encoder).items()
    return {name for name, shape in shapes if len(shape) == 4 and shape[1] == 3}


def with_settings_of(cfg: Config, folder: Path) -> Config:
    """Return cfg with the settings of the network in `folder`, from its run.json, if any."""
    settings = read_run(folder).get("settings", {})
    names = ("architecture", "encoder", "classes", "mpp", "patch_size")
    known = {name: settings[name] for name in names if name in settings}
    try:
        if "classes" in known:
            known["classes"] = tuple(map(tuple, known["classes"]))
        return dataclasses.replace(cfg, **known)
    except (TypeError, UserError) as error:
        raise UserError(f"{folder / 'run.json'}: {error}: remove it or copy it again") from None


def seen_in_training(checkpoint: Path) -> list[str] | None:
    """Return the patches that a network was trained on, or None without such a list.

    checkpoint: its folder, or the file of weights in it.
    """
    path = _folder_of(checkpoint) / TRAINED_ON
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text: remove it or copy it again") from None
    return None if text is None else [plain(line) for line in text.split("\n") if line]


def has_seen(checkpoint: Path, names: Iterable[str], side: int) -> bool:
    """Return whether a network was trained on any of the named patches, as far as is known.

    If it was trained on patches of another size, they are compared by their region: a network
    that was trained on any patch of a region has seen the whole region.
    """
    seen = seen_in_training(checkpoint) or []
    if read_run(checkpoint).get("settings", {}).get("patch_size", side) != side:
        seen, names = map(region_of, seen), map(region_of, names)
    return not set(seen).isdisjoint(names)


def read_run(checkpoint: Path) -> dict:
    """Return run.json in a checkpoint folder, or next to a file; {} if train.py wrote none."""
    path = _folder_of(checkpoint) / RUN
    run = read_json(path) or {}
    wrong = [name for name, kind in IN_RUN.items() if not isinstance(run.get(name, kind()), kind)]
    if wrong:
        raise UserError(
            f"{path}: {', '.join(wrong)} is not what train.py writes: remove it or copy it again"
        )
    return run


def _folder_of(checkpoint: Path) -> Path:
    return checkpoint.parent if checkpoint.is_file() else checkpoint
