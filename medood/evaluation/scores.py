"""Scores of a whole test fold: from its confusion matrix, from ranks, and the paper's own.

C classes, 0 is background. Every mean over foreground classes runs over those that occur in the
*ground truth*: the same set for every network compared on the fold, whatever it predicts. An unsure
pixel counts nowhere; a patch without other pixels is skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medood import BACKGROUND, UNSURE
from medood.evaluation.ranking import (
    auroc,
    average_precision,
    bin_starts,
    calibration_error,
    curve,
    log_odds,
    rank_pixels,
    rate_at,
)
from medood.pixels import confusion, ratio, scores_of

AT_A_TIME = 100  # resamples of ranks at once
# of nuclei; nuclei.py counts them
COUNTS = (
    *("true", "predicted"),
    *("matched", "iou"),  # pairs, and the sum of their IoU
    "found",  # pairs with centres within a radius, one to one
    "invented",  # predicted nuclei that share no pixel with a true one
    "missed",  # true nuclei of which no pixel is predicted as foreground
    "misnamed",  # pairs of two classes
)


def paper_iou_dice(probability: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and Dice of each patch, (N,), as Table 1 of the paper measures them.

    probability: (N, C, H, W). truth: (N, H, W). Both scores use the whole one-hot mask, background
    included, as one set of pixels; a class is predicted where its probability reaches 0.5. With
    unsure pixels, they are those of a smaller patch; 0 for one that has no other.
    """
    sure = (truth != UNSURE)[:, None]
    predicted = ((probability >= 0.5) & sure).sum((1, 2, 3)).double()
    true = sure.sum((1, 2, 3)).double()  # each pixel has one true class
    of_truth = probability.gather(1, truth.long()[:, None].where(sure, BACKGROUND))
    hit = ((of_truth >= 0.5) & sure).sum((1, 2, 3)).double()
    union, total = predicted + true - hit, predicted + true
    return hit / union.clamp_min(1), 2 * hit / total.clamp_min(1)


def nucleus_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores of COUNTS (..., C, K), NaN where one is undefined.

    `pq`, `dq` and `sq` are (..., C), NaN for background and for a class without a true nucleus;
    the others are (...): `mpq`, the mean of `pq`; `bpq` and `f1`, of nuclei of any class, by IoU
    and by centre; and shares: of predicted nuclei that are invented, of true ones that are missed,
    of matched ones that are misnamed.
    """
    of = dict(zip(COUNTS, np.moveaxis(counts, -1, 0), strict=True))
    nuclei = (of["true"] + of["predicted"]) / 2
    there = (of["true"] > 0) & (np.arange(counts.shape[-2]) > 0)
    pq = ratio(of["iou"], nuclei, there)
    every = {name: values[..., 0] for name, values in of.items()}
    known = every["true"] > 0
    return {
        "pq": pq,
        "dq": ratio(of["matched"], nuclei, there),
        "sq": ratio(of["iou"], of["matched"], there & (of["matched"] > 0)),
        "mpq": ratio(np.nansum(pq, -1), there.sum(-1)),
        "bpq": ratio(every["iou"], nuclei[..., 0], known),
        "f1": ratio(every["found"], nuclei[..., 0], known),
        "nuclei_invented": ratio(every["invented"], every["predicted"]),
        "nuclei_missed": ratio(every["missed"], every["true"]),
        "nuclei_misnamed": ratio(every["misnamed"], every["matched"]),
    }


def weighted(weight: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return counts (R, ...) summed over regions with weights (B, R), (B, ...)."""
    # as floats, which are exact up to 2^53: products of integers take far longer
    return np.tensordot(weight, counts.astype(float), 1)


