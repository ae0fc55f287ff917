"""Objects that robust/attack.py's networks find, by their size: are small ones lost first?"""

from pathlib import Path

import numpy as np

from config import Config
from medood.attacks.together import WORST
from medood.data.patients import patients_of
from medood.evaluation import figures
from medood.evaluation.objects import wide_bins
from medood.evaluation.statistics import Difference, shares
from robust.attacked import Attacked, Found, label

ABOUT = (
    "Share of true objects that are found, percent: at least half of the pixels are predicted as"
    " their class. Four bins of as many objects each as possible; objects at the border of a patch"
    " are excluded. They are nuclei if the labels have instances, else connected components."
)


def bins_of(found: Found) -> dict[str, slice]:
    """Return bins of the sizes of all true objects, the same for all folds and networks."""
    first = [next(iter(networks.values())) for networks in found.values()]
    return wide_bins(sum(attacked.objects[0, :, :, 0].sum(0).numpy() for attacked in first))


def in_bins(attacked: Attacked, place: int, bins: dict[str, slice]) -> tuple[np.ndarray, ...]:
    """Return how many objects of each bin there are in each patch, (N, B), and are found."""
    fine = attacked.objects[place].numpy()
    wide = np.stack([fine[:, of_bin].sum(1) for of_bin in bins.values()], 1)
    return wide[..., 0], wide[..., 1]


def scores_by_size(attacked: Attacked, place: int, bins: dict[str, slice]) -> dict[str, dict]:
    """Return a condition's part of scores.json: counts and shares by the name of a bin."""
    every, found = (each.sum(0).tolist() for each in in_bins(attacked, place, bins))
    share = [hit / whole if whole else None for hit, whole in zip(found, every, strict=True)]
    return {
        "objects_by_size": dict(zip(bins, every, strict=True)),
        "found_by_size": dict(zip(bins, share, strict=True)),
    }


def shares_by_size(cfg: Config, found: Found) -> dict[tuple[str, float, str], list[Difference]]:
    """Return the share found in each bin, with its interval, by network, eps and attack."""
    bins = bins_of(found)
    rows = {}
    for network, of_network in next(iter(found.values())).items():
        for place, (eps, attack) in enumerate(of_network.pairs):
            tests = [
                (patients_of(cfg, of_fold[network].names), *in_bins(of_fold[network], place, bins))
                for of_fold in found.values()
            ]
            rows[network, eps, attack] = shares(tests)
    return rows


def size_table(cfg: Config, found: Found, rows: dict) -> tuple[list[str], list[list[str]]]:
    """Return the shares as header and rows: each attack at the largest eps, the worst at all."""
    bins, most = bins_of(found), max(cfg.eps)
    firsts = [next(iter(of_fold.values())) for of_fold in found.values()]
    counts = sum(in_bins(attacked, 0, bins)[0].sum(0) for attacked in firsts)
    header = [f"{name} ({count})" for name, count in zip(bins, counts.tolist(), strict=True)]
    table = [
        [label(network), f"{eps:g}", label(attack), *(share.points() for share in of_bins)]
        for (network, eps, attack), of_bins in rows.items()
        if eps in (0, most) or attack == WORST
    ]
    return ["network", "eps", "attack", *header], table


def draw_sizes(path: Path, cfg: Config, bins: list[str], rows: dict) -> None:
    """Draw the shares found by size: clean, and in the worst case at the largest eps, dashed."""
    networks = list(dict.fromkeys(network for network, _, _ in rows))
    with figures.canvas(path, "") as figure:
        ax = figure.subplots()
        for colour, network in zip(figures.COLOURS, networks, strict=False):
            for eps, attack, style in ((0.0, "clean", "o-"), (max(cfg.eps), WORST, "o--")):
                if (network, eps, attack) in rows:
                    of_bins = 100 * np.array(rows[network, eps, attack])  # mean, low, high
                    mean, low, high = of_bins.T
                    bars = np.stack([mean - low, high - mean]).clip(0)
                    name = f"{label(network)}, {label(attack)}"
                    ax.errorbar(bins, mean, bars, fmt=style, c=colour, ms=4, capsize=3, label=name)
        ax.set(xlabel="size of the object", ylabel="found, percent", ylim=(0, 100))
        figure.legend(ncols=3, loc="outside lower center")
