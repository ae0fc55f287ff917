"""Test masks and students against true masks: how far is it from full supervision?

Reads   all that the steps before made, and, for the first time, masks: a folder of true masks (or a
        CSV of run lengths)
Writes  models/<fold>_<model>_<lesion>_supervised/   the same network, trained on the true masks
        reports/transfer/scores.json                 by fold and row, see ROWS
        reports/transfer/table.md                    and differences.json, each row less `threshold`
        reports/transfer/trainings.json              by fold, every training's scores
        reports/transfer/index.html                  the report, with its figures in one file

A fold is trained several times, and the tables show one training, declared beforehand: the median
by the `miou` of the row `transfer`, the mean over folds; of an even number, the worse of the middle
two. Images that hold another class and not the lesion are in no domain, and are not tested.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from medood.commands import as_kind, command
from medood.data.records import changes, record_of, refuse_unusable
from medood.runs.command_line import run
from medood.runs.products import network_made_from
from medood.runs.provenance import require
from weak.evaluate_masks import detected, read_masks
from weak.image_labels import with_classes
from weak.products import (
    CLASSIFIER,
    IRNET,
    MAPS,
    PSEUDO_MASKS,
    fold_labels,
    image_paths,
    labels_there,
)
from weak.read_images import require_masks
from weak.refine import has_masks, student_folder, training_files
from weak.settings import MasksConfig as WeakConfig
from weak.trainings import TrainingsConfig, trainings_of, with_trainings
from weak.transfer_products import TRANSFER_MASKS, domains, held_out, masks_folder, with_lesion
from weak.transfer_settings import TransferConfig

if TYPE_CHECKING:
    from torch import Tensor

    from medood.evaluation.rows import Tested

# what is tested, in the order of the table
ROWS = {
    "all_background": "all background",
    "threshold": "grey threshold (Otsu)",
    "cam": "CAM of weak/",
    "irnet": "IRNet of weak/",
    "transfer": "transfer",
    "refined": "refined",
    "supervised": "full supervision",
}
FLOOR = "threshold"
TRAINED = ("transfer", "refined")  # the rows that differ between trainings
SHARED = {"encoder", "encoder_weights", "seed"}  # settings that rows of weak/ must have in common


def evaluate(cfg: TrainingsConfig) -> None:
    """Test every row on the test images of every fold; write scores, tables and the report."""
    cfg = with_lesion(cfg)
    require_masks(cfg)
    every = with_trainings(cfg)
    require(every, TRANSFER_MASKS)
    for fold in every.folds:
        if has_masks(cfg, fold):
            require_student(cfg, fold)
    why_not = incomparable(cfg)
    if why_not:
        again = command(cfg, "weak/main.py", WeakConfig)
        print(f"the rows cam and irnet are left out ({why_not}): for them, run `{again}`")
    from weak.transfer_report import write_report  # here, so that --help works without torch

    write_report(cfg, {fold: test_fold(cfg, fold, not why_not) for fold in cfg.folds})


def require_student(cfg: TransferConfig, fold: int) -> None:
    """Raise UserError if the student of a fold is missing, or learned from other masks."""
    from weak.teacher import MeanTeacher

    again = command(cfg, "weak/refine.py", TransferConfig, folds=(fold,))
    now = network_made_from(cfg, fold, training_files(cfg, fold)) | MeanTeacher.made_from(cfg)
    refuse_unusable(record_of(student_folder(cfg, fold)), lambda: now, again)


def of_training(row: str, number: int) -> str:
    """Return what a row of TRAINED is called in one of the trainings of a fold, from 0."""
    return f"{row} {number}"


def test_fold(cfg: TrainingsConfig, fold: int, with_weak: bool) -> Tested:
    """Return what every row says of the test images of a fold, in every training."""
    import torch

    from medood.data.dataset import load_patches
    from medood.evaluation.rows import predicted_by, tested
    from weak.baselines import otsu_masks
    from weak.transfer_truth import lesion_files

    paths = held_out(cfg, fold)
    patches = load_patches(cfg, lesion_files(cfg, paths))
    images = patches.images
    predicted = {
        "all_background": torch.zeros(images.shape[:3], dtype=torch.uint8),
        # no label is known: each image is taken to hold the lesion
        "threshold": otsu_masks(images, torch.ones(len(images), dtype=torch.long)),
        **(from_weak(cfg, fold, paths) if with_weak else {}),
    }
    networks = {}
    for number, training in enumerate(trainings_of(cfg, fold)):
        predicted[of_training("transfer", number)] = read_found(cfg, training, paths)
        if has_masks(cfg, training):
            networks[of_training("refined", number)] = student_folder(cfg, training)
        else:
            predicted[of_training("refined", number)] = predicted["all_background"]
    networks["supervised"] = train_supervised(cfg, fold)
    predicted |= predicted_by(cfg, networks, images)
    return tested(patches, patients_of(cfg, paths), predicted, len(cfg.class_names))


def patients_of(cfg: TransferConfig, paths: list[Path]) -> list[str]:
    """Return the patient of each image."""
    labels = labels_there(cfg)
    of_image = dict(zip(image_paths(cfg, labels), labels.patients, strict=True))
    return [of_image[path] for path in paths]


def read_found(cfg: TransferConfig, fold: int, paths: list[Path]) -> Tensor:
    """Return the masks of images by the generator of a fold, uint8 (N, P, P)."""
    import numpy as np
    import torch

    from medood.data.images import read_mask

    masks = [read_mask(masks_folder(cfg, fold) / path.name, 2) for path in paths]
    return torch.from_numpy(np.stack(masks))


def train_supervised(cfg: TransferConfig, fold: int) -> Path:
    """Return the folder of the network trained on the true masks of the same training images."""
    from medood.training.segmentation import train_fold
    from weak.transfer_truth import lesion_files

    name = f"{fold}_{cfg.model_name}_{cfg.lesion}_supervised".replace("/", "_")
    folder = cfg.workspace / "models" / name
    diseased, healthy = domains(cfg, fold)
    train_fold(cfg, fold, lesion_files(cfg, diseased + healthy), [], folder)
    return folder


# ---------------------------------------------------------------- what weak/ says of them


def weak_settings(cfg: TransferConfig) -> WeakConfig:
    """Return settings for weak/ of the same images: its own are the defaults."""
    return with_classes(as_kind(cfg, WeakConfig))


def incomparable(cfg: TransferConfig) -> str:
    """Return why the masks of weak/ are no rows of this table, or "" if they are.

    They are if they come, in every fold, from the same images, labels, seed and encoder weights, so
    that no network behind them has seen a test image. Its other settings are its own, but the same
    in all folds.
    """
    ours, first = weak_settings(cfg), cfg.folds[0]
    for fold, made in product(cfg.folds, (CLASSIFIER, MAPS, IRNET, PSEUDO_MASKS)):
        path = made.path(ours, fold)
        found, elsewhere = (
            (record_of(made.path(ours, each)).content or {}).get("made_from", {})
            for each in (fold, first)
        )
        if not found:
            return f"weak/ did not make {path}"
        now = made.made_from(ours, fold)
        shared = {k: value for k, value in now["settings"].items() if k in SHARED}
        if why := record_of(path).out_of_date(now | {"settings": found["settings"] | shared}):
            return f"{path} is out of date: {why}"
        if why := changes(elsewhere["settings"], found["settings"]):
            return f"{path} is not like that of fold {first}: {', '.join(why)}"
    return ""


def from_weak(cfg: TransferConfig, fold: int, paths: list[Path]) -> dict[str, Tensor]:
    """Return what CAM and IRNet of weak/ say of test images, by row, uint8 (N, P, P)."""
    ours = weak_settings(cfg)
    labels, _, test = fold_labels(ours, fold)
    every = [image_paths(ours, labels)[index] for index in test]
    chosen = [every.index(path) for path in paths]
    value = ours.class_names.index(cfg.lesion)
    found = {"cam": detected(ours, fold, "cam"), "irnet": read_masks(ours, fold, every)}
    return {name: (masks[chosen] == value).byte() for name, masks in found.items()}


if __name__ == "__main__":
    run(evaluate, TrainingsConfig())
