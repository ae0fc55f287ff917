"""Train a generator to make images with a lesion healthy, inside of a mask that it has to find.

Reads   weak/Images, weak/classifier                (train_classifier.py), and the image labels
Writes  weak/generator/<fold>_transfer_<lesion>/    generator, log of the losses
        weak/generator/<fold>_.../flipped.json      by training, how often the classifier flipped

A training after which the classifier still sees most of the lesions has failed: it is repeated from
other random numbers, twice at most. That is told by image labels alone. The last one is kept.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from medood.data.files import write_json
from medood.models.network import pick_device
from medood.runs.command_line import run
from weak.arrays import load_images
from weak.check_labels import check_labels, places_of
from weak.image_labels import with_classes, with_lesion
from weak.pooled import load_pooled
from weak.products import (
    GENERATOR,
    classifier_folder,
    domains,
    generator_folder,
    image_paths,
    labels_there,
    make_folds,
    unfinished,
)
from weak.settings import TransferConfig
from weak.transfer import Images, Sees, train_transfer

TRAININGS = 3  # of a fold, at most
FLIPPED = "flipped.json"
ENOUGH = 0.5  # of the lesions that the classifier sees, which a generator is to heal


def train_generators(cfg: TransferConfig) -> None:
    """Train the generator of every fold on the images of its training side."""
    cfg = with_lesion(cfg)
    check_labels(cfg)
    make_folds(cfg, GENERATOR, train_fold)


def train_fold(cfg: TransferConfig, fold: int, folder: Path) -> None:
    """Write the generator of a fold into a folder."""
    diseased, healthy = (with_places(cfg, paths) for paths in domains(cfg, fold))
    of_all, device = with_classes(cfg), pick_device(cfg.device)
    networks = load_pooled(of_all, classifier_folder(cfg, fold), device)
    sees = Sees(cfg, networks, of_all.class_names.index(cfg.lesion) - 1)
    where, made_from = generator_folder(cfg, fold), GENERATOR.made_from(cfg, fold)
    shares: list[float] = []
    while len(shares) < TRAININGS and (not shares or shares[-1] < ENOUGH):
        own = unfinished(where) / str(len(shares) + 1)
        seeded = replace(cfg, seed=cfg.seed + len(shares))
        shares.append(train_transfer(seeded, fold, diseased, healthy, sees, own, made_from))
        print(f"{where}: the classifier flips on {100 * shares[-1]:.0f} % of what it sees")
    shutil.copytree(own, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("resume.pt"))
    write_json(folder / FLIPPED, {"flipped": shares})


def with_places(cfg: TransferConfig, paths: list[Path]) -> Images:
    """Return images and where each lies in the body, as far as it is known."""
    labels = labels_there(cfg)
    place = dict(zip(image_paths(cfg, labels), places_of(labels).tolist(), strict=True))
    return Images(load_images(cfg, paths), torch.tensor([place[path] for path in paths]))


if __name__ == "__main__":
    run(train_generators, TransferConfig())
