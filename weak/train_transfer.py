"""Train a generator to make images with a lesion healthy, inside a mask that it has to find.

Reads   weak/Images                                 (generate_images.py), and the image labels
Writes  weak/generator/<fold>_transfer_<lesion>/    generator, log of the losses, pictures
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from medood.runs.command_line import run
from weak import transfer
from weak.arrays import load_images
from weak.check_labels import check_labels
from weak.image_labels import with_lesion
from weak.products import GENERATOR, domains, generator_folder, make_folds, seeded
from weak.settings import TransferConfig


def train_generators(cfg: TransferConfig) -> None:
    """Train the generator of every fold on the images of its training side."""
    cfg = with_lesion(cfg)
    check_labels(cfg)
    make_folds(cfg, GENERATOR, train_fold)
    for fold in cfg.folds:
        shutil.rmtree(unfinished_folder(cfg, fold), ignore_errors=True)


def unfinished_folder(cfg: TransferConfig, fold: int) -> Path:
    """Return the folder of an unfinished training, from which an interrupted one continues."""
    folder = generator_folder(cfg, fold)
    return folder.with_name(f"{folder.name}_unfinished")


def train_fold(cfg: TransferConfig, fold: int, folder: Path) -> None:
    """Write the generator of a fold into a folder."""
    diseased, healthy = (load_images(cfg, paths) for paths in domains(cfg, fold))
    unfinished, made_from = unfinished_folder(cfg, fold), GENERATOR.made_from(cfg, fold)
    transfer.train_transfer(seeded(cfg), fold, diseased, healthy, unfinished, made_from)
    shutil.copytree(unfinished, folder, dirs_exist_ok=True)
    print(f"{generator_folder(cfg, fold)}: generator after {cfg.iterations} iterations")


if __name__ == "__main__":
    run(train_generators, TransferConfig())
