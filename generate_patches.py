"""Cut regions and their class masks into patches, and deal the patches into folds.

Reads   Lizard_Images/*.png, Semantic_Labels/*.png   (generate_semantic_labels.py)
Writes  Image_Patchs/<region>_<k>.png                RGB (P, P, 3); k counts row by row from 0
        Mask_Patchs/<region>_<k>.png                 uint8 (P, P)
        Mask_Patchs/nuclei.csv                       patch and class of every nucleus, by its centre
        k_folds/<fold>Image_Patchs.csv               which patches train, which test

With prepared patches and no regions it only draws the folds that are not there.
"""

import csv
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from config import CONFIG, Config, UserError
from medood.cli import run
from medood.files import (
    NUCLEI_LIST,
    SOURCE_PREFIX,
    csv_text,
    fingerprint,
    fresh_folder,
    is_kept,
    list_patch_pairs,
    list_pngs,
    png_size,
    read_image,
    read_mask,
    region_images,
    region_labels,
    require_data,
    timed,
    write_png,
    write_text,
)
from medood.folds import write_folds


def padding(side: int, patch_size: int) -> tuple[int, int]:
    """Return the pixels to add before and after `side` to reach a multiple of `patch_size`."""
    missing = -side % patch_size
    return missing // 2, missing - missing // 2


def tile(image: np.ndarray, patch_size: int) -> np.ndarray:
    """Cut (H, W, ...) into (N, P, P, ...), row by row, zero-padded on all sides where needed."""
    rows, columns = (padding(side, patch_size) for side in image.shape[:2])
    padded = np.pad(image, [rows, columns] + [(0, 0)] * (image.ndim - 2))
    height, width = (side // patch_size for side in padded.shape[:2])
    grid = padded.reshape(height, patch_size, width, patch_size, *image.shape[2:])
    return grid.swapaxes(1, 2).reshape(-1, patch_size, patch_size, *image.shape[2:])


def untile(tiles: np.ndarray, height: int, width: int) -> np.ndarray:
    """Put (N, P, P, ...) from `tile` together again to (height, width, ...)."""
    patch_size = tiles.shape[1]
    top, bottom = padding(height, patch_size)
    left, right = padding(width, patch_size)
    rows, columns = (top + height + bottom) // patch_size, (left + width + right) // patch_size
    grid = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    padded = grid.reshape(rows * patch_size, columns * patch_size, *tiles.shape[3:])
    return padded[top : top + height, left : left + width]


def patch_of(x: float, y: float, height: int, width: int, patch_size: int) -> int:
    """Return the number of the patch that holds a point of a region of height x width pixels."""
    top, left = padding(height, patch_size)[0], padding(width, patch_size)[0]
    columns = -(-width // patch_size)
    row, column = (round(y) + top) // patch_size, (round(x) + left) // patch_size
    return row * columns + column


def nuclei_of_patches(folder: Path, patch_size: int) -> list[tuple[str, str]]:
    """Return patch and class of every nucleus that Semantic_Labels lists."""
    found, region, size = [], None, (0, 0)
    with (folder / NUCLEI_LIST).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):  # sorted by region
            if row["region"] != region:
                region = row["region"]
                size = png_size(folder / f"{region}.png")
            k = patch_of(float(row["x"]), float(row["y"]), *size, patch_size)
            found.append((f"{region}_{k}.png", row["class"]))
    return found


def cut(
    image_path: Path, mask_path: Path, classes: int, patch_size: int, images: Path, masks: Path
) -> None:
    """Write the patches of one region."""
    image, mask = read_image(image_path), read_mask(mask_path, classes)
    if image.shape[:2] != mask.shape:
        raise UserError(
            f"{image_path} is {image.shape[1]} x {image.shape[0]} pixels but its label"
            f" {mask.shape[1]} x {mask.shape[0]}: put the image that the label belongs to there"
        )
    pairs = zip(tile(image, patch_size), tile(mask, patch_size), strict=True)
    for k, (image_patch, mask_patch) in enumerate(pairs):
        write_png(images / f"{image_path.stem}_{k}.png", image_patch)
        write_png(masks / f"{image_path.stem}_{k}.png", mask_patch)


def cut_regions(cfg: Config, regions: list[Path]) -> None:
    """Write Image_Patchs and Mask_Patchs."""
    found = list_pngs(cfg.workspace / "Semantic_Labels", made_by="generate_semantic_labels.py")
    mask_of, image_of = ({path.stem: path for path in paths} for paths in (found, regions))
    if unpaired := mask_of.keys() ^ image_of.keys():
        name = min(unpaired)
        lacks = "label" if name in image_of else "image"
        raise UserError(f"region {name} has no {lacks} ({len(unpaired)} in all): add or remove it")
    masks = [mask_of[path.stem] for path in regions]
    if any(path.stem.startswith(SOURCE_PREFIX) for path in regions):
        raise UserError(
            f"an image is called {SOURCE_PREFIX}..., as patches of ood_source: rename it"
        )
    nuclei = [path for path in [masks[0].with_name(NUCLEI_LIST)] if path.exists()]
    images_out, masks_out = cfg.workspace / "Image_Patchs", cfg.workspace / "Mask_Patchs"
    record = {"patch_size": cfg.patch_size, "inputs": fingerprint([*regions, *masks, *nuclei])}
    if is_kept(images_out, record) and is_kept(masks_out, record):
        return
    with (
        timed(cfg.workspace, "patches"),
        fresh_folder(images_out, record) as images,
        fresh_folder(masks_out, record) as out,
    ):
        jobs = Parallel(n_jobs=cfg.workers, return_as="generator")(
            delayed(cut)(image, mask, len(cfg.class_names), cfg.patch_size, images, out)
            for image, mask in zip(regions, masks, strict=True)
        )
        for _ in tqdm(jobs, total=len(regions), desc="patches", disable=None):
            pass
        if nuclei:  # class masks of the user's come without
            rows = nuclei_of_patches(nuclei[0].parent, cfg.patch_size)
            write_text(out / NUCLEI_LIST, csv_text(["img_name", "class"], rows))


def generate_patches(cfg: Config = CONFIG) -> None:
    """Write the patches of every region and the list of every fold."""
    require_data(cfg)
    regions = region_images(cfg)
    if regions and (region_labels(cfg) or (cfg.workspace / "Semantic_Labels").exists()):
        cut_regions(cfg, regions)
    images, _ = list_patch_pairs(cfg.workspace)
    write_folds(cfg, [path.name for path in images])
    folds = ", ".join(map(str, cfg.folds))
    print(f"{cfg.workspace / 'Image_Patchs'}: {len(images)} patches, dealt into folds {folds}")


if __name__ == "__main__":
    run(generate_patches)
