"""Is one network better than another? Paired differences with a bootstrap interval.

Patches of a region are similar and not independent, so regions are drawn, not patches: each
resample takes as many regions as there are, with replacement, and with them all folds and seeds in
which a region was tested. Patients replace regions if the setting names them.

Two trainings of one network differ as well: if several folds or seeds are compared, each resample
also draws from these, one fewer than there are. The interval of a single pair of networks leaves
out chance between trainings: it is valid for these two networks only.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from medood.evaluation.scores import RegionCounts, weighted
from medood.evaluation.tables import BY_CLASS
from medood.pixels import ratio, scores_of

RESAMPLES = 2000
LEVEL = 95  # percent


class Difference(NamedTuple):
    """A score of one network less that of another, as fractions; NaN where it is undefined."""

    mean: float
    low: float
    high: float

    @property
    def includes_zero(self) -> bool:
        """Say whether the interval includes 0: no difference is shown."""
        return not (self.low > 0 or self.high < 0)

    def plain(self) -> dict[str, float | None]:
        """Return it as in JSON, None for NaN."""
        return {k: None if np.isnan(v) else v for k, v in self._asdict().items()}

    def points(self) -> str:
        """Return it in percentage points, such as `-0.2 [-1.3, 0.9]`."""
        if np.isnan(self.mean):
            return "-"
        mean, low, high = (f"{round(100 * value, 1) + 0.0:.1f}" for value in self)
        if np.isnan(self.low):  # a single region: nothing to resample
            return f"{mean} (no interval)"
        return f"{mean} [{low}, {high}]"

    def text(self) -> str:
        """Return it in percentage points, with `n.s.` if the interval includes 0."""
        holds = not np.isnan(self.low) and self.includes_zero
        return self.points() + (" n.s." if holds else "")


def paired_differences(
    ours: list[RegionCounts], theirs: list[RegionCounts], classes: tuple[str, ...]
) -> dict[str, Difference]:
    """Return the difference of each score, ours less theirs, with its 95 % interval.

    ours[i] and theirs[i] are two networks on the same test patches: one fold, one seed. classes:
    the name of each value of a mask, for scores such as `IoU <class>`. The difference is the mean
    over all i. The resampling has a fixed seed: same counts, same result.
    Raises ValueError if a pair was tested on different patches.
    """
    weights, interval = _resampled([counts.regions for counts in ours])
    differences: dict[str, list[np.ndarray]] = {}
    for one, other, weight in zip(ours, theirs, weights, strict=True):
        if one.regions != other.regions or (one.patches != other.patches).any():
            raise ValueError("the two networks were tested on different patches")
        # the rates are matched to those of the second network, in each resample
        first, second = (_by_name(counts.scores(weight, other), classes) for counts in (one, other))
        for name in first:
            differences.setdefault(name, []).append(first[name] - second[name])
    return {name: interval(np.stack(values)) for name, values in differences.items()}


def shares(tests: list[tuple[list[str], np.ndarray, np.ndarray]]) -> list[Difference]:
    """Return shares of sums with their 95 % intervals, (B,): the mean over tests.

    tests: of each test the region of its rows, (n,), and what is summed over them: the wholes and
    the parts, (n, B) each. Regions and tests are drawn as in paired_differences.
    """
    weights, interval = _resampled([regions for regions, *_ in tests])
    found = []
    for (_, *counts), weight in zip(tests, weights, strict=True):
        whole, part = (weight @ each.astype(float) for each in counts)
        found.append(ratio(part, whole))
    return [interval(values) for values in np.stack(found).transpose(2, 0, 1)]


def mean_difference(
    ours: list[tuple[list[str], np.ndarray]], theirs: list[tuple[list[str], np.ndarray]]
) -> Difference:
    """Return the difference of `miou`, ours less theirs, in its mean over K conditions.

    ours[i] and theirs[i]: of one test the region of each row, (n,), and pixel counts of two
    networks, (K, n, C, C). Regions and tests are drawn as in paired_differences.
    """
    weights, interval = _resampled([regions for regions, _ in ours])
    gains = []
    for (_, first), (_, second), weight in zip(ours, theirs, weights, strict=True):
        means = [
            np.mean([scores_of(weighted(weight, matrices))["miou"] for matrices in counts], 0)
            for counts in (first, second)
        ]
        gains.append(means[0] - means[1])
    return interval(np.stack(gains))


def _resampled(
    tests: list[list[str]],
) -> tuple[Iterator[np.ndarray], Callable[[np.ndarray], Difference]]:
    """Return of each test how often its rows count, (1 + B, n), and what gives the interval.

    Row 0 is the data as it is. tests: of each test the region of its rows, (n,).
    """
    regions = sorted({region for of_test in tests for region in of_test})
    count, rng = len(regions), np.random.default_rng(0)
    drawn = rng.multinomial(count, [1 / count] * count, size=RESAMPLES)
    # one fewer than there are: with few, as many would vary too little (Rao and Wu, 1988)
    of_tests = rng.integers(len(tests), size=(max(1, len(tests) - 1), RESAMPLES))
    every = np.vstack([np.ones(count), drawn])
    weights = (every[:, np.searchsorted(regions, of_test)] for of_test in tests)
    return weights, partial(_interval, tests=of_tests, regions=count)


def _by_name(scores: dict[str, np.ndarray], classes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the scores of B tests, (B,) each: those of one number, and such as `IoU <class>`."""
    of_class = {
        f"{head} {name}": values
        for key, head in BY_CLASS.items()
        if key in scores
        for name, values in zip(classes, scores[key].T, strict=True)
    }
    return {name: values for name, values in scores.items() if values.ndim == 1} | of_class


def _interval(differences: np.ndarray, tests: np.ndarray, regions: int) -> Difference:
    """Return the mean of differences (T, 1 + B) over tests, and its interval.

    Column 0 is the data as it is, the others are resampled over regions. tests: (D, B), the tests
    that each resample draws.
    """
    mean = float(_mean_of_known(differences[:, :1])[0])
    if np.isnan(mean) or regions < 2:
        return Difference(mean, np.nan, np.nan)
    resampled = _mean_of_known(np.take_along_axis(differences[:, 1:], tests, 0))
    tail = (100 - LEVEL) / 2
    low, high = np.nanpercentile(resampled, [tail, 100 - tail])
    return Difference(mean, float(low), float(high))


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Return the mean of each column without NaN, NaN if all are."""
    return np.ma.masked_invalid(values).mean(0).filled(np.nan)


def pool(parts: list[RegionCounts]) -> RegionCounts:
    """Return the counts of tests on disjoint patches, such as three folds, as one test."""
    names = [region for part in parts for region in part.regions]
    starts = None
    if parts[0].starts is not None:
        starts = np.unique(np.concatenate([part.starts for part in parts]))
        parts = [replace(part, ranked=_rebinned(part, starts), starts=None) for part in parts]
    counted = [name for name, counts in vars(parts[0]).items() if isinstance(counts, np.ndarray)]
    rows = {name: np.concatenate([getattr(part, name) for part in parts]) for name in counted}
    return replace(RegionCounts.summed(names, rows), starts=starts)


def _rebinned(counts: RegionCounts, starts: np.ndarray) -> np.ndarray:
    """Return `ranked` in bins that begin at `starts` (K,), which include those of `counts`.

    A pixel counts with the lowest score of its bin.
    """
    ranked = np.zeros((*counts.ranked.shape[:2], len(starts) + 1), counts.ranked.dtype)
    ranked[..., np.append(0, np.searchsorted(starts, counts.starts) + 1)] = counts.ranked
    return ranked
