"""Train Med-OoD: the baseline's training again, with the estimated share of OoD patches mixed in.

Reads   Image_Patchs, Mask_Patchs, OoD_Patchs, k_folds
        HardOoD/<fold>_<model>.csv, HardOoD/<fold>_<model>_pct.json   (estimate_pct.py)
Writes  models/<fold>_<architecture>_<encoder>_ood/                   weights, settings, log
"""

from config import CONFIG, Config
from medood.cli import run
from medood.folds import read_fold
from medood.hard_ood import read_hard_oods, read_pct


def train_ood(cfg: Config = CONFIG) -> None:
    """Train the Med-OoD network of every fold."""
    from medood.training import train_fold  # here, so that --help answers without torch

    for fold in cfg.folds:
        names, _ = read_fold(cfg, fold)
        hardest = read_hard_oods(cfg, fold)[: read_pct(cfg, fold)["ood_patches"]]
        train_fold(cfg, fold, names, ood_names=hardest)


if __name__ == "__main__":
    run(train_ood)
