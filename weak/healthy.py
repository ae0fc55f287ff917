"""Images made healthy by a generator, and masks of what had to change.

weak/healthy/<fold>_transfer_<lesion>/ contains

    <image>.png         RGB (P, P, 3), without the lesion
    mask.npz            uint8 (P, P) by image: the mask head, 255 where all of a pixel has to change
    heat.npz            float16 (P, P) by image: the map of the generator's classifier
    sheet/healthy.png   a contact sheet of training images

The generator is that of the last step: no other is chosen. Otsu's threshold splits the values of
the mask head on all training images with the lesion, so there is one for a fold. A threshold for
each image would always find two sides, even without a lesion.

A training image without any class has an empty mask, by its label. One with the lesion in which
nothing reaches the threshold contradicts its label: its mask is unsure (255) everywhere. Test
images have no label here: only the threshold decides, without a classifier.
"""

from pathlib import Path

import numpy as np
from skimage.filters import threshold_otsu
from torch import Tensor

from medood.data.images import write_png
from medood.data.labels import BACKGROUND, UNSURE
from medood.models.network import pick_device
from weak import transfer
from weak.arrays import load_images, read_arrays, write_arrays
from weak.pictures import draw_rows, some_of
from weak.products import domains, generator_folder, healthy_folder, masks_folder, paths_to_test
from weak.settings import MasksConfig, TransferConfig

MASK, HEAT = "mask.npz", "heat.npz"
SHOWN = 8  # images in the contact sheet


def write_healthy(cfg: MasksConfig, fold: int, folder: Path) -> None:
    """Write all images made healthy by the generator of a fold into a folder."""
    diseased, healthy = domains(cfg, fold)
    paths, device = [*diseased, *healthy, *paths_to_test(cfg, fold)], pick_device(cfg.device)
    images = load_images(cfg, paths)
    generator = transfer.load_generator(cfg, generator_folder(cfg, fold), device)
    composites, masks, heat = transfer.transfer(generator, images, device)
    for path, composite in zip(paths, composites.numpy(), strict=True):
        write_png(folder / path.name, composite)
    levels = (255 * masks).round().byte()
    write_arrays(folder / MASK, paths, levels, np.uint8)
    write_arrays(folder / HEAT, paths, heat, np.float16)
    count = len(diseased)
    shown = some_of(range(count), SHOWN) + some_of(range(count, count + len(healthy)), SHOWN // 2)
    columns = {"healthy": composites[shown], "mask": levels[shown] / 255}
    names = [paths[index].stem for index in shown]
    sheet = folder / "sheet" / "healthy.png"
    draw_rows(sheet, cfg, "made healthy", names, images[shown], columns)
    print(f"{healthy_folder(cfg, fold)}: {len(paths)} images made healthy")


def write_lesions(cfg: MasksConfig, fold: int, folder: Path) -> None:
    """Write the masks of all images by the mask heads of a fold into a folder."""
    diseased, healthy = domains(cfg, fold)
    test = paths_to_test(cfg, fold)
    levels = read_levels(cfg, fold, diseased + test)
    # the highest level if all are equal: nothing is above it
    threshold = int(threshold_otsu(levels[: len(diseased)].numpy()))
    masks, empty = (levels > threshold).byte(), 0
    for number, (path, mask) in enumerate(zip(diseased + test, masks, strict=True)):
        if number < len(diseased) and not mask.any():
            mask[:] = UNSURE
            empty += 1
        write_png(folder / path.name, mask.numpy())
    for path in healthy:
        write_png(folder / path.name, np.full([cfg.image_size] * 2, BACKGROUND, np.uint8))
    print(
        f"{masks_folder(cfg, fold)}: masks of {len(masks) + len(healthy)} images, threshold"
        f" {threshold / 255:.2f}; nothing found in {empty} of {len(diseased)} training images with"
        f" {cfg.lesion}"
    )


def read_levels(cfg: TransferConfig, fold: int, paths: list[Path], kind: str = MASK) -> Tensor:
    """Return the output of the mask head for images, uint8 (N, P, P); or the heat, float16."""
    return read_arrays(healthy_folder(cfg, fold) / kind, paths)
