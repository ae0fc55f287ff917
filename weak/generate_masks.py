"""Turn maps, or what a generator may change, into masks, with unsure pixels.

Reads   weak/Images, weak/classifier, and weak/maps and weak/irnet, or weak/generator
Writes  weak/Pseudo_Masks/<name>/<image>.png     uint8 (P, P), 0 background, 1..C the class, 255
                                                 unsure
        weak/Pseudo_Masks/<name>/trust.csv       ranks the masks, see weak/trust.py
        weak/Pseudo_Masks/<name>/boundaries.npz  of IRNet, float16 (P / 4, P / 4) by image
        weak/Pseudo_Masks/<name>/before.npz      with `outline`: the masks before, by image
        weak/healthy/<name>/<image>.png          of transfer, RGB (P, P, 3), the lesion taken out
        weak/healthy/<name>/mask.npz             its mask head, uint8 (P, P) by image, 255 where all
                                                 may change

By default the maps are spread by a random walk (weak/irnet.py) up to the boundaries. Within its
borders a map is nearly flat after it, so it is cut at half of its maximum, and no threshold must be
chosen. Around that a training image is unsure; a test image is not. With method = unet, brightness
is added to the maps instead: see weak/pooled.py.

With method = transfer, what a generator may change becomes the mask. Otsu's threshold splits the
values of the mask head on all training images with the lesion: one threshold per fold, as for each
image it would split even an empty one. A training image without any class has an empty mask, as its
label says; so has a test image in which the classifier sees none.

With `outline`, masks end where the brightness changes: see weak/outline.py. A training mask by
unet, by transfer or with `outline` that lacks a class of its label contradicts it: its background
is unsure.
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from skimage.filters import threshold_otsu
from torch import Tensor

from medood.data.files import in_threads
from medood.data.images import write_png
from medood.data.labels import is_foreground
from medood.models.network import pick_device
from medood.runs.command_line import run
from weak import pooled
from weak.arrays import load_images, load_weights, read_arrays, write_arrays
from weak.classifier import load_classifiers
from weak.generate_maps import read_maps, read_seeds
from weak.generator import heal, load_generator, seen_in
from weak.image_labels import with_classes, with_lesion
from weak.irnet import WEIGHTS, IRNet, boundaries, encoder_of, walk
from weak.maps import cut_at_half, normalised, resized, unsure_without_class
from weak.outline import outlined
from weak.products import (
    HEALTHY,
    classifier_folder,
    domains,
    fold_labels,
    generator_folder,
    healthy_folder,
    image_paths,
    irnet_folder,
    make_folds,
    masks_folder,
    masks_product,
    paths_to_test,
)
from weak.settings import MasksConfig, TransferConfig
from weak.trust import write_trust

BOUNDARIES, MASK, BEFORE = "boundaries.npz", "mask.npz", "before.npz"


class Masks(NamedTuple):
    """The masks of N images, before they are outlined."""

    paths: list[Path]
    masks: Tensor  # uint8 (N, P, P)
    training: list[int]  # indices of the images that train
    held: Tensor  # bool (N, C), which classes an image has


def generate_masks(cfg: MasksConfig) -> None:
    """Write the masks of every fold, of training and of test images."""
    if cfg.method == "transfer":
        cfg = with_lesion(cfg)
        make_folds(cfg, HEALTHY, write_healthy)
    else:
        cfg = with_classes(cfg)
    make_folds(cfg, masks_product(cfg), write_masks)


def write_masks(cfg: MasksConfig, fold: int, folder: Path) -> None:
    """Write the masks of all images by a fold, and their trust, into a folder."""
    if cfg.method == "transfer":
        paths, masks, training, held = by_generator(cfg, fold)
    elif cfg.method == "unet":
        paths, masks, training, held = by_pooled(cfg, fold)
    else:
        paths, masks, training, held = by_walk(cfg, fold, folder)
    if cfg.outline:
        write_arrays(folder / BEFORE, paths, masks, np.uint8)
        masks = outlined(masks, load_images(cfg, paths), training, len(cfg.class_names))
    if cfg.outline or cfg.is_pooled:
        masks[training] = unsure_without_class(masks[training], held[training])
    for path, mask in zip(paths, masks, strict=True):
        write_png(folder / path.name, mask.numpy())
    write_trust(cfg, fold, folder, paths, masks)
    holding = [index for index in training if held[index].any()]
    empty = len(holding) - int(is_foreground(masks[holding]).flatten(1).any(1).sum())
    print(
        f"{masks_folder(cfg, fold)}: masks of {len(paths)} images; nothing found in {empty} of"
        f" {len(holding)} training images with a class"
    )


def by_walk(cfg: MasksConfig, fold: int, folder: Path) -> Masks:
    """Return masks by the maps and the boundaries of a fold, which are written into a folder."""
    labels, train, _ = fold_labels(cfg, fold)
    paths, device = image_paths(cfg, labels), pick_device(cfg.device)
    maps, held, _ = read_seeds(cfg, fold, paths)
    classifier, *_ = load_classifiers(cfg, classifier_folder(cfg, fold), "plain", device)
    irnet = load_weights(IRNet(classifier.levels), irnet_folder(cfg, fold) / WEIGHTS)
    encoder = encoder_of(cfg, classifier, device)
    found = boundaries(encoder, irnet, load_images(cfg, paths), device)
    write_arrays(folder / BOUNDARIES, paths, found, np.float16)
    walked = normalised(walked_maps(cfg, maps, found), held)
    full = (resized(one, [cfg.image_size] * 2)[0] for one in walked.split(1))
    return Masks(paths, cut_at_half(full, held, set(train), cfg.unsure), train, held)


def by_pooled(cfg: MasksConfig, fold: int) -> Masks:
    """Return masks by the maps of a fold with method = unet."""
    labels, train, _ = fold_labels(cfg, fold)
    paths = image_paths(cfg, labels)
    images = load_images(cfg, paths)
    maps, held = read_maps(cfg, fold, paths, "unet")
    ratio = pooled.appearance(maps[train], images[train], held[train])
    odds = pooled.with_appearance(maps, images, ratio)
    masks = cut_at_half(map(pooled.probability, odds), held, set(train), cfg.unsure)
    return Masks(paths, masks, train, held)


def by_generator(cfg: TransferConfig, fold: int) -> Masks:
    """Return masks by the mask head of a fold, empty without the lesion."""
    diseased, healthy = domains(cfg, fold)
    test = paths_to_test(cfg, fold)
    paths = [*diseased, *healthy, *test]
    levels, count = read_levels(cfg, fold, paths), len(diseased)
    # if all levels are equal, it is theirs, and the masks are empty
    threshold = int(threshold_otsu(levels[:count].numpy()))
    labels = torch.arange(count + len(healthy)) < count
    held = torch.cat([labels, seen_in(cfg, fold, load_images(cfg, test))])[:, None]
    masks = ((levels > threshold) & held[..., None]).byte()
    return Masks(paths, masks, [*range(len(labels))], held)


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
    print(f"{healthy_folder(cfg, fold)}: {len(paths)} images made healthy")


def read_levels(cfg: TransferConfig, fold: int, paths: list[Path]) -> Tensor:
    """Return what the mask head says of images, uint8 (N, P, P)."""
    return read_arrays(healthy_folder(cfg, fold) / MASK, paths)


if __name__ == "__main__":
    run(generate_masks, MasksConfig())
