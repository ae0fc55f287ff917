"""Write image labels with rough sizes: the share that a class covers, wrong by a factor of up to 2.

    python runs/rough_sizes.py IMAGE_LABELS MASKS FOLDER

writes FOLDER/sizes.csv. This simulates guesses by eye: the true share of each mask is multiplied by
2^u, u uniform between -1 and 1. IMAGE_LABELS has one class.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from medood.data.files import csv_text, write_text
from medood.data.images import read_mask
from weak.image_labels import NAME, PATIENT, read_image_labels

LEAST, MOST = 0.001, 0.5  # of a guess


def rough_sizes(path: Path, masks: Path, folder: Path) -> None:
    """Write sizes.csv into a folder."""
    labels = read_image_labels(path)
    factors = 2 ** np.random.default_rng(0).uniform(-1, 1, len(labels.names))
    rows = []
    for name, patient, held, factor in zip(
        labels.names, labels.patients, labels.labels[:, 0], factors, strict=True
    ):
        share = float((read_mask(masks / name, 2) == 1).mean()) * factor
        guess = np.clip(share, LEAST, MOST) if held else 0
        rows.append((name, patient, f"{guess:.4f}" if held else "0"))
    write_text(folder / "sizes.csv", csv_text([NAME, PATIENT, *labels.classes], rows))


if __name__ == "__main__":
    rough_sizes(*map(Path, sys.argv[1:]))
