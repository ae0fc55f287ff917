"""True masks, for the test and for the network of full supervision: nothing else opens them."""

from pathlib import Path

from medood.data.files import fingerprint, in_threads
from medood.data.images import write_png
from medood.data.workspace import Pair
from medood.runs.products import Product
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
from weak.settings import ImagesConfig


def truth_folder(cfg: ImagesConfig, _: int = 0) -> Path:
    """Return where the true masks are, patch_size pixels wide and high."""
    return cfg.workspace / "weak" / "True_Masks"


def true_files(cfg: ImagesConfig, names: list[str]) -> list[Pair]:
    """Return image and true mask of images, by their names in the CSV.

    The masks of all images are brought to the side of a patch first, unless they are there. Raises
    UserError for an image without a mask, and for a mask of another size or content.
    """
    with making_folder(cfg, TRUE_MASKS) as folder:
        if folder:
            sizes = sizes_of(cfg)

            def write(name: str) -> None:
                size = tuple(sizes[png_of(name)])
                write_png(folder / png_of(name), read_truth(cfg, name, size, cfg.patch_size))

            in_threads(write, labels_there(cfg).names, "true masks")
    folders = images_folder(cfg), truth_folder(cfg)
    return [(folders[0] / png_of(name), folders[1] / png_of(name)) for name in names]


def _of_truth(cfg: ImagesConfig, _: int) -> dict:
    if cfg.masks is None or not cfg.masks.exists():
        return {"inputs": None}
    masks = [cfg.masks] if cfg.masks.is_file() else sorted(cfg.masks.glob("*.*"))
    return {"inputs": fingerprint(masks), "images": fingerprint([images_folder(cfg) / SIZES])}


TRUE_MASKS = Product(
    *("true masks", truth_folder, ("patch_size", "mask_values"), _of_truth),
    *("weak/evaluate_masks.py", ImagesConfig),
    behind=(IMAGES,),
)
