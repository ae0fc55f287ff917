"""Scores, from one confusion matrix of a whole test fold, and the paper's own, patch by patch.

C classes, 0 is background. Every mean over foreground classes runs over those that occur in the
*truth*: the same set for every network compared on the fold, whatever it predicts.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medood.data.labels import BACKGROUND


def confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Return the pixel counts of each patch, int64 (n, C, C), rows the truth.

    truth, predicted: integers (n, H, W), below C = classes.
    """
    patch = torch.arange(len(truth), device=truth.device).view(-1, 1, 1)
    cell = (patch * classes + truth) * classes + predicted
    counts = torch.bincount(cell.flatten(), minlength=len(truth) * classes**2)
    return counts.view(-1, classes, classes)


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


def scores_of(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores of confusion matrices (..., C, C); NaN where one is not defined.

    `iou` and `dice` are (..., C), NaN for a class that does not occur in the truth; `miou`, `dsc`,
    `fg_to_bg`, `bg_to_fg` and `fg_to_fg` are (...).
    """
    matrix = matrix.astype(float)
    hit, true, predicted = matrix.diagonal(axis1=-2, axis2=-1), matrix.sum(-1), matrix.sum(-2)
    called_bg, fg = matrix[..., 1:, BACKGROUND].sum(-1), slice(1, None)  # background is 0
    fg_pixels, bg_called_fg = true[..., fg].sum(-1), matrix[..., BACKGROUND, fg].sum(-1)
    fg_confused = fg_pixels - called_bg - hit[..., fg].sum(-1)
    iou = _ratio(hit, true + predicted - hit, where=true > 0)
    dice = _ratio(2 * hit, true + predicted, where=true > 0)
    occurs = (true[..., fg] > 0).sum(-1)
    return {
        "miou": _ratio(np.nansum(iou[..., fg], -1), occurs),
        "dsc": _ratio(np.nansum(dice[..., fg], -1), occurs),
        "fg_to_bg": _ratio(called_bg, fg_pixels),
        "bg_to_fg": _ratio(bg_called_fg, true[..., BACKGROUND]),
        "fg_to_fg": _ratio(fg_confused, fg_pixels),
        "iou": iou,
        "dice": dice,
    }


def _ratio(part: np.ndarray, whole: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Return part / whole, NaN where `where` (by default: whole above 0) does not hold."""
    defined = whole > 0 if where is None else where
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=defined)


@dataclass(frozen=True)
class RegionCounts:
    """What a network got right in each of R regions: sums over their patches."""

    regions: list[str]
    confusion: np.ndarray  # integers (R, C, C), rows the truth
    iou_paper: np.ndarray  # (R,), the sum over the region's patches
    dice_paper: np.ndarray  # (R,)
    patches: np.ndarray  # (R,), their number


class Tally:
    """What a network got right in each of N patches: the scores of a test fold come from it."""

    def __init__(self, patches: int, classes: int) -> None:
        self.confusion = torch.zeros(patches, classes, classes, dtype=torch.int64)  # rows the truth
        self.iou_paper = torch.zeros(patches, dtype=torch.float64)
        self.dice_paper = torch.zeros(patches, dtype=torch.float64)

    def add(self, part: slice, probability: Tensor, truth: Tensor) -> None:
        """Count the patches `part`: probability (n, C, H, W), truth (n, H, W)."""
        self.confusion[part] = confusion(truth, probability.argmax(1), probability.shape[1]).cpu()
        iou, dice = paper_iou_dice(probability, truth)
        self.iou_paper[part], self.dice_paper[part] = iou.cpu(), dice.cpu()

    def scores(self) -> dict:
        """Return every score of the patches added, plain numbers, None where one is undefined."""
        matrix = self.confusion.sum(0).numpy()
        of_pixels = {name: _plain(value) for name, value in scores_of(matrix).items()}
        paper = {
            "miou_paper": self.iou_paper.mean().item(),
            "dsc_paper": self.dice_paper.mean().item(),
        }
        return {**of_pixels, **paper, "confusion": matrix.tolist()}

    def patchwise_iou(self) -> list[float]:
        """Return the IoU of each class as the paper's Fig. 4 and 6 take it: the mean over patches.

        A patch in which a class neither is nor is seen counts as 1, so a class that is rare scores
        high where nothing is seen of it: read it from the floor of `all_background`.
        """
        matrix = self.confusion.double()
        hit = matrix.diagonal(dim1=1, dim2=2)
        union = matrix.sum(1) + matrix.sum(2) - hit
        return torch.where(union > 0, hit / union, 1.0).mean(0).tolist()

    def by_region(self, regions: list[str]) -> RegionCounts:
        """Return the counts of each region, given the region of each patch in the order added."""
        names, of_patch = np.unique(regions, return_inverse=True)

        def sums(values: Tensor) -> np.ndarray:
            of_patches = values.numpy()
            total = np.zeros((len(names), *of_patches.shape[1:]), of_patches.dtype)
            np.add.at(total, of_patch, of_patches)
            return total

        of_region = map(sums, (self.confusion, self.iou_paper, self.dice_paper))
        return RegionCounts(names.tolist(), *of_region, np.bincount(of_patch))


def _plain(values: np.ndarray) -> float | None | list:
    """Return an array as JSON holds it, None for NaN."""
    if np.ndim(values):
        return [_plain(value) for value in values]
    return None if np.isnan(values) else float(values)


def all_background(truth: Tensor, classes: int) -> Tensor:
    """Return the probabilities (n, C, H, W) of a network that answers background everywhere."""
    return F.one_hot(torch.zeros_like(truth, dtype=torch.int64), classes).permute(0, 3, 1, 2)
