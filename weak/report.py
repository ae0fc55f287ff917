"""The results of weak/evaluate_masks.py: tables, figures and a page."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medood.data.files import read_json, write_json
from medood.data.images import read_image
from medood.data.workspace import data_name
from medood.evaluation.figures import draw_bars
from medood.evaluation.page import Picture, Table, Text, as_markdown, write_page
from medood.evaluation.tables import interval_over
from weak.arrays import caption, draw_rows, load_images, read_arrays, read_masks, some_of
from weak.generate_maps import read_maps, read_seeds
from weak.generate_masks import BOUNDARIES, read_levels
from weak.image_labels import labels_of
from weak.maps import resized
from weak.products import (
    classifier_folder,
    fold_labels,
    generator_folder,
    healthy_folder,
    image_paths,
    images_folder,
    masks_folder,
)
from weak.scoring import (
    FLOORS,
    LESION_SCORES,
    ROWS,
    Grid,
    Rows,
    Scores,
    TestedRows,
    describe,
    gain_table,
    gains_of,
    grid,
    lesion_scores,
    over_folds,
    score_table,
    scores_by_fold,
    share_table,
    spread_by_score,
    verdict,
)
from weak.settings import MasksConfig
from weak.train_transfer import FLIPPED
from weak.trust import read_trust

# compared with every other floor, too
OWN = (
    *("unet", "unet_outlined", "segmentation"),
    *("transfer", "transfer_outlined", "transfer_segmentation"),
)
PAIRS = {
    "segmentation less full supervision": ("segmentation", "supervised"),
    "segmentation after transfer less full supervision": ("transfer_segmentation", "supervised"),
    "segmentation less without negatives": ("segmentation", "positives_only"),
    "U-Net, brightness less maps alone": ("unet", "maps"),
    **{
        f"{ROWS[row]}, less before": (row, row.removesuffix("_outlined"))
        for row in ROWS
        if row.endswith("_outlined")
    },
}
METHOD = (
    "No pixel of a training image was marked. Maps: a classifier learns from image labels; its maps"
    " become masks, and it predicts the classes of a test image. Transfer: a generator learns to"
    " change images until the classifier sees no lesion; what it changes is the mask. Ground"
    " truth is used only for the test and for full supervision."
)
EXAMPLES = 6  # images of a fold in each picture


def report_folder(cfg: MasksConfig) -> Path:
    """Return the folder of the scores and the report: of one lesion among others, a subfolder."""
    out = cfg.workspace / "reports" / "weak"
    others = cfg.lesion is not None and len(labels_of(cfg).classes) > 1
    return out / cfg.lesion.replace("/", "_") if others else out


def write_report(cfg: MasksConfig, rows: Rows, tests: dict[int, TestedRows]) -> None:
    """Print the tables; write them, the scores and the page with its figures.

    tests: by fold.
    """
    out, classes = report_folder(cfg), cfg.class_names
    tables = {}
    if rows.maps:
        said = "The classifier, on images of held-out patients"
        tables[said] = classifier_table(rows.maps)
    if rows.transfer:
        said = "Generators: lesions that the classifier sees before and not after, percent"
        tables[said] = flipped_table(rows.transfer)
    scores = scores_by_fold(tests)
    lesions = {fold: lesion_scores(test) for fold, test in tests.items()}
    columns = {title: over_folds(lesions, name) for name, title in LESION_SCORES.items()}
    found = next(iter(scores.values()))
    floor = next(row for row in FLOORS if row in found)
    lower = [low for low in FLOORS if low != floor]
    pairs = {f"{ROWS[own]} less {ROWS[low]}": (own, low) for own in OWN for low in lower}
    pairs = {name: pair for name, pair in {**pairs, **PAIRS}.items() if set(pair) <= set(found)}
    gains = gains_of(tests, floor, classes, pairs)
    patients = {patient for test in tests.values() for patient in test.patients}
    less = (
        f"Each row less {ROWS[floor]}, and what one step adds to another, in points,"
        f" {interval_over(len(patients), 'patient')}"
    )
    tables = {
        less: gain_table(gains, classes),
        "IoU as a share of full supervision's, percent": share_table(scores, classes),
        "By patient, and by thirds of the true area; percent": grid(columns),
        **tables,
    }
    own = "transfer_segmentation" if cfg.method == "transfer" else "segmentation"
    result = verdict(scores, gains, own, floor)
    subtitle = f"{data_name(cfg.workspace)}. {cfg.model_name}, percent, {describe(tests)}"
    lead = [Text(subtitle, "note"), Table("scores", *score_table(scores, classes))]
    more = [
        part for said, of in tables.items() for part in (Text(f"{said}.", "note"), Table(said, *of))
    ]
    write_json(out / "scores.json", scores)
    write_json(out / "lesions.json", lesions)
    plain = {name: {k: v.plain() for k, v in of_row.items()} for name, of_row in gains.items()}
    write_json(out / "differences.json", plain)
    draw_classes(out / "classes.svg", scores, classes)
    bars = Picture(out / "classes.svg", "IoU of each class, by row of the table.")
    settings = [[field.name, getattr(cfg, field.name)] for field in fields(cfg)]
    sections = {
        "": [Text(result, "verdict"), Text(METHOD)],
        "Scores": [lead[0], bars, lead[1], *more],
        "Images": draw_pictures(cfg, rows, out, tests, own),
        "Settings": [Table("settings", ["setting", "value"], settings)],
    }
    text = as_markdown([lead[0], Text(result), lead[1], *more])
    write_page(cfg.workspace, out, "Masks from image labels", sections, text)


def draw_classes(path: Path, scores: Scores, classes: tuple[str, ...]) -> None:
    """Draw the IoU of each row, by class. classes: with background."""
    bars = {}
    for value, kind in enumerate(classes[1:], 1):
        ious = over_folds(scores, "iou", value)
        bars[kind] = {ROWS[row]: of_row for row, of_row in ious.items() if row != "all_background"}
    draw_bars(path, "", "IoU, percent", bars)


def classifier_table(cfg: MasksConfig) -> Grid:
    """Return AUC and F1 of each class over folds."""
    found = [read_json(classifier_folder(cfg, fold) / "scores.json") or {} for fold in cfg.folds]
    columns = {
        title: {
            name: [of_fold[key][value] for of_fold in found]
            for value, name in enumerate(cfg.class_names[1:])
        }
        for title, key in (("AUC", "auc"), ("F1", "f1"))
    }
    return grid(columns, "class", scale=1, digits=3)


def flipped_table(cfg: MasksConfig) -> Grid:
    """Return how often the classifier flipped after the training of each fold's generator."""
    lines = []
    for fold in cfg.folds:
        shares = (read_json(generator_folder(cfg, fold) / FLIPPED) or {}).get("flipped", [])
        lines.append([str(fold), *(f"{100 * share:.1f}" for share in shares[-1:])])
    return ["fold", "flipped"], lines


