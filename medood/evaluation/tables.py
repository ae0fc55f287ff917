"""Tables for readers: the scores, and the data that they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from config import Config
from medood.data.files import in_threads
from medood.data.folds import Fold
from medood.data.images import read_mask
from medood.data.patients import patients_of, region_of
from medood.data.records import record_of
from medood.data.workspace import Pair, id_files

if TYPE_CHECKING:
    from medood.evaluation.statistics import Difference

# the order of every table; docs/method.md explains the scores
NO_THRESHOLD = ("ap", "auroc", "ece")
MATCHED = ("bg_to_fg_matched", "fg_to_bg_matched")  # of two networks: at the rates of the first
SHARES = ("nuclei_invented", "nuclei_missed", "nuclei_misnamed")
BY_NUCLEUS = ("mpq", "bpq", "f1", *SHARES)  # where labels have instances
AT_ARGMAX = ("miou", "dsc", "miou_paper", "dsc_paper", "fg_to_bg", "bg_to_fg", "fg_to_fg")
OWN_SCORES = (*NO_THRESHOLD, *BY_NUCLEUS, *AT_ARGMAX)  # of one network
SCORES = (*NO_THRESHOLD, *MATCHED, *BY_NUCLEUS, *AT_ARGMAX)
BY_CLASS = {"iou": "IoU", "pq": "PQ"}  # the head of the rows of such scores
LABELS = {"all_background": "all background", "baseline": "baseline", "ood": "Med-OoD"}
SIZES = {  # of a training set, by the label of their row: name and digits
    "ID training patches": ("id_patches", 0),
    "OoD training patches": ("ood_patches", 0),
    "pnr": ("pnr", 3),
    "pct": ("pct", 2),
}
FEW = 30  # units: a bootstrap over fewer gives intervals that are too narrow


def interval_over(units: int, unit: str) -> str:
    """Return what the intervals of a table are: a bootstrap over so many regions, slides ..."""
    over = f"with the 95 % interval of a bootstrap over {units} {unit}s and, if several, trainings"
    few = f" (intervals over fewer than {FEW} {unit}s are too narrow)" if units < FEW else ""
    return f"{over}{few}; n.s.: the interval includes 0, no difference is shown"


def spread(values: list[float | None], scale: float = 100, digits: int = 1) -> str:
    """Return `mean ± standard deviation` of a score over trainings, `-` if none defines it."""
    known = [value * scale for value in values if value is not None]
    if not known:
        return "-"
    mean = round(np.mean(known), digits) + 0.0  # no "-0.0"
    deviation = f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else ""
    return f"{mean:.{digits}f}{deviation}"


def score_table(
    class_names: tuple[str, ...],
    scores: dict[int, dict],
    sizes: dict[int, dict],
    gains: dict[str, Difference],
) -> tuple[list[str], list[list[str]]]:
    """Return the scores of all folds as header and rows, in percent.

    scores: the content of scores.json. sizes: of each fold and network, the values of SIZES.
    gains: second network less first, by score; empty if only one was tested.
    """
    columns = {}
    for network in next(iter(scores.values())):
        tested = [of_fold[network] for of_fold in scores.values()]
        trained = [of_fold.get(network, {}) for of_fold in sizes.values()]
        columns[LABELS.get(network, network)] = {
            **{name: spread([of_fold.get(name) for of_fold in tested]) for name in SCORES},
            **{
                f"{head} {kind}": spread([of_fold[key][value] for of_fold in tested])
                for key, head in BY_CLASS.items()
                for value, kind in enumerate(class_names)
                if all(key in of_fold for of_fold in tested)
            },
            **{
                label: spread([of_fold.get(key) for of_fold in trained], 1, digits)
                for label, (key, digits) in SIZES.items()
            },
        }
    labels = list(next(iter(columns.values())))
    if gains:
        columns["difference"] = {name: gain.text() for name, gain in gains.items()}
    rows = []
    for label in labels:
        cells = [column.get(label, "") for column in columns.values()]
        if label.startswith("IoU "):
            cells = ["absent" if cell == "-" else cell for cell in cells]
        optional = label in (*SIZES, *MATCHED, *BY_NUCLEUS) or label.startswith("PQ ")
        if not optional or set(cells) - {"-", ""}:
            rows.append([label, *cells])
    return ["", *columns], rows


def describe_data(cfg: Config, folds: dict[int, Fold]) -> dict:
    """Return a description of the data: by fold in rows, by class in columns, skipped files."""
    names = sorted({name for fold in folds.values() for side in fold for name in side})
    pixels = count_classes(cfg, names)
    share = 100 * pixels.sum(0) / pixels.sum()
    unsure = 1 - pixels.sum() / (len(names) * cfg.patch_size**2)
    by_class = {"class": cfg.class_names, "pixels": [f"{value:.2f} %" for value in share]}
    by_fold = []
    for fold, (train, val, test) in folds.items():
        in_train, in_test = np.isin(names, train + val), np.isin(names, test)
        by_class[f"{fold} train"] = (pixels[in_train] > 0).sum(0)
        by_class[f"{fold} test"] = (pixels[in_test] > 0).sum(0)
        trained, tested = (set(patients_of(cfg, side)) for side in (train + val, test))
        sizes = len(train), len(val), len(test), len(tested), len(trained & tested)
        by_fold.append([fold, *sizes])
    return {
        "patches": len(names),
        "regions": len({region_of(name) for name in names}),
        "patients": len(set(patients_of(cfg, names))),  # or regions, if patients are unknown
        "unsure": f"{100 * unsure:.2f} %" if unsure else "",  # of all pixels
        "by_fold": by_fold,
        "by_class": by_class,
        "left_out": sorted(
            reason
            for folder in ("Image_Patchs", "OoD_Source_Patchs")
            for reason in record_of(cfg.workspace / folder).bad_files.values()
        ),
    }


def count_classes(cfg: Config, names: list[str]) -> np.ndarray:
    """Return how many pixels of each ID patch belong to each class, integers (N, C).

    Unsure pixels belong to none.
    """
    classes = len(cfg.class_names)

    def count(pair: Pair) -> np.ndarray:
        mask = read_mask(pair[1], classes)
        return np.bincount(mask.ravel(), minlength=classes)[:classes]

    return np.array(in_threads(count, id_files(cfg.workspace, names), "counting"))
