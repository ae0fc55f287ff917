"""Table 2 and Figure 5: how many OoD patches to use, from all down to none.

Writes  reports/studies/table2_figure5_<model>.csv, .json, .md, .png

Each pct is one training, on this share of the hardest OoD patches. The epochs are equal, so more
patches mean more optimiser steps.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from config import UserError
from medood.evaluation.figures import COLOURS, canvas
from medood.evaluation.tables import markdown, spread
from medood.runs.command_line import run
from studies import common, paper, report


@dataclass(frozen=True)
class Table2Config(common.StudyConfig):
    """The settings of a study, with the shares that this one tries."""

    pcts: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    """Shares of the ranked OoD patches, as fractions; the baseline, 0, is always added."""


def draw_pct_curve(
    path: Path, title: str, ylabel: str, curves: dict[str, list[tuple[float, float, list[float]]]]
) -> None:
    """Draw a score over the pnr: for each curve, points of (pct, pnr, single values)."""
    with canvas(path, title) as figure:
        ax = figure.subplots()
        for colour, (name, points) in zip(COLOURS, curves.items(), strict=False):
            points = sorted(points, key=lambda point: point[1])
            means = [100 * np.mean(single) for _, _, single in points]
            ax.plot([ratio for _, ratio, _ in points], means, "o-", ms=5, color=colour, label=name)
            for (pct, ratio, single), mean in zip(points, means, strict=True):
                dots = [100 * value for value in single]
                ax.plot([ratio] * len(dots), dots, ".", ms=3, color=colour)
                note = f"{100 * pct:.0f} %"
                ax.annotate(note, (ratio, mean), xytext=(3, 5), textcoords="offset points")
        ax.set(xlabel="pnr of the training set (at each point: pct)", ylabel=ylabel)
        ax.legend()


def table2_figure5(cfg: Table2Config) -> None:
    """Train with each share of the OoD patches."""
    if not cfg.pcts or not all(0 < pct <= 1 for pct in cfg.pcts):
        raise UserError(f"pcts = {cfg.pcts} must be one or more fractions above 0, up to 1")
    common.prepare(cfg)
    arms = {"pct 0": common.baseline}
    arms |= {f"pct {100 * pct:g}": partial(common.med_ood, pct=pct) for pct in sorted(cfg.pcts)}
    results = common.run_arms(cfg, arms)
    if cfg.plan:
        return
    differences = {
        f"{arm} - pct 0": report.compare(results, arm, "pct 0") for arm in list(arms)[1:]
    }
    header = [
        "pct",
        "patches",
        "steps",
        "pnr",
        *report.heads(report.SHOWN),
        "`miou` less pct 0",
    ]
    rows = []
    for arm, of_arm in results.items():
        pct = report.values(of_arm, "pct")[0]
        recipes = [result.recipe for result in of_arm.values()]
        sizes = [len(recipe.files) for recipe in recipes], [recipe.steps for recipe in recipes]
        theirs = paper.TABLE2.get(pct, ("-", "-"))
        gain = differences[f"{arm} - pct 0"]["miou"].text() if arm != "pct 0" else ""
        size = [spread(numbers, 1, 0) for numbers in sizes]
        ratio = spread(report.values(of_arm, "pnr"), 1, 3)
        printed = theirs[0], paper.FIGURE5_PNR.get(pct, "-"), theirs[1]
        rows.append([f"{pct:g}", *size, ratio, *report.shown(of_arm), gain, *map(str, printed)])
    header += ["paper (unet vgg11_bn, Lizard): patches", "pnr", "mIoU"]
    printed = {"table2": paper.TABLE2, "figure5_pnr": paper.FIGURE5_PNR}
    tables = {"By pct": markdown(header, rows)}
    out = report.write_study(cfg, "table2_figure5", results, tables, differences, printed)
    curves = {
        name: [
            (
                report.values(arm, "pct")[0],
                float(sum(report.values(arm, "pnr")) / len(arm)),
                report.values(arm, name),
            )
            for arm in results.values()
        ]
        for name in ("miou_paper", "miou")
    }
    title = report.figure_title(
        cfg, f"Table 2 and Figure 5: {cfg.model_name}; dots are folds and seeds"
    )
    draw_pct_curve(Path(f"{out}.png"), title, "score, percent", curves)
    print(f"{out}.csv, .json, .md, .png")


if __name__ == "__main__":
    run(table2_figure5, Table2Config())
