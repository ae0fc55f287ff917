"""Turn the labels of every region into one class mask, and list its nuclei.

Reads   Labels/*.mat                    Lizard's own files (or Lizard_Labels/Labels/*.mat)
        the masks in `masks`, if set    one channel, 0 background, others as `mask_values` says
Writes  Semantic_Labels/<region>.png    uint8 (H, W), 0 background, 1.. the class of the nucleus
        Semantic_Labels/nuclei.csv      region, class, and the centre x, y of each nucleus in pixels
"""

from itertools import chain
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from config import CONFIG, Config, UserError
from medood.classes import BACKGROUND
from medood.cli import run
from medood.files import (
    NUCLEI_COLUMNS,
    NUCLEI_LIST,
    csv_text,
    fingerprint,
    fresh_folder,
    is_kept,
    region_labels,
    timed,
    write_png,
    write_text,
)

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


def read_label(path: Path, n_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return inst_map (H, W), ids (N,) and classes (N,) of a Lizard .mat file, as int32.

    n_classes: background included. Raises UserError, naming the file, for anything that is not such
    a file.
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
    if len(classes) and not 1 <= classes.min() <= classes.max() < n_classes:
        wrong = next(value for value in classes if not 1 <= value < n_classes)
        raise UserError(f"{path}: `class` holds {wrong}, expected 1..{n_classes - 1}")
    return inst_map, ids, classes


def read_own_mask(
    path: Path, mask_values: tuple[int, ...], n_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a class mask of the user's as `read_label` returns Lizard's.

    A nucleus is a set of touching pixels of one class. mask_values: what stands for each class; if
    empty, 1 up to n_classes - 1. Raises UserError for a mask with any other value.
    """
    from PIL import Image  # OpenCV would turn the values of a palette image into colours
    from skimage.measure import label

    try:
        with Image.open(path) as file:
            mask = np.array(file)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable mask ({error}): save it again") from None
    if mask.ndim == 3 and (mask[..., :1] == mask[..., :3]).all():
        mask = mask[..., 0]  # grey, saved as RGB
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise UserError(
            f"{path} is a mask in colour: save it with one channel of whole numbers, 0 background"
            " and others as mask_values lists them"
        )
    known = np.array([BACKGROUND, *(mask_values or range(1, n_classes))])
    order = np.argsort(known)
    place = np.searchsorted(known[order], mask).clip(max=len(known) - 1)
    found = order[place]
    wrong = known[found] != mask
    if wrong.any():
        raise UserError(
            f"{path} holds the value {mask[wrong][0]}, expected {', '.join(map(str, known))}: set"
            " mask_values to what stands for each of the classes"
        )
    inst_map, count = label(found, background=BACKGROUND, connectivity=2, return_num=True)
    classes = np.zeros(count + 1, np.int32)
    classes[inst_map] = found  # every pixel of a nucleus has its class
    return inst_map.astype(np.int32), np.arange(1, count + 1, dtype=np.int32), classes[1:]


def centres(inst_map: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x and y of the centre of each nucleus in pixels, (N,), and whether it has a pixel."""
    size = max(inst_map.max(initial=0), ids.max(initial=0)) + 1
    rows, columns = np.nonzero(inst_map)
    numbers = inst_map[rows, columns]
    area = np.bincount(numbers, minlength=size)[ids]
    x, y = (
        np.bincount(numbers, along, size)[ids] / np.maximum(area, 1) for along in (columns, rows)
    )
    return x, y, area > 0


def convert(path: Path, cfg: Config, out: Path) -> list[list]:
    """Write the class mask of one region and return a row of NUCLEI_COLUMNS for each nucleus."""
    n_classes = len(cfg.class_names)
    if cfg.masks is None:
        label = read_label(path, n_classes)
    else:
        label = read_own_mask(path, cfg.mask_values, n_classes)
    try:
        mask = semantic_mask(*label)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    write_png(out / f"{path.stem}.png", mask)
    x, y, there = centres(*label[:2])
    columns = label[2][there].tolist(), x[there].round(1).tolist(), y[there].round(1).tolist()
    return [[path.stem, *row] for row in zip(*columns, strict=True)]


def generate_semantic_labels(cfg: Config = CONFIG) -> None:
    """Write the class mask of every region, and the list of nuclei."""
    labels = region_labels(cfg)
    if not labels:
        raise UserError(
            f"no .mat file in {cfg.workspace / 'Labels'} or {cfg.workspace / 'Lizard_Labels'}:"
            " put Lizard's labels there (see README.md)"
        )
    folder = cfg.workspace / "Semantic_Labels"
    values = list(cfg.mask_values or range(1, len(cfg.class_names)))
    record = {"inputs": fingerprint(labels), "values": values}
    if is_kept(folder, record):
        return
    with timed(cfg.workspace, "class masks"), fresh_folder(folder, record) as out:
        jobs = Parallel(n_jobs=cfg.workers, return_as="generator")(
            delayed(convert)(path, cfg, out) for path in labels
        )
        nuclei = list(tqdm(jobs, total=len(labels), desc="class masks", disable=None))
        write_text(out / NUCLEI_LIST, csv_text(NUCLEI_COLUMNS, chain.from_iterable(nuclei)))
    print(f"{folder}: {len(labels)} class masks, {sum(map(len, nuclei))} nuclei")


if __name__ == "__main__":
    run(generate_semantic_labels)
