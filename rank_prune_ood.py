"""Find the OoD patches that fool the baseline: rank them, and prune those that do not.

Reads   OoD_Patchs, k_folds, models/<fold>_<model>/    (generate_unfiltered_oods.py, train.py)
Writes  HardOoD/<fold>_<model>.csv                     a row per candidate, hardest first
        HardOoD/<fold>_<model>_hardest.png             what the baseline sees in the hardest
        HardOoD/<fold>_<model>_false_pixels.png        how many pixels of each class it sees

The candidates of a fold are the OoD patches made from its training patches, never its test patches,
and, with ood_source, those of external images.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from config import CONFIG, Config, UserError
from medood import processes
from medood.data.files import (
    csv_text,
    data_name,
    digest,
    model_folder,
    read_json,
    timed,
    write_json,
    write_text,
)
from medood.data.folds import read_fold
from medood.data.labels import BACKGROUND
from medood.data.ood_set import columns, ood_candidates, ranking_path
from medood.data.records import changes, fingerprint
from medood.runs.command_line import run
from medood.runs.prepared import require_fresh

if TYPE_CHECKING:
    from torch import nn

    from medood.data.dataset import Pair

SHOWN = 24  # of the hardest patches, in the contact sheet


def rank_and_prune(names: list[str], counts: np.ndarray) -> list[list]:
    """Return a row of `columns` for each OoD patch, hardest first (Sec. 3.1 of the paper).

    counts: integers (N, C), the pixels of each patch that the baseline gives to each class. All of
    them are background in truth, so IoU is b / P for background, 0 for a class that is predicted,
    and 1 for one that is not; `miou` is its mean over all C channels. It is 1 exactly where no
    pixel is called foreground: those patches are pruned (kept = 0). So a patch in which more
    classes are seen ranks above one with more false pixels of fewer classes. Ties are broken by the
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


def count_seen(cfg: Config, model: nn.Module, files: list[Pair], task: str) -> np.ndarray:
    """Return the pixels of each patch that a network, in eval mode, gives to each class: (N, C)."""
    # here, so that --help answers without torch
    from medood.data.dataset import load_patches
    from medood.models.inference import count_pixels, predict
    from medood.models.network import pick_device

    images = load_patches(cfg, files).images
    counts = np.zeros((len(files), len(cfg.class_names)), np.int64)
    for part, probability in predict(cfg, model, images, pick_device(cfg), task):
        counts[part] = count_pixels(probability).cpu().numpy()
    return counts


@processes.together
def rank_files(cfg: Config, network: Path, files: list[Pair], task: str) -> list[list]:
    """Return the ranking of OoD patches by what the network in a folder sees in them.

    Each process looks at a share of them.
    """
    from medood.models.checkpoints import load_model
    from medood.models.inference import batch_size
    from medood.models.network import pick_device

    model = load_model(network, cfg)
    own = files[processes.shard(len(files), batch_size(pick_device(cfg)))]
    counts = processes.gathered(partial(count_seen, cfg, model, own, task))
    names = [image.name for image, _ in files]
    return rank_and_prune(names, np.concatenate(counts)) if processes.leads() else []


def draw_ranking(cfg: Config, fold: int, network: Path, rows: list[list]) -> None:
    """Draw the hardest OoD patches with what is seen in them, and the false pixels by class."""
    from medood.data.dataset import load_patches, ood_files
    from medood.evaluation.figures import draw_contact_sheet, draw_false_pixels
    from medood.evaluation.testing import tally_patches
    from medood.models.checkpoints import load_model
    from medood.models.network import pick_device

    path = ranking_path(cfg, fold)
    title = f"{data_name(cfg.workspace)}, fold {fold}, {cfg.model_name}"
    hardest = [row for row in rows if row[-1]][:SHOWN]
    sheet = path.with_name(f"{path.stem}_hardest.png")
    sheet.unlink(missing_ok=True)
    if hardest:
        patches = load_patches(cfg, ood_files(cfg, [row[1] for row in hardest]))
        model, device = load_model(network, cfg), pick_device(cfg)
        _, predicted = tally_patches(cfg, model, patches, device, "drawing")
        draw_contact_sheet(sheet, title, patches, predicted, cfg.classes)
    false = np.array([row[4:-1] for row in rows])
    draw_false_pixels(false_pixels_path(cfg, fold), title, false, cfg.classes)


def false_pixels_path(cfg: Config, fold: int) -> Path:
    """Return the picture that is drawn last."""
    path = ranking_path(cfg, fold)
    return path.with_name(f"{path.stem}_false_pixels.png")


def rank_fold(cfg: Config, fold: int) -> None:
    """Write the ranking of one fold, unless it is there from the same network and candidates."""
    # here, so that --help answers without torch
    from medood.data.dataset import ood_files
    from medood.training.loop import require_current

    network = model_folder(cfg, fold, ood=False)
    files = ood_files(cfg, ood_candidates(cfg, read_fold(cfg, fold).train))
    missing = [path for path, _ in files if not path.exists()]
    if missing:
        raise UserError(f"{missing[0]} is missing: run `python generate_unfiltered_oods.py` first")
    require_current(cfg, fold, network, ood=False)
    path = ranking_path(cfg, fold)
    record = {
        "precision": cfg.precision,
        "classes": [list(pair) for pair in cfg.classes],
        "network": fingerprint([network / "model.safetensors"]),
        "candidates": fingerprint(path for path, _ in files),
    }
    made_from, picture = read_json(path.with_suffix(".json")) or {}, false_pixels_path(cfg, fold)
    ours = path.exists() and made_from.get("ranking") == digest(path.read_bytes())
    if path.exists() and not ours:
        print(f"fold {fold}: {path} kept, it was put there by you (remove it to have it made)")
        return
    why = changes({**made_from, "ranking": ""}, {**record, "ranking": ""})
    if ours and not why and picture.exists():
        print(f"fold {fold}: {path} kept, made from the same network and candidates")
        return
    if ours and why:
        print(f"fold {fold}: {path} made again, {why}")
    with timed(cfg.workspace, f"mining {network.name}"):
        rows = rank_files(cfg, network, files, f"fold {fold}: mining")
        text = csv_text(columns(cfg), rows)
        # a ranking that its record does not fit passes for the user's; a picture says all is done
        for old in (path, picture):
            old.unlink(missing_ok=True)
        write_json(path.with_suffix(".json"), {**record, "ranking": digest(text.encode())})
        write_text(path, text)
        draw_ranking(cfg, fold, network, rows)
    kept = sum(row[-1] for row in rows)
    print(f"fold {fold}: the baseline sees nuclei in {kept} of {len(rows)} OoD patches: {path}")


def rank_prune_ood(cfg: Config = CONFIG) -> None:
    """Write the ranking of every fold."""
    require_fresh(cfg, oods=True)
    for fold in cfg.folds:
        rank_fold(cfg, fold)


if __name__ == "__main__":
    run(rank_prune_ood)
