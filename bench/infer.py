"""The time of testing a network per patch, against a plain loop: `python bench/infer.py`.

Both versions count the confusion matrix of the same patches: the plain loop takes one patch at a
time, ours takes batches.
"""

import copy
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import Figures, MeasureConfig, interleave, synthetic_lizard
from bench.plain import Plain
from config import settings
from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels
from medood.data.dataset import load_patches
from medood.data.files import pngs
from medood.data.workspace import id_files
from medood.evaluation.testing import tally_patches
from medood.models.network import pick_device
from medood.runs.command_line import run


@settings
class BenchConfig(MeasureConfig):
    """The settings, and how much to measure; encoder weights are random."""

    patches: int = 192
    """How many patches each round tests."""


def bench(cfg: BenchConfig) -> None:
    """Compare times and confusion matrices of one network."""
    torch.manual_seed(0)
    cfg, device = replace(cfg, encoder_weights="none"), pick_device(cfg)
    figures = Figures("infer", f"testing {cfg.architecture} on {cfg.encoder}")
    with tempfile.TemporaryDirectory() as name:
        cfg = replace(cfg, workspace=Path(name) / "lizard")
        synthetic_lizard(cfg.workspace, 3, cfg.sizes)
        generate_semantic_labels(cfg)
        generate_patches(cfg)
        names = [path.name for path in pngs(cfg.workspace / "Image_Patchs")]
        files = id_files(cfg, names[: cfg.patches])
        plain = Plain(cfg, files, device)
        plain.train()  # for statistics of the batch normalisation
        model = copy.deepcopy(plain.model).eval()

        def test() -> np.ndarray:
            patches = load_patches(cfg, files)  # as the plain loop reads them
            tally, _ = tally_patches(cfg, model, patches, device, "")
            return np.array(tally.scores()["confusion"])

        matrices = plain.test(), test()
        moved = np.abs(matrices[0] - matrices[1]).sum() / 2 / matrices[0].sum()
        figures.note(
            "moved", float(moved), f"rounding moves {moved:.2%} of the pixels to another class"
        )
        times = interleave(cfg.rounds, reference=plain.test, ours=test)
        figures.compare("testing", len(files), "patch", **times)
    figures.write(cfg.json)


if __name__ == "__main__":
    run(bench, BenchConfig())
