"""Table 4 and Figure 6: what a network learns that is trained on the OoD patches only.

Writes  reports/studies/table4_figure6_<model>.csv, .json, .md, .png

No OoD patch holds a nucleus, so such a network can only learn to predict background. The tables
compare it with `all background`, which predicts just that. The paper scores a class patch by patch;
a patch that lacks the class, and in which the network predicts none, counts as 1. `floor` is this
score of `all background`.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import UserError
from medood.data.folds import read_fold
from medood.evaluation.figures import draw_bars
from medood.evaluation.tables import count_classes, markdown, spread
from medood.runs.command_line import run
from studies import paper
from studies.common import (
    Recipe,
    StudyConfig,
    baseline,
    candidates,
    med_ood,
    mine,
    prepare,
    run_arms,
)
from studies.report import (
    COMPARED,
    SHOWN,
    by_class,
    compare,
    compared,
    figure_title,
    heads,
    patchwise,
    shown,
    shown_floor,
    values,
    write_study,
)


def ood_only(cfg: StudyConfig, fold: int) -> Recipe:
    """Return the training on every hard OoD patch of a fold, and nothing else."""
    hard, _ = mine(cfg, fold, candidates(cfg, fold))
    if not hard:
        raise UserError(
            f"fold {fold}: the baseline sees no nucleus in any OoD patch: set folds to others"
        )
    return replace(baseline(cfg, fold), files=hard, notes={})


def patches_of_class(cfg: StudyConfig, fold: int) -> np.ndarray:
    """Return how many training patches of a fold hold each class, (C,)."""
    return (count_classes(cfg, read_fold(cfg, fold).train) > 0).sum(0)


def table4_figure6(cfg: StudyConfig) -> None:
    """Train on ID patches, on OoD patches only, and on both."""
    prepare(cfg)
    arms = {"D_id (baseline)": baseline, "D_ood only": ood_only, "both (Med-OoD)": med_ood}
    results = run_arms(cfg, arms)
    if cfg.plan:
        return
    theirs = [f"{number:g}" for number in paper.TABLE4_MIOU.values()]
    rows = [
        ["all background", *shown_floor(results["D_id (baseline)"]), "-"],
        *(
            [arm, *shown(of_arm), printed]
            for (arm, of_arm), printed in zip(results.items(), [*theirs, "-"], strict=True)
        ),
    ]
    counts = [patches_of_class(cfg, fold) for fold in cfg.folds]
    header = ["class", "D_id patches", "D_ood", *(f"IoU {arm}" for arm in arms)]
    header += ["patch by patch: floor", *arms, "paper: D_id patches", "floor"]
    of_class = []
    for value, kind in enumerate(cfg.class_names[1:], start=1):
        printed = paper.TABLE4_PATCHES.get(kind)
        of_class.append(
            [
                kind,
                spread([float(count[value]) for count in counts], 1, 0),
                "0",
                *(spread(values(of_arm, f"IoU {kind}")) for of_arm in results.values()),
                spread(patchwise(results["D_id (baseline)"], "floor", value)),
                *(spread(patchwise(of_arm, "network", value)) for of_arm in results.values()),
                str(printed or "-"),
                f"{100 * (1 - printed / paper.TABLE2[0.0][0]):.1f}" if printed else "-",
            ]
        )
    differences = {
        "D_ood only - D_id": compare(results, "D_ood only", "D_id (baseline)"),
        "Med-OoD - baseline": compare(results, "both (Med-OoD)", "D_id (baseline)"),
    }
    gains = [[pair, *compared(gain)] for pair, gain in differences.items()]
    header_of_scores = ["trained on", *heads(SHOWN), "paper mIoU (unet vgg11_bn, Lizard)"]
    tables = {
        "Scores": markdown(header_of_scores, rows),
        "By class": markdown(header, of_class),
        "Differences": markdown(["", *heads(COMPARED)], gains),
    }
    printed = {"patches": paper.TABLE4_PATCHES, "miou": paper.TABLE4_MIOU}
    out = write_study(cfg, "table4_figure6", results, tables, differences, printed)
    title = figure_title(cfg, f"Figure 6: {cfg.model_name}; dots are folds and seeds")
    draw_bars(Path(f"{out}.png"), title, "IoU, percent", by_class(cfg, results))
    print(f"{out}.csv, .json, .md, .png")


if __name__ == "__main__":
    run(table4_figure6, StudyConfig())
