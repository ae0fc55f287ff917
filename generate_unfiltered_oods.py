"""Cut the nuclei out of every patch: any nucleus predicted in what is left is false.

Reads   Image_Patchs, Mask_Patchs     (generate_patches.py)
        the images in ood_source, if set
Writes  OoD_Patchs/<patch>.png        RGB (P, P, 3), the patch without its foreground
        OoD_Source_Patchs/            RGB (P, P, 3), the patches of the external images

rank_prune_ood.py finds later which of them fool the baseline.
"""

from pathlib import Path

import cv2
import numpy as np

from config import CONFIG, Data, UserError
from medood.data.files import pngs
from medood.data.images import read_image, read_mask, write_png
from medood.data.labels import BACKGROUND
from medood.data.names import by_name, name_of, stem_of
from medood.data.records import BadFiles, refuse_bad
from medood.data.workspace import SOURCE_PREFIX, list_images, list_patch_pairs
from medood.processes import on_main
from medood.runs.command_line import run
from medood.runs.jobs import for_each
from medood.runs.products import OOD_PATCHES, PATCH_MASKS, PATCHES, SOURCE_PATCHES
from medood.runs.provenance import making, require

INPAINT_RADIUS = 3  # pixels around a hole that inpainting uses


def remove_foreground(image: np.ndarray, mask: np.ndarray, fill: str) -> np.ndarray:
    """Return RGB `image` uint8 (H, W, 3) without the foreground pixels of `mask` (H, W).

    Unsure pixels are cut too, as they may be nuclei. fill: `zero` leaves black (Sec. 3.1 of the
    paper), `mean` the mean colour of the background pixels (black where there is none), `inpaint`
    the surroundings continued inwards.
    """
    hole = mask != BACKGROUND
    if fill == "inpaint":
        return cv2.inpaint(image, hole.astype(np.uint8), INPAINT_RADIUS, cv2.INPAINT_TELEA)
    out = image.copy()
    if fill == "mean" and not hole.all():
        out[hole] = image[~hole].mean(axis=0).round().astype(np.uint8)
    else:
        out[hole] = 0
    return out


def convert(image_path: Path, mask_path: Path, cfg: Data, out: Path) -> None:
    """Write the OoD patch of one patch."""
    image = read_image(image_path)
    mask = read_mask(mask_path, len(cfg.class_names))
    if image.shape[:2] != mask.shape:
        raise UserError(f"{image_path} and {mask_path} differ in size: regenerate both")
    write_png(out / name_of(image_path), remove_foreground(image, mask, cfg.ood_fill))


def fill_folder(cfg: Data, out: Path) -> int:
    """Write the OoD patch of every patch into a folder, and return how many there are."""
    images, masks = list_patch_pairs(cfg.workspace)
    bad: BadFiles = {}
    jobs = [(*pair, cfg, out) for pair in zip(images, masks, strict=True)]
    for_each(convert, jobs, cfg, "OoD patches", bad)
    refuse_bad(bad)
    return len(images)


def write_oods(cfg: Data) -> None:
    """Write OoD_Patchs; UserError if it is user-supplied and lacks a patch."""
    folder = cfg.workspace / "OoD_Patchs"
    with making(cfg, OOD_PATCHES) as folders:
        if not folders:
            images, _ = list_patch_pairs(cfg.workspace)
            if lost := sorted({*map(name_of, images)} - set(by_name(pngs(folder)))):
                raise UserError(
                    f"{folder} lacks {len(lost)} patches, such as {lost[0]}: add them, or remove"
                    " the folder to have it generated"
                )
            return
        count = fill_folder(cfg, *folders)
    print(f"{folder}: {count} patches without their nuclei, fill {cfg.ood_fill}")


def cut_source(path: Path, cfg: Data, out: Path) -> int:
    """Write the patches of an external image, whole ones from the top left; return how many."""
    image, side = read_image(path), cfg.patch_size
    rows, columns = image.shape[0] // side, image.shape[1] // side
    if not rows * columns:
        raise UserError(
            f"{path} is {image.shape[1]} x {image.shape[0]} pixels, smaller than a patch of {side}:"
            " remove it from ood_source or enlarge it"
        )
    for k in range(rows * columns):
        top, left = k // columns * side, k % columns * side
        patch = image[top : top + side, left : left + side]
        write_png(out / f"{SOURCE_PREFIX}{stem_of(path)}_{k}.png", patch)
    return rows * columns


def write_source_patches(cfg: Data) -> None:
    """Cut the images of ood_source into patches."""
    images = list_images(cfg.ood_source)
    bad: BadFiles = {}
    with making(cfg, SOURCE_PATCHES, bad=bad) as folders:
        for out in folders:
            jobs = [(path, cfg, out) for path in images]
            count = sum(for_each(cut_source, jobs, cfg, "external OoD patches", bad))
            used = len(images) - len(bad)
            print(f"OoD_Source_Patchs: {count} patches of {used} images from {cfg.ood_source}")
    refuse_bad(bad, cfg.skip_bad_files)


@on_main
def generate_unfiltered_oods(cfg: Data = CONFIG) -> None:
    """Write the OoD patch of every patch and, with ood_source, those of external images."""
    require(cfg, PATCHES, PATCH_MASKS)
    write_oods(cfg)
    if cfg.ood_source is not None:
        write_source_patches(cfg)


if __name__ == "__main__":
    run(generate_unfiltered_oods, Data())
