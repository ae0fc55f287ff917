"""Train a student on the masks, with its own moving average as a teacher: see weak/teacher.py.

Reads   weak/Images, transfer/Pseudo_Masks                 (generate_masks.py)
Writes  transfer/student/<fold>_<model>_<lesion>/          weights, settings, log

The network, its loss and its training are those of the trunk (config.py). The masks teach it; the
teacher, where it is sure, makes it see the same in an image however it is turned and lit.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import UserError
from medood.data.files import in_threads
from medood.data.workspace import Pair
from medood.runs.command_line import run
from medood.runs.provenance import require
from weak.products import IMAGES
from weak.transfer_products import TRANSFER_MASKS, domains, masks_folder, with_lesion
from weak.transfer_settings import TransferConfig


def student_folder(cfg: TransferConfig, fold: int) -> Path:
    """Return where the student of a fold is."""
    name = f"{fold}_{cfg.model_name}_{cfg.lesion}".replace("/", "_")
    return cfg.workspace / "transfer" / "student" / name


def refine(cfg: TransferConfig) -> None:
    """Train the student of every fold that has masks; UserError if none has."""
    from medood.training.segmentation import train_fold  # here, so that --help works without torch
    from weak.teacher import MeanTeacher

    cfg = with_lesion(cfg)
    require(cfg, IMAGES, TRANSFER_MASKS)
    folds = [fold for fold in cfg.folds if has_masks(cfg, fold)]
    if not folds:
        raise UserError(
            f"fold {cfg.folds[0]}: no mask in {masks_folder(cfg, cfg.folds[0])} holds {cfg.lesion}:"
            " train the generator for more iterations, see the pictures beside it"
        )
    for fold in cfg.folds:
        if fold in folds:
            files = training_files(cfg, fold)
            train_fold(cfg, fold, files, [], student_folder(cfg, fold), MeanTeacher)
        else:
            print(f"fold {fold}: no mask holds {cfg.lesion}, so there is no student: it finds none")


def training_files(cfg: TransferConfig, fold: int) -> list[Pair]:
    """Return the training images of both kinds, each with its mask."""
    diseased, healthy = domains(cfg, fold)
    return [(path, masks_folder(cfg, fold) / path.name) for path in diseased + healthy]


def has_masks(cfg: TransferConfig, fold: int) -> bool:
    """Say whether any mask of a fold holds the lesion: there is nothing to learn otherwise."""
    from medood.data.images import read_mask

    classes = len(cfg.class_names)
    files = training_files(cfg, fold)
    return any(in_threads(lambda pair: (read_mask(pair[1], classes) == 1).any(), files))


if __name__ == "__main__":
    run(refine, TransferConfig())
