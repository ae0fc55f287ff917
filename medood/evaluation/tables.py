"""Tables as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from medood.evaluation.statistics import Difference

# the order of every table; the scores are explained in medood/evaluation/scores.py
SCORES = ("miou", "dsc", "miou_paper", "dsc_paper", "fg_to_bg", "bg_to_fg", "fg_to_fg")
LABELS = {"all_background": "all background", "baseline": "baseline", "ood": "Med-OoD"}
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
    runs: dict[int, dict],
    gains: dict[str, Difference],
) -> tuple[list[str], list[list[str]]]:
    """Return the scores of all folds as header and rows, in percent.

    scores: what scores.json holds. runs: of each fold and network its run.json, with pnr and pct.
    gains: second network less first, by score; empty if only one was tested.
    """
    arms = list(next(iter(scores.values())))
    header = ["", *(LABELS.get(arm, arm) for arm in arms), *(["difference"] if gains else [])]

    def row(label: str, of: dict[str, list], gain: str, scale: float = 100, digits: int = 1):
        cells = [spread(of[arm], scale, digits) for arm in arms]
        return [label, *cells, *([gain] if gains else [])]

    rows = [
        row(
            name,
            {arm: [fold[arm][name] for fold in scores.values()] for arm in arms},
            gains[name].text() if gains else "",
        )
        for name in SCORES
    ]
    for value, kind in enumerate(class_names):
        label = f"IoU {kind}"
        of = {arm: [fold[arm]["iou"][value] for fold in scores.values()] for arm in arms}
        if all(iou is None for iou in of[arms[0]]):
            rows.append([label, *["absent"] * (len(header) - 1)])
        else:
            rows.append(row(label, of, gains[label].text() if gains else ""))
    for label, key, digits in (
        ("ID training patches", "id_patches", 0),
        ("OoD training patches", "ood_patches", 0),
        ("pnr", "pnr", 3),
        ("pct", "pct", 2),
    ):
        of = {arm: [runs[fold].get(arm, {}).get(key) for fold in scores] for arm in arms}
        if any(size is not None for arm in arms for size in of[arm]):
            rows.append(row(label, of, "", scale=1, digits=digits))
    return header, rows
