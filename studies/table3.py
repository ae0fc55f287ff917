"""Table 3: Med-OoD with and without batch normalisation, all else equal.

Writes  reports/studies/table3_<model>.csv, .json, .md, .png

"Without" means that every batch normalisation of encoder and decoder is removed. The OoD patches
(mined by the baseline that has it), the steps and the seeds are the same. Pretrained encoder
weights were learned with batch normalisation, so without it they start from other activations.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import UserError
from medood.evaluation.figures import draw_bars
from medood.evaluation.tables import markdown
from medood.models.network import batch_norms, build_model
from medood.runs.command_line import run
from studies import common, paper, report


def without(recipe):
    """Return the arm that trains the recipe's network without batch normalisation."""

    def arm(cfg: common.StudyConfig, fold: int) -> common.Recipe:
        with_it = recipe(cfg, fold)
        return replace(with_it, cfg=replace(cfg, batch_norm=False))

    return arm


def table3(cfg: common.StudyConfig) -> None:
    """Train with and without batch normalisation."""
    bare = replace(cfg, encoder_weights="none")
    layers = len(batch_norms(build_model(bare)))
    left = len(batch_norms(build_model(replace(bare, batch_norm=False))))
    if left or not layers:
        raise UserError(
            f"{cfg.model_name} has {layers} batch normalisations, {left} after removal:"
            " name a network of which all can be removed"
        )
    print(f"{cfg.model_name}: {layers} batch normalisations, none after removal")
    common.prepare(cfg)
    arms = {
        "baseline": common.baseline,
        "Med-OoD": common.med_ood,
        "baseline, no batch norm": without(common.baseline),
        "Med-OoD, no batch norm": without(common.med_ood),
    }
    results = common.run_arms(cfg, arms)
    if cfg.plan:
        return
    pairs = [
        ("Med-OoD", "Med-OoD, no batch norm"),
        ("Med-OoD", "baseline"),
        ("Med-OoD, no batch norm", "baseline, no batch norm"),
    ]
    differences = {f"{a} - {b}": report.compare(results, a, b) for a, b in pairs}
    theirs = {
        "Med-OoD": paper.TABLE3["with batch norm"],
        "Med-OoD, no batch norm": paper.TABLE3["without"],
    }
    header = ["", *report.heads(report.SHOWN), "paper mIoU (unet vgg11_bn, Lizard)"]
    rows = [
        [arm, *report.shown(of_arm), str(theirs.get(arm, "-"))] for arm, of_arm in results.items()
    ]
    rows.append(["all background", *report.shown_floor(results["baseline"]), "-"])
    gains = [[pair, *report.compared(gain)] for pair, gain in differences.items()]
    tables = {
        "Scores": markdown(header, rows),
        "Differences": markdown(["", *report.heads(report.COMPARED)], gains),
    }
    out = report.write_study(cfg, "table3", results, tables, differences, paper.TABLE3)
    bars = {
        name: {arm: report.values(of_arm, name) for arm, of_arm in results.items()}
        for name in ("miou_paper", "miou")
    }
    title = report.figure_title(cfg, f"Table 3: {cfg.model_name}; dots are folds and seeds")
    draw_bars(Path(f"{out}.png"), title, "score, percent", bars)
    print(f"{out}.csv, .json, .md, .png")


if __name__ == "__main__":
    run(table3, common.StudyConfig())
