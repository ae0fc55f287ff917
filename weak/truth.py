"""True masks, for the test and for the network of full supervision: nothing else opens them."""

from pathlib import Path

import numpy as np

from medood.data.files import fingerprint, in_threads
from medood.data.images import read_mask, write_png
from medood.data.labels import UNSURE
from medood.data.records import outputs_of
from medood.data.workspace import Pair
from medood.runs.products import Product
from weak.image_labels import with_classes
from weak.products import (
    IMAGES,
    SIZES,
    images_folder,
    labels_there,
    making_folder,
    png_of,
    sizes_of,
)
from weak.read_images import read_truth
from weak.settings import ImagesConfig, TransferConfig


def truth_folder(cfg: ImagesConfig, _: int = 0) -> Path:
    """Return where the true masks are, image_size pixels wide and high."""
    return cfg.workspace / "weak" / "True_Masks"


def lesion_folder(cfg: TransferConfig, _: int = 0) -> Path:
    """Return where the true masks of the lesion alone are."""
    return cfg.workspace / "weak" / "Lesion_Masks" / f"{cfg.lesion}".replace("/", "_")


def true_files(cfg: TransferConfig, paths: list[Path]) -> list[Pair]:
    """Return images of weak/Images, each with its true mask; of the lesion alone if there is one.

    The masks of all images are brought to one size first, unless they are there. Raises UserError
    for an image without a mask, and for a mask of another size or content.
    """
    every = with_classes(cfg)  # a mask may hold others beside the lesion
    names = labels_there(every).names
    with making_folder(every, TRUE_MASKS) as folder:
        if folder:
            sizes = sizes_of(every)

            def write(name: str) -> None:
                size = tuple(sizes[png_of(name)])
                write_png(folder / png_of(name), read_truth(every, name, size, every.image_size))

            in_threads(write, names, "true masks")
    if cfg.lesion is None:
        return [(path, truth_folder(cfg) / path.name) for path in paths]
    value = every.class_names.index(cfg.lesion)
    with making_folder(cfg, LESION_MASKS) as folder:
        if folder:

            def keep_lesion(name: str) -> None:
                mask = read_mask(truth_folder(cfg) / png_of(name), len(every.class_names))
                known = np.where(mask == UNSURE, UNSURE, mask == value)
                write_png(folder / png_of(name), known.astype(np.uint8))

            in_threads(keep_lesion, names, "lesion masks")
    return [(path, lesion_folder(cfg) / path.name) for path in paths]


def _of_truth(cfg: ImagesConfig, _: int) -> dict:
    if cfg.masks is None or not cfg.masks.exists():
        return {"inputs": None}
    masks = [cfg.masks] if cfg.masks.is_file() else sorted(cfg.masks.glob("*.*"))
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
