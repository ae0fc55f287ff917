"""Networks on disk: weights, settings and scores together, in a folder that smp opens anywhere.

models/<fold>_<architecture>_<encoder>[_ood]/
    config.json + model.safetensors   as segmentation-models-pytorch's save_pretrained writes them
    run.json                          all settings, fold, versions, training-set sizes, scores
    log.csv                           a row per epoch
"""

import contextlib
import dataclasses
import io
import json
import platform
from importlib.metadata import version
from pathlib import Path

import segmentation_models_pytorch as smp
from safetensors.torch import load_file
from torch import nn

from config import Config, UserError
from medood.classes import N_CLASSES
from medood.files import digest, fingerprint, read_json, require_network
from medood.models import remove_batch_norm

# the settings that a trained network depends on beside its patches
TRAINING_SETTINGS = (
    *("architecture", "encoder", "encoder_weights", "epochs", "batch_size", "lr", "loss"),
    *("batch_norm", "ood_weight", "select", "precision", "seed", "deterministic"),
)
PACKAGES = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "numpy")


def plain_settings(cfg: Config) -> dict:
    """Return the settings of config.py as JSON holds them."""
    values = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(Config)}
    return json.loads(json.dumps(values, default=str))


def versions() -> dict[str, str]:
    """Return the versions of what computes a network."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def load_model(folder: Path) -> nn.Module:
    """Return the network in a folder written by train.py or by smp's save_pretrained, in eval mode.

    Raises UserError where there is none, or one for other classes.
    """
    require_network(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # huggingface_hub prints what it does
            if read_run(folder).get("settings", {}).get("batch_norm", True):
                model = smp.from_pretrained(folder)
            else:  # smp would build the layers that this network lacks
                config = json.loads((folder / "config.json").read_text())
                model = remove_batch_norm(getattr(smp, config["_model_class"])(**config))
                model.load_state_dict(load_file(folder / "model.safetensors"))
    except Exception as error:  # key names, shapes, JSON and safetensors each have their own kind
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{folder} holds no usable network ({reason}): train or copy it again"
        ) from None
    classes = model.config.get("classes")
    if classes != N_CLASSES:
        raise UserError(f"the network in {folder} has {classes} classes, expected {N_CLASSES}")
    return model.eval()


def made_from(cfg: Config, fold: int, patches: list[Path]) -> dict:
    """Return what decides a network: settings, fold and the fingerprint of its training files."""
    settings = plain_settings(cfg)
    used = {name: settings[name] for name in TRAINING_SETTINGS}
    if Path(cfg.encoder_weights).is_file():
        used["encoder_weights"] = digest(Path(cfg.encoder_weights).read_bytes())
    return {"fold": fold, "settings": used, "inputs": fingerprint(patches)}


def read_run(folder: Path) -> dict:
    """Return run.json of a checkpoint folder, or {} where there is none."""
    return read_json(folder / "run.json") or {}
