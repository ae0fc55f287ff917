"""Provenance: what each product of a workspace is made by, from what, and whether it still is.

PRODUCTS is the one table. `require` walks it, from what a step reads down to the user's data, and
stops the step at the first product that is missing or out of date. What the user put there is taken
as it is, and so is what has lost its sources: see medood/data/records.py.
"""

import dataclasses
import json
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config import CONFIG, Config, UserError
from medood.data.files import digest, pngs
from medood.data.folds import read_fold
from medood.data.ood_set import chosen_oods, ood_candidates
from medood.data.records import (
    BadFiles,
    bad_files,
    fingerprint,
    hash_of,
    is_there,
    is_yours,
    out_of_date,
    refuse_bad,
)
from medood.data.workspace import (
    NUCLEI_LIST,
    Pair,
    fold_path,
    id_files,
    list_images,
    list_patch_pairs,
    model_folder,
    official_table,
    ood_files,
    pair_regions,
    pct_path,
    ranking_path,
    region_images,
    region_labels,
)
from medood.processes import on_main

# the settings that a trained network depends on beside its patches
TRAINING = (
    *("architecture", "encoder", "encoder_weights", "epochs", "batch_size", "lr", "loss"),
    *("batch_norm", "sync_batch_norm", "compile", "ood_weight", "select", "precision", "seed"),
    *("deterministic", "classes"),
)


class Product(NamedTuple):
    """A row of the table; what depends on a fold is given the settings and the fold."""

    script: str  # that makes it
    path: Callable[[Config, int], Path]
    behind: tuple[str, ...]  # the products that it is made from
    settings: tuple[str, ...]  # those that it depends on
    inputs: dict[str, Callable[[Config, int], object]]  # as JSON; None where a source is gone


# ---------------------------------------------------------------- what products are made from


def _labels(cfg: Config, _: int) -> str | None:
    labels = region_labels(cfg) if _is_set(cfg.masks) else []
    return fingerprint(labels) if labels else None


def _regions(cfg: Config, _: int) -> str | None:
    images, masks, _ = pair_regions(cfg) if _has_images(cfg) else ([], [], {})
    nuclei = cfg.workspace / "Semantic_Labels" / NUCLEI_LIST
    files = [*images, *masks, *([nuclei] if nuclei.exists() else [])]
    return fingerprint(files) if images else None


def _unpaired(cfg: Config, _: int) -> list[str] | None:
    return sorted(pair_regions(cfg)[2]) if _has_images(cfg) else None


def _patch_names(cfg: Config, _: int) -> str:
    left_out = bad_files(cfg.workspace / "k_folds")
    names = [path.name for path in pngs(cfg.workspace / "Image_Patchs")]
    return digest("\n".join(name for name in names if name not in left_out).encode())


def _official(cfg: Config, _: int) -> str | None:
    if cfg.split != "official":
        return "not used"
    table = official_table(cfg.workspace)
    return hash_of(table) if table else None


def _source_images(cfg: Config, _: int) -> str | None:
    there = cfg.ood_source is not None and cfg.ood_source.is_dir()
    return fingerprint(list_images(cfg.ood_source)) if there else None


def _candidates(cfg: Config, fold: int) -> str:
    names = ood_candidates(cfg, read_fold(cfg, fold).train)
    return fingerprint(path for path, _ in ood_files(cfg, names))


def _id_set(cfg: Config, fold: int) -> list[Pair]:
    train, val, _ = read_fold(cfg, fold)
    return id_files(cfg, train + val)


def _ood_training_set(cfg: Config, fold: int) -> str | None:
    if not all(is_there(path(cfg, fold)) for path in (ranking_path, pct_path)):
        return None
    return _of_pairs(_id_set(cfg, fold) + ood_files(cfg, chosen_oods(cfg, fold)))


def _of_pairs(files: Iterable[Pair]) -> str:
    return fingerprint(path for pair in files for path in pair if path)


def _is_set(folder: Path | None) -> bool:
    """Say whether the user's own folder still stands; None is Lizard's, found if it is there."""
    return folder is None or folder.is_dir()


def _has_images(cfg: Config) -> bool:
    return _is_set(cfg.images) and bool(region_images(cfg))


def _in(folder: str) -> Callable[[Config, int], Path]:
    return lambda cfg, _: cfg.workspace / folder


def _network(ood: bool) -> Callable[[Config, int], Path]:
    return lambda cfg, fold: model_folder(cfg, fold, ood)


def _weights(cfg: Config, fold: int) -> str | None:
    weights = model_folder(cfg, fold, ood=False) / "model.safetensors"
    return fingerprint([weights]) if weights.exists() else None


# ---------------------------------------------------------------- the table

