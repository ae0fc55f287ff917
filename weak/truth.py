"""True masks, only for the test and for the network of full supervision."""

from functools import partial
from pathlib import Path

from medood.data.files import fingerprint, in_threads
from medood.data.images import write_png
from medood.data.workspace import Pair
from medood.runs.products import Product
from medood.runs.provenance import making
from weak.products import (
    IMAGES,
    SIZES,
    images_folder,
    labels_there,
    png_of,
    sizes_of,
)
from weak.read_images import read_truth
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
