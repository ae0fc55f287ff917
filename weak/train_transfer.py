"""Train a generator to make images with a lesion healthy, inside of a mask that it has to find.

Reads   weak/Images                           (weak/generate_images.py), and the image labels
Writes  transfer/generator/<fold>_<lesion>/   generator, log of the losses, pictures
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from medood.runs.command_line import run
from medood.runs.provenance import require
from weak.image_labels import with_classes
from weak.products import IMAGES
from weak.transfer_products import GENERATOR, domains, generator_folder, training_folder
from weak.transfer_settings import TransferConfig


def train_generators(cfg: TransferConfig) -> None:
    """Train the generator of every fold on the images of its training side."""
    cfg = with_classes(cfg)
    require(cfg, IMAGES)
    for fold in cfg.folds:
        with training_folder(cfg, GENERATOR, fold) as folder:
            if folder:
                train_fold(cfg, fold, folder)


def train_fold(cfg: TransferConfig, fold: int, folder: Path) -> None:
    """Write the generator of a fold into a folder."""
    from medood.data.dataset import load_patches  # here, so that --help works without torch
    from medood.models.network import pick_device
    from weak.transfer import train_transfer

    diseased, healthy = (
        load_patches(cfg, [(path, None) for path in paths]).images for paths in domains(cfg, fold)
    )
    train_transfer(cfg, fold, diseased, healthy, folder, pick_device(cfg))
    print(f"{generator_folder(cfg, fold)}: generator after {cfg.iterations} iterations")


if __name__ == "__main__":
    run(train_generators, TransferConfig())
