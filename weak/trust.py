"""How far a mask is to be trusted, without a true one: does the class vanish with what it covers?

The classifier sees each image again, with what its mask covers painted over with what lies around
it. A class that it still sees is not, or not only, where the mask says. This does not notice a mask
that is too large.

trust.csv, next to the masks, has a row for each image with a mask, the least trusted first: the
logit of the class that is seen the most, before and after. Masks to correct are those at its top.
"""

from collections.abc import Container
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import binary_dilation
from torch import Tensor

from medood.data.files import csv_text, in_threads, read_table, write_text
from medood.data.labels import is_foreground
from weak.arrays import load_images
from weak.image_labels import with_classes
from weak.pooled import logits_by
from weak.products import classifier_folder
from weak.settings import MasksConfig

TRUST = "trust.csv"
MARGIN, RING = 1 / 32, 1 / 8  # of an image's side: what is painted over, and what with


def painted_over(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return an image, RGB uint8 (P, P, 3), whose mask, bool (P, P), has the mean of its ring.

    The mask is grown by MARGIN first. An image without a ring stays as it is.
    """
    side = len(mask)
    grown = binary_dilation(mask, iterations=max(1, round(MARGIN * side)))
    ring = binary_dilation(grown, iterations=max(1, round(RING * side))) & ~grown
    if not mask.any() or not ring.any():
        return image
    out = image.copy()
    out[grown] = image[ring].mean(0).round()
    return out


def write_trust(
    cfg: MasksConfig, fold: int, folder: Path, paths: list[Path], masks: Tensor
) -> None:
    """Write trust.csv of images with their masks, uint8 (N, P, P)."""
    covered = is_foreground(masks)
    chosen = covered.flatten(1).any(1).nonzero()[:, 0].tolist()
    if not chosen:
        write_text(folder / TRUST, csv_text(["img_name", "before", "after"], []))
        return
    images = load_images(cfg, [paths[index] for index in chosen])
    pairs = [*zip(images.numpy(), covered[chosen].numpy(), strict=True)]
    after = torch.from_numpy(np.stack(in_threads(lambda pair: painted_over(*pair), pairs)))
    cfg = with_classes(cfg)  # all that the classifier knows
    classifier = classifier_folder(cfg, fold)
    said = [logits_by(cfg, classifier, seen).amax(1) for seen in (images, after)]
    rows = [
        (paths[index].name, f"{one:.3f}", f"{other:.3f}")
        for index, one, other in zip(chosen, *(logits.tolist() for logits in said), strict=True)
    ]
    rows.sort(key=lambda row: (-float(row[2]), row[0]))
    write_text(folder / TRUST, csv_text(["img_name", "before", "after"], rows))


def ranked_by_trust(folder: Path, names: Container[str]) -> list[str]:
    """Return those of some images that have a mask, the least trusted first.

    [] if masks of an earlier version have no trust.csv.
    """
    rows = read_table(folder / TRUST) if (folder / TRUST).exists() else []
    return [row["img_name"] for row in rows if row["img_name"] in names]
