"""Scores of robust/attack.py's networks under corruptions, next to the worst case of attacks."""

import numpy as np

from config import Config
from medood.attacks.together import WORST
from medood.data.patients import patients_of
from medood.evaluation.statistics import mean_difference
from medood.evaluation.tables import spread
from medood.pixels import ratio
from robust.attacked import Found, label

ABOUT = (
    "Without an attacker: miou (of volumes Dice), percent, the mean over the five strengths of each"
    " corruption. mCE and relative mCE (Hendrycks and Dietterich 2019): the error, 1 - score,"
    " summed over strengths, in percent of the first network's, the mean over corruptions;"
    " relative: the same of the increase over the clean error."
)


def corruption_scores(found: Found) -> dict:
    """Return the content of corruptions.json: by fold, network, kind and strength."""
    scores: dict = {}
    for fold, networks in found.items():
        for network, attacked in networks.items():
            of_network = scores.setdefault(fold, {}).setdefault(network, {})
            for place, (strength, kind) in enumerate(attacked.pairs):
                of_network.setdefault(kind, {})[f"{strength:g}"] = attacked.tally(place).scores()
    return scores


def _values(of_network: dict, score: str) -> tuple[float, np.ndarray]:
    """Return the clean score, and that of each kind and strength; NaN without any foreground.

    of_network: by kind and strength, a network's part of corruptions.json in a fold.
    """
    values = [[row[score] for row in rows.values()] for rows in of_network.values()]
    (clean,), *kinds = (np.array(of_kind, float) for of_kind in values)
    return clean, np.stack(kinds)


def mean_errors(of_network: dict, of_first: dict, score: str = "miou") -> tuple[float, float]:
    """Return mCE and relative mCE of a network, as shares of the first one's.

    Both: see _values. A kind under which the first one loses nothing is not in the relative mean.
    """
    clean, ours = _values(of_network, score)
    first_clean, first = _values(of_first, score)
    relative = ratio((clean - ours).sum(1), (first_clean - first).sum(1))
    return float(((1 - ours).sum(1) / (1 - first).sum(1)).mean()), float(np.nanmean(relative))


def corruption_table(
    scores: dict, attacked: dict, score: str = "miou"
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, one of each network of all folds, from the content of both files."""
    kinds, *others = scores.values()
    networks = [name for name in kinds if all(name in of_fold for of_fold in others)]
    if not networks:
        return ["network"], []
    first = networks[0]
    by_eps = next(iter(attacked.values()))[first]
    worst = [eps for eps in by_eps if WORST in by_eps[eps]]
    rows = []
    for network in networks:
        found = [_values(of_fold[network], score) for of_fold in scores.values()]
        means = np.array([values.mean(1) for _, values in found])  # (folds, kinds)
        errors = [mean_errors(of[network], of[first], score) for of in scores.values()]
        columns = [[clean for clean, _ in found], *means.T, means.mean(1)]
        columns += zip(*errors, strict=True)
        columns += [[of[network][eps][WORST][score] for of in attacked.values()] for eps in worst]
        rows.append([label(network), *map(spread, columns)])
    header = ["network", *kinds[first], "mean", "mCE", "relative mCE"]
    return [*header, *(f"worst case, {eps}/255" for eps in worst)], rows


def corruption_differences(cfg: Config, found: Found) -> tuple[list[str], list[list[str]]]:
    """Return the differences from the first network in the mean over corruptions, in points."""
    first, *others = next(iter(found.values()))

    def tests(network: str) -> list[tuple[list[str], np.ndarray]]:
        networks = [of_fold[network] for of_fold in found.values()]
        return [(patients_of(cfg, one.names), one.confusion[1:].numpy()) for one in networks]

    rows = [
        [label(network), mean_difference(tests(network), tests(first)).text()] for network in others
    ]
    return ["network", f"mean over corruptions, less {label(first)}"], rows
