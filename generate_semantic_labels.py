"""Turn Lizard's instance labels into one class mask per region.

Reads   Labels/*.mat                    Lizard's own files (or Lizard_Labels/Labels/*.mat)
Writes  Semantic_Labels/<region>.png    uint8 (H, W), 0 background, 1..6 the class of the nucleus
"""

from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from config import CONFIG, Config, UserError
from medood.classes import BACKGROUND, N_CLASSES
from medood.cli import run
from medood.files import fingerprint, fresh_folder, is_kept, region_labels, write_png

UNLISTED = 255


def semantic_mask(inst_map: np.ndarray, ids: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the class of each pixel, uint8 (H, W): `mask[p] = class_of[inst_map[p]]`.

    inst_map: integers (H, W), 0 is background, any other value the id of a nucleus.
    ids, classes: integers (N,), the nuclei in any order and the class of each, 1..6.
    Raises ValueError for an id of the map that `ids` does not list.
    """
    class_of = np.full(max(inst_map.max(initial=0), ids.max(initial=0)) + 1, UNLISTED, np.uint8)
    class_of[BACKGROUND] = BACKGROUND
    class_of[ids] = classes
    mask = class_of[inst_map]
    if mask.max(initial=0) == UNLISTED:
        raise ValueError(f"inst_map holds nucleus {inst_map[mask == UNLISTED][0]}, `id` does not")
    return mask


def read_label(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return inst_map (H, W), ids (N,) and classes (N,) of a Lizard .mat file, as int32.

    Raises UserError, naming the file, for anything that is not such a file.
    """
    from scipy.io import loadmat  # here, not above: it doubles the time that --help takes

    keys = ("inst_map", "id", "class")
    try:
        content = loadmat(path, variable_names=keys)
    except Exception as error:  # scipy raises a dozen kinds for a damaged file
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's fault, not the file's
        raise UserError(f"{path} is not a readable .mat file ({error}): unpack it again") from None
    for key in keys:
        if key not in content:
            raise UserError(f"{path} has no `{key}`: unpack Lizard's labels again")
        values = content[key]
        whole = values.dtype.kind in "iuf" and (values.size == 0 or (values % 1 == 0).all())
        if not whole or (values.size and not 0 <= values.min() <= values.max() < 2**24):
            raise UserError(f"{path}: `{key}` holds something else than whole numbers from 0 up")
    inst_map, ids, classes = (content[key].astype(np.int32) for key in keys)
    ids, classes = ids.ravel(), classes.ravel()
    if inst_map.ndim != 2 or inst_map.size == 0:
        raise UserError(f"{path}: `inst_map` has shape {inst_map.shape}, expected (height, width)")
    if len(ids) != len(classes):
        raise UserError(f"{path}: {len(ids)} values in `id` but {len(classes)} in `class`")
    if len(np.unique(ids)) < len(ids) or (ids == BACKGROUND).any():
        raise UserError(f"{path}: `id` lists a nucleus twice, or 0, which is background")
    if len(classes) and not 1 <= classes.min() <= classes.max() < N_CLASSES:
        wrong = next(value for value in classes if not 1 <= value < N_CLASSES)
        raise UserError(f"{path}: `class` holds {wrong}, expected 1..{N_CLASSES - 1}")
    return inst_map, ids, classes


def convert(path: Path, out: Path) -> None:
    """Write the class mask of one region."""
    try:
        mask = semantic_mask(*read_label(path))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    write_png(out / f"{path.stem}.png", mask)


def generate_semantic_labels(cfg: Config = CONFIG) -> None:
    """Write the class mask of every region."""
    labels = region_labels(cfg.workspace)
    if not labels:
        raise UserError(
            f"no .mat file in {cfg.workspace / 'Labels'} or {cfg.workspace / 'Lizard_Labels'}:"
            " put Lizard's labels there (see README.md)"
        )
    folder = cfg.workspace / "Semantic_Labels"
    record = {"inputs": fingerprint(labels)}
    if is_kept(folder, record):
        return
    with fresh_folder(folder, record) as out:
        jobs = Parallel(n_jobs=cfg.workers, return_as="generator")(
            delayed(convert)(path, out) for path in labels
        )
        for _ in tqdm(jobs, total=len(labels), desc="class masks", disable=None):
            pass
    print(f"{folder}: {len(labels)} class masks")


if __name__ == "__main__":
    run(generate_semantic_labels)
