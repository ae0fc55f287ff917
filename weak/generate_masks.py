"""Turn maps into masks: a random walk up to the boundaries, a threshold, and the unsure left open.

Reads   weak/Images, weak/classifier, weak/maps, weak/irnet      (train_irnet.py)
Writes  weak/Pseudo_Masks/<fold>_<encoder>/<image>.png           uint8 (P, P), 0 background, 1..C
                                                                 the class, 255 unsure
        weak/Pseudo_Masks/<fold>_<encoder>/boundaries.npz        float16 (P / 4, P / 4) by image

With method = transfer, what a generator changes becomes the masks: see weak/healthy.py.

Reads   weak/Images, weak/generator                              (train_transfer.py)
Writes  weak/healthy/<fold>_transfer_<lesion>/                   every image without the lesion
        weak/Pseudo_Masks/<fold>_transfer_<lesion>/<image>.png   uint8 (P, P), 0 or 1, or 255 unsure

Within its borders a map is nearly flat after the walk, so it ends at half of its maximum, and no
threshold need be chosen. A training image is unsure around that; a test image is not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from medood.data.files import reading
from medood.data.images import write_png
from medood.runs.command_line import run
from weak.generate_maps import read_seeds
from weak.image_labels import with_classes, with_lesion
from weak.products import (
    CLASSIFIER,
    GENERATOR,
    HEALTHY,
    IRNET,
    MAPS,
    PSEUDO_MASKS,
    TRANSFER_MASKS,
    classifier_folder,
    fold_labels,
    image_paths,
    irnet_folder,
    make_folds,
    masks_folder,
)
from weak.settings import MasksConfig

if TYPE_CHECKING:
    from torch import Tensor

BOUNDARIES = "boundaries.npz"
BORDER = 0.5  # of a map's maximum


def generate_masks(cfg: MasksConfig) -> None:
    """Write the masks of every fold, of training and of test images."""
    if cfg.method == "transfer":
        from weak.healthy import write_healthy, write_lesions  # here: --help works without torch

        cfg = with_lesion(cfg)
        make_folds(cfg, HEALTHY, [GENERATOR], write_healthy)
        make_folds(cfg, TRANSFER_MASKS, [HEALTHY], write_lesions)
    else:
        make_folds(with_classes(cfg), PSEUDO_MASKS, [CLASSIFIER, MAPS, IRNET], write_masks)


def write_masks(cfg: MasksConfig, fold: int, folder: Path) -> None:
    """Write the masks of all images by the maps and boundaries of a fold into a folder."""
    # here, so that --help works without torch
    from weak.maps import normalised, resized
    from weak.thresholds import masks_of, masks_with_unsure

    labels, train, _ = fold_labels(cfg, fold)
    paths = image_paths(cfg, labels)
    maps, held, _ = read_seeds(cfg, fold, paths)
    found = boundaries_of(cfg, fold, paths)
    arrays = {path.stem: found[i].numpy().astype(np.float16) for i, path in enumerate(paths)}
    np.savez_compressed(folder / BOUNDARIES, **arrays)
    walked = normalised(walked_maps(cfg, maps, found), held)
    count, training = len(labels.classes), set(train)
    limits = [BORDER + cfg.unsure] * count, [BORDER - cfg.unsure] * count
    for index, path in enumerate(paths):
        one = slice(index, index + 1)
        of_image = resized(walked[one], [cfg.image_size] * 2)
        if index in training:
            mask = masks_with_unsure(of_image, held[one], limits)
        else:
            mask = masks_of(of_image, held[one], [BORDER] * count)
        write_png(folder / path.name, mask[0].numpy())
    print(f"{masks_folder(cfg, fold)}: masks of {len(paths)} images")


def boundaries_of(cfg: MasksConfig, fold: int, paths: list[Path]) -> Tensor:
    """Return the boundaries that the IRNet of a fold sees in images, float32 (N, h, w)."""
    from safetensors.torch import load_file

    from medood.data.dataset import load_patches
    from medood.models.network import Normalise, pick_device
    from weak.classifier import load_classifier
    from weak.irnet import WEIGHTS, IRNet, boundaries

    device = pick_device(cfg.device)
    classifier = load_classifier(cfg, classifier_folder(cfg, fold), "plain", 0, device)
    irnet = IRNet(classifier.levels)
    weights = irnet_folder(cfg, fold) / WEIGHTS
    with reading(weights):
        irnet.load_state_dict(load_file(weights))
    images = load_patches(cfg, [(path, None) for path in paths]).images
    normalise = Normalise(cfg.encoder).to(device)
    return boundaries(classifier.features, irnet, images, normalise=normalise, device=device)


def walked_maps(cfg: MasksConfig, maps: Tensor, boundaries: Tensor) -> Tensor:
    """Return maps (N, C, h, w) after the random walk of each image up to boundaries (N, h, w)."""
    import torch

    from medood.data.files import in_threads
    from weak.affinity import walk

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
