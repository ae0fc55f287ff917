"""The true objects that a network finds, by their size.

An object is found if at least half of its pixels are predicted as its class. Its size is its number
of pixels. Sizes are counted in fine bins, quarters of an octave, so that counts of images add up;
they are merged into BINS wide ones, of as many objects each as possible, when all are known.
"""

import numpy as np
from skimage.measure import label

from medood.data.labels import UNSURE

STEPS = 4  # fine bins of an octave
SIZES = 25 * STEPS  # fine bins: the last one ends at 2^25 pixels
BINS = 4
FOUND = 0.5  # share of its pixels


def objects_of(mask: np.ndarray) -> np.ndarray:
    """Return the connected components of one class each, integers (*space), 0 outside.

    mask: the class of each pixel, integers (*space). Pixels that touch at a corner belong together.
    """
    return label(np.where(mask == UNSURE, 0, mask), background=0)


def without_cut(objects: np.ndarray) -> np.ndarray:
    """Return objects without those that touch the border, whose size is unknown."""
    inner = objects.copy()
    for axis in range(objects.ndim):
        for end in (0, -1):
            inner[np.isin(inner, objects.take(end, axis))] = 0
    return inner


def count_found(objects: np.ndarray, mask: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return how many objects of each size there are, and how many are found, integers (SIZES, 2).

    objects: numbers (*space), 0 outside. mask, predicted: the true and the predicted class.
    """
    inside = objects > 0
    numbers = objects[inside]
    area = np.bincount(numbers)
    hit = np.bincount(numbers, (predicted == mask)[inside], len(area))
    area, hit = area[there := area > 0], hit[there]
    size = np.floor(STEPS * np.log2(area)).astype(int).clip(max=SIZES - 1)
    every = np.bincount(size, minlength=SIZES)
    found = np.bincount(size[hit >= FOUND * area], minlength=SIZES)
    return np.stack([every, found], 1)


def wide_bins(objects: np.ndarray, unit: str = "px") -> dict[str, slice]:
    """Return at most BINS slices of the fine bins, of as many objects each as possible.

    objects: how many there are in each fine bin, (SIZES,). A key names the sizes of a slice.
    """
    reached = np.cumsum(objects) / max(objects.sum(), 1)
    inner = [int(np.abs(reached - part / BINS).argmin()) + 1 for part in range(1, BINS)]
    edges = sorted({0, SIZES, *(edge for edge in inner if 0 < reached[edge - 1] < 1)})
    least = [int(np.ceil(2 ** (edge / STEPS))) for edge in edges]
    named = {}
    for start, stop, low, high in zip(edges, edges[1:], least, least[1:], strict=False):
        text = f"{low} to {high - 1} {unit}"
        if stop == SIZES:
            text = f"from {low} {unit}" if start else "all"
        named[text if start or stop == SIZES else f"up to {high - 1} {unit}"] = slice(start, stop)
    return named


def by_size(counts: np.ndarray, bins: dict[str, slice]) -> dict[str, dict]:
    """Return how many objects there are in each of some bins, and the share that is found.

    counts: (SIZES, 2), see count_found. The share is None without any object.
    """
    every, found = np.array([counts[of_bin].sum(0) for of_bin in bins.values()]).T.tolist()
    shares = [hit / whole if whole else None for hit, whole in zip(found, every, strict=True)]
    return {
        "objects_by_size": dict(zip(bins, every, strict=True)),
        "found_by_size": dict(zip(bins, shares, strict=True)),
    }
