"""Networks on disk: weights, settings and scores together, in a folder that smp opens anywhere.

models/<fold>_<architecture>_<encoder>[_ood]/
    config.json + model.safetensors   as segmentation-models-pytorch's save_pretrained writes them
    run.json                          all settings, fold, versions, training-set sizes, scores
    log.csv                           a row per epoch
    trained_on.txt                    the names of the ID patches behind it
    README.md                         a model card, ready to be published with the weights
"""

import contextlib
import dataclasses
import io
import json
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import segmentation_models_pytorch as smp
from safetensors.torch import load_file
from torch import nn

from config import Config, UserError
from medood.files import digest, fingerprint, read_json, require_network
from medood.folds import region_of
from medood.models import build_model, read_weights, remove_batch_norm

# the settings that a trained network depends on beside its patches
TRAINING_SETTINGS = (
    *("architecture", "encoder", "encoder_weights", "epochs", "batch_size", "lr", "loss"),
    *("batch_norm", "ood_weight", "select", "precision", "seed", "deterministic"),
)
TRAINED_ON = "trained_on.txt"
PACKAGES = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "numpy")


def plain_settings(cfg: Config) -> dict:
    """Return the settings of config.py as JSON holds them."""
    values = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(Config)}
    return json.loads(json.dumps(values, default=str))


def versions() -> dict[str, str]:
    """Return the versions of what computes a network."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def load_model(folder: Path, cfg: Config) -> nn.Module:
    """Return a trained network in eval mode.

    folder: written by train.py or by smp's save_pretrained; or a file that holds weights alone, of
    the architecture and encoder of cfg. Raises UserError where there is no network, or one for
    other classes than cfg's.
    """
    require_network(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # huggingface_hub prints what it does
            if folder.is_file():
                model = build_model(dataclasses.replace(cfg, encoder_weights="none"))
                model.load_state_dict(read_weights(folder))
            elif read_run(folder).get("settings", {}).get("batch_norm", True):
                model = smp.from_pretrained(folder)
            else:  # smp would build the layers that this network lacks
                config = json.loads((folder / "config.json").read_text())
                model = remove_batch_norm(getattr(smp, config["_model_class"])(**config))
                model.load_state_dict(load_file(folder / "model.safetensors"))
    except UserError:
        raise
    except Exception as error:  # key names, shapes, JSON and safetensors each have their own kind
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        cure = "train or copy it again"
        if folder.is_file():
            cure = f"set architecture (now {cfg.architecture}), encoder ({cfg.encoder}) and classes"
            cure += f" ({len(cfg.class_names)} with background) to those of the weights"
        raise UserError(f"{folder} holds no usable network ({reason}): {cure}") from None
    expected = [name for name, _ in cfg.classes]
    known = [name for name, _ in with_settings_of(cfg, folder).classes]
    if model.config.get("classes") != 1 + len(expected) or known != expected:
        raise UserError(
            f"the network in {folder} knows other classes ({model.config.get('classes')} with"
            f" background{': ' + ', '.join(known) if known != expected else ''}) than the settings"
            f" ({', '.join(expected)}): set classes to the network's"
        )
    return model.eval()


def with_settings_of(cfg: Config, folder: Path) -> Config:
    """Return cfg as the network in `folder` was trained for, where its folder says so."""
    settings = read_run(folder).get("settings", {})
    names = ("architecture", "encoder", "classes", "mpp", "patch_size")
    known = {name: settings[name] for name in names if name in settings}
    try:
        if "classes" in known:
            known["classes"] = tuple(map(tuple, known["classes"]))
        return dataclasses.replace(cfg, **known)
    except (TypeError, UserError) as error:
        raise UserError(f"{folder / 'run.json'}: {error}: remove it or copy it again") from None


def made_from(cfg: Config, fold: int, patches: list[Path]) -> dict:
    """Return what decides a network: settings, fold and the fingerprint of its training files."""
    settings = plain_settings(cfg)
    used = {name: settings[name] for name in TRAINING_SETTINGS}
    if Path(cfg.encoder_weights).is_file():
        used["encoder_weights"] = digest(Path(cfg.encoder_weights).read_bytes())
    used["classes"] = list(cfg.class_names)
    return {"fold": fold, "settings": used, "inputs": fingerprint(patches)}


def seen_in_training(checkpoint: Path) -> list[str] | None:
    """Return the patches that a network was trained on, or None if its folder does not say.

    checkpoint: its folder, or the file of weights in it.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    path = folder / TRAINED_ON
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else None


def has_seen(cfg: Config, checkpoint: Path, names: Iterable[str]) -> bool:
    """Say whether a network was trained on any of the named patches, as far as its folder tells.

    A network that cut the regions into patches of another size than cfg's has seen all of a region
    of which it has seen any.
    """
    seen = seen_in_training(checkpoint) or []
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if read_run(folder).get("settings", {}).get("patch_size", cfg.patch_size) != cfg.patch_size:
        seen, names = map(region_of, seen), map(region_of, names)
    return not set(seen).isdisjoint(names)


def read_run(folder: Path) -> dict:
    """Return run.json of a checkpoint folder, or {} where there is none of ours."""
    run = read_json(folder / "run.json") or {}
    if not isinstance(run.get("settings", {}), dict):
        raise UserError(f"{folder / 'run.json'} has no settings: remove it or copy it again")
    return run
