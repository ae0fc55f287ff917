"""How often an interval takes chance for a gain: `python bench/intervals.py`.

The script compares two equally good networks many times. The share of nucleus pixels that a network
misses differs by chance between trainings (standard deviation 3 points) and between the regions of
one training (2 points). A 95 % interval should leave out zero in 5 % of the comparisons.
"""

import sys
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from medood.evaluation.scores import RegionCounts
from medood.evaluation.statistics import RESAMPLES, paired_differences

REGIONS, PIXELS = 20, 1000
CLASSES = ("background", "nucleus")
MISSED, BETWEEN_TRAININGS, BETWEEN_REGIONS = 0.4, 0.03, 0.02


def counts(missed: np.ndarray) -> RegionCounts:
    """Return the counts of a test in which a share (R,) of each region's nuclei is missed."""
    matrix = np.zeros((len(missed), len(CLASSES), len(CLASSES)), np.int64)
    matrix[:, 1, 0] = np.round(PIXELS * missed)
    matrix[:, 1, 1] = PIXELS - matrix[:, 1, 0]
    names = [f"region_{i:03d}" for i in range(len(missed))]
    ones = np.ones(len(missed))
    return RegionCounts(names, matrix, ones, ones, ones)


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
        ours = alone = 0
        for _ in range(comparisons):
            training = rng.normal(0, BETWEEN_TRAININGS, (2, trainings, 1))
            region = rng.normal(0, BETWEEN_REGIONS, (2, trainings, REGIONS))
            missed = MISSED + training + region
            first, second = ([counts(run) for run in network] for network in missed)
            ours += not paired_differences(first, second, CLASSES)["fg_to_bg"].holds_zero
            alone += by_regions_alone(missed, rng)
        print(
            f"{trainings} trainings of each: a difference is claimed in"
            f" {ours / comparisons:.0%}, drawing regions alone in {alone / comparisons:.0%}"
        )


if __name__ == "__main__":
    tyro.cli(main)
