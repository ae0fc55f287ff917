"""Image labels: the classes of each image, its patient, and which images train.

A CSV with a header: img_name, a column of 0 and 1 for each class, and optionally patient and split
(train | test). This is all that is known about a training image; no pixel is marked.
"""

from collections import Counter
from colorsys import hls_to_rgb
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config import LIZARD, UserError
from medood.data.files import read_rows
from medood.data.folds import PARTS, split_units
from medood.data.names import plain
from medood.processes import world_size
from weak.settings import ClassifierConfig, ImagesConfig, TransferConfig

OWN = NAME, PATIENT, SPLIT = "img_name", "patient", "split"  # every other column is a class
MOST_CLASSES = 254  # a mask has one byte: 0 is background, 255 unsure
GOLDEN = 0.618  # of the circle of hues, from one colour to the next: no two come close for long
LIGHTNESS = (0.35, 0.6, 0.8)


class ImageLabels(NamedTuple):
    """What is known about N images and C classes."""

    names: list[str]  # as in the CSV, with or without their ending
    patients: list[str]  # without such a column each image is its own patient
    labels: np.ndarray  # uint8 (N, C), 1 if an image has a class
    classes: tuple[str, ...]
    given: list[str] | None  # train or test, if the CSV has a column `split`

    @property
    def held(self) -> np.ndarray:
        """The classes of each image, bool (N, C)."""
        return self.labels > 0


def labels_of(cfg: ImagesConfig) -> ImageLabels:
    """Return the image labels that the settings name."""
    if cfg.image_labels is None:
        raise UserError("image_labels = None: name the CSV of image labels with --image_labels")
    return read_image_labels(cfg.image_labels)


