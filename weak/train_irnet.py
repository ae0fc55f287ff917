"""Train IRNet: the boundaries of classes, learned from the pixels of which the maps are sure.

Reads   weak/Images, weak/classifier, weak/maps          (generate_maps.py)
Writes  weak/irnet/<fold>_<encoder>/                     weights and log

The encoder of the first classifier is frozen. Training images without any class are not used: all
of their pixels are background.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from config import UserError
from medood.data.labels import BACKGROUND, is_foreground
from medood.models.network import pick_device
from medood.runs.command_line import run
from medood.training.batches import INITIALISATION, stream_seed
from medood.training.loop import fit, write_log
from weak.arrays import load_images, save_weights
from weak.classifier import load_classifiers
from weak.generate_maps import read_seeds
from weak.image_labels import for_maps
from weak.irnet import WEIGHTS, IRNet, IRNetTraining, encoder_of
from weak.maps import masks_with_unsure, thresholds_of
from weak.products import (
    IRNET,
    classifier_folder,
    fold_labels,
    image_paths,
    irnet_folder,
    make_folds,
)
from weak.settings import IRNetConfig


def train_irnets(cfg: IRNetConfig) -> None:
    """Train the IRNet of every fold."""
    if cfg.method == "unet":
        raise UserError("method = unet: it uses no IRNet: run weak/generate_masks.py instead")
    make_folds(for_maps(cfg), IRNET, train_fold)


def train_fold(cfg: IRNetConfig, fold: int, folder: Path) -> None:
    """Write the IRNet of a fold into a folder."""
    labels, train, _ = fold_labels(cfg, fold)
    paths, device = [image_paths(cfg, labels)[index] for index in train], pick_device(cfg.device)
    maps, held, areas = read_seeds(cfg, fold, paths)
    holding = held.any(1)
    sure = confident_labels(cfg, maps, held, areas)[holding]
    # from shuffled labels nothing may be learned: the control continues
    if not cfg.shuffled and (not is_foreground(sure).any() or not (sure == BACKGROUND).any()):
        raise UserError(
            f"fold {fold}: the maps leave no pixel sure to be a class, or to be none: raise"
            f" sure_area (now {cfg.sure_area:g}), or lower possible_area (now"
            f" {cfg.possible_area:g})"
        )
    images = load_images(cfg, paths)[holding]
    classifier, *_ = load_classifiers(cfg, classifier_folder(cfg, fold), "plain", device)
    torch.manual_seed(stream_seed(cfg, fold, INITIALISATION))
    irnet = IRNet(classifier.levels)
    print(f"fold {fold}: IRNet on {len(images)} images, {device.type}")
    encoder = encoder_of(cfg, classifier, device)
    training = IRNetTraining(cfg, fold, encoder, irnet, images, sure, device)
    fit(training)
    save_weights(irnet, folder / WEIGHTS)
    write_log(folder, training.log)
    print(f"{irnet_folder(cfg, fold)}: loss {training.log[-1]['loss']:.3f}")


def confident_labels(cfg: IRNetConfig, maps: Tensor, held: Tensor, areas: list[float]) -> Tensor:
    """Return the class of each pixel if its maps are sure, else 255: uint8 (N, h, w).

    maps: (N, C, h, w). held: bool (N, C), the classes of each image; no other counts. An image
    without any is background. areas: the share that each class covers of an image with it.
    """
    limits = [
        thresholds_of(maps, held, [width * area for area in areas])
        for width in (cfg.sure_area, cfg.possible_area)
    ]
    return masks_with_unsure(maps, held, limits)


if __name__ == "__main__":
    run(train_irnets, IRNetConfig())
