"""The one table of the trunk's products: which step writes each, from what, by which settings.

What makes one out of date: out_of_date in medood/data/records.py.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from config import Config, Data, TrainingConfig
from medood.commands import command
from medood.data import ood_set, workspace
from medood.data.files import digest, fingerprint, hash_of, pngs
from medood.data.folds import read_fold
from medood.data.names import name_of
from medood.data.patients import patients_of
from medood.data.workspace import Pair

# the settings that decide a trained network, apart from its patches
TRAINING = (
    *("architecture", "encoder", "encoder_weights", "epochs", "batch_size", "lr", "loss"),
    *("batch_norm", "sync_batch_norm", "compile", "ood_weight", "select", "precision", "seed"),
    *("deterministic", "classes", "stain", "sampling"),
)
# in a record only if they change something: products of before they existed stay current
LATER = ("stain", "sampling", "mirrors", "patients", "normalise", "outline")
OFF = (0, "shuffle", False, None, "none")


VALUES = {  # of settings whose record differs from their value
    "sync_batch_norm": lambda cfg: False,  # once a setting: earlier records contain it
    "classes": lambda cfg: list(cfg.class_names),
    "colours": lambda cfg: [list(pair) for pair in cfg.classes],
    "mask_values": lambda cfg: list(cfg.mask_values or range(1, len(cfg.class_names))),
    "encoder_weights": lambda cfg: (
        hash_of(Path(cfg.encoder_weights))
        if Path(cfg.encoder_weights).is_file()
        else cfg.encoder_weights
    ),
}


@dataclass(frozen=True, eq=False)
class Product:
    """A file or folder that a step writes. Functions take the settings and a fold."""

    name: str
    path: Callable[[Data, int], Path]
    settings: tuple[str, ...]  # that decide it, unless the inputs contain them
    inputs: Callable[[Data, int], dict]  # fingerprints, as JSON; None if a source is gone
    script: str  # that writes it
    kind: type[Data] = Data  # of the settings that the script takes
    behind: tuple["Product", ...] = ()  # what it is made from

    def made_from(self, cfg: Data, fold: int = 0) -> dict:
        """Return what decides it now, as in its record."""
        return {"settings": settings_of(cfg, self.settings), **self.inputs(cfg, fold)}

    def cure(self, cfg: Data, fold: int) -> str:
        """Return the command that generates it, with the settings of this run."""
        of_fold = {"folds": (fold,)} if self.path(cfg, fold) != self.path(cfg, fold + 1) else {}
        return command(cfg, self.script, self.kind, **of_fold)


def with_all_behind(products: Iterable[Product]) -> list[Product]:
    """Return products and all that they are made from, each after what is behind it."""
    found: dict[Product, None] = {}
    for product in products:
        found |= dict.fromkeys([*with_all_behind(product.behind), product])
    return list(found)


def plain_settings(cfg: Config) -> dict:
    """Return the settings of config.py as JSON."""
    names = [field.name for field in dataclasses.fields(Config) if hasattr(cfg, field.name)]
    values = {name: getattr(cfg, name) for name in names}
    return json.loads(json.dumps(values, default=str))


def settings_of(cfg: Config, names: tuple[str, ...]) -> dict:
    """Return some settings as in records."""
    found = {n: VALUES[n](cfg) if n in VALUES else getattr(cfg, n) for n in names}
    found = {n: value for n, value in found.items() if n not in LATER or value not in OFF}
    return json.loads(json.dumps(found, default=str))


def _of_labels(cfg: Config, _: int) -> dict:
    labels = workspace.region_labels(cfg) if _still_there(cfg.masks) else []
    return {"inputs": fingerprint(labels) if labels else None}


def _of_regions(cfg: Config, _: int) -> dict:
    if not _still_there(cfg.images) or not workspace.region_images(cfg):
        return {"inputs": None, "left out": None}
    images, masks, left_out = workspace.pair_regions(cfg)
    nuclei = cfg.workspace / "Semantic_Labels" / "nuclei.csv"  # of earlier versions
    files = [*images, *masks, *([nuclei] if nuclei.exists() else [])]
    return {"inputs": fingerprint(files) if images else None, "left out": sorted(left_out)}


def _of_patch_names(cfg: Config, _: int) -> dict:
    names = [name_of(path) for path in pngs(cfg.workspace / "Image_Patchs")]
    official: str | None = "not used"
    if cfg.split == "official":
        table = workspace.official_table(cfg.workspace)
        official = hash_of(table) if table else None
    listed = {"list of patches": digest("\n".join(names)), "info.csv": official}
    return listed | (of_patients(cfg, names) if cfg.split == "region" else {})


def _of_patches(cfg: Config, _: int) -> dict:
    images, masks = workspace.list_patch_pairs(cfg.workspace)
    return {"inputs": fingerprint(images), "masks": fingerprint(masks)}


def _of_source_images(cfg: Config, _: int) -> dict:
    there = cfg.ood_source is not None and _still_there(cfg.ood_source)
    return {"inputs": fingerprint(workspace.list_images(cfg.ood_source)) if there else None}


def _of_candidates(cfg: Config, fold: int) -> dict:
    weights = workspace.model_folder(cfg, fold, ood=False) / "model.safetensors"
    names = ood_set.ood_candidates(cfg, read_fold(cfg, fold).train)
    return {
        "network": fingerprint([weights]) if weights.exists() else None,
        "candidates": _of_pairs(workspace.ood_files(cfg.workspace, names)),
    }


def _of_ranking(cfg: Config, fold: int) -> dict:
    train = read_fold(cfg, fold).train
    return {
        "ranking": hash_of(workspace.ranking_path(cfg, fold)),
        # those held out are not counted: they change with seed and patients
        "masks": fingerprint(mask for _, mask in workspace.id_files(cfg.workspace, train)),
    }


def _of_id_set(cfg: Config, fold: int, oods: Iterable[Pair] = ()) -> dict:
    train, val, _ = read_fold(cfg, fold)
    files = workspace.id_files(cfg.workspace, train + val)
    return network_made_from(cfg, fold, [*files, *oods])


def _of_ood_training_set(cfg: Config, fold: int) -> dict:
    sources = workspace.ranking_path(cfg, fold), workspace.pct_path(cfg, fold)
    if not all(path.is_file() for path in sources):
        return {"fold": fold, "inputs": None}
    chosen = ood_set.chosen_oods(cfg, fold)
    return _of_id_set(cfg, fold, workspace.ood_files(cfg.workspace, chosen))


def network_made_from(
    cfg: Config, fold: int, files: list[Pair], more: tuple[str, ...] = ()
) -> dict:
    """Return what decides a network, as in its record.

    files: image and mask of each patch, also of those held out to choose the epoch. more: the names
    of further settings that decide it.
    """
    settings = settings_of(cfg, (*TRAINING, *more))
    if all(mask for _, mask in files):
        settings["ood_weight"] = 1.0  # it decides no network without OoD patches
    names = sorted(name_of(image) for image, mask in files if mask)
    held_out = of_patients(cfg, names) if cfg.select == "val" else {}
    return {"settings": settings, "fold": fold, "inputs": _of_pairs(files)} | held_out


def of_patients(cfg: Config, names: list[str]) -> dict:
    """Return the hash of the patients of patches, if they are known."""
    if cfg.patients is None and cfg.split != "official":
        return {}
    return {"patients": digest("\n".join(patients_of(cfg, names)))}


def _of_pairs(files: Iterable[Pair]) -> str:
    return fingerprint(path for pair in files for path in pair if path)


def _still_there(folder: Path | None) -> bool:
    """Say whether a user-supplied folder still exists; None is Lizard's, found elsewhere."""
    return folder is None or folder.is_dir()


