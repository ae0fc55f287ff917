"""Images of any format, and the true masks of test images, scaled to the side of a patch.

Radiology stores more than 8 bits: such an image is scaled to 0..255, a DICOM file by one of its
windows, any other by its own range, from its darkest to its brightest pixel.
"""

import functools
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

from config import Config, UserError
from medood.data.images import (
    IMAGE_ENDINGS,
    UNSURE,
    orientation_of,
    read_image,
    require_one_orientation,
)
from medood.data.labels import BACKGROUND, read_own_mask
from medood.data.names import name_of
from medood.data.workspace import list_images
from medood.processes import say_once
from weak.dicom import DICOM_ENDINGS, read_dicom
from weak.image_labels import ImageLabels

# ---------------------------------------------------------------- names


def stem_of(name: str) -> str:
    """Return a file's name without its ending, if it has one: the `.7` of a DICOM UID is not."""
    return _parts(name)[0]


def _parts(name: str) -> tuple[str, str]:
    """Return a file's name without its ending, and this in lower case, one for all of DICOM's."""
    ending = Path(name).suffix
    if ending.lower() in IMAGE_ENDINGS:
        return name.removesuffix(ending), ending.lower()
    is_known = ending.lower() in DICOM_ENDINGS
    return name.removesuffix(ending) if is_known else name, DICOM_ENDINGS[0]


def list_inputs(folder: Path, labels: ImageLabels) -> list[Path]:
    """Return the file of each image that the labels name, in their order.

    A name is that of a file in `folder`, or in a folder of it, with or without its ending. DICOM
    has several endings, or none: they are equivalent. Raises UserError for an image that is
    missing, or found twice.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: correct its name")
    images = _images_in(folder)
    by_name: dict[str | tuple, list[Path]] = defaultdict(list)
    for path in images:
        for key in (stem_of(name_of(path)), _parts(name_of(path))):
            by_name[key].append(path)
    found = [by_name.get(name) or by_name.get(_parts(name), []) for name in labels.names]
    if missing := [name for name, paths in zip(labels.names, found, strict=True) if not paths]:
        raise UserError(
            f"{folder} lacks {len(missing)} images that the image labels name, such as"
            f" {missing[0]}: add them, or remove their rows"
        )
    for name, paths in zip(labels.names, found, strict=True):
        if len(paths) > 1:
            raise UserError(
                f"{paths[0]} and {paths[1]} may both be the image {name} of the image labels:"
                " remove one, or name a folder without it"
            )
    if ignored := len(images) - len({paths[0] for paths in found}):
        say_once(f"{folder}: images that are ignored, as the image labels lack them: {ignored}")
    return [paths[0] for paths in found]


def _images_in(folder: Path) -> list[Path]:
    """Return the images in a folder and all folders below it, but no hidden ones."""

    def is_hidden(path: Path) -> bool:
        return any(part[0] == "." for part in path.relative_to(folder).parts)

    return [path for path in sorted(folder.rglob("*")) if not is_hidden(path) and _is_image(path)]


def _is_image(path: Path) -> bool:
    """Say whether a path is an image by its ending or, as many DICOM files have none, content.

    DICOMDIR, the table of contents of a disc, is not.
    """
    if not path.is_file() or path.name.upper() == "DICOMDIR":
        return False
    if path.suffix.lower() in (*IMAGE_ENDINGS, *DICOM_ENDINGS):
        return True
    from pydicom.misc import is_dicom  # takes a while to import

    return is_dicom(path)


# ---------------------------------------------------------------- images


def read_any(path: Path) -> np.ndarray:
    """Return an image of any format as RGB uint8 (H, W, 3).

    Grey becomes three equal channels; 16 bits of grey are scaled, from the image's own minimum to
    its maximum, to 0..255. Raises UserError for what cannot be read without a loss, is damaged, or
    has more than MAX_PIXELS.
    """
    if path.suffix.lower() in IMAGE_ENDINGS:
        return read_image(path, scaled=True)
    return read_dicom(path)


def squared(pixels: np.ndarray, side: int, nearest: bool = False) -> np.ndarray:
    """Return an image (H, W, ...) scaled to a longer side of `side`, padded to (side, side, ...).

    It is centred on black; of an odd rest the smaller half comes first. An image and its mask still
    match. nearest: for masks, whose values are not amounts.
    """
    longer = max(pixels.shape[:2])
    if longer != side:
        height, width = (max(1, round(edge * side / longer)) for edge in pixels.shape[:2])
        smooth = cv2.INTER_AREA if longer > side else cv2.INTER_LINEAR
        # the plain INTER_NEAREST takes the corner of a pixel for its middle
        kind = cv2.INTER_NEAREST_EXACT if nearest else smooth
        pixels = cv2.resize(pixels, (width, height), interpolation=kind)
    gaps = [side - edge for edge in pixels.shape[:2]]
    margins = [(gap // 2, gap - gap // 2) for gap in gaps]
    return np.pad(pixels, margins + [(0, 0)] * (pixels.ndim - 2))


# ---------------------------------------------------------------- true masks


def require_masks(cfg: Config) -> Path:
    """Return the folder of the true masks; UserError if there is none, without opening any."""
    folder = cfg.masks
    if folder is None or not folder.is_dir():
        raise UserError(f"masks = {folder}: name the folder of true masks with --masks")
    return folder


def read_truth(cfg: Config, name: str, size: tuple[int, ...], side: int) -> np.ndarray:
    """Return the true mask of a test image as uint8 (side, side): 0..C, or 255 where unsure.

    It is the mask image of the same stem. name: of the image. size: height and width of the
    original image, which those of the mask must be, and its orientation if it is not 1. Raises
    UserError for a mask that is missing, of another size or content, or that may be turned.
    """
    folder = require_masks(cfg)
    path = _masks_in(folder, folder.stat().st_mtime_ns).get(stem_of(name))
    if path is None:
        raise UserError(f"{folder} has no mask of {name}: add it")
    inst_map, _, classes = read_own_mask(path, cfg.mask_values, len(cfg.class_names))
    mask = np.array([BACKGROUND, *classes, UNSURE], np.uint8)[inst_map]  # -1 is unsure
    height, width, of_image = (*size, 1)[:3]
    orientations = of_image, orientation_of(path)
    require_one_orientation(Path(name), path, orientations, (height, width), mask.shape)
    if mask.shape != (height, width):
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


@functools.lru_cache(maxsize=2)  # one listing serves all images of a test
def _masks_in(folder: Path, _: int) -> dict[str, Path]:
    """Return the mask image of each image, by its stem. _: when the folder was changed."""
    masks = {stem_of(name_of(mask)): mask for mask in list_images(folder)}
    return {stem_of(stem): mask for stem, mask in masks.items()} | masks  # `a.dcm.png`, too