def read_image_labels(path: Path) -> ImageLabels:
    """Return the image labels in a CSV; UserError, naming the row, for any mistake in it."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: correct the name of the CSV of image labels")
    rows = list(read_rows(path, OWN))
    if not rows:
        raise UserError(f"{path} has no row: write a header ({NAME}, classes) and a row per image")
    # a spreadsheet may save columns after the last one, without name and values
    columns = [name for name in rows[0][1] if name or any(row[name] for _, row in rows)]
    classes = tuple(name for name in columns if name not in OWN)
    _refuse_columns(path, columns, classes)
    for number, row in rows:
        _refuse_row(path, number, row, classes)
    names = [row[NAME] for _, row in rows]
    twice, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path} names the image {twice} twice: keep one of the rows")
    patients = [row.get(PATIENT, row[NAME]) for _, row in rows]
    labels = np.array([[row[name] for name in classes] for _, row in rows], np.uint8)
    if unlearnable := _without_contrast(labels > 0, classes):
        raise UserError(
            f"{path}: {unlearnable}, so it cannot be learned: remove its column, or add other"
            " images"
        )
    given = [row[SPLIT] for _, row in rows] if SPLIT in columns else None
    if given is not None:
        _refuse_split(path, names, patients, given)
    return ImageLabels(names, patients, labels, classes, given)


def _refuse_columns(path: Path, columns: list[str], classes: tuple[str, ...]) -> None:
    """Raise UserError unless the columns are name, classes and, optionally, patient and split."""
    if NAME not in columns:
        raise UserError(f"{path} has no column {NAME}: rename the column of file names")
    if not classes:
        raise UserError(f"{path} has no column of a class: add one of 0 and 1 for each class")
    if len(classes) > MOST_CLASSES:
        raise UserError(
            f"{path} has {len(classes)} classes, but a mask can have at most {MOST_CLASSES}:"
            " remove some columns"
        )
    for name in classes:
        if not name or not name.isprintable() or name.lower() == "background":
            raise UserError(
                f"{path} has a column {name!r}, which cannot name a class: rename or remove it"
            )


def _refuse_row(path: Path, number: int, row: dict[str, str], classes: tuple[str, ...]) -> None:
    """Raise UserError for a row without a name or patient, or with a label that is not 0 or 1."""
    for column in (NAME, PATIENT):
        if column in row and not row[column]:
            raise UserError(f"{path}: row {number} has no {column}: fill it in")
    for name in classes:
        if row[name] not in ("0", "1"):
            raise UserError(
                f"{path}: row {number} ({row[NAME]}) has {row[name]!r} in column {name}, expected 0"
                " or 1: correct it, or remove the column if it is not a class"
            )


def _without_contrast(held: np.ndarray, classes: tuple[str, ...]) -> str:
    """Return which class no image has, or all of them, in words; or ""."""
    for name, column in zip(classes, held.T, strict=True):
        if column.min() == column.max():
            return f"{'every' if column.max() else 'no'} image has {name}"
    return ""


def _refuse_split(path: Path, names: list[str], patients: list[str], given: list[str]) -> None:
    """Raise UserError for a wrong value in a given split, and for a patient on both sides."""
    side_of: dict[str, str] = {}
    for name, patient, side in zip(names, patients, given, strict=True):
        if side not in ("train", "test"):
            raise UserError(f"{path} has {side!r} as split of {name}, expected train or test")
        if side_of.setdefault(patient, side) != side:
            raise UserError(
                f"{path} has images of patient {patient} on both sides of the split, such as"
                f" {name}: assign all of them to one"
            )


def with_classes(cfg: ImagesConfig) -> ImagesConfig:
    """Return settings whose classes are the columns of the CSV, each with its own colour.

    Raises UserError in several processes: no step of weak/ uses more than one.
    """
    if world_size() > 1:
        raise UserError(
            f"torchrun with {world_size()} processes: weak/ runs in one process: start the script"
            " with python"
        )
    names = labels_of(cfg).classes
    if cfg.mask_values and len({0, *cfg.mask_values}) != len(names) + 1:
        raise UserError(
            f"mask_values = {cfg.mask_values} must be {len(names)} different numbers, one for each"
            f" of {', '.join(names)}"
        )
    classes = tuple(zip(names, colours(len(names)), strict=True))
    return replace(cfg, classes=classes, patients=None)  # the CSV has the patients


def for_maps(cfg: ClassifierConfig) -> ClassifierConfig:
    """Return settings with the classes of the CSV for a step of maps; UserError for transfer."""
    if cfg.method == "transfer":
        raise UserError(
            "method = transfer has no such step: run weak/train_transfer.py, then"
            " weak/generate_masks.py"
        )
    return with_classes(cfg)


def with_lesion(cfg: TransferConfig) -> TransferConfig:
    """Return settings whose only class is the lesion, in its colour among those of the CSV.

    Raises UserError if the CSV has no such class, or several to choose from.
    """
    cfg = with_classes(cfg)
    names = [name for name, _ in cfg.classes]
    lesion = names[0] if cfg.lesion is None and len(names) == 1 else plain(cfg.lesion or "")
    if lesion not in names:
        raise UserError(
            f"lesion = {cfg.lesion}: {cfg.image_labels} has the classes {', '.join(names)}: name"
            " one of them with --lesion"
        )
    of_lesion = tuple(pair for pair in cfg.classes if pair[0] == lesion)
    return replace(cfg, lesion=lesion, classes=of_lesion)


def colours(count: int) -> list[str]:
    """Return colours as #rrggbb: Lizard's, then others in turns of hue and of lightness."""
    chosen = [colour for _, colour in LIZARD]
    for number in range(count - len(chosen)):
        rgb = hls_to_rgb(number * GOLDEN % 1, LIGHTNESS[number % len(LIGHTNESS)], 0.8)
        chosen.append(f"#{bytes(round(255 * part) for part in rgb).hex()}")
    return chosen[:count]


def split(labels: ImageLabels, fold: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the indices of the training and of the test images of a fold.

    All images of a patient are on one side. Patients are split into parts, of which the fold tests
    one, unless the CSV gives a split: then every fold has that one. Raises UserError if a side is
    empty, or if the training images do not differ in a class.
    """
    if labels.given is not None:
        is_tested = [side == "test" for side in labels.given]
    else:
        parts = split_units(sorted(set(labels.patients)), seed)
        is_tested = [parts[patient] == fold % PARTS for patient in labels.patients]
    train, test = (
        [index for index, tested in enumerate(is_tested) if tested == side]
        for side in (False, True)
    )
    cure = "correct the column split" if labels.given else f"add a column {SPLIT}, or more images"
    for side, indices in (("training", train), ("test", test)):
        if not indices:
            raise UserError(f"fold {fold} has no {side} image: {cure}")
    if unlearnable := _without_contrast(labels.held[train], labels.classes):
        raise UserError(f"fold {fold}: among its training images {unlearnable}: {cure}")
    return train, test


def shuffled(labels: ImageLabels, indices: list[int], seed: int) -> ImageLabels:
    """Return the labels, those of the images `indices` shuffled among them: a control.

    Which classes occur together, and how often, does not change; their link to the images is lost.
    """
    changed = labels.labels.copy()
    changed[indices] = labels.labels[np.random.default_rng(seed).permutation(indices)]
    return labels._replace(labels=changed)