def _in(folder: str) -> Callable[[Config, int], Path]:
    return lambda cfg, _: cfg.workspace / folder


def _network(ood: bool) -> Callable[[Config, int], Path]:
    return lambda cfg, fold: workspace.model_folder(cfg, fold, ood)


_CUTTING = "generate_patches.py"
CLASS_MASKS = Product(
    *("class masks", _in("Semantic_Labels"), ("mask_values",), _of_labels),
    "generate_semantic_labels.py",
)
PATCHES = Product(
    *("patches", _in("Image_Patchs"), ("patch_size",), _of_regions, _CUTTING),
    behind=(CLASS_MASKS,),
)
PATCH_MASKS = Product(
    *("patch masks", _in("Mask_Patchs"), ("patch_size",), _of_regions, _CUTTING),
    behind=(CLASS_MASKS,),
)
INSTANCE_PATCHES = Product(
    *("instance patches", _in("Instance_Patchs"), ("patch_size",), _of_labels, _CUTTING),
    behind=(CLASS_MASKS,),
)
FOLD = Product(
    *("fold", lambda cfg, fold: workspace.fold_path(cfg.workspace, fold), ("split", "seed")),
    *(_of_patch_names, _CUTTING),
    behind=(PATCHES, PATCH_MASKS),
)
OOD_PATCHES = Product(
    *("OoD patches", _in("OoD_Patchs"), ("ood_fill",), _of_patches),
    "generate_unfiltered_oods.py",
    behind=(PATCHES, PATCH_MASKS),
)
SOURCE_PATCHES = Product(
    *("source patches", _in("OoD_Source_Patchs"), ("patch_size",), _of_source_images),
    "generate_unfiltered_oods.py",
)
BASELINE = Product(
    *("baseline", _network(ood=False), (), _of_id_set),
    *("train.py", TrainingConfig),
    behind=(FOLD,),
)
RANKING = Product(
    *("ranking", workspace.ranking_path, ("precision", "mirrors", "colours"), _of_candidates),
    *("rank_prune_ood.py", TrainingConfig),
    behind=(BASELINE, OOD_PATCHES, SOURCE_PATCHES),
)
ESTIMATE = Product(
    *("estimate", workspace.pct_path, ("pnr_opt", "pct_grid"), _of_ranking),
    *("estimate_pct.py", Config),
    behind=(RANKING,),
)
MED_OOD = Product(
    *("Med-OoD", _network(ood=True), (), _of_ood_training_set),
    *("train_ood.py", Config),
    behind=(ESTIMATE,),
)
PRODUCTS = with_all_behind([INSTANCE_PATCHES, MED_OOD])
