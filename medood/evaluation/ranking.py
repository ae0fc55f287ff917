"""Scores without a threshold: how well a network ranks foreground above background pixels.

A pixel's score is the logit of foreground against background, log(P(foreground) / P(background)):
it orders pixels as 1 - P(background) does. The pixels of a test fold are counted in bins that begin
at quantiles of the fold's scores, so that a bootstrap resamples few numbers. Every bin is one
threshold.
"""

import numpy as np
import torch
from torch import Tensor

from medood.data.labels import BACKGROUND

# Bins begin at quantiles of the scores of foreground and of background pixels: a bin has at most
# 1/4096 of the foreground (or one value), whatever range the scores have. `ap` uses the precision
# at the lower end of each bin, which costs at most the precision's fall / 4096, about 0.01 points.
FOREGROUND_BINS, BACKGROUND_BINS = 4096, 1024
SAMPLED = 2**20  # background pixels, at least, for the quantiles
CHUNK = 256  # patches counted at once
CALIBRATION_BINS = 15  # of equal width


def log_odds(probability: Tensor) -> Tensor:
    """Return the score of each pixel, float32 (n, H, W), from probabilities (n, C, H, W).

    It is infinite where a probability is 0, and 0 where it is NaN.
    """
    # the sum, and not 1 - P(background), which is 0 in float32 below 6e-8
    foreground = probability[:, BACKGROUND + 1 :].sum(1)
    return (foreground.log() - probability[:, BACKGROUND].log()).nan_to_num(0, np.inf, -np.inf)


def bin_starts(foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Return the lowest score of each bin but the first, float32 (K,), rising.

    foreground, background: the scores of all such pixels, (n,) each. The first bin is for lower
    scores than these.
    """
    background = background[:: max(1, len(background) // SAMPLED)]
    kinds = (foreground, FOREGROUND_BINS), (background, BACKGROUND_BINS)
    starts = [np.sort(of)[np.arange(bins) * len(of) // bins] for of, bins in kinds if len(of)]
    return np.unique(np.concatenate(starts)) if starts else np.zeros(0, np.float32)


def rank_pixels(
    scores: Tensor, is_foreground: Tensor, group: Tensor, groups: int, starts: np.ndarray
) -> np.ndarray:
    """Return how many pixels of each group are in each bin, int64 (groups, 2, 1 + K).

    Row 0 counts background, row 1 foreground; bins rise with the score. scores: (n, H, W), NaN
    where a pixel does not count. is_foreground: (n, H, W). group: integers (n,), of each patch.
    starts: (K,), as `bin_starts` gives them.
    """
    bins = len(starts) + 1
    counts = torch.zeros(groups * 2 * bins, dtype=torch.int64)
    edges = torch.from_numpy(starts)
    for part in torch.arange(len(scores)).split(CHUNK):
        cell = (2 * group[part].view(-1, 1, 1) + is_foreground[part]) * bins
        cell = cell + torch.bucketize(scores[part], edges, right=True)
        counts += torch.bincount(cell[~scores[part].isnan()], minlength=len(counts))
    return counts.view(groups, 2, bins).numpy()


def average_precision(ranked: np.ndarray) -> np.ndarray:
    """Return the average precision of foreground (...), from counts (..., 2, B).

    It is the sum of (R_n - R_n-1) P_n over the thresholds, without interpolation, as in
    scikit-learn's average_precision_score. NaN without foreground or background.
    """
    found = ranked[..., ::-1].cumsum(-1)  # from the highest threshold down
    true, called = found[..., 1, :], found.sum(-2)
    hits = (ranked[..., 1, ::-1] * true / called.clip(1)).sum(-1)
    return _share(hits, ranked)


def auroc(ranked: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve (...), from counts (..., 2, B); a tie counts half.

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


def calibration(ranked: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return predicted and observed foreground in CALIBRATION_BINS, (..., 3, bins).

    The bins divide the probability of foreground. Rows: the pixels of each, the sum of their
    probabilities, and how many are foreground. ranked: counts (..., 2, B). A pixel counts with the
    lowest score of its bin in `ranked`.
    """
    with np.errstate(over="ignore"):
        probability = 1 / (1 + np.exp(-np.append(-np.inf, starts.astype(float))))
    place = np.minimum(probability * CALIBRATION_BINS, CALIBRATION_BINS - 1).astype(int)
    member = np.eye(CALIBRATION_BINS)[place]  # (B, bins)
    pixels = ranked.sum(-2)
    counts = np.stack([pixels, pixels * probability, ranked[..., 1, :]], -2)
    return counts @ member


def calibration_error(ranked: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the expected calibration error of foreground (...), from counts (..., 2, B).

    The mean over pixels of |probability - share of foreground| of their bin (Naeini et al., 2015).
    """
    pixels, said, so = np.moveaxis(calibration(ranked, starts), -2, 0)
    return np.abs(said - so).sum(-1) / np.maximum(pixels.sum(-1), 1)


def curve(ranked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return fg_to_bg and bg_to_fg at each threshold, from counts (..., 2, B).

    Both are (..., 1 + B); at the first, all is predicted as foreground, at the last, as background.
    fg_to_bg rises, bg_to_fg falls; NaN without foreground or background, respectively.
    """
    called = np.insert(ranked.cumsum(-1), 0, 0, -1)  # background, at each threshold
    total = np.where(called[..., -1:] > 0, called[..., -1:], np.nan)
    missed, false = called[..., 1, :], total[..., 0, :] - called[..., 0, :]
    return missed / total[..., 1, :], false / total[..., 0, :]


def rate_at(rising: np.ndarray, falling: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Return the falling error rate (B,) where the rising one is `rate` (B,).

    rising, falling: both rates of B curves, (B, K), linear between their points. If several points
    have this rate, the best of them.
    """
    reached = (rising <= rate[:, None]).sum(-1, keepdims=True) - 1  # the last point not beyond
    ends = np.clip(np.hstack([reached, reached + 1]), 0, rising.shape[-1] - 1)
    (x0, x1), (y0, y1) = (np.take_along_axis(of, ends, -1).T for of in (rising, falling))
    return y0 + (y1 - y0) * (rate - x0) / np.where(x1 > x0, x1 - x0, 1)
