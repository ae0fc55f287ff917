"""Which patches train and which test: one list per fold.

Files   k_folds/<fold>Image_Patchs.csv, columns (index), img_name, obj_tag = train | test
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from config import Config, UserError
from medood.commands import command
from medood.data.files import pngs, read_rows
from medood.data.names import by_name
from medood.data.patients import patients_of, region_of, without_ending
from medood.data.records import record_of
from medood.data.workspace import fold_path, official_table

PARTS = 3
OFFICIAL = ("1", "2", "3")  # the parts of Lizard's info.csv
VAL_SHARE = 0.1  # of the training side's patches, at the least


def split_units(units: list[str], seed: int, parts: int = PARTS) -> dict[str, int]:
    """Return the part, from 0, of each unit: shuffled by `seed`, then assigned in turn."""
    order = np.random.default_rng(seed).permutation(len(units))
    return {units[position]: rank % parts for rank, position in enumerate(order)}


def split_patients(cfg: Config, names: list[str], parts: int = PARTS) -> dict[str, int]:
    """Return the part, from 0, of each patch: patients are split by `seed`, with all patches."""
    patients = patients_of(cfg, names)
    of_patient = split_units(sorted(set(patients)), cfg.seed, parts)
    return {name: of_patient[patient] for name, patient in zip(names, patients, strict=True)}


def held_out(cfg: Config, names: list[str], fold: int) -> set[str]:
    """Return the patches that fold number `fold` tests; it trains on the others.

    Raises UserError if one side is empty, and if a table that the split needs is wrong.
    """
    if cfg.split == "official":
        official = read_official(cfg.workspace, names)
        parts = {name: official[region_of(name)] % PARTS for name in names}
    elif cfg.split == "region":
        parts = split_patients(cfg, names)
    else:
        parts = split_units(sorted(names), cfg.seed)
    tested = {name for name in names if parts[name] == fold % PARTS}
    if len(tested) in (0, len(names)):
        raise UserError(
            f"fold {fold}: split = {cfg.split} leaves one side empty, as there are too few"
            f" {cfg.unit}s: add some, or set split to patch"
        )
    return tested


def read_official(workspace: Path, patches: list[str]) -> dict[str, int]:
    """Return the part, 1..3, of each region, from Lizard's info.csv; it must name all of them."""
    path = official_table(workspace)
    if path is None:
        raise UserError(
            f"no info.csv in {workspace / 'Lizard_Labels'}: add Lizard's, or set split to patch or"
            " region"
        )
    parts: dict[str, int] = {}
    for number, row in read_rows(path, ("filename", "split")):
        region, part = without_ending(row.get("filename", "")), row.get("split")
        if part not in OFFICIAL or parts.setdefault(region, int(part)) != int(part):
            raise UserError(
                f"{path}: row {number}, FileName {region!r}, has the Split {part!r}, expected 1, 2"
                " or 3, the same in all rows of a region"
            )
    if unknown := sorted({region_of(name) for name in patches} - parts.keys()):
        raise UserError(f"{path} does not name region {unknown[0]}: use Lizard's own table")
    return parts


class Fold(NamedTuple):
    """Names of the patches of a fold, each in list order."""

    train: list[str]
    val: list[str]  # held out of the training side, for select = "val"; else empty
    test: list[str]


def read_fold(cfg: Config, fold: int) -> Fold:
    """Return the patches of a fold.

    Raises UserError if the list is missing or damaged, or names a patch that does not exist.
    """
    path = fold_path(cfg.workspace, fold)
    if not path.exists():
        again = command(cfg, "generate_patches.py", folds=(fold,))
        raise UserError(f"{path} is missing: run `{again}` first")
    train, test = read_list(path, *patches_there(cfg.workspace))
    if cfg.select == "last":
        return Fold(train, [], test)
    val = hold_out_patients(cfg, train, fold)
    kept, chosen = ([name for name in train if (name in val) == side] for side in (False, True))
    return Fold(kept, chosen, test)


def hold_out_patients(cfg: Config, names: list[str], fold: int) -> set[str]:
    """Return all patches of some patients, drawn by seed and fold: at least VAL_SHARE of them.

    Raises UserError if that leaves none.
    """
    of_patient: dict[str, list[str]] = {}
    names = sorted(names)
    for name, patient in zip(names, patients_of(cfg, names), strict=True):
        of_patient.setdefault(patient, []).append(name)
    if len(of_patient) < 2:
        raise UserError(
            f"select = val needs two {cfg.unit}s on the training side, found {len(of_patient)}:"
            " set select to last"
        )
    chosen: set[str] = set()
    for patient in np.random.default_rng([cfg.seed, fold]).permutation(list(of_patient))[:-1]:
        if len(chosen) >= VAL_SHARE * len(names):
            break
        chosen.update(of_patient[patient])
    return chosen


def patches_there(workspace: Path) -> tuple[set[str], set[str]]:
    """Return the names of the patches, and of bad files that were skipped, for read_list."""
    folder = workspace / "Image_Patchs"
    return set(by_name(pngs(folder))), set(record_of(folder).bad_files)


def read_list(path: Path, there: set[str], bad: set[str]) -> tuple[list[str], list[str]]:
    """Return the names that a fold list tags train, and those it tags test.

    there: the patches; UserError if others are named. bad: the images or labels of regions that are
    skipped: the list may name their patches.
    """
    tags: dict[str, str] = {}
    for number, row in read_rows(path, ("img_name", "obj_tag")):
        name, tag = row.get("img_name"), row.get("obj_tag")
        if not name or tag not in ("train", "test"):
            raise UserError(
                f"{path}: row {number} has the img_name {name!r} and the obj_tag {tag!r}, expected"
                " a patch, and train or test"
            )
        if tags.setdefault(name, tag) != tag:
            raise UserError(f"{path} tags {name} twice: a patch either trains or tests")
    left_out = {Path(name).stem for name in bad}
    tags = {name: tag for name, tag in tags.items() if region_of(name) not in left_out}
    gone = sorted(tags.keys() - there)
    if gone:
        raise UserError(
            f"{path} names {len(gone)} patches that are not in Image_Patchs, such as {gone[0]}:"
            " remove it to have it regenerated, or restore them, or remove their rows"
        )
    train = [name for name, tag in tags.items() if tag == "train"]
    test = [name for name, tag in tags.items() if tag == "test"]
    for tag, members in (("train", train), ("test", test)):
        if not members:
            raise UserError(f"{path} has no patch tagged {tag}: remove it to have it regenerated")
    return train, test
