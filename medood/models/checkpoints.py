"""Networks on disk: weights, settings and scores together, in a folder that smp opens anywhere.

models/<fold>_<architecture>_<encoder>[_ood]/
    config.json + model.safetensors   as segmentation-models-pytorch's save_pretrained writes them
    run.json                          all settings, fold, versions, training-set sizes, scores
    log.csv                           a row per epoch
    trained_on.txt                    the names of the ID patches behind it
    README.md                         a model card, ready to be published with the weights
"""

import dataclasses
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import segmentation_models_pytorch as smp
from safetensors.torch import load_file
from torch import nn

from config import Config, UserError
from medood.data.files import read_json
from medood.data.folds import region_of
from medood.data.records import RUN
from medood.data.workspace import require_network
from medood.models.foreign import Weights, read_weights, recognise
from medood.models.network import build_model, remove_batch_norm, require_known

TRAINED_ON = "trained_on.txt"
IN_RUN = {  # what run.json holds
    **dict.fromkeys(("fold", "epoch", "id_patches", "ood_patches", "processes"), int),
    **dict.fromkeys(("settings", "versions", "made_from", "scores"), dict),
    "data": str,
}
PACKAGES = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of what computes a network."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def load_model(checkpoint: Path, cfg: Config) -> nn.Module:
    """Return a trained network in eval mode.

    checkpoint: a folder that train.py or smp's save_pretrained wrote, or a file: weights, or a
    whole network as torch.save wrote it. No code in it is run. Raises UserError where there is no
    network, or one for other classes than cfg's.
    """
    require_network(checkpoint)
    try:
        model = (_of_file if checkpoint.is_file() else _of_folder)(checkpoint, cfg)
    except UserError:
        raise
    except Exception as error:  # key names, shapes, JSON and safetensors each have their own kind
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{checkpoint} holds no usable network ({reason}): train or copy it again"
        ) from None
    expected = [name for name, _ in cfg.classes]
    known = [name for name, _ in with_settings_of(cfg, checkpoint).classes]
    if model.config.get("classes") != 1 + len(expected) or known != expected:
        raise UserError(
            f"the network in {checkpoint} knows other classes ({model.config.get('classes')} with"
            f" background{': ' + ', '.join(known) if known != expected else ''}) than the settings"
            f" ({', '.join(expected)}): set classes to the network's"
        )
    return model.eval()


def _of_folder(folder: Path, cfg: Config) -> nn.Module:
    config = read_json(folder / "config.json") or {}
    architecture = str(config.get("_model_class", "")).lower()
    require_known(architecture, str(config.get("encoder_name")))
    parts = {name: value for name, value in config.items() if not name.startswith("_")}
    model = smp.MODEL_ARCHITECTURES_MAPPING[architecture](**parts | {"encoder_weights": None})
    if not read_run(folder).get("settings", {}).get("batch_norm", True):
        remove_batch_norm(model)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def _of_file(path: Path, cfg: Config) -> nn.Module:
    """Return the network of a file: as the file says, run.json beside it, or the settings.

    If none of them fits, it is recognised from the weights themselves.
    """
    weights, said = read_weights(path)
    settings = {"architecture": cfg.architecture, "encoder": cfg.encoder}
    beside = read_run(path).get("settings", {})
    described = {name: beside[name] for name in (*settings, "batch_norm") if name in beside}
    for known in (said, described, settings):
        if known and (model := _fitted(cfg, known, weights)):
            return model
    if (known := recognise(weights)) and (model := _fitted(cfg, known, weights)):
        return model
    head = weights.get("segmentation_head.0.weight")
    classes = f"it has {len(head)} classes with background" if head is not None else "no head"
    raise UserError(
        f"{path} holds weights of another network than {cfg.model_name} with"
        f" {len(cfg.class_names)} classes ({classes}): set architecture, encoder and classes to"
        " those of the weights"
    )


def _fitted(cfg: Config, known: dict[str, str], weights: Weights) -> nn.Module | None:
    """Return the network of these settings with the weights, or None if they do not fit."""
    try:
        model = build_model(dataclasses.replace(cfg, **known, encoder_weights="none"))
        model.load_state_dict(weights)
    except (RuntimeError, UserError):  # names or shapes differ; or smp knows no such encoder
        return None
    return model


def with_settings_of(cfg: Config, folder: Path) -> Config:
    """Return cfg as the network in `folder` was trained for, where run.json beside it says so."""
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
    """Return the patches that a network was trained on, or None if its folder does not say.

    checkpoint: its folder, or the file of weights in it.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    path = folder / TRAINED_ON
    try:
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text: remove it or copy it again") from None


def has_seen(cfg: Config, checkpoint: Path, names: Iterable[str]) -> bool:
    """Say whether a network was trained on any of the named patches, as far as its folder tells.

    A network that cut the regions into patches of another size than cfg's has seen all of a region
    of which it has seen any.
    """
    seen = seen_in_training(checkpoint) or []
    if read_run(checkpoint).get("settings", {}).get("patch_size", cfg.patch_size) != cfg.patch_size:
        seen, names = map(region_of, seen), map(region_of, names)
    return not set(seen).isdisjoint(names)


def read_run(checkpoint: Path) -> dict:
    """Return run.json of a checkpoint folder, or beside a file; {} where there is none of ours."""
    folder = checkpoint.parent if checkpoint.is_file() else checkpoint
    run = read_json(folder / RUN) or {}
    if wrong := [
        name for name, kind in IN_RUN.items() if not isinstance(run.get(name, kind()), kind)
    ]:
        raise UserError(
            f"{folder / 'run.json'}: {', '.join(wrong)} is not what train.py writes: remove it or"
            " copy it again"
        )
    return run
