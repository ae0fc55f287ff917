"""One prior shift per class: what a network would score if only the weights of classes were off.

Where p_c is the probability of class c, p'_c = w_c p_c / sum_k w_k p_k is that under other priors
(Saerens et al., "Adjusting the outputs of a classifier to new a priori probabilities", 2002). The
weights are fitted on pixels of training patches; background's is 1.
"""

import torch
from torch import Tensor

from medood.data.labels import BACKGROUND, UNSURE
from medood.evaluation.scores import scores_of

GRID = torch.arange(-16, 16.5, 0.5)  # of log w; networks trained with Dice are that sure
SWEEPS = 5  # over the classes, at most


def fit_shift(probability: Tensor, truth: Tensor) -> Tensor:
    """Return the weights w, float32 (C,), with which pixels score the highest `miou`.

    probability: (N, C). truth: (N,), UNSURE left out. By coordinate ascent over GRID from w = 1,
    where a weight stays unless another one is better. No foreground: w = 1.
    """
    sure = truth != UNSURE
    logs, truth = probability[sure].T.contiguous().log(), truth[sure].long()
    shift = torch.zeros(len(logs))
    for _ in range(SWEEPS):
        before = shift.clone()
        for value in range(BACKGROUND + 1, len(logs)):
            miou = _miou_by_weight(logs, truth, shift, value)
            if miou.max() > miou[shift[value] == GRID]:  # False for NaN
                best = GRID[miou == miou.max()]
                shift[value] = best[best.abs().argmin()]
        if shift.equal(before):
            break
    return shift.exp()


def _miou_by_weight(logs: Tensor, truth: Tensor, shift: Tensor, value: int) -> Tensor:
    """Return `miou` for each weight in GRID of the class `value`, float64 (G,).

    logs: log p, (C, N). truth: (N,). shift: log w of the other classes, (C,).
    """
    others = logs + shift[:, None]
    others[value] = -torch.inf
    rival, called = others.max(0)
    # the pixel goes to the class from the first weight of the grid on that beats its rival
    first = torch.bucketize(rival - logs[value], GRID, right=True)
    classes, levels = len(logs), len(GRID) + 1
    cell = (first * classes + truth) * classes + called
    counts = torch.bincount(cell, minlength=levels * classes**2).view(levels, classes, classes)
    taken = counts.cumsum(0)[:-1]
    matrices = counts.sum(0) - taken
    matrices[..., value] += taken.sum(-1)
    return torch.from_numpy(scores_of(matrices.numpy())["miou"])
