"""The time of finding the OoD set, against plain loops: `python bench/mine.py`.

The script mines OoD patches with a network and searches for pct, on patches that it draws in a
temporary folder. Both versions must find the same pct. They must keep the same patches, except
those decided by the rounding of bfloat16: these are counted. The network is adjusted to keep half
of the patches, so that rounding decides some of them.

The search is compared on as many masks as a fold of Lizard has; they are links to the drawn ones.
The plain loop reads each mask again for each of the 11 values. Ours looks up the counts that were
stored when the patches were cut; a second line adds the check that no mask has changed since.
"""

import copy
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import main
from bench.common import Figures, MeasureConfig, interleave, link, synthetic_lizard
from bench.plain import Plain
from config import settings
from estimate_pct import choose_pct, count_samples, pixels_of
from medood.data.dataset import load_patches
from medood.data.files import pngs
from medood.data.workspace import id_files, ood_files
from medood.models.inference import Predictor, count_pixels, predict
from medood.models.network import pick_device
from medood.runs.command_line import run
from tests import oracles

TRAINING_SHARE = 2 / 3  # of all patches, in a fold
KEPT = 9_684 / 12_249  # of Lizard's OoD patches, in the paper
LR = 1e-3  # high enough to learn in a few epochs
SEARCHES = 3  # rounds at most: a search of the plain loop takes long


@settings
class BenchConfig(MeasureConfig):
    """The settings, and how much to measure; encoder weights are random."""

    patches: int = 192
    """How many OoD patches each round mines."""
    trained: int = 12
    """Epochs of training before the mining, so that it predicts nuclei in some patches."""
    searched: int = 18_374
    """Masks of the data set for the search for pct, as many as Lizard has."""


def bench(cfg: BenchConfig) -> None:
    """Compare mining and the search for pct with plain loops."""
    torch.manual_seed(0)
    cfg, device = replace(cfg, encoder_weights="none", lr=LR), pick_device(cfg.device)
    figures = Figures("mine", f"mining with {cfg.architecture} on {cfg.encoder}")
    with tempfile.TemporaryDirectory() as name:
        cfg = replace(cfg, workspace=Path(name) / "lizard")
        synthetic_lizard(cfg.workspace, 4, cfg.sizes)
        main.prepare(cfg)
        names = [path.name for path in pngs(cfg.workspace / "OoD_Patchs")]
        chosen = names[:: len(names) // cfg.patches][: cfg.patches]
        learned = Plain(cfg, id_files(cfg.workspace, chosen[::3]), device)
        for _ in range(cfg.trained):
            learned.train()
        plain = Plain(cfg, ood_files(cfg.workspace, chosen), device)
        plain.model.load_state_dict(learned.model.state_dict())
        # a bias on background, so that half of the patches are kept, with many close decisions
        with torch.no_grad():
            plain.model.segmentation_head[0].bias[0] += float(np.median(plain.margins()))
        compare_mining(cfg, figures, plain)
        compare_search(cfg, figures, names)
    figures.write(cfg.json)


def compare_mining(cfg: BenchConfig, figures: Figures, plain: Plain) -> None:
    """Compare the times of mining, and which patches are kept."""
    model, files = copy.deepcopy(plain.model).eval(), plain.files
    sizes = cfg.patch_size, len(cfg.class_names)
    images = load_patches(files, *sizes).images

    def mine() -> np.ndarray:
        images = load_patches(files, *sizes).images  # as the plain loop reads them
        found = predict(Predictor(cfg, model), images, "")
        return torch.cat([count_pixels(probability).cpu() for _, probability in found]).numpy()

    kept, ours = (counts[:, 1:].sum(1) > 0 for counts in (plain.mine(), mine()))
    margins = np.array(plain.margins())
    predictor = Predictor(cfg, model)
    logits = (probability.log() for _, probability in predict(predictor, images, ""))
    rounded = [(each[:, 1:].amax(1) - each[:, 0]).amax((1, 2)).cpu() for each in logits]
    moved = np.abs(margins - torch.cat(rounded).numpy())  # by rounding, of each patch
    unlike = np.abs(margins[kept != ours])
    decisions = {"patches": len(kept), "kept": int(kept.sum()), "unlike": len(unlike)}
    decisions |= {"furthest": float(unlike.max(initial=0)), "rounding": float(moved.max())}
    figures.note(
        "decisions",
        decisions,
        f"{kept.sum()} of {len(kept)} patches kept by the plain loop; {len(unlike)} otherwise by"
        f" ours, with a deciding pixel at most {decisions['furthest']:.2f} from a tie of logits:"
        f" bfloat16 moves it by {np.median(moved):.2f} in half of the patches,"
        f" {moved.max():.2f} at most",
    )
    times = interleave(cfg.rounds, reference=plain.mine, ours=mine)
    figures.compare("mining", len(files), "patch", **times)


def compare_search(cfg: BenchConfig, figures: Figures, names: list[str]) -> None:
    """Compare the times of the search for pct; raise AssertionError if the results differ."""
    source, many = cfg.workspace / "Mask_Patchs", replace(cfg, workspace=cfg.workspace / "many")
    folder = many.workspace / "Mask_Patchs"
    folder.mkdir(parents=True)
    linked = [f"{number}_{names[number % len(names)]}" for number in range(cfg.searched)]
    for name in linked:
        link(source / name.split("_", 1)[1], folder / name)
    names = linked[: round(cfg.searched * TRAINING_SHARE)]
    available = round(len(names) * KEPT)

    def reference() -> float:
        masks = [folder / name for name in names]
        return oracles.choose_pct(masks, available, cfg.pct_grid, cfg.pnr_opt)

    def search() -> float:
        samples = count_samples(*pixels_of(many, id_files(many.workspace, names)))
        return choose_pct(*samples, available, cfg.pct_grid, cfg.pnr_opt)[0]["pct"]

    assert search() == reference(), "the estimates of pct differ"
    times = interleave(min(cfg.rounds, SEARCHES), reference=reference, ours=search)
    figures.compare(f"search for pct, {len(names):,} masks", 1, "search", **times)


if __name__ == "__main__":
    run(bench, BenchConfig())