def draw_pictures(
    cfg: MasksConfig,
    rows: Rows,
    out: Path,
    tests: dict[int, TestedRows],
    row: str,
) -> list[Picture]:
    """Draw test images, from the worst of a row to the best, and pseudo-masks.

    Pictures of an earlier test are removed.
    """
    for old in out.glob("*.png"):
        old.unlink()
    pictures = []
    for fold, test in tests.items():
        path = out / f"{fold}_tested.png"
        draw_tested(path, cfg, rows, fold, test, row)
        caption = (
            f"Fold {fold}: test images, from the worst to the best. Map and boundary are the"
            " classifier's and IRNet's; the mask head is the generator's, which made the image"
            " healthy."
        )
        pictures.append(Picture(path, caption))
    for fold in tests if rows.maps else ():
        path = out / f"{fold}_pseudo_masks.png"
        draw_teaching(path, rows.maps, fold)
        caption = (
            f"Fold {fold}: training images with their pseudo-masks, from the least trusted, to"
            " correct first, to the most; grey is unsure, and counts in no loss."
        )
        pictures.append(Picture(path, caption))
    return pictures


def draw_tested(
    path: Path,
    cfg: MasksConfig,
    rows: Rows,
    fold: int,
    test: TestedRows,
    row: str,
) -> None:
    """Draw test images in rows, from the worst to the best, with the results of each step."""
    chosen = spread_by_score(test, row, EXAMPLES)
    paths = [images_folder(cfg) / test.patches.names[index] for index in chosen]
    columns = {}
    if rows.maps:
        columns |= seen_by_maps(rows.maps, fold, paths)
    if rows.transfer:
        healthy = [read_image(healthy_folder(rows.transfer, fold) / path.name) for path in paths]
        columns["healthy"] = torch.from_numpy(np.stack(healthy))
        columns["mask head"] = read_levels(rows.transfer, fold, paths) / 255
    of_masks = ("irnet", "unet", "transfer")
    shown = [name for one in of_masks for name in (one, f"{one}_outlined")]
    shown += ["segmentation", "transfer_segmentation", "supervised"]
    masks = {name: test.predicted[name][chosen] for name in shown if name in test.predicted}
    columns |= {ROWS[name]: of_row for name, of_row in masks.items()}
    columns["ground truth"] = test.patches.masks[chosen]
    names = [path.stem for path in paths]
    draw_rows(path, cfg, f"fold {fold}", names, test.patches.images[chosen], columns)


def draw_teaching(path: Path, cfg: MasksConfig, fold: int) -> None:
    """Draw training images in rows, with their label: map, boundary and pseudo-mask, by trust."""
    labels, train, _ = fold_labels(cfg, fold)
    every = image_paths(cfg, labels)
    holding = {every[index].name: index for index in train if labels.held[index].any()}
    ranked = list(read_trust(masks_folder(cfg, fold), holding))  # of those that have a mask
    chosen = [holding[name] for name in some_of(ranked or list(holding), EXAMPLES)]
    paths = [every[index] for index in chosen]
    names = [caption(every[index], labels.classes, labels.held[index]) for index in chosen]
    masks = read_masks(cfg, masks_folder(cfg, fold), paths)
    columns = {**seen_by_maps(cfg, fold, paths), "pseudo-mask": masks}
    draw_rows(path, cfg, f"fold {fold}, training images", names, load_images(cfg, paths), columns)


def seen_by_maps(cfg: MasksConfig, fold: int, paths: list[Path]) -> dict[str, Tensor]:
    """Return the highest map of the classes of images, and the boundaries, for draw_rows."""
    if cfg.method == "unet":  # a mask ends at a half of its map
        maps, held = read_maps(cfg, fold, paths, "unet")
        return {"map": (maps.sigmoid() * held[:, :, None, None]).amax(1)}
    seeds, _, _ = read_seeds(cfg, fold, paths)
    return {
        "map": resized(seeds, [cfg.image_size] * 2).amax(1),
        "boundary": read_arrays(masks_folder(cfg, fold) / BOUNDARIES, paths).float(),
    }
