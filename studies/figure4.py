"""Figure 4: what Med-OoD changes for each class.

Writes  reports/studies/figure4_<model>.csv, .json, .md, .png

The paper takes the IoU of a class patch by patch; a patch that lacks the class, and in which the
network predicts none, counts as 1. The columns "patch by patch" do the same; their `floor` is the
score of a network that predicts background everywhere. The other columns hold one IoU per class and
test fold.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from medood.evaluation.figures import draw_bars
from medood.evaluation.tables import markdown, spread
from medood.runs.command_line import run
from studies import paper
from studies.common import StudyConfig, baseline, med_ood, prepare, run_arms
from studies.report import by_class, compare, figure_title, patchwise, values, write_study


def figure4(cfg: StudyConfig) -> None:
    """Compare the IoU of each class."""
    prepare(cfg)
    results = run_arms(cfg, {"baseline": baseline, "Med-OoD": med_ood})
    if cfg.plan:
        return
    gains = compare(results, "Med-OoD", "baseline")
    rows = []
    for value, kind in enumerate(cfg.class_names):
        name = f"IoU {kind}"
        ours = [spread(values(results[arm], name)) for arm in results]
        by_patch = [patchwise(results[arm], "network", value) for arm in results]
        rise = [after - before for before, after in zip(*by_patch, strict=True)]
        floor = spread(patchwise(results["baseline"], "floor", value))
        theirs = f"{paper.FIGURE4_GAIN[kind]:g}" if kind in paper.FIGURE4_GAIN else "-"
        rows.append([kind, *ours, gains[name].text(), floor, *map(spread, by_patch)])
        rows[-1] += [spread(rise), theirs]
    header = ["class", "baseline", "Med-OoD", "difference", "patch by patch: floor"]
    header += ["baseline", "Med-OoD", "difference", "paper's (unet vgg11_bn, Lizard)"]
    differences = {"Med-OoD - baseline": gains}
    tables = {"IoU": markdown(header, rows)}
    out = write_study(cfg, "figure4", results, tables, differences, paper.FIGURE4_GAIN)
    title = figure_title(cfg, f"Figure 4: {cfg.model_name}; dots are folds and seeds")
    draw_bars(Path(f"{out}.png"), title, "IoU, percent", by_class(cfg, results))
    print(f"{out}.csv, .json, .md, .png")


if __name__ == "__main__":
    run(figure4, StudyConfig())
