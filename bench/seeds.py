"""Whether speed costs scores: a plain loop and ours train on the sample, `python bench/seeds.py`.

The plain loop augments patch by patch and computes in float32. Ours trains in float32 and with the
default settings. Each trains with several seeds on the training side of fold 79, and the same code
tests all of them in float32. A difference smaller than that between seeds is no cost of speed.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import Figures, MeasureConfig
from bench.plain import Plain
from config import Config, settings
from generate_patches import generate_patches
from generate_semantic_labels import generate_semantic_labels
from medood.data.dataset import load_patches
from medood.data.folds import read_fold
from medood.data.workspace import id_files
from medood.evaluation.tables import AT_ARGMAX, spread
from medood.evaluation.testing import tally_patches
from medood.models.checkpoints import load_model
from medood.models.network import pick_device
from medood.runs.command_line import run
from medood.sample import SETTINGS, draw_sample
from medood.training.loop import learning_rate, train_fold

FOLD = 79


@settings
class BenchConfig(MeasureConfig):
    """The settings, those of the sample, and how much to measure."""

    seeds: int = 5
    """How many trainings of each kind."""


def train_plainly(cfg: Config) -> nn.Module:
    """Return the network of the plain loop after all its epochs."""
    torch.manual_seed(cfg.seed)
    names = read_fold(cfg, FOLD).train
    plain = Plain(cfg, id_files(cfg, names), pick_device(cfg))
    for epoch in range(cfg.epochs):
        for group in plain.optimiser.param_groups:
            group["lr"] = learning_rate(cfg, epoch)
        plain.train()
    return plain.model.eval()


def train_ours(cfg: Config) -> nn.Module:
    """Return the network that train.py trains."""
    folder = cfg.workspace / "models" / f"{cfg.seed}_{cfg.precision}"
    train_fold(cfg, FOLD, id_files(cfg, read_fold(cfg, FOLD).train), [], folder)
    return load_model(folder, cfg)


def bench(cfg: BenchConfig) -> None:
    """Print the scores of each kind of training, with their spread over seeds."""
    figures = Figures("seeds", f"{cfg.seeds} trainings each of {cfg.model_name} on the sample")
    with tempfile.TemporaryDirectory() as name:
        cfg = replace(cfg, workspace=Path(name) / "sample", folds=(FOLD,))
        draw_sample(cfg)
        generate_semantic_labels(cfg)
        generate_patches(cfg)
        names = read_fold(cfg, FOLD).test
        patches = load_patches(cfg, id_files(cfg, names))
        kinds = {
            "plain loop, float32": (train_plainly, "float32"),
            "ours, float32": (train_ours, "float32"),
            "ours": (train_ours, "auto"),
        }
        found: dict[str, list[dict]] = {kind: [] for kind in kinds}
        for seed in range(cfg.seeds):
            for kind, (how, precision) in kinds.items():
                trained = replace(cfg, seed=seed, precision=precision)
                model = how(trained)
                tested = replace(cfg, precision="float32")
                tally, _ = tally_patches(tested, model, patches, pick_device(cfg), "testing")
                scores = {score: tally.scores()[score] for score in AT_ARGMAX}
                found[kind].append(scores)
                print(kind, seed, {score: round(100 * scores[score], 2) for score in AT_ARGMAX})
    figures.content["scores"] = found
    for kind, scores in found.items():
        each = (f"{score} {spread([one[score] for one in scores])}" for score in AT_ARGMAX)
        print(f"{kind}: {', '.join(each)}")
    figures.write(cfg.json)


if __name__ == "__main__":
    run(bench, BenchConfig(**SETTINGS))
