"""True masks, only for the test and for the network of full supervision."""

from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from config import Config, UserError
from medood.data.files import fingerprint, in_threads
from medood.data.images import write_png
from medood.data.labels import BACKGROUND, UNSURE, read_own_mask
from medood.data.names import name_of
from medood.data.workspace import Pair, list_images
from medood.runs.products import Product
from medood.runs.provenance import making
from weak.products import IMAGES, SIZES, images_folder, labels_there, png_of, sizes_of
from weak.read_images import squared, stem_of
from weak.settings import ImagesConfig


def truth_folder(cfg: ImagesConfig, _: int = 0) -> Path:
    """Return where the true masks are, image_size pixels wide and high."""
    return cfg.workspace / "weak" / "True_Masks"


def true_files(cfg: ImagesConfig, paths: list[Path]) -> list[Pair]:
    """Return images of weak/Images, each with its true mask, of all classes.

    The masks of all images are scaled to one size first, unless they exist. Raises UserError for an
    image without a mask, and for a mask of another size or content.
    """
    sizes = sizes_of(cfg)

    def write(out: Path, name: str) -> None:
        mask = read_truth(cfg, name, tuple(sizes[png_of(name)]), cfg.image_size)
        write_png(out / png_of(name), mask)

    with making(cfg, TRUE_MASKS) as folders:
        for out in folders:
            in_threads(partial(write, out), labels_there(cfg).names, TRUE_MASKS.name)
    return [(path, truth_folder(cfg) / path.name) for path in paths]


def require_masks(cfg: Config) -> Path:
    """Return the folder of the true masks; UserError if there is none, without opening any."""
    folder = cfg.masks
    if folder is None or not folder.is_dir():
        raise UserError(f"masks = {folder}: name the folder of true masks with --masks")
    return folder


def read_truth(cfg: Config, name: str, size: tuple[int, ...], side: int) -> np.ndarray:
    """Return the true mask of a test image as uint8 (side, side): 0..C, or 255 where unsure.

    It is the mask image of the same stem. name: of the image. size: height and width of the
    original image, which those of the mask must be. Raises UserError for a mask that is missing or
    of another size or content.
    """
    folder = require_masks(cfg)
    path = _masks_in(folder, folder.stat().st_mtime_ns).get(stem_of(name))
    if path is None:
        raise UserError(f"{folder} has no mask of {name}: add it")
    inst_map, _, classes = read_own_mask(path, cfg.mask_values, len(cfg.class_names))
    mask = np.array([BACKGROUND, *classes, UNSURE], np.uint8)[inst_map]  # -1 is unsure
    height, width = size[:2]
    if mask.shape != size:  # a third number, of an earlier version, says that the image was turned
        raise UserError(
            f"{path} is {mask.shape[1]} x {mask.shape[0]} pixels but the image {name} {width} x"
            f" {height}: replace it with the mask of this image"
        )
    if not cfg.mask_values and set(np.unique(mask)) - {BACKGROUND} == {UNSURE}:
        # a class saved as white is far more frequent than an image of only unsure pixels
        raise UserError(
            f"{path} contains {UNSURE} and no class: set mask_values to {UNSURE} if it is the"
            " class, or to the values of the classes if these pixels are unsure"
        )
    return squared(mask, side, nearest=True)


@lru_cache(maxsize=2)  # one listing serves all images of a test
def _masks_in(folder: Path, _: int) -> dict[str, Path]:
    """Return the mask image of each image, by its stem. _: when the folder was changed."""
    masks = {stem_of(name_of(mask)): mask for mask in list_images(folder)}
    return {stem_of(stem): mask for stem, mask in masks.items()} | masks  # `a.dcm.png`, too


def _of_truth(cfg: ImagesConfig, _: int) -> dict:
    if cfg.masks is None or not cfg.masks.is_dir():
        return {"inputs": None}
    masks = sorted(cfg.masks.glob("*.*"))
    return {"inputs": fingerprint(masks), "images": fingerprint([images_folder(cfg) / SIZES])}


TRUE_MASKS = Product(
    *("true masks", truth_folder, ("image_size", "mask_values"), _of_truth),
    *("weak/evaluate_masks.py", ImagesConfig),
    behind=(IMAGES,),
)
