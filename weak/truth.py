"""True masks, only for the test and for the network of full supervision."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from medood.data.files import fingerprint, in_threads
from medood.data.images import read_mask, write_png
from medood.data.labels import UNSURE
from medood.data.records import outputs_of
from medood.data.workspace import Pair
from medood.runs.products import Product
from medood.runs.provenance import making
from weak.image_labels import with_classes
from weak.products import (
    IMAGES,
    SIZES,
    images_folder,
    labels_there,
    png_of,
    sizes_of,
)
from weak.read_images import read_truth
from weak.settings import ImagesConfig, TransferConfig


def truth_folder(cfg: ImagesConfig, _: int = 0) -> Path:
    """Return where the true masks are, image_size pixels wide and high."""
    return cfg.workspace / "weak" / "True_Masks"


def lesion_folder(cfg: TransferConfig, _: int = 0) -> Path:
    """Return where the true masks of only the lesion are."""
    return cfg.workspace / "weak" / "Lesion_Masks" / f"{cfg.lesion}".replace("/", "_")


def true_files(cfg: TransferConfig, paths: list[Path]) -> list[Pair]:
    """Return images of weak/Images, each with its true mask; only of the lesion if there is one.

    The masks of all images are scaled to one size first, unless they exist. Raises UserError for an
    image without a mask, and for a mask of another size or content.
    """
    every = with_classes(cfg)  # a mask may have others in addition to the lesion
    sizes, classes = sizes_of(every), every.class_names

    def truth(name: str) -> np.ndarray:
        return read_truth(every, name, tuple(sizes[png_of(name)]), every.image_size)

    def of_lesion(name: str) -> np.ndarray:
        mask = read_mask(truth_folder(cfg) / png_of(name), len(classes))
        return np.where(mask == UNSURE, UNSURE, mask == classes.index(cfg.lesion)).astype(np.uint8)

    _write_masks(every, TRUE_MASKS, truth)
    if cfg.lesion is None:
        return [(path, truth_folder(cfg) / path.name) for path in paths]
    _write_masks(cfg, LESION_MASKS, of_lesion)
    return [(path, lesion_folder(cfg) / path.name) for path in paths]


def _write_masks(cfg: ImagesConfig, product: Product, mask_of: Callable[[str], np.ndarray]) -> None:
    """Write the masks of all images, given a function of their names, unless they exist."""
    with making(cfg, product) as folders:
        if folders:

            def write(name: str) -> None:
                write_png(folders[0] / png_of(name), mask_of(name))

            in_threads(write, labels_there(cfg).names, product.name)


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
LESION_MASKS = Product(
    *("lesion masks", lesion_folder, ()),
    lambda cfg, _: {"inputs": outputs_of(truth_folder(cfg)), "lesion": cfg.lesion},
    *("weak/evaluate_masks.py", TransferConfig),
    behind=(TRUE_MASKS,),
)
