"""How large must a change be? The smallest that fools robust/attack.py's networks, by ALMA-prox."""

import numpy as np

from medood.attacks.minimal import WRONG
from robust.attacked import Found, label

ABOUT = (
    f"The smallest change found by which {WRONG:.0%} of the pixels of a patch are wrong (ALMA-prox"
    " of adv-lib), in 255ths: median and quartiles of the patches in which it was found."
)


def changes_of(found: Found) -> dict:
    """Return the content of minimal.json: by fold and network, the change of each patch, in 255ths.

    None for a patch without a change that is large enough.
    """
    changes: dict = {}
    for fold, networks in found.items():
        for network, attacked in networks.items():
            pixels = attacked.confusion[1].double()
            right = pixels.diagonal(dim1=1, dim2=2).sum(1) / pixels.sum((1, 2))
            values = zip((255 * attacked.change[1]).tolist(), right.tolist(), strict=True)
            of_network = [value if share <= 1 - WRONG else None for value, share in values]
            changes.setdefault(fold, {})[network] = dict(
                zip(attacked.names, of_network, strict=True)
            )
    return changes


def change_table(changes: dict) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, one of each network over all folds."""
    rows = []
    for network in next(iter(changes.values())):
        every = [value for of_fold in changes.values() for value in of_fold[network].values()]
        known = [value for value in every if value is not None]
        text = "-"
        if known:
            low, median, high = np.percentile(known, [25, 50, 75])
            text = f"{median:.1f} [{low:.1f}, {high:.1f}]"
        rows.append([label(network), f"{len(known)} of {len(every)}", text])
    return ["network", "patches", "change, 255ths"], rows
