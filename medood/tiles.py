"""An image of any size through a network: overlapping tiles that fade into each other."""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from tqdm import tqdm

from medood.inference import BATCH, Answer
from medood.slides import Source

OVERLAP = 64  # pixels that neighbouring tiles share
GLASS = 24  # grey levels: a tile whose channels vary less shows nothing, and no network is asked


def positions(length: int, tile: int) -> list[int]:
    """Return where tiles begin so that they cover `length` pixels, OVERLAP of each shared."""
    return list(range(0, max(1, length - OVERLAP), tile - OVERLAP))


def fade(tile: int) -> np.ndarray:
    """Return the weight of each pixel along a tile's side, float32 (tile,): rising, 1, falling.

    Where two tiles overlap, their weights add up to 1.
    """
    ramp = np.arange(1, OVERLAP + 1, dtype=np.float32) / (OVERLAP + 1)
    weight = np.ones(tile, np.float32)
    weight[:OVERLAP], weight[-OVERLAP:] = ramp, ramp[::-1]
    return weight


def strips(
    answer: Answer, source: Source, height: int, width: int, tile: int, task: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield an image from top to bottom: its rows, their classes, and how sure the network is.

    The image is brought to height x width pixels; of it, and of the probabilities, one strip of
    `tile` rows is in memory. Yields RGB uint8 (n, width, 3), the class of each pixel, uint8
    (n, width), and the probability of that class in 255ths, uint8 (n, width).
    """
    tops, lefts = positions(height, tile), positions(width, tile)
    full = lefts[-1] + tile  # the last tiles reach beyond the image, which is mirrored there
    weight = fade(tile)
    across, down = np.zeros(full, np.float32), np.zeros(tile, np.float32)
    for left in lefts:
        across[left : left + tile] += weight
    sums = np.zeros((tile, full, answer.classes), np.float32)  # of weighted probabilities
    with tqdm(total=len(tops) * len(lefts), desc=task, leave=False, disable=None) as bar:
        for top in tops:
            bottom = min(top + tile, height)
            rows = source.rows(top, bottom, height, width)
            beyond = tile - (bottom - top), full - width
            framed = cv2.copyMakeBorder(rows, 0, beyond[0], 0, beyond[1], cv2.BORDER_REFLECT)
            for left, probability in _probabilities(answer, framed, lefts, tile):
                sums[:, left : left + tile] += np.outer(weight, weight)[..., None] * probability
                bar.update()
            down += weight
            done = bottom - top if top == tops[-1] else tile - OVERLAP
            ready = sums[:done, :width]
            certainty = ready.max(2) / np.outer(down[:done], across[:width])
            yield (
                rows[:done],
                ready.argmax(2).astype(np.uint8),
                np.rint(255 * certainty.clip(0, 1)).astype(np.uint8),
            )
            # what the next tiles share with these moves up
            sums[:OVERLAP], down[:OVERLAP] = sums[-OVERLAP:].copy(), down[-OVERLAP:].copy()
            sums[OVERLAP:], down[OVERLAP:] = 0, 0


def _probabilities(
    answer: Answer, strip: np.ndarray, lefts: list[int], tile: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield where each tile of a strip begins, and its probabilities, float32 (tile, tile, C)."""
    tiles = {left: strip[:, left : left + tile] for left in lefts}
    glass = np.zeros(answer.classes, np.float32)
    glass[0] = 1
    busy = []
    for left, image in tiles.items():
        if (np.ptp(image.reshape(-1, 3), axis=0) <= GLASS).all():
            yield left, glass
        else:
            busy.append(left)
    # as many pixels at a time as in mining and testing
    size = max(1, BATCH.get(answer.device.type, BATCH["cpu"]) * 128**2 // tile**2)
    for start in range(0, len(busy), size):
        group = busy[start : start + size]
        images = torch.from_numpy(np.stack([tiles[left] for left in group]))
        found = answer(images).permute(0, 2, 3, 1).cpu().numpy()
        yield from zip(group, found, strict=True)
