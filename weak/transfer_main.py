"""Run all of transfer/: from image labels to masks, a refined network, and how good both are.

`python weak/transfer_main.py --images FOLDER --image_labels CSV --lesion NAME --masks FOLDER` runs
on your images; without --masks it stops before the test. `python weak/transfer_main.py --sample`
draws a small set first, and runs on that.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import settings
from medood.runs.command_line import networks_of, run
from weak.generate_images import generate_images
from weak.read_images import require_masks
from weak.refine import refine
from weak.train_transfer import train_generators
from weak.trainings import TrainingsConfig, with_trainings
from weak.transfer_evaluate import evaluate
from weak.transfer_masks import generate_masks
from weak.transfer_settings import TransferConfig


@settings
class MainConfig(TrainingsConfig):
    """What main.py alone takes."""

    sample: bool = False
    """Draw a small data set in <workspace>/transfer_sample and run on it, with its own settings."""


def steps(cfg: TransferConfig) -> None:
    """Make the masks; what is done already, with the same settings, is kept."""
    for step in (generate_images, train_generators, generate_masks):
        step(cfg)


def main(cfg: MainConfig) -> None:
    """Run every step in its order, for all trainings, and the test if there are masks."""
    if cfg.masks is not None:
        require_masks(cfg)  # now, not after hours of training
    every = with_trainings(cfg)
    steps(every)
    refine(every)
    if cfg.masks is None:
        print("masks = None: nothing to test on; predict.py takes the networks in transfer/student")
    else:
        evaluate(cfg)


def start(cfg: MainConfig) -> None:
    """Run on the sample if asked, else on the images."""
    if cfg.sample:
        from weak.transfer_sample import draw_sample

        cfg = replace(cfg, workspace=home(cfg), **draw_sample(home(cfg)))
    main(cfg)


def home(cfg: MainConfig) -> Path:
    """Return where to work: the sample has a folder of its own."""
    return cfg.workspace / "transfer_sample" if cfg.sample else cfg.workspace


if __name__ == "__main__":
    run(
        start,
        MainConfig(),
        home,
        lambda cfg: networks_of(with_trainings(cfg)),
        "weak.transfer_sample",
    )
