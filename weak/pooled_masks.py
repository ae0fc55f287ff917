"""From the maps of --method unet to masks: the evidence of brightness is added.

A map is the log-odds of a class against background, so a mask ends at a probability of a half. A
training image is unsure around it; a test image is not.
"""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from torch import Tensor

from medood.data.files import in_threads
from medood.data.labels import UNSURE

LEVELS, BLUR = 32, 1.5 / 64  # of brightness; of an image's side


def appearance(maps: Tensor, images: Tensor, held: Tensor) -> Tensor:
    """Return the log-ratio of each level of brightness, by class: (C, LEVELS).

    It is log P(level | class) - log P(level | not) over the pixels of the images with the class,
    each of which counts on both sides, by its probability. maps: (N, C, P, P). images: RGB
    uint8 (N, P, P, 3). held: bool (N, C).
    """
    levels, found = levels_of(images), []
    for of_class, has in zip(maps.unbind(1), held.unbind(1), strict=True):
        likely = of_class[has].sigmoid()[..., None].expand(*of_class[has].shape, 3)
        sides = [
            torch.bincount(levels[has].flatten(), part.flatten(), LEVELS).numpy() + 1.0
            for part in (likely, 1 - likely)
        ]
        inside, outside = (gaussian_filter1d(side / side.sum(), 1) for side in sides)
        found.append(torch.from_numpy(np.log(inside / outside)))
    return torch.stack(found).float()


def with_appearance(maps: Tensor, images: Tensor, ratio: Tensor) -> Tensor:
    """Return maps plus the log-ratios of their pixels, as if independent (naive Bayes).

    It is the mean over the three colours. maps, images and ratio: as in `appearance`.
    """
    levels = levels_of(images)
    said = [of_class[levels].mean(3) for of_class in ratio]
    return maps + torch.stack(said, 1)


def levels_of(images: Tensor) -> Tensor:
    """Return the level of brightness around each pixel and colour, int64 (N, P, P, 3)."""
    sigma = BLUR * images.shape[1]

    def levels(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image.astype(np.float32), (sigma, sigma, 0)) * (LEVELS / 256)

    return torch.from_numpy(np.stack(in_threads(levels, images.numpy()))).long()


def masks_of(maps: Tensor, held: Tensor) -> Tensor:
    """Return the class of each pixel, uint8 (N, P, P): the most likely present, if above a half.

    maps: log-odds (N, C, P, P). held: bool (N, C).
    """
    top, best = maps.masked_fill(~held[:, :, None, None], -torch.inf).max(1)
    return torch.where(top > 0, best + 1, 0).to(torch.uint8)


def masks_with_unsure(maps: Tensor, held: Tensor, unsure: float) -> Tensor:
    """Return the class of each pixel, as masks_of does, UNSURE within `unsure` of a half.

    A mask that lacks a class of its image contradicts the label: its background is unsure.
    """
    margin = torch.tensor(0.5 + unsure).logit()
    inner, outer = (masks_of(maps + shift, held) for shift in (-margin, margin))
    masks = torch.where(inner == outer, inner, UNSURE).to(torch.uint8)
    for value, has in enumerate(held.unbind(1), 1):
        lacks = has & ~(masks == value).flatten(1).any(1)
        masks[lacks] = masks[lacks].masked_fill(masks[lacks] == 0, UNSURE)
    return masks
