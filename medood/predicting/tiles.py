"""A network applied to an image of any size: overlapping tiles that fade into each other."""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from medood.data.labels import BACKGROUND
from medood.models.inference import Predictor
from medood.predicting.slides import Source

OVERLAP = 64  # pixels that neighbouring tiles share
GLASS = 24  # grey levels: a tile whose channels vary less is empty; the network is not run


def positions(length: int, tile: int) -> list[int]:
    """Return where tiles begin so that they cover `length` pixels, OVERLAP of each shared."""
    return list(range(0, max(1, length - OVERLAP), tile - OVERLAP))


def fade(tile: int) -> Tensor:
    """Return the weight of each pixel along a tile's side, float32 (tile,): rising, 1, falling.

    Where two tiles overlap, their weights add up to 1.
    """
    ramp = torch.arange(1, OVERLAP + 1) / (OVERLAP + 1)
    return torch.cat([ramp, torch.ones(tile - 2 * OVERLAP), ramp.flip(0)])


def strips(
    predictor: Predictor, source: Source, height: int, width: int, tile: int, task: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield an image from top to bottom: its rows, their classes, and their probabilities.

    The image is resized to height x width pixels; one strip of `tile` rows, of it and of the
    probabilities, is in memory. Yields RGB uint8 (n, width, 3), the class of each pixel, uint8
    (n, width), and the probability of that class in 255ths, uint8 (n, width).
    """
    tops, lefts = positions(height, tile), positions(width, tile)
    full = lefts[-1] + tile  # the last tiles reach beyond the image, which is mirrored there
    side = fade(tile).to(predictor.device)
    weight = side[:, None] * side
    # of weighted probabilities, and of the weights
    sums = weight.new_zeros(predictor.classes + 1, tile, full)
    with tqdm(total=len(tops) * len(lefts), desc=task, leave=False, disable=None) as progress:
        for top in tops:
            bottom = min(top + tile, height)
            rows = source.rows(top, bottom, height, width)
            beyond = tile - (bottom - top), full - width
            framed = cv2.copyMakeBorder(rows, 0, beyond[0], 0, beyond[1], cv2.BORDER_REFLECT)
            for left, probability in _probabilities(predictor, framed, lefts, tile):
                part = sums[..., left : left + tile]
                part[-1] += weight
                if probability is None:
                    part[BACKGROUND] += weight
                else:
                    part[:-1].addcmul_(probability, weight)
                progress.update()
            done = bottom - top if top == tops[-1] else tile - OVERLAP
            best, classes = sums[:-1, :done, :width].max(0)
            best.div_(sums[-1, :done, :width]).mul_(255).round_().clamp_(max=255)
            yield rows[:done], *(found.to("cpu", torch.uint8).numpy() for found in (classes, best))
            # what the next tiles share with these moves up
            sums[:, :OVERLAP] = sums[:, -OVERLAP:]
            sums[:, OVERLAP:] = 0


def _probabilities(
    predictor: Predictor, strip: np.ndarray, lefts: list[int], tile: int
) -> Iterator[tuple[int, Tensor | None]]:
    """Yield where each tile of a strip begins, and its probabilities, float32 (C, tile, tile).

    None stands for a tile of glass: background, without running the network.
    """
    busy = []
    for left in lefts:
        ranges = [cv2.minMaxLoc(channel)[:2] for channel in cv2.split(strip[:, left : left + tile])]
        if all(most - least <= GLASS for least, most in ranges):
            yield left, None
        else:
            busy.append(left)
    # as many pixels at once as in mining and testing
    size = max(1, predictor.at_once * 128**2 // tile**2)
    for start in range(0, len(busy), size):
        group = busy[start : start + size]
        images = np.stack([strip[:, left : left + tile] for left in group])
        yield from zip(group, predictor(torch.from_numpy(images)), strict=True)
