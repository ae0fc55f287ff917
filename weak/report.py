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
from medood.evaluation.figures import draw_bars, draw_rows, share_right
from medood.evaluation.page import Picture, Table, Text, as_markdown, write_page
from medood.evaluation.tables import interval_over
from weak.arrays import caption, load_images, read_arrays, read_masks, some_of
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
    LESION_SCORES,
    OWN,
    ROWS,
    Grid,
    Rows,
    TestedRows,
    floor_of,
    gain_table,
    gains_of,
    grid,
    lesion_scores,
    over_folds,
    score_table,
    verdict,
)
from weak.settings import MasksConfig
from weak.train_transfer import FLIPPED
from weak.trust import ranked_by_trust

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
    scores = {fold: test.scores() for fold, test in tests.items()}
    lesions = {
        fold: {row: lesion_scores(tally, test.patients) for row, tally in test.tallies.items()}
        for fold, test in tests.items()
    }
    gains = gains_of(tests, classes)
    write_json(out / "scores.json", scores)
    write_json(out / "lesions.json", lesions)
    plain = {name: {k: v.plain() for k, v in of_row.items()} for name, of_row in gains.items()}
    write_json(out / "differences.json", plain)
    patients = {patient for test in tests.values() for patient in test.patients}
    less = (
        f"Each row less {ROWS[floor_of(next(iter(scores.values())))]}, and what one step adds to"
        f" another, in points, {interval_over(len(patients), 'patient')}"
    )
    columns = {title: over_folds(lesions, name) for name, title in LESION_SCORES.items()}
    tables = {
        less: gain_table(gains, classes),
        "By patient, and by thirds of the true area; percent": grid(columns),
    }
    if rows.maps:
        said = "The classifier, on images of held-out patients, percent"
        tables[said] = classifier_table(rows.maps)
    if rows.transfer:
        said = "Generators: lesions that the classifier sees before and not after, percent"
        tables[said] = flipped_table(rows.transfer)
    own = "transfer_segmentation" if cfg.method == "transfer" else "segmentation"
    result = verdict(scores, gains, own)
    folds = [
        f"fold {fold} ({len(test.patients)} images of {len(set(test.patients))} patients)"
        for fold, test in tests.items()
    ]
    subtitle = f"{data_name(cfg.workspace)}. {cfg.model_name}, percent, {', '.join(folds)}"
    subtitle += ": mean ± standard deviation" if len(folds) > 1 else ""
    subject, table = Text(subtitle, "note"), Table("scores", *score_table(scores, classes))
    more = [
        part for said, of in tables.items() for part in (Text(f"{said}.", "note"), Table(said, *of))
    ]
    bars: dict[str, dict] = {
        kind: {ROWS[row]: ious for row, ious in over_folds(scores, "iou", value).items()}
        for value, kind in enumerate(classes)
        if value
    }
    draw_bars(out / "classes.svg", "", "IoU, percent", bars)
    picture = Picture(out / "classes.svg", "IoU of each class, by row of the table.")
    settings = [[field.name, getattr(cfg, field.name)] for field in fields(cfg)]
    sections = {
        "": [Text(result, "verdict"), Text(METHOD)],
        "Scores": [subject, picture, table, *more],
        "Images": draw_pictures(cfg, rows, out, tests, own),
        "Settings": [Table("settings", ["setting", "value"], settings)],
    }
    text = as_markdown([subject, Text(result), table, *more])
    write_page(cfg.workspace, out, "Masks from image labels", sections, text)


def classifier_table(cfg: MasksConfig) -> Grid:
    """Return AUC and F1 of each class over folds."""
    found = [read_json(classifier_folder(cfg, fold) / "scores.json") or {} for fold in cfg.folds]
    kinds = [*enumerate(cfg.class_names[1:])]
    columns = {
        title: {kind: [of_fold[title.lower()][place] for of_fold in found] for place, kind in kinds}
        for title in ("AUC", "F1")
    }
    return grid(columns)


def flipped_table(cfg: MasksConfig) -> Grid:
    """Return how often the classifier flipped after the training of each fold's generator."""
    columns = {}
    for fold in cfg.folds:
        found = (read_json(generator_folder(cfg, fold) / FLIPPED) or {}).get("flipped", [])
        columns[str(fold)] = {"flipped": found[-1:]}  # an earlier version kept failed trainings too
    return grid(columns)


def draw_pictures(
    cfg: MasksConfig, rows: Rows, out: Path, tests: dict[int, TestedRows], row: str
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
        said = (
            f"Fold {fold}: test images, from the worst to the best. Map and boundary are the"
            " classifier's and IRNet's; the mask head is the generator's, which made the image"
            " healthy."
        )
        pictures.append(Picture(path, said))
        if rows.maps:
            path = out / f"{fold}_pseudo_masks.png"
            draw_teaching(path, rows.maps, fold)
            said = (
                f"Fold {fold}: training images with their pseudo-masks, from the least trusted, to"
                " correct first, to the most; grey is unsure, and counts in no loss."
            )
            pictures.append(Picture(path, said))
    return pictures


def draw_tested(
    path: Path, cfg: MasksConfig, rows: Rows, fold: int, test: TestedRows, row: str
) -> None:
    """Draw test images in rows, from the worst to the best, with the results of each step."""
    chosen = spread_by_score(test, row, EXAMPLES)
    paths = [images_folder(cfg) / test.patches.names[index] for index in chosen]
    columns = {"image": test.patches.images[chosen]}
    if rows.maps:
        columns |= seen_by_maps(rows.maps, fold, paths)
    if rows.transfer:
        healthy = [read_image(healthy_folder(rows.transfer, fold) / path.name) for path in paths]
        columns["healthy"] = torch.from_numpy(np.stack(healthy))
        columns["mask head"] = read_levels(rows.transfer, fold, paths) / 255
    for name, masks in test.predicted.items():
        if name in (*OWN, "irnet", "irnet_outlined", "supervised"):
            columns[ROWS[name]] = masks[chosen]
    columns["ground truth"] = test.patches.masks[chosen]
    title = f"{data_name(cfg.workspace)}, fold {fold}"
    draw_rows(path, title, [path.stem for path in paths], columns, cfg.classes)


def spread_by_score(test: TestedRows, row: str, count: int) -> list[int]:
    """Return the indices of test images with a class, from the worst of a row to the best."""
    right = share_right(test.patches, test.predicted[row])
    shown = test.patches.masks.flatten(1).amax(1) > 0
    order = right.where(shown, torch.inf).argsort(stable=True)[: int(shown.sum())]
    return some_of(order.tolist(), count)


def draw_teaching(path: Path, cfg: MasksConfig, fold: int) -> None:
    """Draw training images in rows, with their label: map, boundary and pseudo-mask, by trust."""
    labels, train, _ = fold_labels(cfg, fold)
    every = image_paths(cfg, labels)
    holding = {every[index].name: index for index in train if labels.held[index].any()}
    ranked = ranked_by_trust(masks_folder(cfg, fold), holding) or list(holding)
    chosen = [holding[name] for name in some_of(ranked, EXAMPLES)]
    paths = [every[index] for index in chosen]
    names = [caption(every[index], labels.classes, labels.held[index]) for index in chosen]
    masks = read_masks(cfg, masks_folder(cfg, fold), paths)
    columns = {"image": load_images(cfg, paths), **seen_by_maps(cfg, fold, paths)}
    title = f"{data_name(cfg.workspace)}, fold {fold}, training images"
    draw_rows(path, title, names, columns | {"pseudo-mask": masks}, cfg.classes)


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
