"""Masks that end where the brightness changes: for lesions brighter or darker than their surrounds.

A map knows where a lesion is, but it ends where the classifier stops seeing it. Around each
connected region of a mask, Otsu's threshold splits the brightness in two, and the side that is the
lesion's in the training images becomes the mask. No true mask is read.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import binary_dilation, binary_propagation, find_objects, label
from skimage.filters import threshold_otsu
from torch import Tensor

from medood.data.files import in_threads
from medood.data.labels import BACKGROUND, UNSURE, is_foreground

GROWN = 3 / 64  # of an image's side: how far a lesion may exceed its region


def outlined(masks: Tensor, images: Tensor, training: Sequence[int], classes: int) -> Tensor:
    """Return masks, uint8 (N, P, P), in which each region ends where the brightness changes.

    Whether a class is brighter than its surrounds is decided once, by the training images.
    images: RGB uint8 (N, P, P, 3). training: the indices of those that train. classes: with
    background.
    """
    pairs = [*zip(images.numpy().mean(3), masks.numpy(), strict=True)]
    learned = [pairs[index] for index in training]
    is_brighter = {value: brighter_by(learned, value) > 0 for value in range(1, classes)}
    found = in_threads(lambda pair: outline(*pair, is_brighter), pairs, "outlines")
    return torch.from_numpy(np.stack(found))


def brighter_by(pairs: list[tuple[np.ndarray, np.ndarray]], value: int) -> float:
    """Return by how much a class is brighter than the margin around it, the mean over images.

    It is 0 if no image shows both. pairs: brightness (P, P) and mask, uint8 (P, P), of each image.
    """
    found = []
    for grey, mask in pairs:
        inside = mask == value
        margin = binary_dilation(inside, iterations=margin_of(mask)) & ~is_foreground(mask)
        if inside.any() and margin.any():
            found.append(grey[inside].mean() - grey[margin].mean())
    return float(np.mean(found)) if found else 0.0


def outline(grey: np.ndarray, mask: np.ndarray, is_brighter: dict[int, bool]) -> np.ndarray:
    """Return a mask, uint8 (P, P), whose regions end where the brightness, (P, P), changes.

    Each region is grown by GROWN, but not into another one. Of the pixels there, those on the
    class's side of Otsu's threshold replace it, if connected to it; all others become background.
    A region without such pixels vanishes. is_brighter: by class.
    """
    out, grown = np.where(mask == UNSURE, UNSURE, BACKGROUND).astype(np.uint8), margin_of(mask)
    for value, brighter in is_brighter.items():
        regions, _ = label(mask == value)
        for number, found in enumerate(find_objects(regions), 1):
            box = tuple(slice(max(0, side.start - grown), side.stop + grown) for side in found)
            region, of_box = regions[box] == number, grey[box]
            around = binary_dilation(region, iterations=grown)
            around &= region | ~is_foreground(mask[box])
            kept = region
            if np.ptp(of_box[around]):
                is_class = (of_box > threshold_otsu(of_box[around])) == brighter
                kept = binary_propagation(region & is_class, mask=is_class & around)
            out[box][around & (out[box] == UNSURE)] = BACKGROUND
            out[box][kept] = value
    return out


def margin_of(mask: np.ndarray) -> int:
    """Return by how many pixels a region of a mask (P, P) is grown: one at least."""
    return max(1, round(GROWN * len(mask)))
