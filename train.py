"""Train the baseline: one network per fold, on its in-distribution (ID) patches.

Reads   Image_Patchs, Mask_Patchs, k_folds         (generate_patches.py)
Writes  models/<fold>_<architecture>_<encoder>/    weights, settings, log
"""

from config import CONFIG, Config
from medood.cli import run
from medood.folds import read_fold


def train(cfg: Config = CONFIG) -> None:
    """Train the baseline of every fold."""
    from medood.training import train_fold  # here, so that --help answers without torch

    for fold in cfg.folds:
        names, _ = read_fold(cfg, fold)
        train_fold(cfg, fold, names, ood_names=None)


if __name__ == "__main__":
    run(train)
