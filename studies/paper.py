"""The paper's tables and figures on your data: `python studies/paper.py table1`.

Reads   what main.py reads
Writes  reports/studies/<what>_<model>.csv, .json, .md, .png

    table1   baseline and Med-OoD of nine networks, or of those that --methods names
    table2   how many OoD patches to use, from none to all; Figure 5 is its curve
    table3   with and without batch normalisation, on the same OoD patches
    table4   trained on ID patches, on OoD patches only, and on both; Figure 6 is its figure
    figure3  image, ground truth, baseline and Med-OoD of three test patches of all folds: where
             Med-OoD helps most, the median, and where it hurts most
    figure4  baseline and Med-OoD class by class

Epochs are equal, as in the paper, so Med-OoD takes more steps; studies/controls.py compares at
equal steps. The tables also show the numbers of Gao and Xu (SPIE 13442, 2025): Lizard, in percent.
Their mIoU and DSC are `miou_paper` and `dsc_paper` here, and their D is |pnr - 0.65|.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tyro.conf import Positional

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import UserError, settings
from medood.data.dataset import Patches
from medood.data.folds import read_fold
from medood.evaluation.figures import COLOURS, canvas, draw_examples
from medood.evaluation.testing import score_networks
from medood.models.network import batch_norms, build_model
from medood.runs.command_line import run
from studies import common
from studies.report import class_table, draw_classes, tell, values

# Table 1: mIoU, DSC and D of the baseline, then of Med-OoD
TABLE1 = {
    ("unet", "vgg11_bn"): (87.4, 93.1, 0.317, 89.0, 94.0, 0.006),
    ("unet", "vgg16_bn"): (88.5, 93.7, 0.317, 89.2, 94.2, 0.012),
    ("unet", "vgg19_bn"): (87.6, 93.2, 0.317, 87.8, 93.3, 0.004),
    ("unetplusplus", "resnet18"): (88.2, 93.6, 0.317, 88.9, 94.0, 0.030),
    ("unetplusplus", "tu-resnet50d"): (89.3, 94.2, 0.317, 89.4, 94.3, 0.019),
    ("unetplusplus", "densenet169"): (88.5, 93.7, 0.317, 89.2, 94.2, 0.014),
    ("manet", "mobileone_s0"): (85.5, 91.9, 0.317, 85.9, 92.2, 0.019),
    ("manet", "mobilenet_v2"): (84.5, 91.3, 0.317, 84.6, 91.4, 0.003),
    ("manet", "tu-tinynet_d"): (84.1, 91.0, 0.317, 84.2, 91.1, 0.000),
}
# the others are of unet on vgg11_bn
TABLE2 = {
    "paper: patches": {"pct 0": 12249, "pct 60": 18059, "pct 100": 21933},
    "pnr (Fig. 5)": {"pct 40": 0.725, "pct 60": 0.644, "pct 100": 0.527},
    "mIoU": {"pct 0": 87.4, "pct 60": 89.0, "pct 100": 86.3},
}
TABLE3 = {"paper mIoU": {"Med-OoD": 89.0, "Med-OoD, no batch norm": 88.2}}
TABLE4 = {"paper mIoU": {"baseline": 87.4, "OoD only": 76.1}}
TABLE4_PATCHES = {  # with the class, of 12,249 ID patches; no OoD patch has one
    **{"neutrophil": 1151, "epithelial": 8739, "lymphocyte": 7745},
    **{"plasma": 4213, "eosinophil": 1118, "connective": 8688},
}
FIGURE4 = {  # the gain of Med-OoD in IoU, patch by patch
    **{"connective": 19.6, "epithelial": 4.0, "lymphocyte": 2.8},
    **{"neutrophil": 0, "plasma": 0, "eosinophil": 0},
}
PAIR: dict[str, common.Arm] = {"baseline": common.baseline, "Med-OoD": common.med_ood}


@settings
class PaperConfig(common.StudyConfig):
    """The settings of a study, and the table or figure to make."""

    what: Positional[
        Literal["table1", "table2", "table3", "table4", "figure3", "figure4"] | None
    ] = None
    """The table or figure."""
    methods: tuple[str, ...] = tuple("_".join(pair) for pair in TABLE1)
    """Networks of table1, as <architecture>_<encoder>: those of the paper, or any other."""
    pcts: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    """Shares of the ranked OoD patches of table2; the baseline, 0, is always included."""


def run_all(
    cfg: PaperConfig, arms: dict[str, common.Arm], *networks: PaperConfig
) -> common.Results:
    """Return the results of some arms, after preparing as main.py does; {} for a plan."""
    common.prepare(cfg, networks)
    return common.run_arms(cfg, arms)


def table1(cfg: PaperConfig) -> None:
    """Train, test and compare the methods."""
    arms, against, networks = {}, {}, []
    printed: dict[str, dict[str, object]] = {"paper: mIoU": {}, "DSC": {}, "D": {}}
    for method in cfg.methods:
        architecture, _, encoder = method.partition("_")
        if not encoder:
            raise UserError(
                f"methods: {method!r} is not <architecture>_<encoder>: write it as in unet_vgg11_bn"
            )
        of = {"architecture": architecture, "encoder": encoder}
        networks.append(replace(cfg, **of))
        pair = f"{method} baseline", f"{method} Med-OoD"
        against[pair[0]] = [pair[1]]
        for name, arm, start in zip(pair, PAIR.values(), (0, 3), strict=True):
            # with the settings of the network, so that its own baseline mines
            arms[name] = lambda cfg, fold, arm=arm, of=of: arm(replace(cfg, **of), fold)
            theirs = TABLE1.get((architecture, encoder), ["-"] * 6)
            for column, number in zip(printed.values(), theirs[start : start + 3], strict=True):
                column[name] = number
    if not networks:
        raise UserError("methods is empty: name one or more, such as unet_vgg11_bn")
    if results := run_all(cfg, arms, *networks):
        tell(cfg, "table1", results, against, columns=("dsc_paper", "pnr"), printed=printed)


def table2(cfg: PaperConfig) -> None:
    """Train with each share of the OoD patches."""
    if not cfg.pcts or not all(0 < pct <= 1 for pct in cfg.pcts):
        raise UserError(f"pcts = {cfg.pcts} must be one or more fractions above 0, up to 1")
    arms: dict[str, common.Arm] = {"pct 0": common.baseline}
    arms |= {f"pct {100 * pct:g}": partial(common.med_ood, pct=pct) for pct in sorted(cfg.pcts)}
    results = run_all(cfg, arms)

    def draw(path: Path, title: str) -> None:
        with canvas(path, title) as figure:
            ax = figure.subplots()
            for colour, name in zip(COLOURS, ("miou_paper", "miou"), strict=False):
                single = [100 * np.array(values(arm, name)) for arm in results.values()]
                ratios = [np.mean(values(arm, "pnr")) for arm in results.values()]
                means = [np.mean(dots) for dots in single]
                ax.plot(ratios, means, "o-", ms=5, color=colour, label=name)
                for ratio, mean, dots, arm in zip(ratios, means, single, results, strict=True):
                    ax.plot([ratio] * len(dots), dots, ".", ms=3, color=colour)
                    ax.annotate(arm, (ratio, mean), xytext=(3, 5), textcoords="offset points")
            ax.set(xlabel="pnr of the training set", ylabel="score, percent")
            ax.legend()

    if results:
        more = {"pct 0": [arm for arm in arms if arm != "pct 0"]}
        columns = ("id_patches", "ood_patches", "pnr")
        tell(cfg, "table2", results, more, columns=columns, printed=TABLE2, draw=draw)


def table3(cfg: PaperConfig) -> None:
    """Train with and without batch normalisation."""
    if not batch_norms(build_model(replace(cfg, encoder_weights="none"))):
        raise UserError(f"{cfg.model_name} has no batch normalisation: name another network")
    without = {
        f"{name}, no batch norm": common.changed(arm, batch_norm=False)
        for name, arm in PAIR.items()
    }
    if results := run_all(cfg, PAIR | without):
        against = {"baseline": ["Med-OoD"], "baseline, no batch norm": ["Med-OoD, no batch norm"]}
        against["Med-OoD, no batch norm"] = ["Med-OoD"]
        tell(cfg, "table3", results, against, printed=TABLE3)


def ood_only(cfg: common.StudyConfig, fold: int) -> common.Recipe:
    """Return the training on every hard OoD patch of a fold, and nothing else."""
    hard, _ = common.mine(cfg, fold, common.candidates(cfg, fold))
    if not hard:
        raise UserError(
            f"fold {fold}: the baseline predicts no nucleus in any OoD patch: set other folds"
        )
    return replace(common.baseline(cfg, fold), files=hard, notes={})


def table4(cfg: PaperConfig) -> None:
    """Train on ID patches, on OoD patches only, and on both."""
    if results := run_all(cfg, PAIR | {"OoD only": ood_only}):
        tables = {"By class": class_table(cfg, results, {"paper: ID patches": TABLE4_PATCHES})}
        draw = partial(draw_classes, cfg=cfg, results=results)
        against = {"baseline": ["OoD only", "Med-OoD"]}
        tell(cfg, "table4", results, against, printed=TABLE4, tables=tables, draw=draw)


def figure3(cfg: PaperConfig) -> None:
    """Draw the test patches where Med-OoD helps most, the median, and where it hurts most."""
    results = run_all(cfg, PAIR)

    def draw(path: Path, title: str) -> None:
        tests = []
        for fold, seed in results["baseline"]:
            folders = {arm: of_arm[fold, seed].folder for arm, of_arm in results.items()}
            tests.append(score_networks(cfg, folders, read_fold(cfg, fold).test, f"fold {fold}"))
        parts = (
            torch.cat([getattr(test.patches, part) for test in tests])
            for part in ("images", "masks", "is_ood")
        )
        patches = Patches([name for test in tests for name in test.patches.names], *parts)
        seen = {arm: torch.cat([test.predictions[arm] for test in tests]) for arm in results}
        draw_examples(path, title, patches, seen, cfg.classes)

    if results:
        tell(cfg, "figure3", results, {"baseline": ["Med-OoD"]}, draw=draw)


def figure4(cfg: PaperConfig) -> None:
    """Compare the IoU of each class."""
    if results := run_all(cfg, PAIR):
        tables = {"By class": class_table(cfg, results, {"paper: gain, patch by patch": FIGURE4})}
        draw = partial(draw_classes, cfg=cfg, results=results)
        tell(cfg, "figure4", results, {"baseline": ["Med-OoD"]}, tables=tables, draw=draw)


def paper(cfg: PaperConfig) -> None:
    """Run the trainings for a table or figure of the paper, and write it."""
    shown = (table1, table2, table3, table4, figure3, figure4)
    step = {function.__name__: function for function in shown}.get(str(cfg.what))
    if step is None:
        raise UserError("no table or figure: name one, such as `python studies/paper.py table1`")
    step(cfg)


if __name__ == "__main__":
    run(paper, PaperConfig())
