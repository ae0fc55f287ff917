"""Counts of nuclei: matched, invented, missed or misnamed; scores.py computes the scores from them.

A true and a predicted nucleus match if their IoU exceeds .5, which holds for at most one partner of
each (Kirillov et al., Panoptic Segmentation, 2019). Predicted nuclei are those that predict.py
lists. Counts are summed over the whole test before a score is computed, as in CoNIC.

If all patches of a region are tested, its nuclei are counted on the whole region, without the
padding: none is cut at the border of a patch. Other patches are counted one by one, each with the
parts of nuclei in it.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.ndimage import center_of_mass
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import KDTree

from config import Config, UserError
from medood.data.files import in_threads, pngs
from medood.data.grid import join
from medood.data.images import image_size, read_values, require_side
from medood.data.labels import is_foreground
from medood.data.names import by_name, stem_of
from medood.data.patients import patients_of, region_of
from medood.data.records import record_of, refuse_unusable
from medood.data.workspace import files_in, has_instances
from medood.predicting.nuclei import MIN_AREA, MIN_DISTANCE, Nuclei, nuclei_of
from medood.runs.products import INSTANCE_PATCHES

RADIUS = 3.0  # microns from the centre of a nucleus to that of its detection (HoVer-Net, 2019)


def count_nuclei(
    truth: Nuclei, predicted: Nuclei, foreground: np.ndarray, classes: int, radius: float
) -> np.ndarray:
    """Return the COUNTS of an image, floats (C, K): row 0 of nuclei of all classes, then by class.

    A pair counts in row 0 whatever its classes, and in the row of a class if both have it; a
    misnamed one in that of its true class. truth, predicted: nuclei numbered from 1, the class of 0
    is 0. foreground: bool (H, W), the pixels predicted as foreground. classes: C. radius: of
    `found`, in pixels.
    """
    (true_map, true_class), (called_map, called_class) = truth, predicted

    def by_class(kinds: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(kinds, weights, classes)[1:]

    def nuclei(kinds: np.ndarray) -> np.ndarray:
        return np.append(len(kinds), by_class(kinds))

    def pairs(true: np.ndarray, called: np.ndarray, weights: np.ndarray) -> np.ndarray:
        same = true_class[true] == called_class[called]
        return np.append(weights.sum(), by_class(true_class[true[same]], weights[same]))

    true, called, iou = _overlaps(true_map, called_map)
    hit = iou > 0.5
    matched = true[hit], called[hit]
    wrong = true_class[true[hit]] != called_class[called[hit]]
    seen = np.unique(true_map[foreground])
    near = _within(true_map, called_map, radius)
    of_near = true_class[near[:, 0]], called_class[near[:, 1]]
    near_of = [near, *(near[(of_near[0] == c) & (of_near[1] == c)] for c in range(1, classes))]
    return np.stack(
        [
            nuclei(true_class[1:]),
            nuclei(called_class[1:]),
            pairs(*matched, np.ones(hit.sum())),
            pairs(*matched, iou[hit]),
            np.array([_one_to_one(of_kind) for of_kind in near_of]),
            nuclei(np.delete(called_class, np.append(0, called))),
            nuclei(np.delete(true_class, np.append(0, seen))),
            nuclei(true_class[true[hit][wrong]]),
        ],
        axis=-1,
    ).astype(float)


def _overlaps(true_map: np.ndarray, called_map: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the numbers of each true and predicted nucleus that share a pixel, and their IoU."""
    numbers = called_map.max(initial=0) + 1
    both, area = np.unique(true_map.astype(np.int64) * numbers + called_map, return_counts=True)
    true, called = np.divmod(both, numbers)
    true_area, called_area = np.bincount(true, area), np.bincount(called, area)
    iou = area / (true_area[true] + called_area[called] - area)
    shared = (true > 0) & (called > 0)
    return true[shared], called[shared], iou[shared]


def _within(true_map: np.ndarray, called_map: np.ndarray, radius: float) -> np.ndarray:
    """Return the numbers of true and predicted nuclei with centres within `radius`, (n, 2)."""
    trees = []
    for numbered in (true_map, called_map):
        numbers = range(1, numbered.max(initial=0) + 1)
        centres = center_of_mass(numbered > 0, numbered, numbers)
        trees.append(KDTree(np.reshape(centres, (-1, 2))))
    near = trees[0].sparse_distance_matrix(trees[1], radius, output_type="coo_matrix")
    return np.stack([near.row, near.col], 1) + 1


