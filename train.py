"""Train the baseline: one network per fold, on its in-distribution (ID) patches.

Reads   Image_Patchs, Mask_Patchs, k_folds         (generate_patches.py)
Writes  models/<fold>_<architecture>_<encoder>/    weights, settings, log
"""

from config import CONFIG, TrainingConfig
from medood.data.folds import read_fold
from medood.data.workspace import id_files, model_folder
from medood.runs.command_line import run
from medood.runs.products import FOLD, PATCH_MASKS, PATCHES
from medood.runs.provenance import require


def train(cfg: TrainingConfig = CONFIG) -> None:
    """Train the baseline of every fold."""
    from medood.training.segmentation import train_fold  # here, so that --help works without torch

    require(cfg, PATCHES, PATCH_MASKS, FOLD)
    for fold in cfg.folds:
        train, val, _ = read_fold(cfg, fold)
        folder = model_folder(cfg, fold, ood=False)
        train_fold(cfg, fold, id_files(cfg.workspace, train), id_files(cfg.workspace, val), folder)


if __name__ == "__main__":
    run(train, TrainingConfig())
