"""Run all of weak/: from image labels to masks, a segmentation network, and its scores.

`python weak/main.py --images FOLDER --image_labels CSV --masks FOLDER` runs on your images; without
--masks it stops before the test. `--method` chooses how masks are made; methods that ran in one
workspace are in one report. `--sample` draws a small set first, and runs on that.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import UserError, settings
from medood.runs.command_line import run
from weak.evaluate_masks import evaluate_masks
from weak.generate_images import generate_images
from weak.generate_maps import generate_maps
from weak.generate_masks import generate_masks
from weak.settings import MasksConfig
from weak.train_classifier import train_classifiers
from weak.train_irnet import train_irnets
from weak.train_segmentation import train_segmentation
from weak.train_transfer import train_generators
from weak.truth import require_masks


@settings
class MainConfig(MasksConfig):
    """The settings of main.py only."""

    sample: bool = False
    """Draw a small data set in <workspace>/weak_sample and run on it, with settings of its own."""


def steps(cfg: MasksConfig) -> None:
    """Make the pseudo-masks; products of the same settings and inputs are kept."""
    by_maps = (train_classifiers, generate_maps)
    routes = {"transfer": (train_classifiers, train_generators), "unet": by_maps}
    route = routes.get(cfg.method, (*by_maps, train_irnets))
    for step in (generate_images, *route, generate_masks):
        step(cfg)


def main(cfg: MainConfig) -> None:
    """Run every step of a method in order, and the test if there are masks.

    By maps, the control of shuffled labels runs too.
    """
    arms = [cfg]
    if cfg.method != "transfer" and cfg.masks is not None:
        arms.append(replace(cfg, shuffled=True))
    if cfg.masks is not None:
        require_masks(cfg)  # now, not after hours of training
    for arm in arms:
        steps(arm)
        train_segmentation(arm)
    if cfg.masks is None:
        print("masks = None: no test; predict.py can use the networks in models/")
    else:
        evaluate_masks(cfg)


def start(cfg: MainConfig) -> None:
    """Run the sample if asked, else the images."""
    if cfg.shuffled:
        raise UserError("shuffled = True: main.py runs this control itself: remove the setting")
    if cfg.sample:
        from weak.sample import draw_sample

        cfg = replace(cfg, workspace=home(cfg), **draw_sample(home(cfg), cfg.method))
    main(cfg)


def home(cfg: MainConfig) -> Path:
    """Return the folder to work in: the sample of each route has its own."""
    route = "_transfer" * (cfg.method == "transfer")
    return cfg.workspace / f"weak_sample{route}" if cfg.sample else cfg.workspace


if __name__ == "__main__":
    run(start, MainConfig(), home, sample="weak.sample")
