"""What no threshold moves: how well a network ranks foreground pixels above background ones.

A pixel's score is the logit of foreground against background, log(P(foreground) / P(background)):
it orders pixels as 1 - P(background) does. Pixels are counted in bins of it, as many in each patch,
so that a test keeps few numbers and a bootstrap resamples those. Every bin is one threshold.
"""

import numpy as np
import torch
from torch import Tensor

from medood.data.labels import BACKGROUND, UNSURE

# Networks trained with Dice are sure: nearly all of their probabilities lie within 1e-4 of 0 or 1.
# Steps of 1/16 in the logit tell apart what lies there, down to odds of e^-32, about 1e-14. On H&E
# they cost `ap` 0.1 points against raw scores, of any network alike; steps of 1/8, 0.2 points.
BINS, PER_UNIT = 1024, 16


def rank_pixels(probability: Tensor, truth: Tensor) -> Tensor:
    """Return how many pixels of each patch lie in each bin, int64 (n, 2, BINS).

    Row 0 counts background, row 1 foreground; bins rise with the logit, and the outermost hold all
    beyond. probability: (n, C, H, W). truth: (n, H, W); its unsure pixels are left out.
    """
    # the sum, and not 1 - P(background), which is 0 in float32 below 6e-8
    foreground = probability[:, BACKGROUND + 1 :].sum(1)
    logit = foreground.log() - probability[:, BACKGROUND].log()
    place = (PER_UNIT * logit).floor() + BINS // 2
    place = place.clamp(0, BINS - 1).nan_to_num(0).long()  # NaN: of broken weights
    patch = torch.arange(len(truth), device=truth.device).view(-1, 1, 1)
    cell = (2 * patch + (truth != BACKGROUND)) * BINS + place
    cells = 2 * len(truth) * BINS
    cell = cell.where(truth != UNSURE, cells)  # one more, which is left out
    return torch.bincount(cell.flatten(), minlength=cells + 1)[:cells].view(-1, 2, BINS)


def average_precision(ranked: np.ndarray) -> np.ndarray:
    """Return the average precision of foreground (...), from counts (..., 2, BINS).

    It is the sum of (R_n - R_n-1) P_n over the thresholds, without interpolation, as scikit-learn's
    average_precision_score has it. NaN without foreground or background.
    """
    found = ranked[..., ::-1].cumsum(-1)  # from the highest threshold down
    true, called = found[..., 1, :], found.sum(-2)
    hits = (ranked[..., 1, ::-1] * true / called.clip(1)).sum(-1)
    return _share(hits, ranked)


def auroc(ranked: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve (...), from counts (..., 2, BINS); a tie counts half.

    NaN without foreground or background.
    """
    background = ranked[..., 0, :]
    below = background.cumsum(-1) - background / 2
    total = background.sum(-1)
    return _share((ranked[..., 1, :] * below).sum(-1) / total.clip(1), ranked)


def _share(part: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """Return part (...) per foreground pixel, NaN without foreground or background."""
    background, foreground = np.moveaxis(ranked.sum(-1), -1, 0)
    return np.where(background > 0, part, np.nan) / np.where(foreground > 0, foreground, np.nan)


def curve(ranked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return fg_to_bg and bg_to_fg at each threshold, from counts (..., 2, BINS).

    Both are (..., 1 + BINS); the first calls all foreground, the last all background. fg_to_bg
    rises, bg_to_fg falls; NaN without foreground or background, respectively.
    """
    called = np.insert(ranked.cumsum(-1), 0, 0, -1)  # background, at each threshold
    total = np.where(called[..., -1:] > 0, called[..., -1:], np.nan)
    missed, false = called[..., 1, :], total[..., 0, :] - called[..., 0, :]
    return missed / total[..., 1, :], false / total[..., 0, :]


def rate_at(rising: np.ndarray, falling: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Return the falling error rate (B,) where the rising one is `rate` (B,).

    rising, falling: the two of B curves, (B, K), between whose points it is linear. Where several
    points have this rate, it is the best of them.
    """
    reached = (rising <= rate[:, None]).sum(-1, keepdims=True) - 1  # the last point not beyond
    ends = np.clip(np.hstack([reached, reached + 1]), 0, rising.shape[-1] - 1)
    (x0, x1), (y0, y1) = (np.take_along_axis(of, ends, -1).T for of in (rising, falling))
    return y0 + (y1 - y0) * (rate - x0) / np.where(x1 > x0, x1 - x0, 1)
