"""Scores of robust/attack.py's networks under corruptions, next to the worst case of attacks."""

import numpy as np

from config import Config
from medood.attacks.together import WORST
from medood.data.patients import patients_of
from medood.evaluation.statistics import mean_difference
from medood.evaluation.tables import spread
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


def mean_errors(of_network: dict, of_first: dict, score: str = "miou") -> tuple[float, float]:
    """Return mCE and relative mCE of a network, as shares of the first one's.

    Both: by kind and strength, the part of corruptions.json of a fold. A kind under which the first
    one loses nothing is not in the relative mean.
    """
    errors = [
        {kind: 1 - _values(rows, score) for kind, rows in each.items()}
        for each in (of_network, of_first)
    ]
    clean = [of_each.pop("clean")[0] for of_each in errors]
    plain, relative = [], []
    for kind in errors[0]:
        ours, first = (of_each[kind] for of_each in errors)
        plain.append(ours.sum() / first.sum())
        beyond = (first - clean[1]).sum()
        relative.append((ours - clean[0]).sum() / beyond if beyond > 0 else np.nan)
    return float(np.mean(plain)), float(np.nanmean(relative))


def corruption_table(
    scores: dict, attacked: dict, score: str = "miou"
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, one of each network, from the content of both JSON files."""
    networks = list(next(iter(scores.values())))
    kinds = [kind for kind in next(iter(scores.values()))[networks[0]] if kind != "clean"]
    of_eps = next(iter(attacked.values()))[networks[0]]
    worst = [eps for eps in of_eps if WORST in of_eps[eps]]
    rows = []
    for network in networks:
        folds = [of_fold[network] for of_fold in scores.values()]
        firsts = [of_fold[networks[0]] for of_fold in scores.values()]
        means = {
            k: [_values(of_fold[k], score).mean() for of_fold in folds] for k in ("clean", *kinds)
        }
        every = [float(np.mean([means[kind][i] for kind in kinds])) for i in range(len(folds))]
        errors = [mean_errors(*pair, score) for pair in zip(folds, firsts, strict=True)]
        cells = [spread(values) for values in (*means.values(), every, *zip(*errors, strict=True))]
        under = [[of[network][eps][WORST][score] for of in attacked.values()] for eps in worst]
        rows.append([label(network), *cells, *map(spread, under)])
    header = ["network", "clean", *kinds, "mean", "mCE", "relative mCE"]
    return [*header, *(f"worst case, {eps}/255" for eps in worst)], rows


def _values(of_kind: dict, score: str) -> np.ndarray:
    """Return the score at each strength, NaN if no foreground is tested."""
    return np.array([of_strength[score] for of_strength in of_kind.values()], float)


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
