"""The time of training and testing per patch, against plain loops: `python bench/train.py`.

The script draws patches in a temporary folder, which it removes. `--encoder` and `--architecture`
name the network; `--compile` compiles the training step. The plain loop tests one patch at a time.
"""

import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

import main
from bench.common import Figures, MeasureConfig, interleave, rate_reached, synthetic_lizard
from bench.plain import Plain
from config import Config, settings
from medood.data.dataset import load_patches
from medood.data.files import pngs
from medood.data.workspace import id_files
from medood.evaluation.testing import tally_patches
from medood.models.inference import Predictor
from medood.models.network import autocast, pick_device
from medood.runs.command_line import run
from medood.training.loop import train_epoch
from medood.training.segmentation import Trainer


@settings
class BenchConfig(MeasureConfig):
    """The settings, and how much to measure; encoder weights are random."""

    patches: int = 48
    """How many patches an epoch has, and a test."""


class Ours:
    """The training of train.py, with the patches read beforehand, and the test of test.py."""

    def __init__(self, cfg: Config, files: list, device: torch.device) -> None:
        self.cfg, self.files, self.device = cfg, files, device
        self.sizes = cfg.patch_size, len(cfg.class_names)
        self.trainer = Trainer(cfg, 0, load_patches(files, *self.sizes), device)

    def train(self) -> None:
        """Train for an epoch."""
        self.trainer.model.train()
        train_epoch(self.trainer, 0)["loss"].mean().item()

    def test(self) -> np.ndarray:
        """Return the confusion matrix of all patches, which are read as in the plain loop."""
        patches = load_patches(self.files, *self.sizes)
        tally, _ = tally_patches(Predictor(self.cfg, self.trainer.model.eval()), patches, "")
        return np.array(tally.scores()["confusion"])


def bench(cfg: BenchConfig) -> None:
    """Compare an epoch and a test with the plain loop's."""
    torch.manual_seed(0)
    cfg, device = replace(cfg, encoder_weights="none"), pick_device(cfg.device)
    about = f"training {cfg.architecture} on {cfg.encoder}, batches of {cfg.batch_size}"
    figures = Figures("train", about)
    with tempfile.TemporaryDirectory() as name:
        cfg = replace(cfg, workspace=Path(name) / "lizard")
        synthetic_lizard(cfg.workspace, 1, cfg.sizes)
        main.prepare(cfg)
        names = [path.name for path in pngs(cfg.workspace / "Image_Patchs")]
        files = id_files(cfg.workspace, names[: cfg.patches])
        plain, ours = Plain(cfg, files, device), Ours(cfg, files, device)
        times = interleave(cfg.rounds, reference=plain.train, ours=ours.train)
        figures.compare("training", len(files), "patch", **times)
        ours.trainer.model.load_state_dict(plain.model.state_dict())
        matrices = plain.test(), ours.test()
        moved = np.abs(matrices[0] - matrices[1]).sum() / 2 / matrices[0].sum()
        words = f"rounding moves {moved:.2%} of the pixels to another class"
        figures.note("moved", float(moved), words)
        tests = interleave(cfg.rounds, reference=plain.test, ours=ours.test)
        figures.compare("testing", len(files), "patch", **tests)
        bare = Ours(replace(cfg, compile=False), files, device)
        with FlopCounterMode(display=False) as counter:
            bare.trainer.step(*next(iter(bare.trainer.loader)))
    seconds = statistics.median(times["ours"]) / len(files) * cfg.batch_size
    precision = torch.bfloat16 if autocast(cfg.precision, device)._enabled else torch.float32
    reached = rate_reached(counter.get_total_flops(), seconds, device, precision)
    figures.note("limit", reached, f"a step: {reached}")
    figures.write(cfg.json)


if __name__ == "__main__":
    run(bench, BenchConfig())
