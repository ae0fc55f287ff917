"""Image labels: the classes of each image, its patient, and which images train.

A CSV with a header: img_name, a column of 0 and 1 for each class, and optionally patient and split
(train | test). This is all that is known about a training image; no pixel is marked.
"""

from collections.abc import Iterator
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
from weak.read_images import stem_of
from weak.settings import ImagesConfig, TransferConfig

OWN = NAME, PATIENT, SPLIT = "img_name", "patient", "split"  # every other column is a class
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
    numbered = list(read_rows(path, OWN))
    rows = [row for _, row in numbered]
    # a spreadsheet may save columns after the last one, without name and values
    columns = [name for name in rows[0] if name or any(row[name] for row in rows)] if rows else []
    classes = tuple(name for name in columns if name not in OWN)
    if not classes or NAME not in columns:
        raise UserError(
            f"{path}: write a header, {NAME} and a column for each class, and a row per image"
        )
    for name in classes:
        if not name.isprintable() or name.lower() in ("", "background"):
            raise UserError(f"{path}: a class cannot be named {name!r}: rename or remove it")
    for mistake in _mistakes(numbered, classes):
        raise UserError(f"{path}: {mistake}")
    labels = np.array([[row[name] for name in classes] for row in rows], np.uint8)
    names = [row[NAME] for row in rows]
    patients = [row.get(PATIENT, row[NAME]) for row in rows]
    given = [row[SPLIT] for row in rows] if SPLIT in columns else None
    return ImageLabels(names, patients, labels, classes, given)


def _mistakes(rows: list[tuple[int, dict[str, str]]], classes: tuple[str, ...]) -> Iterator[str]:
    """Yield what is wrong in rows, each with its number, of image labels."""
    stems: set[str] = set()
    side_of: dict[str, str] = {}  # by patient
    for number, row in rows:
        if not row[NAME] or row.get(PATIENT) == "":
            yield f"row {number} has no {PATIENT if row[NAME] else NAME}: fill it in"
        here = f"row {number} ({row[NAME]})"
        if stem_of(row[NAME]) in stems:
            yield f"{here} names an image for the second time: rename one, also but for its ending"
        stems.add(stem_of(row[NAME]))
        for name in classes:
            if row[name] not in ("0", "1"):
                yield (
                    f"{here} has {row[name]!r} in column {name}, expected 0 or 1: correct it, or"
                    " remove the column if it is not a class"
                )
        side, patient = row.get(SPLIT, "train"), row.get(PATIENT, row[NAME])
        if side not in ("train", "test"):
            yield f"{here} has {side!r} as split, expected train or test"
        if side_of.setdefault(patient, side) != side:
            yield f"{here}: patient {patient} is on both sides of the split: correct one"


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
    for name, share in zip(labels.classes, labels.held[train].mean(0), strict=True):
        if share in (0, 1):
            every = "every" if share else "no"
            raise UserError(
                f"fold {fold}: {every} training image has {name}: {cure}, or remove its column"
            )
    return train, test


def shuffled(labels: ImageLabels, indices: list[int], seed: int) -> ImageLabels:
    """Return the labels, those of the images `indices` shuffled among them: a control.

    Which classes occur together, and how often, does not change; their link to the images is lost.
    """
    changed = labels.labels.copy()
    changed[indices] = labels.labels[np.random.default_rng(seed).permutation(indices)]
    return labels._replace(labels=changed)
