"""Scores, from one confusion matrix of a whole test fold, and the paper's own, patch by patch.

C = 7 classes, 0 is background. Every mean over foreground classes runs over those that occur in the
*truth*: the same set for every network compared on the fold, whatever it predicts.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medood.classes import BACKGROUND, N_CLASSES


def confusion(truth: Tensor, predicted: Tensor) -> Tensor:
    """Return pixel counts int64 (C, C), rows the truth; arguments: integers of one shape."""
    pairs = truth.long() * N_CLASSES + predicted.long()
    return torch.bincount(pairs.flatten(), minlength=N_CLASSES**2).view(N_CLASSES, N_CLASSES)


def paper_iou_dice(probability: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and Dice of each patch, (N,), as Table 1 of the paper measures them.

    probability: (N, C, H, W). truth: (N, H, W). Both scores take the whole one-hot mask, background
    included, as one set of pixels, and a pixel as predicted where its probability reaches 0.5.
    """
    predicted = (probability >= 0.5).sum((1, 2, 3)).double()
    true = truth.shape[1] * truth.shape[2]  # each pixel has one true class
    of_truth = probability.gather(1, truth.long()[:, None])
    hit = (of_truth >= 0.5).sum((1, 2, 3)).double()
    return hit / (predicted + true - hit), 2 * hit / (predicted + true)


def summarise(matrix: np.ndarray, iou_paper: np.ndarray, dice_paper: np.ndarray) -> dict:
    """Return every score of a test fold, as plain numbers, None where one is not defined.

    matrix: (C, C) from `confusion`. iou_paper, dice_paper: (N,), from `paper_iou_dice`.
    """
    matrix = matrix.astype(float)
    hit, true, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    present = true > 0
    iou = np.divide(hit, true + predicted - hit, out=np.full(N_CLASSES, np.nan), where=present)
    dice = np.divide(2 * hit, true + predicted, out=np.full(N_CLASSES, np.nan), where=present)
    foreground = np.arange(N_CLASSES) != BACKGROUND
    fg_pixels, bg_pixels = true[foreground].sum(), true[BACKGROUND]
    fg_called_bg = matrix[foreground, BACKGROUND].sum()
    fg_confused = matrix[np.ix_(foreground, foreground)].sum() - hit[foreground].sum()
    bg_called_fg = matrix[BACKGROUND, foreground].sum()

    def share(part: float, whole: float) -> float | None:
        return float(part / whole) if whole else None

    def mean(values: np.ndarray) -> float | None:
        return float(values.mean()) if len(values) else None

    return {
        "miou": mean(iou[present & foreground]),
        "dsc": mean(dice[present & foreground]),
        "miou_paper": mean(iou_paper),
        "dsc_paper": mean(dice_paper),
        "fg_to_bg": share(fg_called_bg, fg_pixels),
        "bg_to_fg": share(bg_called_fg, bg_pixels),
        "fg_to_fg": share(fg_confused, fg_pixels),
        "iou": [None if np.isnan(value) else float(value) for value in iou],
        "dice": [None if np.isnan(value) else float(value) for value in dice],
        "confusion": matrix.astype(int).tolist(),
    }


class Tally:
    """The scores of one network, gathered batch by batch over a test fold."""

    def __init__(self) -> None:
        self.matrix = torch.zeros(N_CLASSES, N_CLASSES, dtype=torch.int64)
        self.iou_paper: list[Tensor] = []
        self.dice_paper: list[Tensor] = []

    def add(self, probability: Tensor, truth: Tensor) -> None:
        """Count patches: probability (n, C, H, W), truth (n, H, W)."""
        self.matrix += confusion(truth, probability.argmax(1)).cpu()
        iou, dice = paper_iou_dice(probability, truth)
        self.iou_paper.append(iou.cpu())
        self.dice_paper.append(dice.cpu())

    def scores(self) -> dict:
        """Return what `summarise` makes of all patches added."""
        per_patch = (torch.cat(values).numpy() for values in (self.iou_paper, self.dice_paper))
        return summarise(self.matrix.numpy(), *per_patch)


def all_background(truth: Tensor) -> Tensor:
    """Return the probabilities (n, C, H, W) of a network that answers background everywhere."""
    return F.one_hot(torch.zeros_like(truth, dtype=torch.int64), N_CLASSES).permute(0, 3, 1, 2)
