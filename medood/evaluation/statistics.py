"""Is one network better than another? Paired differences with a bootstrap interval.

Patches of a region are similar and not independent, so regions are drawn, not patches: each
resample takes as many regions as there are, with replacement, and with them all folds and seeds in
which a region was tested. Patients replace regions if the setting names them.

Two trainings of one network differ as well: if several folds or seeds are compared, each resample
also draws from these, one fewer than there are. The interval of a single pair of networks leaves
out chance between trainings: it is valid for these two networks only.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from medood.evaluation.scores import RegionCounts, weighted
from medood.evaluation.tables import BY_CLASS
from medood.pixels import scores_of

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
    for one, other in zip(ours, theirs, strict=True):
        if one.regions != other.regions or (one.patches != other.patches).any():
            raise ValueError("the two networks were tested on different patches")

    def difference(test: int, weight: np.ndarray) -> dict[str, np.ndarray]:
        pair = ours[test], theirs[test]
        # the rates are matched to those of the second network, in each resample
        first, second = (_by_name(counts.scores(weight, pair[1]), classes) for counts in pair)
        return {name: first[name] - second[name] for name in first}

    return bootstrap([counts.regions for counts in ours], difference)


def mean_difference(
    ours: list[tuple[list[str], np.ndarray]], theirs: list[tuple[list[str], np.ndarray]]
) -> Difference:
    """Return the difference of `miou`, ours less theirs, in its mean over K conditions.

    ours[i] and theirs[i]: of one test the region of each row, (n,), and pixel counts of two
    networks, (K, n, C, C).
    """

    def difference(test: int, weight: np.ndarray) -> dict[str, np.ndarray]:
        first, second = (
            np.mean([scores_of(weighted(weight, one))["miou"] for one in matrices], 0)
            for _, matrices in (ours[test], theirs[test])
        )
        return {"miou": first - second}

    return bootstrap([regions for regions, _ in ours], difference)["miou"]


Value = TypeVar("Value")


def bootstrap(
    tests: list[list[str]], values: Callable[[int, np.ndarray], dict[Value, np.ndarray]]
) -> dict[Value, Difference]:
    """Return the means of some values over tests, with their 95 % intervals.

    tests: of each test the region of its rows, (n,). values: returns those of a test, (1 + B,)
    each, given its place and how often its rows count, (1 + B, n); the first is the data as it is.
    """
    regions = sorted({region for of_test in tests for region in of_test})
    count, rng = len(regions), np.random.default_rng(0)
    drawn = rng.multinomial(count, [1 / count] * count, size=RESAMPLES)
    # one fewer than there are: with few, as many would vary too little (Rao and Wu, 1988)
    chosen = rng.integers(len(tests), size=(max(1, len(tests) - 1), RESAMPLES))
    every = np.vstack([np.ones(count), drawn])

    def interval(of_tests: np.ndarray) -> Difference:
        mean = float(_mean_of_known(of_tests[:, :1])[0])
        if np.isnan(mean) or count < 2:
            return Difference(mean, np.nan, np.nan)
        resampled = _mean_of_known(np.take_along_axis(of_tests[:, 1:], chosen, 0))
        tail = (100 - LEVEL) / 2
        return Difference(mean, *map(float, np.nanpercentile(resampled, [tail, 100 - tail])))

    found: dict[Value, list[np.ndarray]] = {}
    for place, of_test in enumerate(tests):
        weight = every[:, np.searchsorted(regions, of_test)]
        for name, resampled in values(place, weight).items():
            found.setdefault(name, []).append(resampled)
    return {name: interval(np.stack(of)) for name, of in found.items()}


def _by_name(scores: dict[str, np.ndarray], classes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the scores of B tests, (B,) each: those of one number, and such as `IoU <class>`."""
    of_class = {
        f"{head} {name}": values
        for key, head in BY_CLASS.items()
        if key in scores
        for name, values in zip(classes, scores[key].T, strict=True)
    }
    return {name: values for name, values in scores.items() if values.ndim == 1} | of_class


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
