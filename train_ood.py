"""Train Med-OoD: the baseline's training again, with the estimated share of OoD patches mixed in.

Reads   Image_Patchs, Mask_Patchs, OoD_Patchs, k_folds
        HardOoD/<fold>_<model>.csv, HardOoD/<fold>_<model>_pct.json   (estimate_pct.py)
Writes  models/<fold>_<architecture>_<encoder>_ood/                   weights, settings, log
"""

from config import CONFIG, Config
from medood.data.folds import read_fold
from medood.data.ood_set import chosen_oods
from medood.data.workspace import id_files, model_folder, ood_files
from medood.runs.command_line import run
from medood.runs.products import ESTIMATE, FOLD, OOD_PATCHES, PATCH_MASKS, PATCHES, RANKING
from medood.runs.provenance import require


def train_ood(cfg: Config = CONFIG) -> None:
    """Train the Med-OoD network of every fold."""
    from medood.training.segmentation import train_fold  # here, so that --help works without torch

    require(cfg, PATCHES, PATCH_MASKS, FOLD, OOD_PATCHES, RANKING, ESTIMATE)
    for fold in cfg.folds:
        train, val, _ = read_fold(cfg, fold)
        hardest = chosen_oods(cfg, fold)
        if not hardest:
            print(
                f"fold {fold}: no OoD patch is added (the baseline predicts nuclei in none, or pct"
                " is 0): this training equals the baseline's"
            )
        files = id_files(cfg.workspace, train) + ood_files(cfg.workspace, hardest)
        val_files = id_files(cfg.workspace, val)
        train_fold(cfg, fold, files, val_files, model_folder(cfg, fold, ood=True))


if __name__ == "__main__":
    run(train_ood)
