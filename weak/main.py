"""Run all of weak/: from image labels to masks, a segmentation network, and how good it is.

`python weak/main.py --images FOLDER --image_labels CSV --masks FOLDER` runs on your images; without
--masks it stops before the test. `python weak/main.py --sample` draws a small set first, and runs
on that.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import UserError, settings
from medood.runs.command_line import run
from weak.evaluate_masks import evaluate
from weak.generate_images import generate_images
from weak.generate_maps import generate_maps
from weak.generate_masks import generate_masks
from weak.read_images import require_masks
from weak.settings import MasksConfig
from weak.train_classifier import train_classifiers
from weak.train_irnet import train_irnets
from weak.train_segmentation import train_segmentation


@settings
class MainConfig(MasksConfig):
    """What main.py alone takes."""

    sample: bool = False
    """Draw a small data set in <workspace>/weak_sample and run on it, with settings of its own."""


def steps(cfg: MasksConfig) -> None:
    """Make the pseudo-masks; what is done already, with the same settings, is kept."""
    for step in (generate_images, train_classifiers, generate_maps, train_irnets, generate_masks):
        step(cfg)


def main(cfg: MainConfig) -> None:
    """Run every step in its order, also with shuffled labels, and the test if there are masks."""
    if cfg.masks is not None:
        require_masks(cfg)  # now, not after hours of training
    arms = [cfg] if cfg.masks is None else [cfg, replace(cfg, shuffled=True)]
    for arm in arms:
        steps(arm)
        train_segmentation(arm)
    if cfg.masks is None:
        print("masks = None: nothing to test on; predict.py takes the networks in models/")
    else:
        evaluate(cfg)


def start(cfg: MainConfig) -> None:
    """Run on the sample if asked, else on the images."""
    if cfg.shuffled:
        raise UserError("shuffled = True: main.py runs this control itself: leave it out")
    if cfg.sample:
        from weak.sample import draw_sample

        cfg = replace(cfg, workspace=home(cfg), **draw_sample(home(cfg)))
    main(cfg)


def home(cfg: MainConfig) -> Path:
    """Return where to work: the sample has a folder of its own."""
    return cfg.workspace / "weak_sample" if cfg.sample else cfg.workspace


if __name__ == "__main__":
    run(start, MainConfig(), home, sample="weak.sample")
