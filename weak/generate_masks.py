"""Turn maps, or what a generator may change, into masks, with unsure pixels.

By default the maps are spread by a random walk up to the boundaries. Within its borders a map is
nearly flat after it, so it is cut at half of its maximum, and no threshold must be chosen. Around
that a training image is unsure; a test image is not.

Reads   weak/Images, weak/classifier, weak/maps, weak/irnet      (train_irnet.py)
Writes  weak/Pseudo_Masks/<fold>_<encoder>/<image>.png           uint8 (P, P), 0 background, 1..C
                                                                 the class, 255 unsure
        weak/Pseudo_Masks/<fold>_<encoder>/boundaries.npz        float16 (P / 4, P / 4) by image

With `outline`, masks end where the brightness changes: see weak/outline.py. before.npz then
contains the masks before that, uint8 (P, P) by image.

trust.csv, next to the masks, ranks them: see weak/trust.py.

With method = unet, brightness is added to the maps: see weak/pooled.py.

Reads   weak/Images, weak/classifier, weak/maps                  (generate_maps.py)
Writes  weak/Pseudo_Masks/<fold>_pooled_<model>/<image>.png      as above

With method = transfer, what a generator may change becomes the mask.

Reads   weak/Images, weak/classifier, weak/generator             (train_transfer.py)
Writes  weak/healthy/<fold>_transfer_<lesion>/<image>.png        RGB (P, P, 3), the lesion taken out
        weak/healthy/<fold>_transfer_<lesion>/mask.npz           uint8 (P, P) by image: the mask
                                                                 head, 255 where all may change
        weak/healthy/<fold>_transfer_<lesion>/sheet/healthy.png  a contact sheet
        weak/Pseudo_Masks/<fold>_transfer_<lesion>/<image>.png   uint8 (P, P), 0 or 1, or 255 unsure

Otsu's threshold splits the values of the mask head on all training images with the lesion: one
threshold per fold, as for each image it would split even an empty one. A training image without any
class has an empty mask, as its label says; so has a test image in which the classifier sees none.

A training mask by unet, by transfer or with `outline` that lacks a class of its label contradicts
it: its background is unsure.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from skimage.filters import threshold_otsu
from torch import Tensor

from medood.data.files import in_threads
from medood.data.images import read_image, write_png
from medood.data.labels import BACKGROUND, UNSURE
from medood.models.network import pick_device
from medood.runs.command_line import run
from weak import pooled
from weak.affinity import walk
from weak.arrays import (
    draw_rows,
    load_images,
    load_weights,
    read_arrays,
    some_of,
    write_arrays,
)
from weak.classifier import load_classifiers
from weak.generate_maps import read_maps, read_seeds
from weak.generator import heal, load_generator
from weak.image_labels import with_classes, with_lesion
from weak.irnet import WEIGHTS, IRNet, boundaries, encoder_of
from weak.maps import cut_at_half, normalised, resized, unsure_without_class
from weak.outline import outlined
from weak.products import (
    HEALTHY,
    TRANSFER_MASKS,
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
SHOWN = 8  # images in the contact sheet


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
    full = (resized(one, [cfg.image_size] * 2)[0] for one in walked.split(1))
    masks = cut_at_half(full, held, set(train), cfg.unsure)
    if cfg.outline:
        masks = finished(cfg, folder, paths, masks, train, held)
    write_all(cfg, fold, folder, paths, masks)


def write_pooled(cfg: MasksConfig, fold: int, folder: Path) -> None:
    """Write the masks of all images by the maps of a fold with method = unet into a folder."""
    labels, train, _ = fold_labels(cfg, fold)
    paths = image_paths(cfg, labels)
    images = load_images(cfg, paths)
    maps, held = read_maps(cfg, fold, paths, "unet")
    ratio = pooled.appearance(maps[train], images[train], held[train])
    maps = pooled.with_appearance(maps, images, ratio)
    masks = cut_at_half(map(pooled.probability, maps), held, set(train), cfg.unsure)
    write_all(cfg, fold, folder, paths, finished(cfg, folder, paths, masks, train, held))


def finished(
    cfg: MasksConfig,
    folder: Path,
    paths: list[Path],
    masks: Tensor,
    training: list[int],
    held: Tensor,
) -> Tensor:
    """Return masks, uint8 (N, P, P), outlined if the setting says so, unsure without a class.

    Masks before outlining are written to the folder, for the test. training: the indices of the
    images that train. held: bool (N, C), which classes an image has.
    """
    if cfg.outline:
        write_arrays(folder / BEFORE, paths, masks, np.uint8)
        masks = outlined(masks, load_images(cfg, paths), training, len(cfg.class_names))
    masks[training] = unsure_without_class(masks[training], held[training])
    return masks


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
    # if all levels are equal, it is theirs, and the masks are empty
    threshold = int(threshold_otsu(levels[: len(diseased)].numpy()))
    masks = (levels > threshold).byte()
    masks[len(diseased) :] *= seen_in(cfg, fold, test)[:, None, None]
    every, held = [*range(len(diseased))], torch.ones(len(masks), 1, dtype=torch.bool)
    masks = finished(cfg, folder, diseased + test, masks, every, held)
    is_unsure = (masks[every] == UNSURE).flatten(1).all(1)
    for path, mask in zip(diseased + test, masks, strict=True):
        write_png(folder / path.name, mask.numpy())
    for path in healthy:
        write_png(folder / path.name, np.full([cfg.image_size] * 2, BACKGROUND, np.uint8))
    without = np.stack([read_image(healthy_folder(cfg, fold) / p.name) for p in diseased + test])
    write_trust(cfg, fold, folder, diseased + test, masks, torch.from_numpy(without))
    print(
        f"{masks_folder(cfg, fold)}: masks of {len(masks) + len(healthy)} images, threshold"
        f" {threshold / 255:.2f}; nothing found in {int(is_unsure.sum())} of {len(diseased)}"
        f" training images with {cfg.lesion}"
    )


def seen_in(cfg: TransferConfig, fold: int, paths: list[Path]) -> Tensor:
    """Say in which images the classifier sees the lesion, uint8 (N,) of 0 and 1."""
    of_all = with_classes(cfg)
    logits = pooled.logits_by(of_all, classifier_folder(cfg, fold), load_images(cfg, paths))
    return (logits[:, of_all.class_names.index(cfg.lesion) - 1] > 0).byte()


def read_levels(cfg: TransferConfig, fold: int, paths: list[Path]) -> Tensor:
    """Return what the mask head says of images, uint8 (N, P, P)."""
    return read_arrays(healthy_folder(cfg, fold) / MASK, paths)


if __name__ == "__main__":
    run(generate_masks, MasksConfig())
