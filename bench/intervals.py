"""How often an interval takes chance for a gain: `python bench/intervals.py`.

The script compares two equally good networks many times. A network's scores of foreground and of
background pixels are normal. Their centres differ by chance between trainings and between the
regions of one training, so that the share of nucleus pixels missed differs by 3 and by 2 points
(standard deviation). A 95 % interval should leave out zero in 5 % of the comparisons.
"""

import sys
from pathlib import Path

import numpy as np
import tyro
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parents[1]))

from medood.evaluation.scores import RegionCounts
from medood.evaluation.statistics import RESAMPLES, paired_differences

REGIONS, PIXELS = 20, 1000
CLASSES = ("background", "nucleus")
SHOWN = ("ap", "bg_to_fg_matched", "fg_to_bg_matched", "fg_to_bg")
CENTRES = np.array([-1.5, 0.25])[:, None]  # of background and foreground; their deviation is 1
BETWEEN_TRAININGS, BETWEEN_REGIONS = 0.08, 0.05
EDGES = np.arange(-32, 32 + 1 / 16, 1 / 16)  # of the bins of scores


def counts(centres: np.ndarray) -> RegionCounts:
    """Return the counts of a test whose background and foreground scores have centres (2, R)."""
    below = np.round(PIXELS * norm.cdf(EDGES - centres.T[..., None]))
    below[..., -1] = PIXELS
    ranked = np.diff(below, prepend=0)[..., 1:].astype(np.int64)  # (R, 2, BINS)
    halves = ranked.reshape(*ranked.shape[:2], 2, -1).sum(-1)  # below and above 0: argmax
    names = [f"region_{i:03d}" for i in range(len(ranked))]
    ones = np.ones(len(ranked))
    starts = EDGES[1:-1].astype(np.float32)
    return RegionCounts(names, halves, ones, ones, ones, ranked=ranked, starts=starts)


def by_regions_alone(missed: np.ndarray, rng: np.random.Generator) -> bool:
    """Return whether an interval that resamples the regions only, not the trainings, excludes 0."""
    of_region = (missed[0] - missed[1]).mean(0)
    drawn = rng.integers(REGIONS, size=(RESAMPLES, REGIONS))
    low, high = np.percentile(of_region[drawn].mean(1), [2.5, 97.5])
    return low > 0 or high < 0


def main(comparisons: int = 400) -> None:
    """Print the share of comparisons in which each kind of interval claims a difference."""
    for trainings in (3, 9):
        rng = np.random.default_rng(0)
        claims, alone = dict.fromkeys(SHOWN, 0), 0
        for _ in range(comparisons):
            training = rng.normal(0, BETWEEN_TRAININGS, (2, trainings, 2, 1))
            region = rng.normal(0, BETWEEN_REGIONS, (2, trainings, 2, REGIONS))
            tests = [[counts(run) for run in of] for of in CENTRES + training + region]
            gains = paired_differences(*tests, CLASSES)
            for name in SHOWN:
                claims[name] += not gains[name].holds_zero
            missed = [[run.confusion[:, 1, 0] for run in of_network] for of_network in tests]
            alone += by_regions_alone(np.array(missed) / PIXELS, rng)
        shares = ", ".join(
            f"`{name}` {claimed / comparisons:.0%}" for name, claimed in claims.items()
        )
        print(
            f"{trainings} trainings of each: a difference is claimed in {shares};"
            f" drawing regions alone, of `fg_to_bg` in {alone / comparisons:.0%}"
        )


if __name__ == "__main__":
    tyro.cli(main)
