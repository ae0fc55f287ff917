"""Learn what tissue without nuclei looks like, and put it where nuclei stood (ood_fill = transfer).

Reads   Image_Patchs, Mask_Patchs, k_folds    (generate_patches.py)
Writes  transfer/fill/<fold>/                 the generator, its log and pictures
        transfer/fill/<fold>.png              some patches with this fill and with the others
        OoD_Patchs_<fold>/<patch>.png         RGB (P, P, 3), the fold's training patches, filled

The generator of a fold learns from its training patches alone: windows with nuclei against windows
without. Masks say where nuclei stood, so only these places, and a narrow margin, are changed.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import UserError
from medood.data import records
from medood.data.files import fingerprint, timed
from medood.data.folds import read_fold
from medood.data.images import write_png
from medood.data.workspace import Pair, data_name, fill_generator_folder, id_files, ood_folder
from medood.runs.command_line import run
from medood.runs.provenance import PRODUCTS, Product, made_from, require
from transfer.products import DECIDING, training_folder
from transfer.settings import FillConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from medood.data.dataset import Patches

FEWEST = 50  # windows without a nucleus that a generator learns from
SHOWN = 6  # patches in the contact sheet


def training_files(cfg: FillConfig, fold: int) -> list[Pair]:
    """Return image and mask of every patch on the training side of a fold."""
    train, val, _ = read_fold(cfg, fold)
    return id_files(cfg, train + val)


def _of_training_side(cfg: FillConfig, fold: int) -> dict:
    files = training_files(cfg, fold)
    return {"fold": fold, "inputs": fingerprint(path for pair in files for path in pair)}


PRODUCTS["fill"] = Product(
    fill_generator_folder, ("fold",), DECIDING, _of_training_side, FillConfig
)


def train_fill(cfg: FillConfig) -> None:
    """Train the generator of every fold, and let it fill the fold's training patches."""
    from medood.data.dataset import load_patches  # here, so that --help works without torch
    from medood.models.network import pick_device

    require(cfg, "patches", "patch masks", "fold")
    device = pick_device(cfg)
    for fold in cfg.folds:
        patches = load_patches(cfg, training_files(cfg, fold))
        train_generator(cfg, fold, patches, device)
        write_filled(cfg, fold, patches, device)


def train_generator(cfg: FillConfig, fold: int, patches: "Patches", device: "torch.device") -> None:
    """Train the generator of a fold, unless it is there, on windows of its training patches."""
    from transfer.training import train_transfer

    with training_folder(cfg, "fill", fold) as folder:
        if folder:
            nuclei, tissue = domains(patches, fold, cfg.seed)
            train_transfer(cfg, fold, nuclei, tissue, folder, device)


def domains(patches: "Patches", fold: int, seed: int) -> tuple["Tensor", "Tensor"]:
    """Return windows with nuclei, and windows without any of such tissue as lies between nuclei.

    Both RGB uint8 (K, S, S, 3). Raises UserError if there are too few of a kind.
    """
    from medood.data.labels import BACKGROUND
    from transfer.fill import SIDE, cut, find_windows, holes_of, looks_of

    holes = holes_of(patches.masks)
    nuclei, free = find_windows(patches, holes, seed)
    tissue = looks_of(patches, holes, nuclei).of(patches, free) if len(nuclei) else free[:0]
    whole = int((patches.masks == BACKGROUND).flatten(1).all(1).sum())
    counted = (
        f"fold {fold}: {whole} of {len(patches)} training patches hold no nucleus;"
        f" {len(nuclei)} windows of {SIDE} x {SIDE} pixels with nuclei, {len(free)} without, of"
        f" which {len(tissue)}, in {len(tissue[:, 0].unique())} patches, look like the tissue"
        " between nuclei"
    )
    if min(len(nuclei), len(tissue)) < FEWEST:
        raise UserError(
            f"{counted}, but a fill is learned from at least {FEWEST} of each: take another"
            " ood_fill, or add regions"
        )
    print(counted)
    return cut(patches.images, nuclei), cut(patches.images, tissue)


# ---------------------------------------------------------------- filled patches


def write_filled(cfg: FillConfig, fold: int, patches: "Patches", device: "torch.device") -> None:
    """Write the patches of a fold's training side, filled by its generator, and a sheet of some."""
    from medood.data.dataset import CHUNK
    from transfer.fill import fill_holes, holes_of, load_fill

    learned = replace(cfg, ood_fill="transfer")
    folder, record = ood_folder(learned, fold), made_from(learned, "OoD patches", fold)
    if records.is_kept(folder, record):
        return
    generator = load_fill(cfg, fold, device)
    with timed(cfg.workspace, folder.name), records.fresh_folder(folder, record) as out:
        for start in range(0, len(patches), CHUNK):
            part = slice(start, start + CHUNK)
            holes = holes_of(patches.masks[part])
            filled = fill_holes(generator, patches.images[part], holes, device)
            for name, image in zip(patches.names[part], filled.numpy(), strict=True):
                write_png(out / name, image)
        draw_sheet(cfg, fold, patches, out)
    print(f"{folder}: {len(patches)} patches, filled by the generator of the fold")


def draw_sheet(cfg: FillConfig, fold: int, patches: "Patches", filled: Path) -> None:
    """Draw some patches as they are, with the fills that need no learning, and as in `filled`."""
    from medood.data.dataset import load_patches
    from medood.data.labels import is_foreground
    from medood.evaluation.figures import draw_fills
    from transfer.fill import PLAIN, replace_nuclei

    held = is_foreground(patches.masks).flatten(1).any(1).nonzero()[:, 0]
    shown = held[:: -(-len(held) // SHOWN)]
    names, images = [patches.names[index] for index in shown], patches.images[shown]
    columns = {"patch": images}
    columns |= {fill: replace_nuclei(images, patches.masks[shown], fill) for fill in PLAIN}
    columns["transfer"] = load_patches(cfg, [(filled / name, None) for name in names]).images
    title = f"{data_name(cfg.workspace)}, fold {fold}: what stands where nuclei stood"
    draw_fills(fill_generator_folder(cfg, fold).with_suffix(".png"), title, names, columns)


if __name__ == "__main__":
    run(train_fill, FillConfig(), parts=lambda cfg: [f"fill_{fold}" for fold in cfg.folds])
