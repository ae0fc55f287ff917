"""Labels of a region, Lizard's or the user's: read, with every mistake in them reported.

Both give the same three int32 arrays: inst_map (H, W), 0 where background, UNSURE_ID where unsure
(Lizard never is), else the id of a nucleus; ids (N,), the nuclei in any order; classes (N,), the
class of each, from 1.

In a class mask, UNSURE marks the pixels whose class is unknown. They count in no loss and no score,
and neither as foreground nor as background.
"""

import math
import re
from pathlib import Path
from typing import TypeVar

import numpy as np

from config import Config, UserError
from medood import BACKGROUND, UNSURE
from medood.data.headers import refuse_huge
from medood.data.images import read_values

BACKGROUND_COLOUR, UNSURE_COLOUR = "#ffffff", "#c0c0c0"
UNSURE_ID = -1  # in an inst_map: no nucleus

Array = TypeVar("Array")  # of NumPy or torch
Label = tuple[np.ndarray, np.ndarray, np.ndarray]  # inst_map, ids, classes
KEYS = ("inst_map", "id", "class")  # of a Lizard file
NUMBERS = "logical|double|single|u?int(8|16|32|64)"  # what scipy calls arrays of numbers
LARGEST_ID = 2**24  # the table from ids to classes has one byte each


def palette(classes: tuple[tuple[str, str], ...]) -> np.ndarray:
    """Return the colour of each value of a mask, RGB uint8 (1 + len(classes), 3)."""
    colours = [BACKGROUND_COLOUR, *(colour for _, colour in classes)]
    return np.array([tuple(bytes.fromhex(colour[1:])) for colour in colours], np.uint8)


def is_foreground(mask: Array) -> Array:
    """Say which pixels of a class mask are of a nucleus."""
    return (mask != BACKGROUND) & (mask != UNSURE)


def no_nucleus(cfg: Config) -> str:
    """Return what to say if no label contains a nucleus."""
    cure = f", and set mask_values if {UNSURE} is a class there: otherwise it means unsure"
    return f"no label contains a nucleus: check the labels{'' if cfg.masks is None else cure}"


def read_region_label(path: Path, cfg: Config) -> Label:
    """Return the label of a region as the settings say it is stored."""
    n_classes = len(cfg.class_names)
    if cfg.masks is None:
        return read_label(path, n_classes)
    return read_own_mask(path, cfg.mask_values, n_classes)


def read_label(path: Path, n_classes: int) -> Label:
    """Return the label in a Lizard .mat file.

    n_classes: background included. Raises UserError, naming the file, for any other file, and for
    an id of the map that the file does not list.
    """
    content = _load_mat(path)
    inst_map, ids, classes = content["inst_map"], content["id"].ravel(), content["class"].ravel()
    is_listed = np.zeros(max(inst_map.max(initial=0), ids.max(initial=0)) + 1, bool)
    is_listed[ids] = is_listed[BACKGROUND] = True
    unlisted = inst_map[~is_listed[inst_map]]
    wrong = classes[(classes < 1) | (classes >= n_classes)]
    is_map = inst_map.ndim == 2 and inst_map.size > 0
    is_unique = len(np.unique(ids)) == len(ids) and BACKGROUND not in ids
    for holds, problem in (
        (is_map, f"`inst_map` has shape {inst_map.shape}, expected (height, width)"),
        (len(ids) == len(classes), f"{len(ids)} values in `id` but {len(classes)} in `class`"),
        (is_unique, "`id` lists a nucleus twice, or 0, which is background"),
        (not wrong.size, f"`class` contains {wrong.max(initial=0)}, expected 1..{n_classes - 1}"),
        (not unlisted.size, f"inst_map contains nucleus {unlisted.max(initial=0)}, `id` does not"),
    ):
        if not holds:
            raise UserError(f"{path}: {problem}: correct the file, or unpack it again")
    return inst_map, ids, classes


def _load_mat(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays named in KEYS of a .mat file, int32; UserError if one is missing."""
    from scipy.io import loadmat, whosmat  # here: they double the time that --help takes

    try:
        for name, shape, kind in whosmat(path):
            if name in KEYS and not re.fullmatch(NUMBERS, kind):  # a cell may have any size
                raise UserError(
                    f"{path}: `{name}` is of kind {kind}, expected whole numbers: unpack it again"
                )
            if name in KEYS:
                refuse_huge(path, math.prod(map(int, shape)))
        content = loadmat(path, variable_names=KEYS)
    except UserError:
        raise
    except NotImplementedError:  # HDF5
        raise UserError(
            f"{path} is a .mat file of version 7.3, which is not supported: run in MATLAB"
            f" `s = load('{path}'); save('{path}', '-struct', 's', '-v7')`"
        ) from None
    except Exception as error:  # scipy raises a dozen kinds for a damaged file
        raise UserError(f"{path} is not a readable .mat file ({error}): unpack it again") from None
    for key in KEYS:
        values = content.get(key)
        if not isinstance(values, np.ndarray):
            raise UserError(f"{path} has no `{key}`: unpack it again")
        whole = values.dtype.kind in "iuf" and (values % 1 == 0).all()
        if not whole or not 0 <= values.min(initial=0) <= values.max(initial=0) < LARGEST_ID:
            raise UserError(
                f"{path}: `{key}` has other values than whole numbers from 0: unpack it again"
            )
        content[key] = values.astype(np.int32)
    return content


def read_own_mask(path: Path, mask_values: tuple[int, ...], n_classes: int) -> Label:
    """Return a user-supplied class mask as a label: a nucleus is touching pixels of one class.

    mask_values: the value of each class; if empty, 1 up to n_classes - 1. A value UNSURE that is
    not a class is unsure. Raises UserError for a mask with any other value.
    """
    from skimage.measure import label

    mask = read_values(path)
    expected = (BACKGROUND, *(mask_values or range(1, n_classes)))
    if mask.dtype == bool:
        if len(expected) > 2:
            raise UserError(
                f"{path} has two colours, of {len(expected)} values: save it with 8 bits"
            )
        mask = np.where(mask, expected[1], BACKGROUND)
    class_mask = np.full(mask.shape, UNSURE, np.uint8)
    for value, stored in enumerate(expected):
        class_mask[mask == stored] = value
    unsure = class_mask == UNSURE
    unknown = np.argwhere(unsure & (mask != UNSURE))
    if len(unknown):
        row, column = unknown[0]
        raise UserError(
            f"{path} contains the value {mask[row, column]} in {len(unknown)} pixels (the first at"
            f" x {column}, y {row}), expected {', '.join(map(str, expected))}: set mask_values to"
            " the value of each class"
        )
    class_mask[unsure] = BACKGROUND  # so that it becomes no nucleus
    inst_map, count = label(class_mask, background=BACKGROUND, connectivity=2, return_num=True)
    classes = np.zeros(count + 1, np.int32)
    classes[inst_map] = class_mask  # every pixel of a nucleus has its class
    inst_map[unsure] = UNSURE_ID
    return inst_map.astype(np.int32), np.arange(1, count + 1, dtype=np.int32), classes[1:]
