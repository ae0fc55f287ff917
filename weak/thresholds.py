"""Where to cut a map, without any pixel label: the image labels give the frequency of a class.

At the threshold that as many training images reach as have the class, maps agree with the labels.
The pixels above it are the class's area; maps of other kinds are cut to the same area.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from medood.data.labels import UNSURE


def detection_threshold(maxima: Tensor, held: Tensor) -> float:
    """Return the value that as many of N images exceed as have a class.

    maxima: the highest value of each image's map, (N,). held: bool (N,), neither all nor none.
    """
    ordered = maxima.sort(descending=True).values
    count = int(held.sum())
    return float((ordered[count - 1] + ordered[count]) / 2)


def areas(maps: Tensor, held: Tensor) -> list[float]:
    """Return the share of pixels that a class covers in the images with it, by class.

    It is at least a pixel, as an image with a class shows it. maps: raw ones of all training
    images, with the class or not, (N, C, h, w). held: bool (N, C).
    """
    pixel = 1 / maps[0, 0].numel()
    return [
        max(pixel, area_above(of_class[has], detection_threshold(of_class.amax((1, 2)), has)))
        for of_class, has in zip(maps.unbind(1), held.unbind(1), strict=True)
    ]


def thresholds_of(maps: Tensor, held: Tensor, areas: list[float]) -> list[float]:
    """Return the threshold of each class that gives it an area, on average over images with it.

    The area is at least a pixel, as in `areas`. maps: (N, C, h, w). held: bool (N, C). areas: as
    the function of that name returns them.
    """
    pixel = 1 / maps[0, 0].numel()
    by_class = zip(maps.unbind(1), held.unbind(1), areas, strict=True)
    return [threshold_of(of_class[has], max(pixel, area)) for of_class, has, area in by_class]


def area_above(maps: Tensor, threshold: float) -> float:
    """Return the share of all pixels of maps (n, h, w) that are above a threshold."""
    return (maps > threshold).float().mean().item()


def threshold_of(maps: Tensor, area: float) -> float:
    """Return the value above which a share `area` of all pixels of maps (n, h, w) is."""
    ordered = maps.flatten().sort(descending=True).values
    place = min(round(area * len(ordered)), len(ordered) - 1)
    return float(ordered[place])


def masks_of(maps: Tensor, held: Tensor, thresholds: list[float]) -> Tensor:
    """Return the class of each pixel, uint8 (N, h, w), 0 where no class reaches its threshold.

    Of several, the class that exceeds its own threshold by the largest factor. maps: from 0,
    (N, C, h, w). held: bool (N, C). thresholds: of each class, above 0.
    """
    factors = maps / torch.tensor(thresholds).clamp_min(1e-6).view(-1, 1, 1)
    top, best = factors.masked_fill(~held[:, :, None, None], 0).max(1)
    return torch.where(top > 1, best + 1, 0).to(torch.uint8)


def masks_with_unsure(maps: Tensor, held: Tensor, limits: Sequence[list[float]]) -> Tensor:
    """Return the class of each pixel, as masks_of does, UNSURE where two thresholds differ.

    limits: strict and generous thresholds, as masks_of takes them.
    """
    inner, outer = (masks_of(maps, held, thresholds) for thresholds in limits)
    return torch.where(inner == outer, inner, UNSURE).to(torch.uint8)
