"""Tables as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from medood.evaluation.statistics import Difference

# the order of every table; the scores are explained in medood/evaluation/scores.py
SCORES = ("miou", "dsc", "miou_paper", "dsc_paper", "fg_to_bg", "bg_to_fg", "fg_to_fg")
LABELS = {"all_background": "all background", "baseline": "baseline", "ood": "Med-OoD"}
SIZES = {  # of a training set, by the label of their row: name and digits
    "ID training patches": ("id_patches", 0),
    "OoD training patches": ("ood_patches", 0),
    "pnr": ("pnr", 3),
    "pct": ("pct", 2),
}
INTERVAL = "with the 95 % interval of a bootstrap over regions and, if several, trainings"


def spread(values: list[float | None], scale: float = 100, digits: int = 1) -> str:
    """Return `mean ± standard deviation` of a score over runs, `-` where no run defines it."""
    known = [value * scale for value in values if value is not None]
    if not known:
        return "-"
    mean = round(np.mean(known), digits) + 0.0  # no "-0.0"
    deviation = f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else ""
    return f"{mean:.{digits}f}{deviation}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, its columns aligned to the right."""
    widths = [max(2, *(len(line[i]) for line in [header, *rows])) for i in range(len(header))]
    lines = [header, [("-" * width)[:-1] + ":" for width in widths], *rows]
    return "".join(
        "| "
        + " | ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        + " |\n"
        for line in lines
    )


def score_table(
    class_names: tuple[str, ...],
    scores: dict[int, dict],
    sizes: dict[int, dict],
    gains: dict[str, Difference],
) -> tuple[list[str], list[list[str]]]:
    """Return the scores of all folds as header and rows, in percent.

    scores: what scores.json holds. sizes: of each fold and network, what SIZES names.
    gains: second network less first, by score; empty if only one was tested.
    """
    columns = {}
    for network in next(iter(scores.values())):
        tested = [of_fold[network] for of_fold in scores.values()]
        trained = [of_fold.get(network, {}) for of_fold in sizes.values()]
        columns[LABELS.get(network, network)] = {
            **{name: spread([of_fold[name] for of_fold in tested]) for name in SCORES},
            **{
                f"IoU {kind}": spread([of_fold["iou"][value] for of_fold in tested])
                for value, kind in enumerate(class_names)
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
        if label not in SIZES or set(cells) - {"-", ""}:
            rows.append([label, *cells])
    return ["", *columns], rows
