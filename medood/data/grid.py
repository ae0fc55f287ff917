"""How a region is cut into patches: padded with zeros on all sides, then row by row."""

import numpy as np


def padding(side: int, patch_size: int) -> tuple[int, int]:
    """Return the pixels to add before and after `side` to reach a multiple of `patch_size`."""
    missing = -side % patch_size
    return missing // 2, missing - missing // 2


def tile(image: np.ndarray, patch_size: int) -> np.ndarray:
    """Cut (H, W, ...) into (N, P, P, ...), row by row, zero-padded on all sides where needed."""
    rows, columns = (padding(side, patch_size) for side in image.shape[:2])
    padded = np.pad(image, [rows, columns] + [(0, 0)] * (image.ndim - 2))
    height, width = (side // patch_size for side in padded.shape[:2])
    grid = padded.reshape(height, patch_size, width, patch_size, *image.shape[2:])
    return grid.swapaxes(1, 2).reshape(-1, patch_size, patch_size, *image.shape[2:])


def join(patches: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the region (height, width) of its patches (N, P, P), as `tile` cut it."""
    side = patches.shape[1]
    top, left = padding(height, side)[0], padding(width, side)[0]
    columns = -(-width // side)
    grid = patches.reshape(-1, columns, side, side).swapaxes(1, 2)
    return grid.reshape(-1, columns * side)[top : top + height, left : left + width]
