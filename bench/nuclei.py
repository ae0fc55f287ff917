"""How well touching nuclei are separated: `python bench/nuclei.py --workspace workspace`.

The script takes the true class masks of a workspace, whose nuclei are known, and finds the nuclei
in them as predict.py does: what is lost here is lost by the separation alone. With `--predicted
FOLDER` it takes the masks that predict.py wrote of the same images instead. A true nucleus counts
as found if the IoU with one of the found nuclei is above one half.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import find_objects
from skimage.measure import label
from tifffile import imread

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import Config, UserError, settings
from generate_semantic_labels import semantic_mask
from medood.data.labels import read_label
from medood.data.workspace import region_labels
from medood.evaluation.tables import markdown
from medood.predicting.nuclei import MIN_DISTANCE, separate
from medood.runs.command_line import run
from predict import PredictConfig

MIN_AREA = PredictConfig.min_area


@settings
class BenchConfig(Config):
    """The settings, and the masks to measure on."""

    predicted: Path | None = None
    """Folder with the results of predict.py for the images of the workspace."""


def matched(true: np.ndarray, found: np.ndarray) -> int:
    """Return how many true nuclei have an IoU > 0.5 with a found one; both are integers (H, W)."""
    both = (true > 0) & (found > 0)
    pairs, overlap = np.unique(np.stack([true[both], found[both]]), axis=1, return_counts=True)
    union = np.bincount(true.ravel())[pairs[0]] + np.bincount(found.ravel())[pairs[1]] - overlap
    return int((overlap / union > 0.5).sum())


def bench(cfg: BenchConfig) -> None:
    """Print the counts over all regions, with separation and without."""
    labels = region_labels(replace(cfg, masks=None, images=None))
    if not labels:
        raise UserError(
            f"{cfg.workspace}: no .mat file there: name a workspace with Lizard's Labels"
        )
    counts = {"touching ones as one": [0, 0], "separated": [0, 0]}
    nuclei = 0
    for path in labels:
        inst_map, ids, classes = read_label(path, len(cfg.class_names))
        if cfg.predicted is None:
            foreground = semantic_mask(inst_map, ids, classes) > 0
        else:
            foreground = imread(cfg.predicted / f"{path.stem}_mask.tif") > 0
        nuclei += len(ids)
        whole = label(foreground, connectivity=2)
        apart = np.zeros_like(whole)
        for number, box in enumerate(find_objects(whole), start=1):
            parts = separate(whole[box] == number, MIN_DISTANCE / cfg.mpp)
            apart[box] += np.where(parts > 0, parts + apart.max(), 0)
        for name, found in zip(counts, (whole, apart), strict=True):
            kept = np.bincount(found.ravel()) >= MIN_AREA / cfg.mpp**2
            found = found * kept[found]
            counts[name][0] += int(kept[1:].sum())
            counts[name][1] += matched(inst_map, found)
    rows = [
        [name, str(count), f"{100 * hit / nuclei:.1f}", f"{200 * hit / (count + nuclei):.1f}"]
        for name, (count, hit) in counts.items()
    ]
    print(f"{len(labels)} regions of {cfg.workspace}, {nuclei} nuclei")
    print(markdown(["", "found", "of the nuclei, %", "F1, %"], rows))


if __name__ == "__main__":
    run(bench, BenchConfig())
