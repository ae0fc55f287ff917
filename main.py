"""Run the whole experiment: data, baseline, OoD patches, Med-OoD, scores of both.

`python main.py` runs on the data in the workspace; `python main.py --sample` draws a small
synthetic data set first and runs on that.
"""

import sys
from dataclasses import dataclass, replace

from config import CONFIG, Config
from estimate_pct import estimate_pct
from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels
from generate_unfiltered_oods import generate_unfiltered_oods
from medood.cli import run
from medood.files import region_labels, require_data
from rank_prune_ood import rank_prune_ood
from test import evaluate
from train import train
from train_ood import train_ood


@dataclass(frozen=True)
class MainConfig(Config):
    """The settings, and what main.py alone takes."""

    sample: bool = False
    """Draw a small data set in <workspace>/sample and run on it, with small settings of its own."""


def main(cfg: Config = CONFIG) -> None:
    """Run every step in its order; what is done already, with the same settings, is kept."""
    require_data(cfg)
    from medood.models import build_model, pick_device

    pick_device(cfg)
    build_model(cfg)  # a wrong encoder, or weights out of reach, show now and not in an hour

    if region_labels(cfg):
        generate_semantic_labels(cfg)
    generate_patches(cfg)
    generate_unfiltered_oods(cfg)
    train(cfg)
    rank_prune_ood(cfg)
    estimate_pct(cfg)
    train_ood(cfg)
    evaluate(cfg)


def start(cfg: MainConfig) -> None:
    """Run on the sample if asked, else on the workspace."""
    if cfg.sample:
        from medood.sample import draw_sample

        cfg = replace(cfg, workspace=cfg.workspace / "sample")
        draw_sample(cfg)
    main(cfg)


def defaults() -> MainConfig:
    """Return the settings of config.py or, for the sample, its own; arguments change either."""
    if "--sample" not in sys.argv:
        return MainConfig()
    from medood.sample import SETTINGS

    return MainConfig(**SETTINGS)


if __name__ == "__main__":
    run(start, defaults())
