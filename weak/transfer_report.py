"""What weak/transfer_evaluate.py found, for people: tables, figures and a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from medood.data.files import write_json
from medood.data.images import read_image
from medood.evaluation.rows import (
    OVER_PATIENTS,
    Grid,
    Scores,
    Tested,
    gain_table,
    gains_of,
    mean_over_folds,
    scores_of,
    spread_by_score,
    verdict,
    write_rows,
)
from medood.evaluation.tables import spread
from weak.pictures import draw_rows
from weak.trainings import TrainingsConfig, trainings_of
from weak.transfer_evaluate import FLOOR, ROWS, TRAINED, of_training
from weak.transfer_masks import HEAT, read_levels
from weak.transfer_products import healthy_folder, held_out

REFINED = "refined less transfer"
METHOD = (
    "Nobody marked a pixel of a training image. A generator learned from images with the lesion,"
    " and images without anything, to make the former healthy, and what it had to change is the"
    " mask; refined is a network that learned from these masks. True masks were opened for the"
    " test, and for the row of full supervision alone. Of a test image nothing is known beforehand,"
    " but those that hold another class and not the lesion are left out."
)
EXAMPLES = 6  # images of a fold in each picture


def report_folder(cfg: TrainingsConfig) -> Path:
    """Return where the scores and the report go."""
    return cfg.workspace / "reports" / "transfer"


def write_report(cfg: TrainingsConfig, tests: dict[int, Tested]) -> None:
    """Print the tables; write them, the scores and the page with its figures.

    tests: by fold, with the rows of every training.
    """
    out, classes = report_folder(cfg), cfg.class_names
    every = scores_of(tests)
    median = median_training(every, cfg.trainings)
    shown = {fold: with_one_training(test, median) for fold, test in tests.items()}
    gains = gains_of(shown, FLOOR, classes, {REFINED: ("refined", "transfer")})
    areas = {fold: areas_on_healthy(test) for fold, test in tests.items()}
    plain = {fold: {"scores": every[fold], "area_on_healthy": areas[fold]} for fold in tests}
    write_json(out / "trainings.json", plain)
    pictures = {}
    for fold, test in shown.items():
        path = out / f"{fold}_tested.png"
        draw_tested(path, cfg, fold, median, test)
        pictures[path] = (
            f"Fold {fold}: test images, from the worst to the best, made healthy; the mask head,"
            " where the generator's classifier looks, and the masks."
        )
    differences = f"Each row less {ROWS[FLOOR]}, and what refining adds, in points"
    write_rows(
        cfg,
        out,
        shown,
        gains,
        ROWS,
        title="Masks by making the diseased image healthy",
        verdict=verdict(scores_of(shown), gains, ROWS, "refined", FLOOR),
        method=METHOD,
        tables={
            f"{differences}, {OVER_PATIENTS}": gain_table(gains, ROWS, classes),
            "Trainings from other random numbers, of which the tables above show the median by"
            " `miou` of transfer; percent": training_table(every, areas, median, cfg.trainings),
        },
        pictures=pictures,
    )


# ---------------------------------------------------------------- trainings


def median_training(scores: Scores, count: int) -> int:
    """Return which training, from 0, has the median `miou` of the row transfer, over folds.

    Of an even number, it is the worse of the middle two; an undefined `miou` is the worst.
    """
    found = [mean_over_folds(scores, of_training("transfer", n)) for n in range(count)]
    order = np.argsort(np.nan_to_num(found, nan=-1.0), kind="stable")
    return int(order[(count - 1) // 2])


def with_one_training(test: Tested, number: int) -> Tested:
    """Return what was tested with one training alone, its rows named and ordered as ROWS are."""
    names = {row: of_training(row, number) if row in TRAINED else row for row in ROWS}
    kept = {row: name for row, name in names.items() if name in test.tallies}
    return Tested(
        test.patches,
        test.patients,
        {row: test.predicted[name] for row, name in kept.items()},
        {row: test.tallies[name] for row, name in kept.items()},
    )


def areas_on_healthy(test: Tested) -> dict[str, float | None]:
    """Return the share of the pixels called lesion of the images that truly show none, by row."""
    is_healthy = ~(test.patches.masks == 1).flatten(1).any(1)
    if not is_healthy.any():
        return dict.fromkeys(test.predicted)
    return {
        row: (masks[is_healthy] == 1).float().mean().item() for row, masks in test.predicted.items()
    }


def training_table(
    scores: Scores, areas: dict[int, dict[str, float | None]], median: int, count: int
) -> Grid:
    """Return `miou`, `dsc` and the area on healthy images of every training, in percent."""
    header, columns = ["training"], []
    for row in TRAINED:
        header += [f"{ROWS[row]}: {name}" for name in ("miou", "dsc", "area on healthy images")]
        names = [of_training(row, number) for number in range(count)]
        for score in ("miou", "dsc"):
            columns.append([[of_fold[n][score] for of_fold in scores.values()] for n in names])
        columns.append([[of_fold[name] for of_fold in areas.values()] for name in names])
    labels = [f"{number + 1}{' (shown)' * (number == median)}" for number in range(count)]
    lines = [
        [label, *(spread(column[number]) for column in columns)]
        for number, label in enumerate(labels)
    ]
    if count > 1:
        lines.append(["all", *(spread([mean_of(values) for values in col]) for col in columns)])
    return header, lines


def mean_of(values: list[float | None]) -> float | None:
    """Return the mean of the known values, None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


# ---------------------------------------------------------------- pictures


def draw_tested(path: Path, cfg: TrainingsConfig, fold: int, number: int, test: Tested) -> None:
    """Draw test images in rows, from the worst to the best, with what each step says of them."""
    chosen = spread_by_score(test, "refined", EXAMPLES)
    training, every = trainings_of(cfg, fold)[number], held_out(cfg, fold)
    paths = [every[index] for index in chosen]
    healthy = [read_image(healthy_folder(cfg, training) / path.name) for path in paths]
    columns = {
        "healthy": torch.from_numpy(np.stack(healthy)),
        "mask head": torch.from_numpy(read_levels(cfg, training, paths)) / 255,
        "heat": torch.from_numpy(read_levels(cfg, training, paths, HEAT)).float(),
        "transfer": test.predicted["transfer"][chosen],
        "refined": test.predicted["refined"][chosen],
        "truth": test.patches.masks[chosen],
    }
    names = [path.stem for path in paths]
    draw_rows(path, cfg, f"fold {fold}", names, test.patches.images[chosen], columns)
