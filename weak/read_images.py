"""Images of any format, and the true masks of test images, scaled to the side of a patch.

Radiology stores more than 8 bits: such an image is scaled to 0..255, a DICOM file by one of its
windows, any other by its own range, from its darkest to its brightest pixel.
"""

import functools
from collections import defaultdict
from itertools import accumulate
from pathlib import Path

import cv2
import numpy as np

from config import Config, UserError
from medood.data.files import read_table
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

RLE_COLUMNS = ("imageid", "encodedpixels")  # in lower case

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
    """Return where the true masks are; UserError if there are none, without opening any."""
    path = cfg.masks
    if path is None or not path.exists():
        raise UserError(f"masks = {path}: name the folder, or the CSV, of true masks with --masks")
    return path


def read_truth(cfg: Config, name: str, size: tuple[int, ...], side: int) -> np.ndarray:
    """Return the true mask of a test image as uint8 (side, side): 0..C, or 255 where unsure.

    masks is a folder with a mask image of the same stem, or a CSV of run lengths. name: of the
    image. size: height and width of the original image, which those of the mask must be, and its
    orientation if it is not 1. Raises UserError for a mask that is missing, of another size or
    content, or that may be turned.
    """
    path = require_masks(cfg)
    truths = _truths(path, path.stat().st_mtime_ns)
    if stem_of(name) not in truths:
        raise UserError(f"{path} has no mask of {name}: add it")
    truth = truths[stem_of(name)]
    height, width, of_image = (*size, 1)[:3]
    read = _read_run_lengths if path.is_file() else _read_mask_image
    return squared(read(cfg, truth, name, (height, width), of_image), side, nearest=True)


@functools.lru_cache(maxsize=2)  # one folder, or table, serves all images of a test
def _truths(path: Path, mtime_ns: int) -> dict[str, Path | list[str]]:
    """Return the mask image, or the run lengths, of each image, by its stem."""
    if path.is_dir():
        masks = {stem_of(name_of(mask)): mask for mask in list_images(path)}
        return {stem_of(stem): mask for stem, mask in masks.items()} | masks  # `a.dcm.png`, too
    found: dict[str, list[str]] = {}
    for row in read_table(path, RLE_COLUMNS):
        name, text = (row.get(column) for column in RLE_COLUMNS)
        if not name or text is None:
            raise UserError(
                f"{path} lacks the columns ImageId and EncodedPixels, or a row lacks one: correct"
                " it, or name a folder of mask images"
            )
        found.setdefault(stem_of(name), []).append(text)
    return found


def _read_mask_image(
    cfg: Config, path: Path, name: str, size: tuple[int, int], of_image: int
) -> np.ndarray:
    """Return a mask image as classes, uint8 (H, W), 255 where its pixels have this value."""
    n_classes = len(cfg.class_names)
    inst_map, _, classes = read_own_mask(path, cfg.mask_values, n_classes)
    mask = np.array([BACKGROUND, *classes, UNSURE], np.uint8)[inst_map]  # -1 is unsure
    orientations = of_image, orientation_of(path)
    require_one_orientation(Path(name), path, orientations, size, mask.shape)
    if mask.shape != size:
        raise UserError(
            f"{path} is {mask.shape[1]} x {mask.shape[0]} pixels but the image {name} {size[1]} x"
            f" {size[0]}: replace it with the mask of this image"
        )
    if not cfg.mask_values and set(np.unique(mask)) - {BACKGROUND} == {UNSURE}:
        # a class saved as white is far more frequent than an image of only unsure pixels
        raise UserError(
            f"{path} contains {UNSURE} and no class: set mask_values to {UNSURE} if it is the"
            " class, or to the values of the classes if these pixels are unsure"
        )
    return mask


def _read_run_lengths(
    cfg: Config, texts: list[str], name: str, size: tuple[int, int], of_image: int
) -> np.ndarray:
    """Return the union of the run lengths of an image, uint8 (H, W) of 0 and 1."""
    if len(cfg.classes) != 1:
        raise UserError(
            f"{cfg.masks} is a table of run lengths, which describe one class, but there are"
            f" {len(cfg.classes)}: set masks to a folder of mask images"
        )
    # their numbers do not show along which side they run
    require_one_orientation(Path(name), cfg.masks, (of_image, 1), size, (0, 0))
    try:
        return np.maximum.reduce([decode_rle(text, *size) for text in texts])
    except UserError as error:
        raise UserError(f"{cfg.masks}, image {name}: {error}") from None


def decode_rle(text: str, height: int, width: int) -> np.ndarray:
    """Return the mask (height, width), uint8 of 0 and 1, that run lengths as of SIIM-ACR describe.

    They are pairs of a gap, from the end of the last run to the next one, and the run's length, in
    pixels counted down the columns, from left to right. -1 alone is an empty mask.
    """
    mask = np.zeros(height * width, np.uint8)
    words = text.split()
    if words != ["-1"]:
        numbers = [int(word) for word in words if word.isdecimal()]
        if not words or len(words) % 2 or len(numbers) < len(words):
            short = text if len(text) <= 40 else f"{text[:40]}..."
            raise UserError(
                f"the run lengths {short!r} are not pairs of a gap and a length, whole numbers from"
                " 0: correct them, or write -1 for none"
            )
        ends = list(accumulate(numbers))
        if ends[-1] > mask.size:
            raise UserError(
                f"the run lengths end at pixel {ends[-1]} of an image of {width} x {height} ="
                f" {mask.size}: use those of this image, at its original size"
            )
        for start, end in zip(ends[::2], ends[1::2], strict=True):
            mask[start:end] = 1
    return np.ascontiguousarray(mask.reshape(width, height).T)
