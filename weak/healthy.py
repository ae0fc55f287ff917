"""Images made healthy by a generator, and masks of what had to change.

weak/healthy/<fold>_transfer_<lesion>/ holds

    <image>.png         RGB (P, P, 3), the lesion taken out
    mask.npz            uint8 (P, P) by image: the mask head, 255 where all of a pixel has to change
    heat.npz            float16 (P, P) by image: where the generator's classifier looks
    sheet/healthy.png   a contact sheet of training images

The generator is the last one of its training: nothing chooses another. Otsu's threshold splits the
values of the mask head on all training images with the lesion, so there is one for a fold. A
threshold of its own for each image would always find two sides, also where nothing is.

A training image without any class has an empty mask, as its label says. One with the lesion in
which nothing reaches the threshold contradicts its label: its mask is unsure (255) all over. Test
images have no label here: the threshold alone decides, and no classifier is asked.
"""

from pathlib import Path

import numpy as np
from skimage.filters import threshold_otsu
from torch import Tensor

from medood.data.dataset import load_patches
from medood.data.files import reading
from medood.data.images import write_png
from medood.data.labels import BACKGROUND, UNSURE
from medood.models.network import pick_device
from weak import transfer
from weak.pictures import draw_rows
from weak.products import (
    domains,
    generator_folder,
    healthy_folder,
    image_paths,
    indices_to_test,
    labels_there,
    masks_folder,
)
from weak.settings import MasksConfig, TransferConfig

MASK, HEAT = "mask.npz", "heat.npz"
SHOWN = 8  # images in the contact sheet


def write_healthy(cfg: MasksConfig, fold: int, folder: Path) -> None:
    """Write what the generator of a fold makes of all images into a folder."""
    diseased, healthy = domains(cfg, fold)
    paths, device = [*diseased, *healthy, *paths_to_test(cfg, fold)], pick_device(cfg.device)
    images = load_patches(cfg, [(path, None) for path in paths]).images
    generator = transfer.load_generator(cfg, generator_folder(cfg, fold), device)
    composites, masks, heat = transfer.transfer(generator, images, device)
    for path, composite in zip(paths, composites.numpy(), strict=True):
        write_png(folder / path.name, composite)
    levels = (255 * masks).round().byte()
    for name, values in ((MASK, levels.numpy()), (HEAT, heat.numpy().astype(np.float16))):
        by_image = {path.stem: of_image for path, of_image in zip(paths, values, strict=True)}
        np.savez_compressed(folder / name, **by_image)
    draw_sheet(folder / "sheet" / "healthy.png", cfg, diseased, healthy, images, composites, levels)
    print(f"{healthy_folder(cfg, fold)}: {len(paths)} images made healthy")


def paths_to_test(cfg: TransferConfig, fold: int) -> list[Path]:
    """Return the test images of a fold, but those that hold another class and not the lesion."""
    paths = image_paths(cfg, labels_there(cfg))
    return [paths[index] for index in indices_to_test(cfg, fold)]


def draw_sheet(
    path: Path,
    cfg: TransferConfig,
    diseased: list[Path],
    healthy: list[Path],
    images: Tensor,
    composites: Tensor,
    levels: Tensor,
) -> None:
    """Draw training images of both kinds, those with the lesion first: made healthy, and mask."""
    first = np.linspace(0, len(diseased) - 1, min(SHOWN, len(diseased))).astype(int).tolist()
    last = np.linspace(0, len(healthy) - 1, min(SHOWN // 2, len(healthy))).astype(int)
    chosen = [*first, *(len(diseased) + last).tolist()]
    names = [(diseased + healthy)[index].stem for index in chosen]
    columns = {"healthy": composites[chosen], "mask": levels[chosen] / 255}
    draw_rows(path, cfg, "made healthy", names, images[chosen], columns)


def write_lesions(cfg: MasksConfig, fold: int, folder: Path) -> None:
    """Write the masks of all images by the mask heads of a fold into a folder."""
    diseased, healthy = domains(cfg, fold)
    test = paths_to_test(cfg, fold)
    found = dict(zip(diseased, read_levels(cfg, fold, diseased), strict=True))
    found |= zip(test, read_levels(cfg, fold, test), strict=True)
    threshold = otsu(np.stack([found[path] for path in diseased]))
    labelled, empty = set(diseased), 0
    for path, levels in found.items():
        mask = (levels > threshold).astype(np.uint8)
        if path in labelled and not mask.any():
            mask[:] = UNSURE
            empty += 1
        write_png(folder / path.name, mask)
    for path in healthy:
        write_png(folder / path.name, np.full([cfg.image_size] * 2, BACKGROUND, np.uint8))
    print(
        f"{masks_folder(cfg, fold)}: masks of {len(found) + len(healthy)} images, threshold"
        f" {threshold / 255:.2f}; nothing found in {empty} of {len(diseased)} training images with"
        f" {cfg.lesion}"
    )


def otsu(levels: np.ndarray) -> int:
    """Return Otsu's threshold of levels, uint8 of any shape: what lies above it is one side.

    It is the highest level where there is no other, so that nothing lies above it.
    """
    return int(threshold_otsu(levels))


def read_levels(cfg: TransferConfig, fold: int, paths: list[Path], kind: str = MASK) -> np.ndarray:
    """Return what the mask head says of images, uint8 (N, P, P); or the heat, float16."""
    path = healthy_folder(cfg, fold) / kind
    with reading(path), np.load(path) as arrays:
        return np.stack([arrays[path.stem] for path in paths])
