"""Run the experiment on volumes: clean, free and Med-OoD networks, and their scores under attack.

`python robust/main.py --data Task04_Hippocampus` runs on a task of the Medical Segmentation
Decathlon; `python robust/main.py --sample` draws a small synthetic task first and runs on that.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import settings
from medood.commands import as_kind
from medood.runs.command_line import networks_of, run
from robust.settings import NetworkConfig, TestVolumesConfig, TrainVolumesConfig
from robust.test_volumes import evaluate_volumes, reports_of
from robust.train_volumes import train_volumes


@settings
class MainConfig(NetworkConfig, TestVolumesConfig):
    """The settings of main.py only."""

    sample: bool = False
    """Draw a small data set in <workspace>/sample and run on it, with small settings of its own."""


def trainings(cfg: MainConfig) -> list[TrainVolumesConfig]:
    """Return the settings of each training: clean, free and Med-OoD."""
    arms = ({}, {"free": True}, {"ood": True})
    return [replace(as_kind(cfg, TrainVolumesConfig), **arm) for arm in arms]


def parts(cfg: MainConfig) -> list[str]:
    """Return the names of what no other run may write meanwhile: see run."""
    return [*(name for each in trainings(cfg) for name in networks_of(each)), *reports_of(cfg)]


def main(cfg: MainConfig) -> None:
    """Run every step in order; products of the same settings and inputs are kept."""
    if cfg.sample:
        from robust.volume_sample import draw_sample

        cfg = replace(cfg, data=draw_sample(cfg.workspace))
    for training in trainings(cfg):
        train_volumes(training)
    evaluate_volumes(cfg)


def home(cfg: MainConfig) -> Path:
    """Return the folder to work in: the sample has its own."""
    from robust.volume_sample import TASK

    return cfg.workspace / TASK if cfg.sample else cfg.home


if __name__ == "__main__":
    run(main, MainConfig(), home, parts, "robust.volume_sample")
