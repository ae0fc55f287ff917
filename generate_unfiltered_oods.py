"""Cut the nuclei out of every patch: what is left shows none, so every nucleus seen in it is false.

Reads   Image_Patchs, Mask_Patchs     (generate_patches.py)
        the images in ood_source, if set
Writes  OoD_Patchs/<patch>.png        RGB (P, P, 3), the patch without its foreground
        OoD_Source_Patchs/            RGB (P, P, 3), the patches of the external images

Which of them the baseline is fooled by is found later, by rank_prune_ood.py.
"""

from pathlib import Path

import cv2
import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from config import CONFIG, Config, UserError
from medood.classes import BACKGROUND
from medood.cli import run
from medood.files import (
    SOURCE_PREFIX,
    fingerprint,
    fresh_folder,
    is_kept,
    list_images,
    list_patch_pairs,
    read_image,
    read_mask,
    timed,
    write_png,
)

INPAINT_RADIUS = 3  # pixels around a hole that it is continued from
CHUNK = 64  # patches per job: about one region's


def remove_foreground(image: np.ndarray, mask: np.ndarray, fill: str) -> np.ndarray:
    """Return RGB `image` uint8 (H, W, 3) without the pixels that `mask` (H, W) calls foreground.

    fill: `zero` leaves black (Sec. 3.1 of the paper), `mean` the mean colour of the background
    pixels (black where there is none), `inpaint` the surroundings continued inwards.
    """
    foreground = mask != BACKGROUND
    if fill == "inpaint":
        return cv2.inpaint(image, foreground.astype(np.uint8), INPAINT_RADIUS, cv2.INPAINT_TELEA)
    out = image.copy()
    if fill == "mean" and not foreground.all():
        out[foreground] = image[~foreground].mean(axis=0).round().astype(np.uint8)
    else:
        out[foreground] = 0
    return out


def convert(images: list[Path], masks: list[Path], classes: int, fill: str, out: Path) -> int:
    """Write the OoD patches of some patches; return how many."""
    for image_path, mask_path in zip(images, masks, strict=True):
        image, mask = read_image(image_path), read_mask(mask_path, classes)
        if image.shape[:2] != mask.shape:
            raise UserError(f"{image_path} and {mask_path} differ in size: make both anew")
        write_png(out / image_path.name, remove_foreground(image, mask, fill))
    return len(images)


def write_oods(cfg: Config, folder: Path) -> None:
    """Write the OoD patch of every patch into `folder`."""
    images, masks = list_patch_pairs(cfg.workspace)
    record = {
        "ood_fill": cfg.ood_fill,
        "inputs": fingerprint(images),
        "masks": fingerprint(masks),
    }
    if is_kept(folder, record):
        return
    starts = range(0, len(images), CHUNK)
    with timed(cfg.workspace, "OoD patches"), fresh_folder(folder, record) as out:
        jobs = Parallel(n_jobs=cfg.workers, return_as="generator")(
            delayed(convert)(
                images[i : i + CHUNK],
                masks[i : i + CHUNK],
                len(cfg.class_names),
                cfg.ood_fill,
                out,
            )
            for i in starts
        )
        with tqdm(total=len(images), desc="OoD patches", disable=None) as bar:
            for count in jobs:
                bar.update(count)
    print(f"{folder}: {len(images)} patches without their nuclei, fill {cfg.ood_fill}")


def write_source_patches(cfg: Config) -> None:
    """Cut the images of ood_source into patches: whole ones, from the top left, not padded."""
    images = list_images(cfg.ood_source)
    folder, side = cfg.workspace / "OoD_Source_Patchs", cfg.patch_size
    record = {"patch_size": side, "inputs": fingerprint(images)}
    if is_kept(folder, record):
        return
    count = 0
    with fresh_folder(folder, record) as out:
        for path in tqdm(images, desc="external OoD patches", disable=None):
            image = read_image(path)
            height, width = (length // side for length in image.shape[:2])
            if not height or not width:
                raise UserError(
                    f"{path} is {image.shape[1]} x {image.shape[0]} pixels, smaller than a patch"
                    f" of {side}: remove it from ood_source or enlarge it"
                )
            for k in range(height * width):
                top, left = k // width * side, k % width * side
                patch = image[top : top + side, left : left + side]
                write_png(out / f"{SOURCE_PREFIX}{path.stem}_{k}.png", patch)
            count += height * width
    print(f"{folder}: {count} patches of {len(images)} images from {cfg.ood_source}")


def generate_unfiltered_oods(cfg: Config = CONFIG) -> None:
    """Write the OoD patch of every patch and, with ood_source, those of external images."""
    write_oods(cfg, cfg.workspace / "OoD_Patchs")
    if cfg.ood_source is not None:
        write_source_patches(cfg)


if __name__ == "__main__":
    run(generate_unfiltered_oods)
