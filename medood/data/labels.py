"""Labels of a region, Lizard's or the user's own: read, with everything checked that can be wrong.

Both give the same three arrays: inst_map (H, W), 0 where background, else the id of a nucleus; ids
(N,), the nuclei in any order; classes (N,), the class of each, from 1. All are int32.
"""

import math
from pathlib import Path

import numpy as np

from config import Config, UserError
from medood.data.images import read_bytes, refuse_huge, refuse_unfit

BACKGROUND = 0
BACKGROUND_COLOUR = "#ffffff"

Label = tuple[np.ndarray, np.ndarray, np.ndarray]  # inst_map, ids, classes
NUMBERS = (
    "logical",
    "double",
    "single",
    *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)),
)
KEYS = ("inst_map", "id", "class")  # of a Lizard file
LARGEST_ID = 2**24  # its table of classes has one byte each


def palette(classes: tuple[tuple[str, str], ...]) -> np.ndarray:
    """Return the colour of each value of a mask, RGB uint8 (1 + len(classes), 3)."""
    colours = [BACKGROUND_COLOUR, *(colour for _, colour in classes)]
    return np.array([tuple(bytes.fromhex(colour[1:])) for colour in colours], np.uint8)


def read_region_label(path: Path, cfg: Config) -> Label:
    """Return the label of a region as the settings say it is stored."""
    n_classes = len(cfg.class_names)
    if cfg.masks is None:
        return read_label(path, n_classes, cfg.max_pixels)
    return read_own_mask(path, cfg.mask_values, n_classes, cfg.max_pixels)


def read_label(path: Path, n_classes: int, max_pixels: int = Config.max_pixels) -> Label:
    """Return the label that a Lizard .mat file holds.

    n_classes: background included. Raises UserError, naming the file, for anything that is not such
    a file, and for an id of the map that the file does not list.
    """
    from scipy.io import loadmat, whosmat  # here: they double the time that --help takes

    try:
        for name, shape, kind in whosmat(path):
            if name in KEYS and kind not in NUMBERS:  # a cell may hold any size
                raise UserError(f"{path}: `{name}` is of kind {kind}, expected whole numbers")
            if name in KEYS:
                refuse_huge(path, math.prod(map(int, shape)), max_pixels)
        content = loadmat(path, variable_names=KEYS)
    except UserError:
        raise
    except Exception as error:  # scipy raises a dozen kinds for a damaged file
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's fault, not the file's
        raise UserError(f"{path} is not a readable .mat file ({error}): unpack it again") from None
    for key in KEYS:
        values = content.get(key)
        if not isinstance(values, np.ndarray):
            raise UserError(f"{path} has no `{key}`: unpack Lizard's labels again")
        whole = values.dtype.kind in "iuf" and (values.size == 0 or (values % 1 == 0).all())
        if not whole or (values.size and not 0 <= values.min() <= values.max() < LARGEST_ID):
            raise UserError(f"{path}: `{key}` holds something else than whole numbers from 0 up")
    inst_map, ids, classes = (content[key].astype(np.int32) for key in KEYS)
    ids, classes = ids.ravel(), classes.ravel()
    if inst_map.ndim != 2 or inst_map.size == 0:
        raise UserError(f"{path}: `inst_map` has shape {inst_map.shape}, expected (height, width)")
    if len(ids) != len(classes):
        raise UserError(f"{path}: {len(ids)} values in `id` but {len(classes)} in `class`")
    if len(np.unique(ids)) < len(ids) or (ids == BACKGROUND).any():
        raise UserError(f"{path}: `id` lists a nucleus twice, or 0, which is background")
    if len(classes) and not 1 <= classes.min() <= classes.max() < n_classes:
        wrong = next(value for value in classes if not 1 <= value < n_classes)
        raise UserError(f"{path}: `class` holds {wrong}, expected 1..{n_classes - 1}")
    listed = np.zeros(max(inst_map.max(), ids.max(initial=0)) + 1, bool)
    listed[ids] = listed[BACKGROUND] = True
    if not (known := listed[inst_map]).all():
        raise UserError(f"{path}: inst_map holds nucleus {inst_map[~known][0]}, `id` does not")
    return inst_map, ids, classes


def read_own_mask(
    path: Path,
    mask_values: tuple[int, ...],
    n_classes: int,
    max_pixels: int = Config.max_pixels,
) -> Label:
    """Return a class mask of the user's as a label: a nucleus is touching pixels of one class.

    mask_values: what stands for each class; if empty, 1 up to n_classes - 1. Raises UserError for
    a mask with any other value.
    """
    from PIL import Image  # OpenCV would turn the values of a palette image into colours
    from skimage.measure import label

    refuse_unfit(path, read_bytes(path), max_pixels, deep=True)
    try:
        with Image.open(path) as file:
            mask = np.array(file)
    except Exception as error:  # Pillow raises a dozen kinds for a damaged file
        raise UserError(f"{path} is not a readable mask ({error}): save it again") from None
    if mask.ndim == 3 and (mask[..., :1] == mask[..., :3]).all():
        mask = mask[..., 0]  # grey, saved as RGB
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise UserError(
            f"{path} is a mask in colour: save it with one channel of whole numbers, 0 background"
            " and others as mask_values lists them"
        )
    known = np.array([BACKGROUND, *(mask_values or range(1, n_classes))])
    order = np.argsort(known)
    place = np.searchsorted(known[order], mask).clip(max=len(known) - 1)
    found = order[place]
    wrong = known[found] != mask
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise UserError(
            f"{path} holds the value {mask[row, column]} in {wrong.sum()} pixels (x {column},"
            f" y {row} is the first), expected {', '.join(map(str, known))}: set mask_values to"
            " what stands for each of the classes"
        )
    inst_map, count = label(found, background=BACKGROUND, connectivity=2, return_num=True)
    classes = np.zeros(count + 1, np.int32)
    classes[inst_map] = found  # every pixel of a nucleus has its class
    return inst_map.astype(np.int32), np.arange(1, count + 1, dtype=np.int32), classes[1:]