_PATCHES = {"inputs": _regions, "left out": _unpaired}
PRODUCTS = {
    "class masks": Product(
        "generate_semantic_labels.py",
        _in("Semantic_Labels"),
        (),
        ("mask_values",),
        {"inputs": _labels},
    ),
    "images": Product(
        "generate_patches.py", _in("Image_Patchs"), ("class masks",), ("patch_size",), _PATCHES
    ),
    "masks": Product(
        "generate_patches.py", _in("Mask_Patchs"), ("class masks",), ("patch_size",), _PATCHES
    ),
    "fold": Product(
        "generate_patches.py",
        fold_path,
        ("images", "masks"),
        ("split", "seed"),
        {"list of patches": _patch_names, "info.csv": _official},
    ),
    "OoD patches": Product(
        "generate_unfiltered_oods.py",
        _in("OoD_Patchs"),
        ("images", "masks"),
        ("ood_fill",),
        {
            "inputs": lambda cfg, _: fingerprint(list_patch_pairs(cfg.workspace)[0]),
            "masks": lambda cfg, _: fingerprint(list_patch_pairs(cfg.workspace)[1]),
        },
    ),
    "source patches": Product(
        "generate_unfiltered_oods.py",
        _in("OoD_Source_Patchs"),
        (),
        ("patch_size",),
        {"inputs": _source_images},
    ),
    "baseline": Product(
        "train.py",
        _network(ood=False),
        ("fold",),
        TRAINING,
        {"fold": lambda _, fold: fold, "inputs": lambda *of: _of_pairs(_id_set(*of))},
    ),
    "ranking": Product(
        "rank_prune_ood.py",
        ranking_path,
        ("baseline", "OoD patches", "source patches"),
        ("precision", "colours"),
        {"network": _weights, "candidates": _candidates},
    ),
    "estimate": Product(
        "estimate_pct.py",
        pct_path,
        ("ranking",),
        ("pnr_opt", "pct_grid"),
        {
            "ranking": lambda *of: hash_of(ranking_path(*of)),
            "masks": lambda *of: fingerprint(mask for _, mask in _id_set(*of)),
        },
    ),
    "Med-OoD": Product(
        "train_ood.py",
        _network(ood=True),
        ("estimate",),
        TRAINING,
        {"fold": lambda _, fold: fold, "inputs": _ood_training_set},
    ),
}
VALUES = {  # of settings that mean more, or less, than they say
    "classes": lambda cfg: list(cfg.class_names),
    "colours": lambda cfg: [list(pair) for pair in cfg.classes],
    "mask_values": lambda cfg: list(cfg.mask_values or range(1, len(cfg.class_names))),
    "encoder_weights": lambda cfg: (
        hash_of(Path(cfg.encoder_weights))
        if Path(cfg.encoder_weights).is_file()
        else cfg.encoder_weights
    ),
}

# ---------------------------------------------------------------- the walk


def plain_settings(cfg: Config) -> dict:
    """Return the settings of config.py as JSON holds them."""
    values = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(Config)}
    return json.loads(json.dumps(values, default=str))


def made_from(cfg: Config, name: str, fold: int = 0) -> dict:
    """Return what decides a product now, as its record holds it."""
    product = PRODUCTS[name]
    inputs = {label: find(cfg, fold) for label, find in product.inputs.items()}
    return {"settings": _settings(cfg, product.settings), **inputs}


def network_made_from(cfg: Config, fold: int, files: list[Pair]) -> dict:
    """Return what decides a network that is trained on other files than the table says.

    files: image and mask of each patch, also of those held out to choose the epoch.
    """
    return {"settings": _settings(cfg, TRAINING), "fold": fold, "inputs": _of_pairs(files)}


def _settings(cfg: Config, names: tuple[str, ...]) -> dict:
    settings = plain_settings(cfg)
    return {name: VALUES[name](cfg) if name in VALUES else settings[name] for name in names}


@on_main
def require(cfg: Config, *names: str) -> None:
    """Raise UserError unless products are there, for each fold, and current with all behind them.

    Bad files that were left out on the way are refused too, unless they are to be skipped.
    """
    bad: BadFiles = bad_files(cfg.workspace / "k_folds")  # of patches that the user made
    seen: set[Path] = set()
    for fold in cfg.folds:
        for name in names:
            path = PRODUCTS[name].path(cfg, fold)
            if not is_there(path):
                raise UserError(f"{path} is missing: run `{command(cfg, name, fold)}` first")
            _walk(cfg, name, fold, seen, bad)
    refuse_bad(cfg, bad)


def _walk(cfg: Config, name: str, fold: int, seen: set[Path], bad: BadFiles) -> None:
    """Raise UserError if a product, or one behind it, is out of date; gather the bad files."""
    product = PRODUCTS[name]
    path = product.path(cfg, fold)
    if path in seen or not is_there(path) or is_yours(path):
        return
    seen.add(path)
    for source in product.behind:
        _walk(cfg, source, fold, seen, bad)
    if why := out_of_date(path, made_from(cfg, name, fold)):
        raise UserError(
            f"{path} is out of date ({why}): set back what changed, or run"
            f" `{command(cfg, name, fold)}` first"
        )
    bad |= bad_files(path)


def survey(cfg: Config) -> list[list[str]]:
    """Return what the steps would do with each product that is there: its path, and what."""
    found: dict[str, str] = {}
    for fold in cfg.folds:
        for name, product in PRODUCTS.items():
            path = product.path(cfg, fold)
            if is_there(path) and str(path) not in found:
                found[str(path)] = _state(cfg, name, fold)
    return [[str(Path(path).relative_to(cfg.workspace)), state] for path, state in found.items()]


def _state(cfg: Config, name: str, fold: int) -> str:
    path = PRODUCTS[name].path(cfg, fold)
    if is_yours(path):
        return "yours: used as it is"
    try:
        why = out_of_date(path, made_from(cfg, name, fold))
    except UserError as error:
        why = str(error)
    return f"made again: {why}" if why else "kept"


def command(cfg: Config, name: str, fold: int) -> str:
    """Return the command that makes a product: its script with the settings of this run."""
    product = PRODUCTS[name]
    if product.path(cfg, fold) != product.path(cfg, fold + 1):
        cfg = dataclasses.replace(cfg, folds=(fold,))
    words = ["python", product.script]
    for field in dataclasses.fields(Config):
        value = getattr(cfg, field.name)
        if value == getattr(CONFIG, field.name):
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no_'}{field.name}")
        else:
            values = np.ravel(value).tolist() if isinstance(value, tuple) else [value]
            words += [f"--{field.name}", *map(str, values)]
    return shlex.join(words)
