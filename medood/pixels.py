"""Counts of pixels, and the scores computed from them: needs only torch and NumPy."""

import numpy as np
import torch
from torch import Tensor

from medood import BACKGROUND, UNSURE


def confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Return the pixel counts of each patch, int64 (n, C, C), rows the ground truth.

    truth, predicted: integers (n, H, W), below C = classes; truth may be UNSURE.
    """
    cells = len(truth) * classes**2
    patch = torch.arange(len(truth), device=truth.device).view(-1, 1, 1)
    cell = (patch * classes + truth) * classes + predicted
    cell = cell.where(truth != UNSURE, cells)  # one more, which is left out
    counts = torch.bincount(cell.flatten(), minlength=cells + 1)[:cells]
    return counts.view(-1, classes, classes)


def scores_of(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores of confusion matrices (..., C, C); NaN where one is not defined.

    `iou` and `dice` are (..., C), NaN for a class absent from the ground truth; `miou`, `dsc`,
    `fg_to_bg`, `bg_to_fg` and `fg_to_fg` are (...).
    """
    fg = slice(BACKGROUND + 1, None)
    hit, true, predicted = matrix.diagonal(axis1=-2, axis2=-1), matrix.sum(-1), matrix.sum(-2)
    fg_pixels, fg_called_bg = true[..., fg].sum(-1), matrix[..., fg, BACKGROUND].sum(-1)
    iou = ratio(hit, true + predicted - hit, where=true > 0)
    dice = ratio(2 * hit, true + predicted, where=true > 0)
    occur = (true[..., fg] > 0).sum(-1)
    return {
        "miou": ratio(np.nansum(iou[..., fg], -1), occur),
        "dsc": ratio(np.nansum(dice[..., fg], -1), occur),
        "fg_to_bg": ratio(fg_called_bg, fg_pixels),
        "bg_to_fg": ratio(matrix[..., BACKGROUND, fg].sum(-1), true[..., BACKGROUND]),
        "fg_to_fg": ratio(fg_pixels - fg_called_bg - hit[..., fg].sum(-1), fg_pixels),
        "iou": iou,
        "dice": dice,
    }


def ratio(part: np.ndarray, whole: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Return part / whole, NaN where `where` (by default: whole above 0) does not hold."""
    where = whole > 0 if where is None else where
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=where)
