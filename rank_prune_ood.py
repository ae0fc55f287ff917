"""Find the OoD patches that fool the baseline: rank them, and prune those that do not.

Reads   OoD_Patchs, k_folds, models/<fold>_<model>/    (generate_unfiltered_oods.py, train.py)
Writes  HardOoD/<fold>_<model>.csv                     a row per candidate, hardest first
        HardOoD/<fold>_<model>_hardest.png             what the baseline predicts in the hardest

The candidates of a fold are the OoD patches made from its training patches, never its test patches,
and, with ood_source, those of external images.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from config import CONFIG, TrainingConfig
from medood.data.files import csv_text, timed
from medood.data.folds import read_fold
from medood.data.labels import BACKGROUND
from medood.data.names import name_of
from medood.data.ood_set import columns, ood_candidates
from medood.data.workspace import Pair, data_name, model_folder, ood_files, ranking_path
from medood.processes import all_reduce, on_main, shard
from medood.runs.command_line import run
from medood.runs.products import BASELINE, FOLD, OOD_PATCHES, RANKING, SOURCE_PATCHES
from medood.runs.provenance import product_is_kept, require, write_product

if TYPE_CHECKING:
    from torch import nn

SHOWN = 8  # of the hardest patches, in their picture


def rank_and_prune(names: list[str], counts: np.ndarray) -> list[list]:
    """Return a row of `columns` for each OoD patch, hardest first (Sec. 3.1 of the paper).

    counts: integers (N, C), the pixels of each patch that the baseline predicts as each class. All
    of them are background, so IoU is b / P for background, 0 for a class that is predicted, and 1
    for one that is not; `miou` is its mean over all C channels. It is 1 exactly where no pixel is
    predicted as foreground: those patches are pruned (kept = 0). So a patch in which more classes
    are predicted ranks above one with more false pixels of fewer classes. Ties are broken by the
    number of false pixels, most first, then by name.
    """
    false = np.delete(counts, BACKGROUND, axis=1)  # (N, C - 1)
    total = false.sum(1)
    miou = (counts[:, BACKGROUND] / counts.sum(1) + (false == 0).sum(1)) / counts.shape[1]
    order = sorted(range(len(names)), key=lambda i: (miou[i], -total[i], names[i]))
    return [
        [rank, names[i], float(miou[i]), int(total[i]), *map(int, false[i]), int(total[i] > 0)]
        for rank, i in enumerate(order, start=1)
    ]


def count_seen(cfg: TrainingConfig, model: nn.Module, files: list[Pair], task: str) -> np.ndarray:
    """Return how many pixels of each patch a network, in eval mode, predicts as each class: (N, C).

    Each process counts in its shard of the patches.
    """
    import torch  # here, so that --help needs no torch

    from medood.data.dataset import load_patches
    from medood.models.inference import Predictor, count_pixels, predict

    predictor = Predictor(cfg, model)
    classes = len(cfg.class_names)
    counts = torch.zeros(len(files), classes, dtype=torch.int64)
    own = shard(len(files), predictor.at_once)
    images = load_patches(files[own], cfg.patch_size, classes).images
    for part, probability in predict(predictor, images, task):
        counts[own][part] = count_pixels(probability).cpu()
    return all_reduce(counts).numpy()


def rank_files(cfg: TrainingConfig, network: Path, files: list[Pair], task: str) -> list[list]:
    """Return the ranking of OoD patches by what the network in a folder predicts in them."""
    from medood.models.checkpoints import load_model

    counts = count_seen(cfg, load_model(network, cfg), files, task)
    return rank_and_prune([name_of(image) for image, _ in files], counts)


def draw_hardest(cfg: TrainingConfig, fold: int, network: Path, rows: list[list]) -> None:
    """Draw the hardest OoD patches, and the nuclei predicted in them."""
    from medood.data.dataset import load_patches
    from medood.evaluation.figures import draw_rows
    from medood.evaluation.testing import tally_patches
    from medood.models.checkpoints import load_model
    from medood.models.inference import Predictor

    path = ranking_path(cfg, fold)
    sheet = path.with_name(f"{path.stem}_hardest.png")
    sheet.unlink(missing_ok=True)
    hardest = [row[1] for row in rows if row[-1]][:SHOWN]
    if not hardest:
        return
    files = ood_files(cfg.workspace, hardest)
    patches = load_patches(files, cfg.patch_size, len(cfg.class_names))
    _, seen = tally_patches(Predictor(cfg, load_model(network, cfg)), patches, "drawing")
    columns = {
        f"{rank}. {name}": pair
        for rank, (name, *pair) in enumerate(zip(hardest, patches.images, seen, strict=True), 1)
    }
    title = f"{data_name(cfg.workspace)}, fold {fold}, {cfg.model_name}: the hardest OoD patches"
    draw_rows(sheet, title, ["OoD patch", "predicted in it"], columns, cfg.classes)


@on_main
def write_ranking(cfg: TrainingConfig, fold: int, network: Path, rows: list[list]) -> None:
    """Write the ranking of a fold, after its picture."""
    path = ranking_path(cfg, fold)
    draw_hardest(cfg, fold, network, rows)
    write_product(cfg, RANKING, fold, csv_text(columns(cfg), rows))
    kept = sum(row[-1] for row in rows)
    print(f"fold {fold}: the baseline predicts nuclei in {kept} of {len(rows)} OoD patches: {path}")


def rank_prune_ood(cfg: TrainingConfig = CONFIG) -> None:
    """Write the ranking of every fold, unless it exists for the same network and candidates."""
    sources = [OOD_PATCHES, *[SOURCE_PATCHES] * bool(cfg.ood_source)]
    require(cfg, FOLD, *sources, BASELINE)
    for fold in cfg.folds:
        if product_is_kept(cfg, RANKING, fold):
            continue
        network = model_folder(cfg, fold, ood=False)
        files = ood_files(cfg.workspace, ood_candidates(cfg, read_fold(cfg, fold).train))
        with timed(cfg.workspace, f"mining {network.name}"):
            rows = rank_files(cfg, network, files, f"fold {fold}: mining")
            write_ranking(cfg, fold, network, rows)


if __name__ == "__main__":
    run(rank_prune_ood, TrainingConfig())
