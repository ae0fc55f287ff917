"""What training and mining cost per patch, against a plain loop: `python bench/train.py`.

The plain loop decodes and augments patch by patch in a DataLoader, computes in float32 and mines
one patch at a time. Patches are drawn in a temporary folder; nothing is left behind.
"""

import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import interleave, machine, report, synthetic_lizard
from config import Config
from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels
from medood.augment import augment
from medood.cli import run
from medood.data import id_files, load_patches
from medood.inference import count_pixels, predict
from medood.models import Normalise, build_model, normalisation, pick_device
from medood.training import training_step
from tests import oracles


@dataclass(frozen=True)
class BenchConfig(Config):
    """The settings, and how much to measure; encoder weights are random."""

    patches: int = 48
    """Patches that each round trains on and mines."""
    rounds: int = 5
    """Times that each pair of versions is compared."""


class Plain:
    """Network and optimiser of the plain loop."""

    def __init__(self, cfg: Config, files: list) -> None:
        self.model = build_model(cfg)
        self.optimiser = torch.optim.Adam(self.model.parameters(), cfg.lr)
        constants = normalisation(cfg.encoder)
        self.training = DataLoader(oracles.PlainDataset(files, *constants), cfg.batch_size, True)
        self.candidates = oracles.PlainDataset(files, *constants, augmented=False)

    def train(self) -> None:
        self.model.train()
        for images, masks in self.training:
            self.optimiser.zero_grad()
            loss = oracles.plain_loss(self.model(images), masks)
            loss.backward()
            self.optimiser.step()
            loss.item()

    def mine(self) -> np.ndarray:
        self.model.eval()
        counts = []
        with torch.no_grad():
            for image, _ in DataLoader(self.candidates, 1):
                found = self.model(image).softmax(1).argmax(1)
                counts.append([(found == value).sum().item() for value in range(7)])
        return np.array(counts)


class Ours:
    """The same with what the package does in a step; the patches are decoded before."""

    def __init__(self, cfg: Config, files: list) -> None:
        self.cfg, self.device = cfg, pick_device(cfg)
        self.patches = load_patches(cfg, files)
        self.images = self.patches.images.to(self.device)
        self.masks = self.patches.masks.to(self.device)
        self.weight = torch.ones(len(files), device=self.device)
        self.model = build_model(cfg).to(self.device, memory_format=torch.channels_last)
        self.normalise = Normalise(cfg.encoder).to(self.device)
        self.optimiser = torch.optim.Adam(self.model.parameters(), cfg.lr, fused=True)

    def train(self) -> None:
        self.model.train()
        for index in torch.randperm(len(self.patches)).split(self.cfg.batch_size):
            batch = self.images[index], self.masks[index], self.weight[index]
            loss, _ = training_step(self.cfg, self.model, self.normalise, self.optimiser, *batch)
        loss.item()

    def augment_only(self) -> None:
        for index in torch.arange(len(self.patches)).split(self.cfg.batch_size):
            augment(self.images[index], self.masks[index])

    def mine(self) -> np.ndarray:
        self.model.eval()
        batches = predict(self.cfg, self.model, self.patches.images, self.device, "")
        return torch.cat([count_pixels(probability).cpu() for _, probability in batches]).numpy()


def bench(cfg: BenchConfig) -> None:
    """Print training and mining per patch for both versions, and the share of augmentation."""
    torch.manual_seed(0)
    cfg = replace(cfg, encoder_weights="none")
    print(f"{machine()}\n{cfg.architecture} on {cfg.encoder}, batches of {cfg.batch_size}")
    with tempfile.TemporaryDirectory() as name:
        cfg = replace(cfg, workspace=Path(name) / "lizard")
        synthetic_lizard(cfg.workspace, regions=1)
        generate_semantic_labels(cfg)
        generate_patches(cfg)
        names = sorted(path.name for path in (cfg.workspace / "Image_Patchs").glob("*.png"))
        files = id_files(cfg, names[: cfg.patches])
        plain, ours = Plain(cfg, files), Ours(cfg, files)
        times = interleave(cfg.rounds, reference=plain.train, ours=ours.train)
        report("training", len(files), "patch", **times)
        alone = statistics.median(interleave(cfg.rounds, a=ours.augment_only)["a"])
        share = alone / statistics.median(times["ours"])
        print(f"{'':<24} augmentation is {share:.1%} of ours")

        ours.model.load_state_dict(plain.model.state_dict())
        counts, our_counts = plain.mine(), ours.mine()
        pixels = counts[0].sum()
        same = (counts[:, 0] < pixels) == (our_counts[:, 0] < pixels)
        moved = np.abs(counts - our_counts).sum() / 2 / counts.sum()
        print(
            f"{'':<24} mining keeps or prunes {same.sum()} of {len(same)} patches alike;"
            f" {moved:.2%} of pixels change class"
        )
        times = interleave(cfg.rounds, reference=plain.mine, ours=ours.mine)
        report("mining", len(files), "patch", **times)


if __name__ == "__main__":
    run(bench, BenchConfig())