@dataclass(frozen=True)
class RegionCounts:
    """Counts of a network in each of R regions: sums over their patches."""

    regions: list[str]  # sorted
    confusion: np.ndarray  # integers (R, C, C), rows the ground truth
    iou_paper: np.ndarray  # (R,), the sum over the region's patches
    dice_paper: np.ndarray  # (R,)
    patches: np.ndarray  # (R,), the number of those with a pixel that is sure
    ranked: np.ndarray | None = None  # (R, 2, 1 + K), see rank_pixels
    starts: np.ndarray | None = None  # (K,), where the bins of `ranked` begin
    nuclei: np.ndarray | None = None  # (R, C, K), COUNTS of nuclei

    @classmethod
    def summed(cls, names: list[str], counts: dict[str, np.ndarray]) -> RegionCounts:
        """Return the sums of rows that belong to one region.

        names: the region of each row. counts: the fields of RegionCounts, by row.
        """
        regions, place = np.unique(names, return_inverse=True)

        def total(rows: np.ndarray) -> np.ndarray:
            wide = np.result_type(rows.dtype, np.int64)  # a sum of int32 may not fit
            sums = np.zeros((len(regions), *rows.shape[1:]), wide)
            np.add.at(sums, place, rows)
            return sums

        return cls(regions.tolist(), **{name: total(rows) for name, rows in counts.items()})

    def scores(
        self, weight: np.ndarray, against: RegionCounts | None = None
    ) -> dict[str, np.ndarray]:
        """Return the scores of B tests, as `scores_of` does, with `miou_paper` and `dsc_paper`.

        If nuclei were counted, with their scores; if probabilities were, with `ap`, `auroc` and
        `ece`, and, `against` a network tested on the same patches, itself or another, with the
        matched rates.
        weight: floats (B, R), how often each region counts in each test.
        """
        patches = weight @ self.patches
        scores = {
            **scores_of(weighted(weight, self.confusion)),
            "miou_paper": ratio(weight @ self.iou_paper, patches),
            "dsc_paper": ratio(weight @ self.dice_paper, patches),
        }
        if self.nuclei is not None:
            scores |= nucleus_scores(weighted(weight, self.nuclei))
        if self.ranked is not None:
            # a few tests at a time: the bins of all would take half a gigabyte
            starts = range(0, len(weight), AT_A_TIME)
            parts = [self._of_ranks(weight[i : i + AT_A_TIME], against) for i in starts]
            scores |= {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return scores

    def _of_ranks(self, weight: np.ndarray, against: RegionCounts | None) -> dict[str, np.ndarray]:
        """Return the scores without a threshold of B tests, (B,) each: see `scores`."""
        ranked = weighted(weight, self.ranked)
        scores = {"ap": average_precision(ranked), "auroc": auroc(ranked)}
        scores["ece"] = calibration_error(ranked, self.starts)
        if against is None:
            return scores
        at = scores_of(weighted(weight, against.confusion))
        missed, false = curve(ranked)
        return {
            **scores,
            "bg_to_fg_matched": rate_at(missed, false, at["fg_to_bg"]),
            "fg_to_bg_matched": rate_at(false[:, ::-1], missed[:, ::-1], at["bg_to_fg"]),
        }

    def plain_scores(self, against: RegionCounts | None = None) -> dict:
        """Return every score of the whole test, plain numbers, None where one is undefined.

        against: the network to whose error rates the matched ones are matched, if any.
        """
        scores = self.scores(np.ones((1, len(self.regions))), against)
        plain = {k: np.where(np.isnan(v[0]), None, v[0]).tolist() for k, v in scores.items()}
        return {**plain, "confusion": self.confusion.sum(0).tolist()}


class Tally:
    """Counts of a network in each of N patches, from which the scores of a test fold come."""

    def __init__(self, patches: int, classes: int, sides: tuple[int, ...] = ()) -> None:
        """sides: height and width, to rank the pixels by their probability of foreground too."""
        # rows the ground truth
        self.confusion = torch.zeros(patches, classes, classes, dtype=torch.int64)
        self.iou_paper = torch.zeros(patches, dtype=torch.float64)
        self.dice_paper = torch.zeros(patches, dtype=torch.float64)
        self.ranks = bool(sides)
        # the ranks are counted from these, when the scores of all patches are known
        shape = (patches, *sides) if sides else (0,)
        self.log_odds = torch.zeros(shape)  # NaN where the ground truth is unsure
        self.foreground = torch.zeros(shape, dtype=torch.uint8)  # 1 where it is foreground

    def add(self, part: slice, probability: Tensor, truth: Tensor) -> None:
        """Count the patches `part`: probability (n, C, H, W), truth (n, H, W)."""
        self.confusion[part] = confusion(truth, probability.argmax(1), probability.shape[1]).cpu()
        iou, dice = paper_iou_dice(probability, truth)
        self.iou_paper[part], self.dice_paper[part] = iou.cpu(), dice.cpu()
        if self.ranks:
            self.log_odds[part] = log_odds(probability).where(truth != UNSURE, torch.nan).cpu()
            self.foreground[part] = (truth != BACKGROUND).cpu()

    def filled(self) -> list[Tensor]:
        """Return what `add` fills in, patch by patch."""
        return [values for values in vars(self).values() if isinstance(values, Tensor)]

    def are_sure(self) -> Tensor:
        """Say which of the patches added have a pixel that is sure, bool (N,)."""
        return self.confusion.sum((1, 2)) > 0

    def by_region(self, names: list[str]) -> RegionCounts:
        """Return the counts of each region, given the region of each patch in the order added."""
        counts = {
            name: getattr(self, name).numpy() for name in ("confusion", "iou_paper", "dice_paper")
        }
        found = RegionCounts.summed(names, counts | {"patches": self.are_sure().long().numpy()})
        if not self.ranks:
            return found
        sure, foreground = ~self.log_odds.isnan(), self.foreground == 1
        starts = bin_starts(
            *(self.log_odds[sure & kind].numpy() for kind in (foreground, ~foreground))
        )
        group = torch.from_numpy(np.searchsorted(found.regions, names))
        ranked = rank_pixels(self.log_odds, self.foreground, group, len(found.regions), starts)
        return replace(found, ranked=ranked, starts=starts)

    def scores(self) -> dict:
        """Return every score of the patches added, plain numbers, None where one is undefined."""
        return self.by_region(["all"] * len(self.confusion)).plain_scores()

    def patchwise_iou(self) -> list[float]:
        """Return the IoU of each class as in Fig. 4 and 6 of the paper: the mean over patches.

        A patch without a pixel of a class, in ground truth and prediction, counts as 1. So a rare
        class scores high if it is never predicted: compare it with the floor, `all_background`.
        """
        matrix = self.confusion[self.are_sure()].double()
        hit = matrix.diagonal(dim1=1, dim2=2)
        union = matrix.sum(1) + matrix.sum(2) - hit
        return torch.where(union > 0, hit / union, 1.0).mean(0).tolist()


def all_background(truth: Tensor, classes: int) -> Tensor:
    """Return the probabilities (n, C, H, W) of a network that predicts background everywhere."""
    return F.one_hot(torch.zeros_like(truth, dtype=torch.int64), classes).permute(0, 3, 1, 2)
