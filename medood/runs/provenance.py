"""Provenance: what each product of a workspace is made by, from what, and whether it still is.

PRODUCTS is the one table; a sibling system adds rows of its own. `require` walks it, from what a
step reads down to the user's data, and stops the step at the first product that is missing or out
of date. Products that the user put there are used as they are, and so are those whose sources are
gone: see medood/data/records.py.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from config import Config, Data, TrainingConfig, UserError
from medood.commands import command
from medood.data import ood_set, records, workspace
from medood.data.files import digest, fingerprint, hash_of, pngs, timed
from medood.data.folds import read_fold
from medood.data.names import name_of
from medood.data.patients import patients_of
from medood.data.records import BadFiles, Record, record_of
from medood.data.workspace import Pair
from medood.processes import on_main
from medood.runs.locks import locked

# the settings that a trained network depends on beside its patches
TRAINING = (
    *("architecture", "encoder", "encoder_weights", "epochs", "batch_size", "lr", "loss"),
    *("batch_norm", "sync_batch_norm", "compile", "ood_weight", "select", "precision", "seed"),
    *("deterministic", "classes"),
    *("stain", "sampling"),
)
# ood_weight in the record of a network that no OoD patch trains: it does not decide that network
WITHOUT_OODS = 1.0
# in a record only while they change something: what was made before they existed stays current
LATER, OFF = ("stain", "sampling", "mirrors", "patients"), (0, "shuffle", False, None)


class Product(NamedTuple):
    """A row of the table; what depends on a fold is given the settings and the fold."""

    path: Callable[[Config, int], Path]
    behind: tuple[str, ...]  # the products that it is made from
    settings: tuple[str, ...]  # that decide it
    inputs: Callable[[Config, int], dict]  # fingerprints, as JSON; None where a source is gone
    script: str  # that makes it, and what it takes
    kind: type[Data] = Data


# ---------------------------------------------------------------- what products are made from


def _of_labels(cfg: Config, _: int) -> dict:
    labels = workspace.region_labels(cfg) if _still_there(cfg.masks) else []
    return {"inputs": fingerprint(labels) if labels else None}


def _of_regions(cfg: Config, _: int) -> dict:
    if not _still_there(cfg.images) or not workspace.region_images(cfg):
        return {"inputs": None, "left out": None}
    images, masks, left_out = workspace.pair_regions(cfg)
    nuclei = cfg.workspace / "Semantic_Labels" / workspace.NUCLEI_LIST
    files = [*images, *masks, *([nuclei] if nuclei.exists() else [])]
    return {"inputs": fingerprint(files) if images else None, "left out": sorted(left_out)}


def _of_patch_names(cfg: Config, _: int) -> dict:
    left_out = record_of(cfg.workspace / "k_folds").bad_files
    names = [name_of(path) for path in pngs(cfg.workspace / "Image_Patchs")]
    names = [name for name in names if name not in left_out]
    official: str | None = "not used"
    if cfg.split == "official":
        table = workspace.official_table(cfg.workspace)
        official = hash_of(table) if table else None
    listed = {"list of patches": digest("\n".join(names)), "info.csv": official}
    return listed | (of_patients(cfg, names) if cfg.split == "region" else {})


def _of_patches(cfg: Config, _: int) -> dict:
    images, masks = workspace.list_patch_pairs(cfg)
    return {"inputs": fingerprint(images), "masks": fingerprint(masks)}


def _of_source_images(cfg: Config, _: int) -> dict:
    there = cfg.ood_source is not None and _still_there(cfg.ood_source)
    return {"inputs": fingerprint(workspace.list_images(cfg.ood_source)) if there else None}


def _of_id_patches(cfg: Config, fold: int) -> dict:
    return network_made_from(cfg, fold, _id_set(cfg, fold))


def _of_candidates(cfg: Config, fold: int) -> dict:
    weights = workspace.model_folder(cfg, fold, ood=False) / "model.safetensors"
    names = ood_set.ood_candidates(cfg, read_fold(cfg, fold).train)
    return {
        "network": fingerprint([weights]) if weights.exists() else None,
        "candidates": _of_pairs(workspace.ood_files(cfg, names)),
    }


def _of_ranking(cfg: Config, fold: int) -> dict:
    train = read_fold(cfg, fold).train
    return {
        "ranking": hash_of(workspace.ranking_path(cfg, fold)),
        # those held out are not counted: they change with seed and patients
        "masks": fingerprint(mask for _, mask in workspace.id_files(cfg, train)),
    }


def _of_ood_training_set(cfg: Config, fold: int) -> dict:
    sources = workspace.ranking_path(cfg, fold), workspace.pct_path(cfg, fold)
    if not all(path.is_file() for path in sources):
        return {"fold": fold, "inputs": None}
    chosen = workspace.ood_files(cfg, ood_set.chosen_oods(cfg, fold))
    return network_made_from(cfg, fold, _id_set(cfg, fold) + chosen)


def network_made_from(
    cfg: Config, fold: int, files: list[Pair], beside: tuple[str, ...] = ()
) -> dict:
    """Return what decides a network, as its record holds it.

    files: image and mask of each patch, also of those held out to choose the epoch. beside: the
    names of further settings that decide it.
    """
    if all(mask for _, mask in files):
        settings = _settings(cfg, (*_ON_ID_PATCHES, *beside)) | {"ood_weight": WITHOUT_OODS}
    else:
        settings = _settings(cfg, (*TRAINING, *beside))
    names = sorted(name_of(image) for image, mask in files if mask)
    held_out = of_patients(cfg, names) if cfg.select == "val" else {}
    return {"settings": settings, "fold": fold, "inputs": _of_pairs(files)} | held_out


def of_patients(cfg: Config, names: list[str]) -> dict:
    """Return whose patches these are."""
    owners = cfg.patients and digest("\n".join(patients_of(cfg, names)))
    return _without_later({"patients": owners})


def _id_set(cfg: Config, fold: int) -> list[Pair]:
    train, val, _ = read_fold(cfg, fold)
    return workspace.id_files(cfg, train + val)


def _of_pairs(files: Iterable[Pair]) -> str:
    return fingerprint(path for pair in files for path in pair if path)


def _still_there(folder: Path | None) -> bool:
    """Say whether the user's own folder still exists; None is Lizard's, looked for elsewhere."""
    return folder is None or folder.is_dir()


def _in(folder: str) -> Callable[[Config, int], Path]:
    return lambda cfg, _: cfg.workspace / folder


def _network(ood: bool) -> Callable[[Config, int], Path]:
    return lambda cfg, fold: workspace.model_folder(cfg, fold, ood)


# ---------------------------------------------------------------- the table

_PATCHES = ("patches", "patch masks")
_MINED = ("baseline", "OoD patches", "source patches")
_RANKED = ("precision", "mirrors", "colours")
_COUNTED = ("pnr_opt", "pct_grid")
_ON_ID_PATCHES = tuple(name for name in TRAINING if name != "ood_weight")
PRODUCTS = {
    "class masks": Product(
        *(_in("Semantic_Labels"), (), ("mask_values",), _of_labels, "generate_semantic_labels.py")
    ),
    "patches": Product(
        *(_in("Image_Patchs"), ("class masks",), ("patch_size",), _of_regions),
        "generate_patches.py",
    ),
    "patch masks": Product(
        *(_in("Mask_Patchs"), ("class masks",), ("patch_size",), _of_regions),
        "generate_patches.py",
    ),
    "fold": Product(
        *(workspace.fold_path, _PATCHES, ("split", "seed"), _of_patch_names),
        "generate_patches.py",
    ),
    "OoD patches": Product(
        *(_in("OoD_Patchs"), _PATCHES, ("ood_fill",), _of_patches),
        "generate_unfiltered_oods.py",
    ),
    "source patches": Product(
        *(_in("OoD_Source_Patchs"), (), ("patch_size",), _of_source_images),
        "generate_unfiltered_oods.py",
    ),
    "baseline": Product(
        *(_network(ood=False), ("fold",), _ON_ID_PATCHES, _of_id_patches),
        *("train.py", TrainingConfig),
    ),
    "ranking": Product(
        *(workspace.ranking_path, _MINED, _RANKED, _of_candidates),
        *("rank_prune_ood.py", TrainingConfig),
    ),
    "estimate": Product(
        *(workspace.pct_path, ("ranking",), _COUNTED, _of_ranking), *("estimate_pct.py", Config)
    ),
    "Med-OoD": Product(
        *(_network(ood=True), ("estimate",), TRAINING, _of_ood_training_set),
        *("train_ood.py", Config),
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


def with_all_behind(names: Iterable[str]) -> list[str]:
    """Return products and all that they are made from, each after what is behind it."""
    found: dict[str, None] = {}
    for name in names:
        found |= dict.fromkeys([*with_all_behind(PRODUCTS[name].behind), name])
    return list(found)


# ---------------------------------------------------------------- records of today


def plain_settings(cfg: Config) -> dict:
    """Return the settings of config.py as JSON holds them."""
    names = [field.name for field in dataclasses.fields(Config) if hasattr(cfg, field.name)]
    values = {name: getattr(cfg, name) for name in names}
    return json.loads(json.dumps(values, default=str))


def made_from(cfg: Config, name: str, fold: int = 0) -> dict:
    """Return what decides a product now, as its record holds it."""
    product = PRODUCTS[name]
    return {"settings": _settings(cfg, product.settings), **product.inputs(cfg, fold)}


def _settings(cfg: Config, names: tuple[str, ...]) -> dict:
    found = {n: VALUES[n](cfg) if n in VALUES else getattr(cfg, n) for n in names}
    return json.loads(json.dumps(_without_later(found), default=str))


def _without_later(found: dict) -> dict:
    return {n: value for n, value in found.items() if n not in LATER or value not in OFF}


# ---------------------------------------------------------------- the walk


def cure(cfg: Data, name: str, fold: int) -> str:
    """Return the command that makes a product of PRODUCTS, with the settings of this run."""
    product = PRODUCTS[name]
    of_fold = {"folds": (fold,)} if product.path(cfg, fold) != product.path(cfg, fold + 1) else {}
    return command(cfg, product.script, product.kind, **of_fold)


@on_main
def require(cfg: Config, *names: str) -> None:
    """Raise UserError unless products are there, for each fold, and current with all behind them.

    Bad files that were left out on the way are refused too, unless they are to be skipped.
    """
    bad: BadFiles = {}
    seen: set[Path] = set()
    for fold in cfg.folds:
        paths = {name: PRODUCTS[name].path(cfg, fold) for name in with_all_behind(names)}
        paths["lists"] = cfg.workspace / "k_folds"
        found = {name: record_of(path) for name, path in paths.items()}
        if "patches" in found and found["patches"].is_yours:
            bad |= found["lists"].bad_files
        for name in _to_check(names, found):
            if found[name].product not in seen:
                seen.add(found[name].product)
                _refuse_unusable(cfg, name, fold, found[name])
                bad |= found[name].bad_files
    records.refuse_bad(cfg, bad)


def _to_check(names: Iterable[str], found: dict[str, Record]) -> Iterator[str]:
    """Yield some products, each after those that are there and that it is made from.

    What is behind a product of the user's does not matter. found: the record of each product.
    """
    for name in names:
        if found[name].content is not None:
            behind = [source for source in PRODUCTS[name].behind if found[source].is_there]
            yield from _to_check(behind, found)
        yield name


def _refuse_unusable(cfg: Config, name: str, fold: int, record: Record) -> None:
    """Raise UserError if a product is missing, or not what its sources and settings give now.

    One that was changed since it was made is refused too.
    """
    if not record.is_there:
        any_data = any(path.name[0] != "." for path in cfg.workspace.glob("*"))
        empty = "" if any_data else f" ({cfg.workspace} is empty, or its name is misspelt)"
        again = cure(cfg, name, fold)
        raise UserError(f"{record.product} is missing{empty}: run `{again}` first")
    if record.is_yours:
        return
    # images are left to the step that makes them: a training must not open those of its test side
    record.refuse_changed(images=False)
    now = made_from(cfg, name, fold)
    if why := record.out_of_date(now):
        raise UserError(
            f"{record.product} is out of date ({why}): set back what changed, or run"
            f" `{cure(cfg, name, fold)}` first"
        )


def require_trained(network: Path, made_from: dict, again: str) -> None:
    """Raise UserError if a network is missing, was changed, or is not what `made_from` gives.

    again: the command that trains it.
    """
    if not workspace.weights_of(network).is_file():
        raise UserError(f"{network} is missing: run `{again}` first")
    record = record_of(network)
    record.refuse_changed()
    if why := record.out_of_date(made_from):
        raise UserError(
            f"{network} is out of date ({why}): set back what changed, or run `{again}` again"
        )


def records_of(cfg: Config, fold: int) -> dict[str, Record]:
    """Return the record of each product that has such settings, after those it is made from."""
    products = {n: product for n, product in PRODUCTS.items() if isinstance(cfg, product.kind)}
    return {name: record_of(product.path(cfg, fold)) for name, product in products.items()}


def survey(cfg: Config) -> dict[str, str]:
    """Return what the steps would do with each product that is there, by its path."""
    found: dict[str, str] = {}
    for fold in cfg.folds:
        stays: set[str] = set()
        for name, record in records_of(cfg, fold).items():
            fate = _fate(cfg, name, fold, record)
            new = [source for source in PRODUCTS[name].behind if source not in stays]
            if fate == "kept" and new:
                fate = f"perhaps made again, after {' and '.join(new)}"
            elif not fate.startswith("made"):
                stays.add(name)
            if record.is_there:
                found.setdefault(str(record.product.relative_to(cfg.workspace)), fate)
    return found


def _fate(cfg: Config, name: str, fold: int, record: Record) -> str:
    """Return what its step would do with a product, if nothing behind it changes."""
    if record.is_yours:
        return "yours: used as it is"
    if record.changed():
        return "changed since it was made"
    try:
        now = made_from(cfg, name, fold)
    except UserError:
        return "made again: what it is made from changed"
    if None in now.values():  # no step can make it
        return "kept"
    why = record.out_of_date(now) if record.is_there else "it is missing"
    return f"made again: {why}" if why else "kept"


# ---------------------------------------------------------------- what a step does


def is_kept(cfg: Config, name: str, fold: int = 0) -> bool:
    """Say, also to the user, whether a product stays: because it is current, or the user's own."""
    return records.is_kept(PRODUCTS[name].path(cfg, fold), made_from(cfg, name, fold))


@contextmanager
def making(cfg: Config, *names: str, bad: BadFiles | None = None) -> Iterator[list[Path]]:
    """Give a folder to fill for each of some products, or none if all of them are kept.

    A full folder takes the product's name, with its record. No other run makes them meanwhile.
    bad: the input files that are left out; may be filled on the way. After an error or a
    kill, the products are what they were before.
    """
    products = {PRODUCTS[name].path(cfg, 0): made_from(cfg, name) for name in names}
    # all are asked: one that was changed is not overwritten because another one is missing
    if all([records.is_kept(path, record) for path, record in products.items()]):
        yield []
        return
    with ExitStack() as stack:
        stack.enter_context(locked(cfg.workspace, [path.name for path in products]))
        stack.enter_context(timed(cfg.workspace, names[0]))
        folders = (records.fresh_folder(*product, bad) for product in products.items())
        yield [stack.enter_context(folder) for folder in folders]


def write_product(cfg: Config, name: str, fold: int, text: str) -> None:
    """Write a product that is a table, with its record."""
    records.write_recorded(PRODUCTS[name].path(cfg, fold), text, made_from(cfg, name, fold))
