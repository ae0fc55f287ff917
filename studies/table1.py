"""Table 1: baseline and Med-OoD of nine networks, ours beside the paper's.

Writes  reports/studies/table1.csv, .json, .md, .png; table1_<model>.* for a single network

If encoder_weights is a file, name only the networks that it fits, such as `--methods
manet_mobilenet_v2 --encoder_weights mobilenet_v2.pth`. Med-OoD takes more optimiser steps than its
baseline, as in the paper; studies/controls.py compares at equal steps.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import UserError
from medood.evaluation.figures import draw_bars
from medood.evaluation.tables import markdown, spread
from medood.runs.command_line import run
from studies import common, paper, report


@dataclass(frozen=True)
class Table1Config(common.StudyConfig):
    """The settings of a study, with the networks of this one."""

    methods: tuple[str, ...] = tuple("_".join(pair) for pair in paper.TABLE1)
    """Networks, as <architecture>_<encoder>: those of the paper, or any other."""


def network_of(cfg: common.StudyConfig, method: str) -> common.StudyConfig:
    """Return the settings with the network of a method."""
    architecture, _, encoder = method.partition("_")
    if not encoder:
        raise UserError(
            f"methods: {method!r} is not <architecture>_<encoder>: write it as in unet_vgg11_bn"
        )
    return replace(cfg, architecture=architecture, encoder=encoder)


def arm_of(recipe: common.Arm, method: str) -> common.Arm:
    """Return the recipe's arm with the network of a method."""
    return lambda cfg, fold: recipe(network_of(cfg, method), fold)


def table1(cfg: Table1Config) -> None:
    """Train, test and compare the methods."""
    if not cfg.methods:
        raise UserError("methods: none is named: name one or more, such as unet_vgg11_bn")
    common.prepare(cfg, [network_of(cfg, method) for method in cfg.methods])
    arms = {}
    for method in cfg.methods:
        arms[f"{method} baseline"] = arm_of(common.baseline, method)
        arms[f"{method} Med-OoD"] = arm_of(common.med_ood, method)
    results = common.run_arms(cfg, arms)
    if cfg.plan:
        return
    scores = ("miou_paper", "dsc_paper", "miou", "dsc", "fg_to_bg", "bg_to_fg")
    header = [
        "network",
        "",
        *(f"`{name}`" for name in scores),
        "D",
        "paper (Lizard) mIoU",
        "DSC",
        "D",
    ]
    rows, gains, differences = [], [], {}
    for method in cfg.methods:
        theirs = paper.TABLE1.get(tuple(method.split("_", 1)))
        for kind, cells in (("baseline", slice(0, 3)), ("Med-OoD", slice(3, 6))):
            arm = results[f"{method} {kind}"]
            distances = [abs(pnr - cfg.pnr_opt) for pnr in report.values(arm, "pnr")]
            ours = [spread(report.values(arm, name)) for name in scores]
            printed = [f"{number:g}" for number in theirs[cells]] if theirs else ["-"] * 3
            rows.append([method, kind, *ours, spread(distances, 1, 3), *printed])
        floor = [result.floor for result in results[f"{method} baseline"].values()]
        ours = [spread([of_fold[name] for of_fold in floor]) for name in scores]
        rows.append(["", "all background", *ours, *["-"] * 4])
        difference = report.compare(results, f"{method} Med-OoD", f"{method} baseline")
        differences[f"{method}: Med-OoD - baseline"] = difference
        gains.append([method, *(difference[name].text() for name in scores)])
    tables = {
        "Scores": markdown(header, rows),
        "Med-OoD less baseline": markdown(["network", *(f"`{name}`" for name in scores)], gains),
    }
    printed = {"_".join(pair): row._asdict() for pair, row in paper.TABLE1.items()}
    out = report.write_study(cfg, "table1", results, tables, differences, printed)
    draw_bars(
        Path(f"{out}.png"),
        report.figure_title(cfg, "Table 1: dots are folds and seeds"),
        "miou, percent",
        {
            kind: {m: report.values(results[f"{m} {kind}"], "miou") for m in cfg.methods}
            for kind in ("baseline", "Med-OoD")
        },
    )
    print(f"{out}.csv, .json, .md, .png")


if __name__ == "__main__":
    run(table1, Table1Config())
