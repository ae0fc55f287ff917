"""Networks on disk: weights, settings and scores together, in a folder that smp can open.

models/<fold>_<architecture>_<encoder>[_ood]/
    config.json + model.safetensors   as segmentation-models-pytorch's save_pretrained writes them
    run.json                          all settings, fold, versions, training-set sizes, scores
    log.csv                           a row per epoch
    trained_on.txt                    the names of the ID patches it was trained on
    README.md                         a model card, ready to be published with the weights
"""

import dataclasses
import platform
from collections.abc import Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path

from torch import nn

from config import Config, UserError
from medood.data.files import read_json
from medood.data.names import plain
from medood.data.patients import region_of
from medood.data.records import RUN
from medood.data.workspace import require_network
from medood.models.encoders import network_of, without_memory
from medood.models.foreign import Weights, fill, read_weights, reason_of, refuse_not_finite
from medood.models.network import remove_batch_norm, side_of

TRAINED_ON = "trained_on.txt"
IN_RUN = {  # the content of run.json
    **dict.fromkeys(("fold", "epoch", "id_patches", "ood_patches", "processes"), int),
    **dict.fromkeys(("settings", "versions", "made_from", "outputs", "scores"), dict),
    "data": str,
}
HEADS = {"segmentation_head.0.weight", "segmentation_head.head.4.weight"}  # classes; of dpt
NOT_USED = "classification_head."  # of images, built if smp's aux_params are set
PACKAGES = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute a network."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def load_model(checkpoint: Path, cfg: Config) -> nn.Module:
    """Return a trained network, for patches of cfg, in eval mode.

    checkpoint: a folder that train.py or smp's save_pretrained wrote, or a file: weights of the
    architecture and encoder of cfg, or a whole network as torch.save wrote it. No code in it is
    run. Raises UserError if there is no network, or one for other classes or patches than cfg's.
    """
    model = open_model(checkpoint, cfg)
    side_of(model, cfg)
    return model


def open_model(checkpoint: Path, cfg: Config) -> nn.Module:
    """Return a trained network as load_model does, but for images of any size."""
    require_network(checkpoint)
    saved = with_settings_of(cfg, checkpoint)
    model = _network_in(checkpoint, saved)
    refuse_not_finite(checkpoint, model)
    channels, outputs = model.config["in_channels"], model.config["classes"]
    if channels != 3:
        raise UserError(
            f"the network in {checkpoint} has in_channels = {channels}, but the images have three"
            " channels, RGB: use a network that was trained on such images"
        )
    expected, known = ([name for name, _ in settings.classes] for settings in (cfg, saved))
    if outputs != 1 + len(expected) or known != expected:
        raise UserError(
            f"the network in {checkpoint} has other classes ({outputs} outputs with background"
            f"{': ' + ', '.join(known) if known != expected else ''}) than the settings"
            f" ({', '.join(expected)}): set classes to the network's"
        )
    return model.eval()


def _network_in(checkpoint: Path, saved: Config) -> nn.Module:
    """Return the network in a folder or file, of the settings it was saved with if it is bare."""
    path = checkpoint if checkpoint.is_file() else checkpoint / "model.safetensors"
    if not path.is_file():
        raise UserError(f"there is no {path}: copy the folder again, with its weights")
    weights, description = read_weights(path)
    cure = "copy it again; other versions of smp or timm may have written it"
    described = path.with_name("config.json")
    if path.name == "model.safetensors" and described.is_file():
        description = read_json(described) or {}
    elif not description:
        description = {"_model_class": saved.architecture, "encoder_name": saved.encoder}
        cure = "set architecture and encoder, or those in run.json next to it, to the network's"
    try:
        return _filled(description, weights)
    except UserError:
        raise
    except Exception as error:  # smp and timm each have their own kinds
        name = "{_model_class} on encoder {encoder_name}".format(**description).lower()
        raise UserError(
            f"{checkpoint} contains weights that do not fit {name} ({reason_of(error)}): {cure}"
        ) from None


def _filled(description: dict, weights: Weights) -> nn.Module:
    """Return the network of a description (see network_of) with the weights.

    It has no batch normalisation if the weights have none. It is built without memory first, so
    that a small file cannot make it huge.
    """
    weights = {name: value for name, value in weights.items() if not name.startswith(NOT_USED)}
    if "classes" not in description:
        description = _sizes(description, weights) | description
    build = partial(network_of, description)
    for empty in (True, False):
        model = without_memory(build) if empty else build()
        if not any(name.endswith("running_mean") for name in weights):
            remove_batch_norm(model)
        fill(model, weights, assign=empty)
    return model


def _sizes(description: dict, weights: Weights) -> dict:
    """Return the numbers of classes and of channels of the images that weights have."""
    names = without_memory(partial(network_of, description)).state_dict()
    first = next(name for name, value in names.items() if value.ndim == 4)  # it sees the images
    sizes = {"in_channels": weights[first].shape[1]} if first in weights else {}
    for head in HEADS & weights.keys():
        sizes["classes"] = len(weights[head])
    return sizes


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
