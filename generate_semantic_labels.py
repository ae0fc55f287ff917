"""Turn the labels of every region into one class mask.

Reads   Labels/*.mat                    Lizard's own files (or Lizard_Labels/Labels/*.mat)
        the masks in `masks`, if set    one channel, 0 background, classes as in `mask_values`
Writes  Semantic_Labels/<region>.png    uint8 (H, W), 0 background, 1.. the class of the nucleus,
                                        255 unsure
"""

from pathlib import Path

import numpy as np

from config import CONFIG, Data, UserError
from medood.data.images import write_png
from medood.data.labels import BACKGROUND, UNSURE, UNSURE_ID, no_nucleus, read_region_label
from medood.data.names import stem_of
from medood.data.records import BadFiles, refuse_bad
from medood.data.workspace import region_labels
from medood.processes import on_main
from medood.runs.command_line import run
from medood.runs.jobs import for_each
from medood.runs.products import CLASS_MASKS
from medood.runs.provenance import making


def semantic_mask(inst_map: np.ndarray, ids: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the class of each pixel, uint8 (H, W): `mask[p] = class_of[inst_map[p]]`.

    inst_map: integers (H, W), 0 is background, UNSURE_ID unsure, any other value the id of a
    nucleus. ids, classes: integers (N,), the nuclei in any order and the class of each, 1..6.
    Raises ValueError for an id of the map that `ids` does not list.
    """
    # one row more than there are ids: UNSURE_ID, -1, is the last
    class_of = np.full(max(inst_map.max(initial=0), ids.max(initial=0)) + 2, UNSURE, np.uint8)
    class_of[BACKGROUND] = BACKGROUND
    class_of[ids] = classes
    mask = class_of[inst_map]
    if mask.max(initial=0) == UNSURE:
        unlisted = inst_map[(mask == UNSURE) & (inst_map != UNSURE_ID)]
        if unlisted.size:
            raise ValueError(f"inst_map contains nucleus {unlisted[0]}, `id` does not")
    return mask


def convert(path: Path, cfg: Data, out: Path) -> int:
    """Write the class mask of one region and return how many nuclei it has."""
    inst_map, ids, classes = read_region_label(path, cfg)
    write_png(out / f"{stem_of(path)}.png", semantic_mask(inst_map, ids, classes))
    return int(np.isin(ids, inst_map).sum())


@on_main
def generate_semantic_labels(cfg: Data = CONFIG) -> None:
    """Write the class mask of every region.

    Raises UserError at the end if labels are bad, unless they are to be skipped.
    """
    bad: BadFiles = {}
    labels = region_labels(cfg)
    if not labels:
        raise UserError(
            f"no .mat file in {cfg.workspace / 'Labels'} or {cfg.workspace / 'Lizard_Labels'}:"
            " add Lizard's labels (see README.md)"
        )
    with making(cfg, CLASS_MASKS, bad=bad) as folders:
        if not folders:
            return
        (out,) = folders
        jobs = [(path, cfg, out) for path in labels]
        nuclei = sum(for_each(convert, jobs, cfg, "class masks", bad))
        if not nuclei:
            raise UserError(f"{labels[0].parent}: {no_nucleus(cfg)}")
    made = len(labels) - len(bad)
    print(f"{cfg.workspace / 'Semantic_Labels'}: {made} class masks, {nuclei} nuclei")
    refuse_bad(bad, cfg.skip_bad_files)


if __name__ == "__main__":
    run(generate_semantic_labels, Data())