def _one_to_one(pairs: np.ndarray) -> int:
    """Return how many of the pairs (n, 2) can be kept if each number is in only one of them."""
    if not len(pairs):
        return 0
    graph = csr_array((np.ones(len(pairs)), pairs.T))
    return int((maximum_bipartite_matching(graph) >= 0).sum())


@dataclass(frozen=True)
class Canvas:
    """Test patches that make an image: those of a whole region, or a single one."""

    patient: str
    patches: list[int]  # their indices in the test, row by row
    shape: tuple[int, int]
    truth: Nuclei

    def join(self, patches: np.ndarray) -> np.ndarray:
        """Return the image, (H, W), of the patches (N, P, P) of a whole test."""
        return join(patches[self.patches], *self.shape)


def read_canvases(cfg: Config, names: list[str], masks: np.ndarray) -> list[Canvas]:
    """Return the true nuclei of test patches; [] if the labels have no instances.

    masks: their class masks, uint8 (N, P, P).
    Raises UserError if Instance_Patchs is out of date or does not match the masks.
    """
    if no_nuclei(cfg):
        return []

    instances = read_instances(cfg, names, masks)
    patients, canvases = patients_of(cfg, names), []
    for patches, shape in _images_of(cfg, names):
        numbers = join(instances[patches], *shape)
        _, numbers = np.unique(np.append(0, numbers), return_inverse=True)
        numbers = numbers[1:].reshape(shape)
        kinds = np.zeros(numbers.max() + 1, np.int64)
        kinds[numbers] = join(masks[patches], *shape)
        canvases.append(Canvas(patients[patches[0]], patches, shape, (numbers, kinds)))
    return canvases


def read_instances(cfg: Config, names: list[str], masks: np.ndarray) -> np.ndarray:
    """Return the numbers of the nuclei in patches, integers (N, P, P), 0 outside.

    masks: their class masks. Raises UserError if Instance_Patchs does not match them.
    """

    def read(path: Path) -> np.ndarray:
        numbers = read_values(path)
        require_side(path, numbers, cfg.patch_size)
        return numbers

    files = files_in(cfg.workspace / "Instance_Patchs", names)
    instances = np.array(in_threads(read, files, "reading nuclei"))
    wrong = ((instances > 0) != is_foreground(masks)).any((1, 2))
    if wrong.any():
        raise UserError(
            f"{cfg.workspace / 'Instance_Patchs' / names[wrong.argmax()]} does not match its mask:"
            f" remove Instance_Patchs and run `{INSTANCE_PATCHES.cure(cfg, 0)}`"
        )
    return instances


def no_nuclei(cfg: Config) -> str:
    """Return why there are no scores of nuclei, and what to do; empty if there are.

    Raises UserError if Instance_Patchs is out of date.
    """
    record, again = record_of(INSTANCE_PATCHES.path(cfg, 0)), partial(INSTANCE_PATCHES.cure, cfg, 0)
    if not record.is_there:
        cure = f"run `{again()}`" if has_instances(cfg) else "the labels have no instances"
        return f"no scores of nuclei: {record.product} is missing: {cure}"
    refuse_unusable(record, lambda: INSTANCE_PATCHES.made_from(cfg), again, images=False)
    return ""


def _images_of(cfg: Config, names: list[str]) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Yield the indices in `names` of the patches that make an image, and its height and width."""
    side, regions = cfg.patch_size, defaultdict(dict)
    for place, name in enumerate(names):
        regions[region_of(name)][name] = place
    masks = by_name(pngs(cfg.workspace / "Semantic_Labels"), stem_of)
    for region, places in regions.items():
        shape = image_size(masks[region]) if region in masks else (0, 0)
        count = math.prod(-(-length // side) for length in shape)
        whole = [places.get(f"{region}_{k}.png") for k in range(count)]
        if len(places) == count and None not in whole:
            yield whole, shape
        else:
            yield from (([place], (side, side)) for place in places.values())


def count_canvases(cfg: Config, canvases: list[Canvas], predicted: np.ndarray) -> np.ndarray:
    """Return the COUNTS of the nuclei of each patient, (R, C, K), patients in order of name.

    predicted: the class of each pixel of the test, uint8 (N, P, P).
    """
    classes, counts = len(cfg.class_names), defaultdict(float)
    for canvas in canvases:
        called = canvas.join(predicted)
        found = nuclei_of(called, MIN_DISTANCE / cfg.mpp, MIN_AREA / cfg.mpp**2)
        counts[canvas.patient] += count_nuclei(
            canvas.truth, found, called > 0, classes, RADIUS / cfg.mpp
        )
    return np.stack([counts[patient] for patient in sorted(counts)])
