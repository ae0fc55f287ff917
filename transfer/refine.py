"""Train a student on the masks, with its own moving average as a teacher: see transfer/teacher.py.

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
from transfer.products import domains, masks_folder, with_lesion
from transfer.settings import TransferConfig


def student_folder(cfg: TransferConfig, fold: int) -> Path:
    """Return where the student of a fold is."""
    name = f"{fold}_{cfg.model_name}_{cfg.lesion}".replace("/", "_")
    return cfg.workspace / "transfer" / "student" / name


def refine(cfg: TransferConfig) -> None:
    """Train the student of every fold."""
    from medood.training.loop import train_fold  # here, so that --help works without torch
    from transfer.teacher import MeanTeacher

    cfg = with_lesion(cfg)
    require(cfg, "weak images", "transfer masks")
    for fold in cfg.folds:
        files = training_files(cfg, fold)
        refuse_empty(cfg, fold, files)
        train_fold(cfg, fold, files, [], student_folder(cfg, fold), MeanTeacher)


def training_files(cfg: TransferConfig, fold: int) -> list[Pair]:
    """Return the training images of both kinds, each with its mask."""
    diseased, healthy = domains(cfg, fold)
    return [(path, masks_folder(cfg, fold) / path.name) for path in diseased + healthy]


def refuse_empty(cfg: TransferConfig, fold: int, files: list[Pair]) -> None:
    """Raise UserError if no mask of a fold holds the lesion."""
    from medood.data.images import read_mask

    classes = len(cfg.class_names)
    if not any(in_threads(lambda pair: (read_mask(pair[1], classes) == 1).any(), files)):
        raise UserError(
            f"fold {fold}: no mask in {masks_folder(cfg, fold)} holds {cfg.lesion}: train the"
            " generator for more iterations, see the pictures beside it"
        )


if __name__ == "__main__":
    run(refine, TransferConfig())
