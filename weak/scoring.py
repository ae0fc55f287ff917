"""Several ways to make masks, each a row of a table, tested on the same images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from config import Config
from medood.data.dataset import Patches
from medood.evaluation.scores import Tally
from medood.evaluation.statistics import Difference, paired_differences
from medood.evaluation.tables import spread
from medood.models.checkpoints import load_model
from medood.models.inference import Predictor, predict
from weak.settings import MasksConfig

# what is tested, in the order of the table
ROWS = {
    "all_background": "all background",
    "threshold": "grey threshold (Otsu)",
    "tissue": "Otsu inside the tissue",
    "brightest": "brightest",
    "centre_prior": "mean of the maps",
    "cam": "CAM",
    "grad_cam_pp": "Grad-CAM++",
    "contrast": "CAM, contrast classifier",
    "irnet": "IRNet",
    "irnet_outlined": "IRNet, outlined",
    "maps": "U-Net, maps",
    "unet": "U-Net, maps and brightness",
    "unet_outlined": "U-Net, outlined",
    "transfer": "transfer",
    "transfer_outlined": "transfer, outlined",
    "positives_only": "segmentation, without negatives",
    "segmentation": "segmentation",
    "transfer_segmentation": "segmentation after transfer",
    "shuffled_labels": "segmentation, labels shuffled",
    "supervised": "full supervision",
}
FLOORS = ("brightest", "centre_prior", "threshold", "tissue")
# compared with every floor, not only with the first
OWN = (
    *("unet", "unet_outlined", "segmentation"),
    *("transfer", "transfer_outlined", "transfer_segmentation"),
)
STEPS = (  # what one adds to another
    *(("segmentation", "supervised"), ("transfer_segmentation", "supervised")),
    *(("segmentation", "positives_only"), ("unet", "maps")),
    *((row, row.removesuffix("_outlined")) for row in ROWS if row.endswith("_outlined")),
)
SHOWN_SCORES = ("miou", "dsc", "fg_to_bg", "bg_to_fg")
LESION_SCORES = {
    "shown": "IoU, images with it",
    "by_patient": "Dice of a patient",
    **{"small": "Dice, small", "medium": "Dice, medium", "large": "Dice, large"},
}

Grid = tuple[list[str], list[list[str]]]  # header and rows
Scores = dict[int, dict[str, dict]]  # by fold and row
Column = dict[str, list[float | None]]  # of a table: by row, a value of each fold
Gains = dict[str, dict[str, Difference]]  # by row and score


class Rows(NamedTuple):
    """Settings of what is tested in addition to full supervision and the floors."""

    maps: MasksConfig | None = None  # of the route of maps
    control: MasksConfig | None = None  # of the same, from shuffled labels
    transfer: MasksConfig | None = None  # of the route of transfer


@dataclass(frozen=True)
class TestedRows:
    """What was tested on the N test images of a fold."""

    patches: Patches  # with their true masks
    patients: list[str]
    predicted: dict[str, Tensor]  # by row: the class of each pixel, uint8 (N, P, P)
    tallies: dict[str, Tally]

    def scores(self) -> dict[str, dict]:
        """Return the scores of each row."""
        return {name: tally.scores() for name, tally in self.tallies.items()}


def tally_rows(
    patches: Patches, patients: list[str], predicted: dict[str, Tensor], classes: int
) -> TestedRows:
    """Return the tally of each row, in the order of ROWS; arguments as in `TestedRows`.

    classes: with background.
    """
    predicted, tallies = {name: predicted[name] for name in ROWS if name in predicted}, {}
    for name, masks in predicted.items():
        tallies[name] = Tally(len(patches), classes)
        sure = F.one_hot(masks.long(), classes).permute(0, 3, 1, 2)  # as probabilities
        tallies[name].add(slice(None), sure, patches.masks)
    return TestedRows(patches, patients, predicted, tallies)


def predicted_by(cfg: Config, network: Path, images: Tensor) -> Tensor:
    """Return the class of each pixel, uint8 (N, P, P), by a network in a folder, in float32.

    images: RGB uint8 (N, P, P, 3).
    """
    cfg = replace(cfg, precision="float32")
    batches = predict(Predictor(cfg, load_model(network, cfg)), images, f"testing {network.name}")
    return torch.cat([likely.argmax(1).to("cpu", torch.uint8) for _, likely in batches])


def lesion_scores(tally: Tally, patients: list[str]) -> dict[str, float | None]:
    """Return LESION_SCORES, the mean over classes. patients: of each image that was counted.

    shown: IoU over the images with the class. by_patient: the mean Dice of a patient's images
    together, over the patients with the class. small, medium, large: the mean Dice of the images
    with the class, by thirds of its true area.
    """
    counts = tally.confusion.numpy()
    _, owner = np.unique(patients, return_inverse=True)
    found: dict[str, list[float]] = {name: [] for name in LESION_SCORES}
    for value in range(1, counts.shape[1]):
        hit, true = counts[:, value, value], counts[:, value].sum(1)
        both = true + counts[:, :, value].sum(1)
        shown = np.flatnonzero(true)
        if not len(shown):
            continue
        found["shown"].append(hit[shown].sum() / (both - hit)[shown].sum())
        of_patient = [np.bincount(owner, part) for part in (hit, true, both)]
        has = of_patient[1] > 0
        found["by_patient"].append((2 * of_patient[0][has] / of_patient[2][has]).mean())
        thirds = np.array_split(shown[np.argsort(true[shown], kind="stable")], 3)
        for name, part in zip(("small", "medium", "large"), thirds, strict=True):
            found[name] += [(2 * hit[part] / both[part]).mean()] if len(part) else []
    return {name: float(np.mean(values)) if values else None for name, values in found.items()}


def floor_of(rows: Iterable[str]) -> str:
    """Return the first of FLOORS among rows: each row is compared with it."""
    return next(floor for floor in FLOORS if floor in rows)


def gains_of(tests: dict[int, TestedRows], classes: tuple[str, ...]) -> Gains:
    """Return the scores of each row less those of its floor, and less those of some others.

    They are resampled over patients. classes: with background.
    """
    counts = {
        row: [test.tallies[row].by_region(test.patients) for test in tests.values()]
        for row in next(iter(tests.values())).tallies
    }
    floor = floor_of(counts)
    pairs = [*((own, low) for own in OWN for low in FLOORS if low != floor), *STEPS]
    named = {row: (row, floor) for row in counts if row != floor}
    named |= {f"{ROWS[one]} less {ROWS[other]}": (one, other) for one, other in pairs}
    return {
        name: paired_differences(counts[one], counts[other], classes)
        for name, (one, other) in named.items()
        if {one, other} <= counts.keys()
    }


def verdict(scores: Scores, gains: Gains, row: str) -> str:
    """Return in a sentence how good a row is, against full supervision and the floor."""
    miou = over_folds(scores, "miou")
    own, full = (100 * np.array(miou[name], float).mean() for name in (row, "supervised"))
    gain = gains[row]["miou"]
    share = f"{100 * own / full:.0f} % of full supervision's" if full else "full supervision has"
    open_ = " (n.s.)" if gain.includes_zero else ""
    return (
        f"From image labels alone: mean IoU {own:.1f} %, {share} ({full:.1f} %); {gain.points()}"
        f" points more than {ROWS[floor_of(miou)]}{open_}."
    )


def over_folds(scores: Scores, *place: str | int) -> Column:
    """Return the value at a place in the scores of each row, such as "iou", 1."""
    rows = next(iter(scores.values()))
    found = {row: [of_fold[row] for of_fold in scores.values()] for row in rows}
    for key in place:
        found = {row: [value[key] for value in values] for row, values in found.items()}
    return found


def grid(columns: dict[str, Column]) -> Grid:
    """Return columns by their names as a table of means over folds, with their deviation, in %."""
    rows = next(iter(columns.values()))
    lines = [
        [ROWS.get(row, row), *(spread(column[row]) for column in columns.values())] for row in rows
    ]
    return ["", *columns], lines


def score_table(scores: Scores, classes: tuple[str, ...]) -> Grid:
    """Return the scores of every row over folds, in percent. classes: with background."""
    columns = {f"IoU {name}": over_folds(scores, "iou", v) for v, name in enumerate(classes) if v}
    return grid(columns | {name: over_folds(scores, name) for name in SHOWN_SCORES})


def gain_table(gains: Gains, classes: tuple[str, ...]) -> Grid:
    """Return the differences with their intervals, in points. classes: with background."""
    names = [f"IoU {name}" for name in classes[1:]]
    if len(names) > 1:  # of one class, the mean is its own
        names.append("miou")
    names += ["fg_to_bg", "bg_to_fg"]
    lines = [
        [ROWS.get(row, row), *(gain[name].text() for name in names)] for row, gain in gains.items()
    ]
    return ["", *names], lines
