"""Estimate which share of the OoD patches to train on, by a grid search on the pnr.

The pnr is the positive-negative ratio of the training set (Eq. 1-3 of the paper).

Reads   Mask_Patchs, k_folds, HardOoD/<fold>_<model>.csv    (rank_prune_ood.py)
Writes  HardOoD/<fold>_<model>_pct.json                     the share, its pnr, the whole grid
"""

import math
from collections.abc import Iterable

import numpy as np

from config import CONFIG, Config, UserError
from medood.data.files import in_threads
from medood.data.folds import read_fold
from medood.data.images import read_mask
from medood.data.labels import UNSURE, is_foreground
from medood.data.ood_set import read_hard_oods
from medood.data.records import write_own_record
from medood.data.workspace import Pair, id_files, pct_path
from medood.processes import on_main
from medood.runs.command_line import run
from medood.runs.products import ESTIMATE, FOLD, PATCH_MASKS, RANKING
from medood.runs.provenance import product_is_kept, require


def count_samples(foreground: Iterable[int], pixels: int | list[int]) -> tuple[int, int]:
    """Return the positives and negatives among ID patches.

    pixels: how many of each patch, or of all alike, are sure. foreground: how many of these are
    foreground. A patch with any is a positive, one with any background pixel a negative; most are
    both (Sec. 3.2 of the paper).
    """
    counts = np.array(list(foreground))
    return int((counts > 0).sum()), int((counts < np.array(pixels)).sum())


def pixels_of(cfg: Config, files: Iterable[Pair]) -> tuple[list[int], list[int]]:
    """Return how many pixels of each mask are foreground, and how many are sure."""
    classes = len(cfg.class_names)

    def count(pair: Pair) -> tuple[int, int]:
        mask = read_mask(pair[1], classes)
        return np.count_nonzero(is_foreground(mask)), np.count_nonzero(mask != UNSURE)

    counts = in_threads(count, files, "masks")
    return [foreground for foreground, _ in counts], [sure for _, sure in counts]


def pnr(positives: int, negatives: int, ood_patches: int) -> float:
    """Return positives / negatives once OoD patches, negatives only, are added (Eq. 1)."""
    total = negatives + ood_patches
    return positives / total if total else math.inf


def choose_pct(
    positives: int, negatives: int, available: int, grid: Iterable[float], pnr_opt: float
) -> tuple[dict, list[dict]]:
    """Return the best row of the grid, and all rows (Eq. 2-3).

    available: OoD patches that were kept, of which a share pct adds round(pct * available).
    The best row has the smallest |pnr - pnr_opt|, and the smallest pct of those.
    """
    rows = []
    for pct in sorted(grid):
        count = round(pct * available)
        ratio = pnr(positives, negatives, count)
        distance = abs(ratio - pnr_opt)
        rows.append({"pct": pct, "ood_patches": count, "pnr": ratio, "distance": distance})
    return min(rows, key=lambda row: row["distance"]), rows  # min keeps the first of equals


@on_main
def estimate_pct(cfg: Config = CONFIG) -> None:
    """Write the estimate of every fold, unless it exists for the same ranking and masks."""
    require(cfg, PATCH_MASKS, FOLD, RANKING)
    for fold in cfg.folds:
        if product_is_kept(cfg, ESTIMATE, fold):
            continue
        names = read_fold(cfg, fold).train
        available = len(read_hard_oods(cfg, fold))
        positives, negatives = count_samples(*pixels_of(cfg, id_files(cfg.workspace, names)))
        if not positives:
            raise UserError(f"fold {fold}: no training mask contains a nucleus: check Mask_Patchs")
        best, rows = choose_pct(positives, negatives, available, cfg.pct_grid, cfg.pnr_opt)
        pnr_id = pnr(positives, negatives, 0)
        write_own_record(
            pct_path(cfg, fold),
            {
                **best,
                "available": available,
                "id_patches": len(names),
                "positives": positives,
                "negatives": negatives,
                "pnr_id": pnr_id,
                "grid": rows,
            },
            ESTIMATE.made_from(cfg, fold),
        )
        print(
            f"fold {fold}: pct {best['pct']:g}, {best['ood_patches']} of {available} OoD patches,"
            f" change the pnr from {pnr_id:.3f} to {best['pnr']:.3f}"
        )


if __name__ == "__main__":
    run(estimate_pct)
