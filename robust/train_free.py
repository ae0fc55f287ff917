"""Train networks against attacks: free adversarial training, on the ID patches of each fold.

Reads   Image_Patchs, Mask_Patchs, k_folds              (generate_patches.py)
Writes  models/<fold>_<architecture>_<encoder>_free/    weights, settings, log

Every batch is replayed m times. The noise persists from batch to batch; each backward pass updates
the weights *and* the noise, which raises the loss within eps (Shafahi et al., "Adversarial training
for free!", NeurIPS 2019, Alg. 1). The epochs are divided by m, so it takes as long as train.py.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from medood.data.folds import read_fold
from medood.data.workspace import id_files
from medood.runs.command_line import run
from medood.runs.products import FOLD, PATCH_MASKS, PATCHES, Product, network_made_from
from medood.runs.provenance import require
from robust.settings import FreeConfig


def replayed(cfg: FreeConfig) -> FreeConfig:
    """Return the settings with epochs divided by the replays, so that training takes as long."""
    return replace(cfg, epochs=max(1, round(cfg.epochs / cfg.replays)))


def _of_free(cfg: FreeConfig, fold: int) -> dict:
    train, val, _ = read_fold(cfg, fold)
    files = id_files(cfg.workspace, train + val)
    own = {"eps": cfg.eps, "replays": cfg.replays}
    return network_made_from(replayed(cfg), fold, files) | {"free": own}


FREE = Product(
    *("free", lambda cfg, fold: cfg.workspace / "models" / f"{fold}_{cfg.model_name}_free"),
    *((), _of_free, "robust/train_free.py", FreeConfig),
)


def train_free(cfg: FreeConfig) -> None:
    """Train a network of every fold, as train.py does, but on images under attack."""
    # here, so that --help works without torch
    from medood.training.segmentation import train_fold
    from robust.free import FreeTrainer

    require(cfg, PATCHES, PATCH_MASKS, FOLD)
    for fold in cfg.folds:
        train, val, _ = read_fold(cfg, fold)
        files, val_files = id_files(cfg.workspace, train), id_files(cfg.workspace, val)
        made_from = FREE.made_from(cfg, fold)
        folder = FREE.path(cfg, fold)
        train_fold(replayed(cfg), fold, files, val_files, folder, FreeTrainer, made_from)


if __name__ == "__main__":
    run(train_free, FreeConfig())
