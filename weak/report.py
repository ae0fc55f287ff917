"""What weak/evaluate_masks.py found, for people: tables, figures and a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from medood.data.dataset import load_patches
from medood.data.files import read_json, reading
from medood.data.images import read_mask
from medood.evaluation.rows import (
    OVER_PATIENTS,
    Grid,
    Tested,
    gain_table,
    gains_of,
    scores_of,
    share_table,
    spread_by_score,
    verdict,
    write_rows,
)
from medood.evaluation.tables import spread
from weak.evaluate_masks import FLOOR, ROWS
from weak.generate_maps import read_seeds
from weak.generate_masks import BOUNDARIES
from weak.maps import resized
from weak.pictures import draw_rows
from weak.products import classifier_folder, fold_labels, image_paths, masks_folder
from weak.settings import MasksConfig

NEGATIVES = "segmentation less without negatives"
METHOD = (
    "Nobody marked a pixel of a training image: a classifier learned which classes an image holds,"
    " and all masks below come from where it looks. True masks were opened for the test, and for"
    " the row of full supervision alone. A test image has no label: which classes it holds is what"
    " the classifier says."
)
EXAMPLES = 6  # images of a fold in each picture


def report_folder(cfg: MasksConfig) -> Path:
    """Return where the scores and the report go."""
    return cfg.workspace / "reports" / "weak"


def write_report(cfg: MasksConfig, tests: dict[int, Tested]) -> None:
    """Print the tables; write them, the scores and the page with its figures. tests: by fold."""
    out, scores, classes = report_folder(cfg), scores_of(tests), cfg.class_names
    pairs = {NEGATIVES: ("segmentation", "positives_only")}
    gains = gains_of(tests, FLOOR, classes, pairs)
    differences = f"Each row less {ROWS[FLOOR]}, and what the negatives add, in points"
    pictures = {}
    for fold, test in tests.items():
        path = out / f"{fold}_tested.png"
        draw_tested(path, cfg, fold, test)
        pictures[path] = (
            f"Fold {fold}: test images. The map and the boundary are the classifier's and IRNet's;"
            " the walk is IRNet's mask."
        )
    for fold in tests:
        path = out / f"{fold}_pseudo_masks.png"
        draw_teaching(path, cfg, fold)
        pictures[path] = (
            f"Fold {fold}: training images with their pseudo-masks; grey is unsure, and left out of"
            " the training."
        )
    write_rows(
        cfg,
        out,
        tests,
        gains,
        ROWS,
        title="Masks from image labels",
        verdict=verdict(scores, gains, ROWS, "segmentation", FLOOR),
        method=METHOD,
        tables={
            f"{differences}, {OVER_PATIENTS}": gain_table(gains, ROWS, classes),
            "IoU as a share of full supervision's, percent": share_table(scores, ROWS, classes),
            "The classifier, on images of patients left out of its training": classifier_table(cfg),
        },
        pictures=pictures,
    )


def classifier_table(cfg: MasksConfig) -> Grid:
    """Return AUC and F1 of each class over folds."""
    found = [read_json(classifier_folder(cfg, fold) / "scores.json") or {} for fold in cfg.folds]
    rows = [
        [name, *(spread([of_fold[k][value] for of_fold in found], 1, 3) for k in ("auc", "f1"))]
        for value, name in enumerate(cfg.class_names[1:])
    ]
    return ["class", "AUC", "F1"], rows


# ---------------------------------------------------------------- pictures


def draw_tested(path: Path, cfg: MasksConfig, fold: int, test: Tested) -> None:
    """Draw test images in rows, from the worst to the best, with what each step says of them."""
    chosen = spread_by_score(test, "segmentation", EXAMPLES)
    names = [test.patches.names[index] for index in chosen]
    columns = {
        "map": highest_map(cfg, fold, [Path(name) for name in names]),
        "boundary": read_boundaries(cfg, fold, names),
        "walk": test.predicted["irnet"][chosen],
        "network": test.predicted["segmentation"][chosen],
        "truth": test.patches.masks[chosen],
    }
    draw_rows(path, cfg, f"fold {fold}", names, test.patches.images[chosen], columns)


def draw_teaching(path: Path, cfg: MasksConfig, fold: int) -> None:
    """Draw training images in rows, with their label: map, boundary and pseudo-mask."""
    labels, train, _ = fold_labels(cfg, fold)
    holding = [index for index in train if labels.labels[index].any()]
    places = np.linspace(0, len(holding) - 1, min(EXAMPLES, len(holding))).astype(int)
    chosen = [holding[place] for place in places]
    paths = [image_paths(cfg, labels)[index] for index in chosen]
    masks = [read_mask(masks_folder(cfg, fold) / p.name, len(cfg.class_names)) for p in paths]
    names = [
        f"{p.stem}\n{', '.join(np.array(labels.classes)[labels.labels[i] == 1])}"
        for i, p in zip(chosen, paths, strict=True)
    ]
    columns = {
        "map": highest_map(cfg, fold, paths),
        "boundary": read_boundaries(cfg, fold, [p.name for p in paths]),
        "pseudo-mask": torch.from_numpy(np.stack(masks)),
    }
    images = load_patches(cfg, [(p, None) for p in paths]).images
    draw_rows(path, cfg, f"fold {fold}, training images", names, images, columns)


def highest_map(cfg: MasksConfig, fold: int, paths: list[Path]) -> torch.Tensor:
    """Return the highest map of the classes that images hold, float (N, P, P) in 0..1."""
    seeds, _, _ = read_seeds(cfg, fold, paths)
    return resized(seeds, [cfg.patch_size] * 2).amax(1)


def read_boundaries(cfg: MasksConfig, fold: int, names: list[str]) -> torch.Tensor:
    """Return the boundaries that IRNet sees in images, float32 (N, h, w)."""
    path = masks_folder(cfg, fold) / BOUNDARIES
    with reading(path), np.load(path) as arrays:
        return torch.from_numpy(np.stack([arrays[Path(name).stem] for name in names])).float()
