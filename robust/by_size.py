"""Objects that robust/attack.py's networks find, by their size: are small ones lost first?"""

import numpy as np

from config import Config
from medood.attacks.together import WORST
from medood.data.patients import patients_of
from medood.evaluation.objects import wide_bins
from medood.evaluation.statistics import shares
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


def size_table(cfg: Config, found: Found) -> tuple[list[str], list[list[str]]]:
    """Return the share found in each bin, with its interval, as header and rows.

    Rows: of each network every attack at the largest eps, and the worst case at all.
    """
    bins, rows = bins_of(found), []
    for network, of_network in next(iter(found.values())).items():
        for place, (eps, attack) in enumerate(of_network.pairs):
            if eps in (0, max(cfg.eps)) or attack == WORST:
                tested = [of_fold[network] for of_fold in found.values()]
                tests = [
                    (patients_of(cfg, one.names), *in_bins(one, place, bins)) for one in tested
                ]
                points = [share.points() for share in shares(tests)]
                rows.append([label(network), f"{eps:g}", label(attack), *points])
    counts = sum(every.sum(0) for _, every, _ in tests)  # the same for all networks
    header = [f"{name} ({count})" for name, count in zip(bins, counts.tolist(), strict=True)]
    return ["network", "eps", "attack", *header], rows
