"""Images made healthy by a generator, and masks of what had to change.

weak/healthy/<fold>_transfer_<lesion>/ holds

    <image>.png         RGB (P, P, 3), the lesion taken out
    mask.npz            uint8 (P, P) by image: the mask head, 255 where all of a pixel may change
    sheet/healthy.png   a contact sheet of training images

The generator is the last one of its training: nothing chooses another. Otsu's threshold splits the
values of the mask head on all training images with the lesion, so there is one for a fold. A
threshold of its own for each image would always find two sides, also where nothing is.

A training image without any class has an empty mask, as its label says. One with the lesion in
which nothing reaches the threshold contradicts its label: its mask is unsure (255) all over. A test
image without a lesion to the classifier has an empty mask.
"""

from pathlib import Path

import numpy as np
import torch
from skimage.filters import threshold_otsu
from torch import Tensor

from medood.data.images import read_image, write_png
from medood.data.labels import BACKGROUND, UNSURE
from medood.models.network import pick_device
from weak.arrays import draw_rows, load_images, read_arrays, some_of, write_arrays
from weak.generator import heal, load_generator
from weak.image_labels import with_classes
from weak.pooled import logits_by
from weak.products import (
    classifier_folder,
    domains,
    generator_folder,
    healthy_folder,
    masks_folder,
    paths_to_test,
)
from weak.settings import MasksConfig, TransferConfig
from weak.trust import write_trust

MASK = "mask.npz"
SHOWN = 8  # images in the contact sheet


def write_healthy(cfg: MasksConfig, fold: int, folder: Path) -> None:
    """Write what the generator of a fold makes of all images into a folder."""
    diseased, healthy = domains(cfg, fold)
    paths, device = [*diseased, *healthy, *paths_to_test(cfg, fold)], pick_device(cfg.device)
    images = load_images(cfg, paths)
    generator = load_generator(cfg, generator_folder(cfg, fold), device)
    healed = heal(generator, images, device)
    for path, image in zip(paths, healed.image.numpy(), strict=True):
        write_png(folder / path.name, image)
    write_arrays(folder / MASK, paths, (255 * healed.mask).round().byte(), np.uint8)
    count = len(diseased)
    shown = some_of(range(count), SHOWN) + some_of(range(count, count + len(healthy)), SHOWN // 2)
    columns = {"healthy": healed.image[shown], "mask": healed.mask[shown]}
    names = [paths[index].stem for index in shown]
    sheet = folder / "sheet" / "healthy.png"
    draw_rows(sheet, cfg, "made healthy", names, images[shown], columns)
    print(f"{healthy_folder(cfg, fold)}: {len(paths)} images made healthy")


def write_lesions(cfg: MasksConfig, fold: int, folder: Path) -> None:
    """Write the masks of all images by the mask heads of a fold into a folder."""
    diseased, healthy = domains(cfg, fold)
    test = paths_to_test(cfg, fold)
    levels = read_levels(cfg, fold, diseased + test)
    # the highest level where all are alike: nothing lies above it
    threshold = int(threshold_otsu(levels[: len(diseased)].numpy()))
    masks = (levels > threshold).byte()
    masks[len(diseased) :] *= seen_in(cfg, fold, test)[:, None, None]
    is_empty = masks[: len(diseased)].flatten(1).amax(1) == 0
    masks[: len(diseased)][is_empty] = UNSURE
    for path, mask in zip(diseased + test, masks, strict=True):
        write_png(folder / path.name, mask.numpy())
    for path in healthy:
        write_png(folder / path.name, np.full([cfg.image_size] * 2, BACKGROUND, np.uint8))
    without = np.stack([read_image(healthy_folder(cfg, fold) / p.name) for p in diseased + test])
    write_trust(cfg, fold, folder, diseased + test, masks, torch.from_numpy(without))
    print(
        f"{masks_folder(cfg, fold)}: masks of {len(masks) + len(healthy)} images, threshold"
        f" {threshold / 255:.2f}; nothing found in {int(is_empty.sum())} of {len(diseased)}"
        f" training images with {cfg.lesion}"
    )


def seen_in(cfg: TransferConfig, fold: int, paths: list[Path]) -> Tensor:
    """Say in which images the classifier sees the lesion, uint8 (N,) of 0 and 1."""
    of_all = with_classes(cfg)
    logits = logits_by(of_all, classifier_folder(cfg, fold), load_images(cfg, paths))
    return (logits[:, of_all.class_names.index(cfg.lesion) - 1] > 0).byte()


def read_levels(cfg: TransferConfig, fold: int, paths: list[Path]) -> Tensor:
    """Return what the mask head says of images, uint8 (N, P, P)."""
    return read_arrays(healthy_folder(cfg, fold) / MASK, paths)
