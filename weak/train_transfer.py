"""Train a generator to make images with a lesion healthy, inside of a mask that it has to find.

Reads   weak/Images                                 (generate_images.py), and the image labels
Writes  weak/generator/<fold>_transfer_<lesion>/    generator, log of the losses, pictures
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from medood.runs.command_line import run
from weak.image_labels import with_lesion
from weak.products import GENERATOR, IMAGES, domains, generator_folder, make_folds, seeded
from weak.settings import TransferConfig


def train_generators(cfg: TransferConfig) -> None:
    """Train the generator of every fold on the images of its training side."""
    make_folds(with_lesion(cfg), GENERATOR, [IMAGES], train_fold, resumable=True)


def train_fold(cfg: TransferConfig, fold: int, folder: Path) -> None:
    """Write the generator of a fold into a folder."""
    from medood.data.dataset import load_patches  # here, so that --help works without torch
    from weak.transfer import train_transfer

    diseased, healthy = (
        load_patches(cfg, [(path, None) for path in paths]).images for paths in domains(cfg, fold)
    )
    train_transfer(seeded(cfg), fold, diseased, healthy, folder)
    print(f"{generator_folder(cfg, fold)}: generator after {cfg.iterations} iterations")


if __name__ == "__main__":
    run(train_generators, TransferConfig())
