"""Mined negatives at about equal steps: networks of part `all` of lgg.sh, less those of `longer`.

    python runs/more_steps.py WORKSPACE

compares, on the same test slices, the network with negatives after 6 epochs, in WORKSPACE/all, with
the one without negatives after 9, in WORKSPACE/longer. Intervals are over patients.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import CONFIG
from medood.data.dataset import load_patches
from medood.data.files import read_table
from medood.evaluation.statistics import paired_differences
from weak import scoring

CLASSES = ("background", "tumour")
WITH, WITHOUT = "segmentation", "positives_only"


def more_steps(workspace: Path) -> None:
    """Print the IoU of both networks on each fold, and their difference."""
    cfg = replace(CONFIG, patch_size=64, classes=(("tumour", "#f0e442"),))
    every = workspace / "all"
    tests = {}
    for fold in cfg.folds:
        maps = every / "weak" / "maps" / f"{fold}_pooled_unet_mobilenet_v2"
        names = [row["img_name"] for row in read_table(maps / "held.csv") if row["split"] == "test"]
        files = [
            (every / "weak" / "Images" / f"{one}.png", every / "weak" / "True_Masks" / f"{one}.png")
            for one in names
        ]
        patches = load_patches(files, cfg.patch_size, len(CLASSES))
        network = f"{fold}_unet_mobilenet_v2_weak_pooled"
        networks = {
            WITH: every / "models" / network,
            WITHOUT: workspace / "longer" / "models" / f"{network}_positives",
        }
        found = {
            row: scoring.predicted_by(cfg, folder, patches.images)
            for row, folder in networks.items()
        }
        patients = [one.rpartition("_")[0] for one in names]
        tests[fold] = scoring.tally_rows(patches, patients, found, len(CLASSES))
    for fold, test in tests.items():
        print(fold, {row: round(100 * scores["miou"], 1) for row, scores in test.scores().items()})
    ours, theirs = (
        [test.tallies[row].by_region(test.patients) for test in tests.values()]
        for row in (WITH, WITHOUT)
    )
    gain = paired_differences(ours, theirs, CLASSES)
    print(f"with negatives less without: { ({k: gain[k].text() for k in scoring.SHOWN_SCORES}) }")


if __name__ == "__main__":
    more_steps(Path(sys.argv[1]))
