"""Write image labels of patches whose masks are known, to try weak/ on tissue.

Reads   Image_Patchs, Mask_Patchs    (generate_patches.py)
Writes  image_labels.csv             img_name, patient (or region), 0 or 1 for each class

This is the only script of weak/ that opens masks of training images: it keeps only which classes
each contains.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from config import CONFIG, Config, UserError
from medood.data import records
from medood.data.files import csv_text, fingerprint
from medood.data.names import name_of
from medood.data.patients import patients_of
from medood.data.workspace import list_patch_pairs
from medood.evaluation.tables import count_classes
from medood.processes import on_main
from medood.runs.command_line import run
from medood.runs.products import PATCH_MASKS, PATCHES, of_patients
from medood.runs.provenance import require


@on_main
def label_patches(cfg: Config = CONFIG) -> None:
    """Write image_labels.csv of the patches, unless it exists and is current or user-supplied."""
    require(cfg, PATCHES, PATCH_MASKS)
    images, masks = list_patch_pairs(cfg.workspace)
    names = [name for name, _ in cfg.classes]
    path = cfg.workspace / "image_labels.csv"
    record = {"settings": {"classes": names}, "inputs": fingerprint(masks)}
    patches = [*map(name_of, images)]
    record |= of_patients(cfg, patches)
    if records.is_kept(path, record):
        return
    labels = (count_classes(cfg, patches)[:, 1:] > 0).astype(np.uint8)
    shares = labels.mean(0)
    kept = [index for index, share in enumerate(shares) if 0 < share < 1]
    if not kept:
        raise UserError(
            "every class is in all patches, or in none: cut smaller patches with --patch_size, or"
            " add other regions"
        )
    header = ["img_name", "patient", *(names[index] for index in kept)]
    whose = patients_of(cfg, patches)
    rows = [
        (name, patient, *row)
        for name, patient, row in zip(patches, whose, labels[:, kept], strict=True)
    ]
    records.write_recorded(path, csv_text(header, rows), record)
    counts = ", ".join(f"{names[index]} in {labels[:, index].sum()}" for index in kept)
    values = " ".join(str(index + 1) for index in kept)
    skipped = [name for name, share in zip(names, shares, strict=True) if share in (0, 1)]
    without = f"; in all patches or in none, and skipped: {', '.join(skipped)}" * bool(skipped)
    print(
        f"{path}: {len(rows)} patches; {counts}{without} (to test on Mask_Patchs: --mask_values"
        f" {values})"
    )


if __name__ == "__main__":
    run(label_patches)
