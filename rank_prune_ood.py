"""Find the OoD patches that fool the baseline: rank them, and prune those that do not.

Reads   OoD_Patchs, k_folds, models/<fold>_<model>/    (generate_unfiltered_oods.py, train.py)
Writes  HardOoD/<fold>_<model>.csv                     a row per candidate, hardest first

The candidates of a fold are the OoD patches made from its training patches, never its test patches.
"""

import numpy as np

from config import CONFIG, Config, UserError
from medood.classes import BACKGROUND, N_CLASSES
from medood.cli import run
from medood.files import (
    csv_text,
    digest,
    fingerprint,
    model_folder,
    read_json,
    write_json,
    write_text,
)
from medood.folds import read_fold
from medood.hard_ood import COLUMNS, ranking_path


def rank_and_prune(names: list[str], counts: np.ndarray) -> list[list]:
    """Return a row of COLUMNS for each OoD patch, hardest first (Sec. 3.1 of the paper).

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


def rank_fold(cfg: Config, fold: int) -> None:
    """Write the ranking of one fold, unless it is there from the same network and candidates."""
    # here, so that --help answers without torch
    from medood.checkpoints import load_model
    from medood.data import load_patches, ood_files
    from medood.inference import count_pixels, predict
    from medood.models import pick_device

    names, _ = read_fold(cfg, fold)
    folder = model_folder(cfg, fold, ood=False)
    model = load_model(folder)
    files = ood_files(cfg, names)
    missing = [path for path, _ in files if not path.exists()]
    if missing:
        raise UserError(f"{missing[0]} is missing: run `python generate_unfiltered_oods.py` first")
    path = ranking_path(cfg, fold)
    record = {
        "precision": cfg.precision,
        "network": fingerprint([folder / "model.safetensors"]),
        "candidates": fingerprint(path for path, _ in files),
    }
    made_from = read_json(path.with_suffix(".json"))
    if path.exists() and made_from == {**record, "ranking": digest(path.read_bytes())}:
        print(f"fold {fold}: {path} kept, made from the same network and candidates")
        return
    images = load_patches(cfg, files).images
    counts = np.zeros((len(names), N_CLASSES), np.int64)
    for part, probability in predict(cfg, model, images, pick_device(cfg), f"fold {fold}: mining"):
        counts[part] = count_pixels(probability).cpu().numpy()
    rows = rank_and_prune(names, counts)
    text = csv_text(COLUMNS, rows)
    write_text(path, text)
    write_json(path.with_suffix(".json"), {**record, "ranking": digest(text.encode())})
    kept = sum(row[-1] for row in rows)
    print(f"fold {fold}: the baseline sees nuclei in {kept} of {len(rows)} OoD patches: {path}")


def rank_prune_ood(cfg: Config = CONFIG) -> None:
    """Write the ranking of every fold."""
    for fold in cfg.folds:
        rank_fold(cfg, fold)


if __name__ == "__main__":
    run(rank_prune_ood)
