"""Turn maps into masks: a random walk up to the boundaries, a threshold, and unsure pixels.

Reads   weak/Images, weak/classifier, weak/maps, weak/irnet      (train_irnet.py)
Writes  weak/Pseudo_Masks/<fold>_<encoder>/<image>.png           uint8 (P, P), 0 background, 1..C
                                                                 the class, 255 unsure
        weak/Pseudo_Masks/<fold>_<encoder>/boundaries.npz        float16 (P / 4, P / 4) by image

trust.csv, next to the masks, ranks them: see weak/trust.py.

With method = unet, brightness is added to the maps: see weak/pooled.py.

Reads   weak/Images, weak/maps                                   (generate_maps.py)
Writes  weak/Pseudo_Masks/<fold>_pooled_<model>/<image>.png      as above

With method = transfer, the changes of a generator become the masks: see weak/healthy.py.

Reads   weak/Images, weak/generator                              (train_transfer.py)
Writes  weak/healthy/<fold>_transfer_<lesion>/                   every image without the lesion
        weak/Pseudo_Masks/<fold>_transfer_<lesion>/<image>.png   uint8 (P, P), 0 or 1, or 255 unsure

Within its borders a map is nearly flat after the walk, so it is cut at half of its maximum, and no
threshold must be chosen. Around that a training image is unsure; a test image is not.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch import Tensor

from medood.data.files import in_threads
from medood.data.images import write_png
from medood.models.network import pick_device
from medood.runs.command_line import run
from weak import pooled
from weak.affinity import walk
from weak.arrays import load_images, load_weights, write_arrays
from weak.classifier import load_classifiers
from weak.generate_maps import read_maps, read_seeds
from weak.healthy import write_healthy, write_lesions
from weak.image_labels import with_classes, with_lesion
from weak.irnet import WEIGHTS, IRNet, boundaries, encoder_of
from weak.maps import masks_of, masks_with_unsure, normalised, resized
from weak.products import (
    HEALTHY,
    TRANSFER_MASKS,
    classifier_folder,
    fold_labels,
    image_paths,
    irnet_folder,
    make_folds,
    masks_folder,
    masks_product,
)
from weak.settings import MasksConfig
from weak.trust import write_trust

BOUNDARIES = "boundaries.npz"
BORDER = 0.5  # of a map's maximum


def generate_masks(cfg: MasksConfig) -> None:
    """Write the masks of every fold, of training and of test images."""
    if cfg.method == "transfer":
        cfg = with_lesion(cfg)
        make_folds(cfg, HEALTHY, write_healthy)
        make_folds(cfg, TRANSFER_MASKS, write_lesions)
    else:
        write = write_pooled if cfg.method == "unet" else write_masks
        make_folds(with_classes(cfg), masks_product(cfg), write)


def write_masks(cfg: MasksConfig, fold: int, folder: Path) -> None:
    """Write the masks of all images by the maps and boundaries of a fold into a folder."""
    labels, train, _ = fold_labels(cfg, fold)
    paths = image_paths(cfg, labels)
    maps, held, _ = read_seeds(cfg, fold, paths)
    found = boundaries_of(cfg, fold, paths)
    write_arrays(folder / BOUNDARIES, paths, found, np.float16)
    walked = normalised(walked_maps(cfg, maps, found), held)
    count, training = len(labels.classes), set(train)
    limits = [BORDER + cfg.unsure] * count, [BORDER - cfg.unsure] * count
    masks = []
    for index in range(len(paths)):
        one = slice(index, index + 1)
        of_image = resized(walked[one], [cfg.image_size] * 2)
        if index in training:
            masks.append(masks_with_unsure(of_image, held[one], limits))
        else:
            masks.append(masks_of(of_image, held[one], [BORDER] * count))
    write_all(cfg, fold, folder, paths, torch.cat(masks))


def write_pooled(cfg: MasksConfig, fold: int, folder: Path) -> None:
    """Write the masks of all images by the maps of a fold with method = unet into a folder."""
    labels, train, _ = fold_labels(cfg, fold)
    paths = image_paths(cfg, labels)
    images = load_images(cfg, paths)
    maps, held = read_maps(cfg, fold, paths, "unet")
    ratio = pooled.appearance(maps[train], images[train], held[train])
    maps = pooled.with_appearance(maps, images, ratio)
    masks = pooled.masks_of(maps, held)
    masks[train] = pooled.masks_with_unsure(maps[train], held[train], cfg.unsure)
    write_all(cfg, fold, folder, paths, masks)


def write_all(cfg: MasksConfig, fold: int, folder: Path, paths: list[Path], masks: Tensor) -> None:
    """Write the masks of images, uint8 (N, P, P), and their trust into a folder."""
    for path, mask in zip(paths, masks, strict=True):
        write_png(folder / path.name, mask.numpy())
    write_trust(cfg, fold, folder, paths, masks)
    print(f"{masks_folder(cfg, fold)}: masks of {len(paths)} images")


def boundaries_of(cfg: MasksConfig, fold: int, paths: list[Path]) -> Tensor:
    """Return the boundaries that the IRNet of a fold predicts in images, float32 (N, h, w)."""
    device = pick_device(cfg.device)
    classifier, *_ = load_classifiers(cfg, classifier_folder(cfg, fold), "plain", device)
    irnet = load_weights(IRNet(classifier.levels), irnet_folder(cfg, fold) / WEIGHTS)
    return boundaries(encoder_of(cfg, classifier, device), irnet, load_images(cfg, paths), device)


def walked_maps(cfg: MasksConfig, maps: Tensor, boundaries: Tensor) -> Tensor:
    """Return maps (N, C, h, w) after the random walk of each image up to boundaries (N, h, w)."""

    def walked(index: int) -> Tensor:
        of_image = maps[index]
        held = of_image.amax((1, 2)) > 0
        out = torch.zeros_like(of_image)
        if held.any():
            out[held] = walk(of_image[held], boundaries[index], cfg.walk_steps)
        return out

    return torch.stack(in_threads(walked, range(len(maps)), "random walk"))


if __name__ == "__main__":
    run(generate_masks, MasksConfig())
