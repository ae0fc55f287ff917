"""Lizard's full size without Lizard: 238 synthetic regions, 18,374 patches, through real steps.

`python bench/lizard.py --workspace lizard_size` draws the data, prepares them, trains a baseline
for one epoch, mines fold 79 with it, estimates its pct, and prints the time of each step. The
workspace is kept for the plans of the studies: `python studies/table1.py --plan --workspace
lizard_size`. Its patches are copies of a few drawn regions, so pct and scores mean nothing.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import machine, synthetic_lizard
from config import Config, UserError, settings
from estimate_pct import estimate_pct
from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels
from generate_unfiltered_oods import generate_unfiltered_oods
from medood.data.files import write_text
from medood.data.workspace import SAMPLE_MARK
from medood.runs.command_line import run
from medood.sample import NOTE
from rank_prune_ood import rank_prune_ood
from train import train

REGIONS = 238
# 48 regions of 6 x 13 patches and 190 of 7 x 11 make Lizard's 18,374
SIZES = ((760, 1660), (890, 1400), (890, 1400), (890, 1400), (890, 1400))
STEPS = (
    generate_semantic_labels,
    generate_patches,
    generate_unfiltered_oods,
    train,
    rank_prune_ood,
    estimate_pct,
)


@settings
class BenchConfig(Config):
    """The settings, and how much to draw."""

    regions: int = REGIONS
    """Regions to draw."""
    sizes: tuple[tuple[int, int], ...] = SIZES
    """Heights and widths of the regions, in turn, in pixels."""


def bench(cfg: BenchConfig) -> None:
    """Draw the data and time each step."""
    if cfg.workspace.exists() and any(cfg.workspace.iterdir()):
        raise UserError(f"{cfg.workspace} is not empty: name a new folder with --workspace")
    print(machine()["summary"])
    cfg = replace(cfg, folds=(79,), epochs=1, patch_size=128, encoder_weights="none")
    synthetic_lizard(cfg.workspace, cfg.regions, cfg.sizes)
    write_text(cfg.workspace / SAMPLE_MARK, NOTE)
    seconds = {}
    for step in STEPS:
        started = time.perf_counter()
        step(cfg)
        seconds[step.__name__] = time.perf_counter() - started
    print()
    for name, taken in seconds.items():
        print(f"{name:<28} {taken:6.1f} s")


if __name__ == "__main__":
    run(bench, BenchConfig())
