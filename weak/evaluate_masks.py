"""Test masks and networks against true masks, and compare them with full supervision.

Reads   all products of earlier steps, and, for the first time, masks: a folder of true masks
Writes  models/<fold>_<model>_supervised/   the same network, trained on the true masks
        reports/weak/scores.json            by fold and row, see weak/scoring.py
        reports/weak/lesions.json           by fold and row: by patient, by size of the lesion
        reports/weak/table.md               and differences.json, differences to the floors
        reports/weak/index.html             the report, with its figures in one file

A row is a method. Those that ran in the workspace on the same images and labels are in one report.
With transfer, or a lesion named, only this class is compared (in reports/weak/<lesion> if there are
others), on the images with this class or none.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from config import UserError
from medood.commands import command
from medood.data.dataset import load_patches
from medood.data.labels import UNSURE
from medood.data.records import record_of, refuse_unusable
from medood.runs.command_line import run
from medood.runs.provenance import require
from medood.training.segmentation import train_fold
from weak.arrays import load_images, read_arrays, read_masks
from weak.floors import brightness, otsu_masks
from weak.generate_maps import read_maps, read_seeds
from weak.generate_masks import BEFORE
from weak.image_labels import labels_of, with_classes, with_lesion
from weak.maps import (
    cut_at_half,
    detection_threshold,
    masks_of,
    resized,
    threshold_of,
    thresholds_of,
)
from weak.pooled import logits_by, probability
from weak.products import (
    MAPS,
    classifier_folder,
    fold_labels,
    image_paths,
    indices_to_test,
    irnet_folder,
    labels_there,
    masks_folder,
    masks_product,
)
from weak.report import write_report
from weak.scoring import Rows, TestedRows, predicted_by, tally_rows
from weak.settings import MasksConfig
from weak.train_segmentation import has_masks, made_from_of, weak_network
from weak.truth import require_masks, true_files


def evaluate_masks(cfg: MasksConfig) -> None:
    """Test every row on the test images of every fold; write scores, tables and the report."""
    if cfg.shuffled:
        raise UserError("shuffled = True: this control is tested with the rest: remove the setting")
    is_transfer = cfg.method == "transfer"
    of_lesion = is_transfer or cfg.lesion is not None or len(labels_of(cfg).classes) == 1
    cfg = with_lesion(cfg) if of_lesion else with_classes(cfg)
    require_masks(cfg)
    rows, maps = Rows(), by_maps(cfg)
    if is_shown("the rows of maps", maps, must=not is_transfer):
        control = replace(maps, shuffled=True)
        with_control = is_shown("the row of shuffled labels", control)
        rows = Rows(maps, control if with_control else None)
    transfer = replace(cfg, method="transfer")
    if of_lesion and is_shown("the rows of transfer", transfer, must=is_transfer):
        rows = rows._replace(transfer=transfer)
    write_report(cfg, rows, {fold: evaluate_fold(cfg, fold, rows) for fold in cfg.folds})


def by_maps(cfg: MasksConfig) -> MasksConfig:
    """Return settings of the route of maps: with transfer, of what is in the workspace."""
    if cfg.method == "transfer":
        by_irnet = irnet_folder(replace(cfg, method="cam"), cfg.folds[0])
        record = record_of(by_irnet).content or {}
        method = record.get("made_from", {}).get("settings", {}).get("method")
        pooled = masks_folder(replace(cfg, method="unet"), cfg.folds[0]).exists()
        cfg = replace(cfg, method=method or ("unet" if pooled else "cam"))
    return with_classes(replace(cfg, lesion=None))


def is_shown(rows: str, route: MasksConfig, *, must: bool = False) -> bool:
    """Say whether rows of a route can be tested. If not, print why, or raise it as an error."""
    try:
        require_all(route)
    except UserError as error:
        if must:
            raise
        print(f"{rows}: skipped ({error})")
        return False
    return True


def require_all(cfg: MasksConfig) -> None:
    """Raise UserError if masks or networks of a route are missing or out of date.

    No network is required if shuffled labels gave masks without any class.
    """
    require(cfg, masks_product(cfg), *([] if cfg.method == "transfer" else [MAPS]))
    for fold in cfg.folds:
        script = "weak/train_segmentation.py"
        again = partial(command, cfg, script, MasksConfig, folds=(fold,))
        if has_masks(cfg, fold) or not cfg.shuffled:
            for negatives in (False, True):
                network = weak_network(cfg, fold, negatives)
                made_from = partial(made_from_of, cfg, fold, negatives)
                refuse_unusable(record_of(network), made_from, again)


def evaluate_fold(cfg: MasksConfig, fold: int, rows: Rows) -> TestedRows:
    """Return the predictions of every row for the test images of a fold, and their tallies."""
    labels, test = labels_there(cfg), indices_to_test(cfg, fold)
    paths, every = [image_paths(cfg, labels)[index] for index in test], with_classes(cfg)
    patches = load_patches(true_files(every, paths), cfg.image_size, len(every.class_names))
    patches = replace(patches, masks=in_classes(cfg, every, patches.masks))
    images = patches.images
    found = {"all_background": torch.zeros(images.shape[:3], dtype=torch.uint8)}
    if cfg.is_pooled:
        found |= floors(cfg, fold, images, rows.maps)
    of_all = {"supervised": predicted_by(every, train_supervised(every, fold), images)}
    if rows.maps:
        masks = from_pooled if rows.maps.method == "unet" else from_maps
        of_all |= {**masks(rows.maps, fold, test), **from_networks(rows, fold, images)}
    found |= {row: in_classes(cfg, every, masks) for row, masks in of_all.items()}
    if rows.transfer:
        found |= by_row("transfer", rows.transfer, fold, paths)
        network = weak_network(rows.transfer, fold)
        found["transfer_segmentation"] = predicted_by(rows.transfer, network, images)
    patients = [labels.patients[index] for index in test]
    return tally_rows(patches, patients, found, len(cfg.class_names))


def floors(
    cfg: MasksConfig, fold: int, tested: Tensor, maps: MasksConfig | None
) -> dict[str, Tensor]:
    """Return the floors of test images (N, P, P, 3) by row, uint8 (N, P, P): see weak/floors.py.

    The classifier says which images have a class, and which. maps: settings of the route of maps;
    with unet, the mean of its maps is a floor, too.
    """
    every = with_classes(cfg)
    logits = logits_by(every, classifier_folder(cfg, fold), tested)
    labels, train, _ = fold_labels(every, fold)
    held = torch.from_numpy(labels.held[train])
    kinds = range(held.shape[1])
    if cfg.lesion is not None:
        kinds = [every.class_names.index(cfg.lesion) - 1]
    top, best = logits[:, kinds].max(1)
    held, classes = held[:, kinds], torch.where(top > 0, best + 1, 0).byte()
    paths = [image_paths(cfg, labels)[index] for index in train]
    learned = load_images(cfg, paths)

    def cut_like(of_tested: Tensor, of_learned: Tensor) -> Tensor:
        return (of_tested > threshold_of(of_learned, cfg.size)) * classes[:, None, None]

    found = {
        "threshold": otsu_masks(tested, classes),
        "tissue": otsu_masks(tested, classes, inside=True),
        "brightest": cut_like(brightness(tested), brightness(learned)[held.any(1)]),
    }
    if maps and maps.is_pooled:
        seen, _ = read_maps(maps, fold, paths, "unet")
        prior = [seen[has, k].sigmoid().mean(0) for k, has in zip(kinds, held.T, strict=True)]
        found["centre_prior"] = cut_like(torch.stack(prior)[best], torch.stack(prior))
    return found


def in_classes(cfg: MasksConfig, every: MasksConfig, masks: Tensor) -> Tensor:
    """Return masks of every class, uint8 (N, P, P), in the classes of cfg: its lesion, if any."""
    if cfg.lesion is None:
        return masks
    of_lesion = (masks == every.class_names.index(cfg.lesion)).byte()
    return torch.where(masks == UNSURE, UNSURE, of_lesion)


def from_maps(cfg: MasksConfig, fold: int, test: list[int]) -> dict[str, Tensor]:
    """Return the masks of maps without a network, by row, uint8 (N, P, P). test: image indices."""
    labels, train, _ = fold_labels(cfg, fold)
    paths, size = image_paths(cfg, labels), [cfg.image_size] * 2
    tested = [paths[index] for index in test]
    logits, held = read_maps(cfg, fold, paths, "logits")
    seeds, _, areas = read_seeds(cfg, fold, paths)

    def cut(maps: Tensor, limits: list[float]) -> Tensor:
        return masks_of(resized(maps, size), held[test], limits)

    def detected(kind: str) -> Tensor:
        raw, _ = read_maps(cfg, fold, paths, kind)
        by_class = zip(raw[train].unbind(1), held[train].unbind(1), strict=True)
        return cut(raw[test], [detection_threshold(one.amax((1, 2)), has) for one, has in by_class])

    def by_area(maps: Tensor) -> Tensor:
        return cut(maps[test], thresholds_of(maps[train], held[train], areas))

    top, best = logits[test].max(1)
    likeliest = torch.where(top > 0, best + 1, 0)
    count = held[train].sum(0).clamp_min(1)[:, None, None]
    prior = seeds[train].sum(0) / count  # a map is 0 if the image lacks its class
    return {
        "threshold": otsu_masks(load_images(cfg, tested), likeliest),
        "centre_prior": by_area(prior.expand(len(paths), -1, -1, -1)),
        "cam": detected("cam"),
        "grad_cam_pp": detected("grad_cam_pp"),
        **({"contrast": by_area(seeds)} if cfg.method == "contrast" else {}),
        **by_row("irnet", cfg, fold, tested),
    }


def from_pooled(cfg: MasksConfig, fold: int, test: list[int]) -> dict[str, Tensor]:
    """Return the masks with method = unet, by row, as from_maps does."""
    paths = image_paths(cfg, labels_there(cfg))
    tested = [paths[index] for index in test]
    maps, held = read_maps(cfg, fold, tested, "unet")
    return {
        "maps": cut_at_half(map(probability, maps), held, (), cfg.unsure),
        **by_row("unet", cfg, fold, tested),
    }


def by_row(row: str, cfg: MasksConfig, fold: int, paths: list[Path]) -> dict[str, Tensor]:
    """Return the masks of test images as uint8 (N, P, P), by row; if outlined, also before it."""
    folder = masks_folder(cfg, fold)
    masks = read_masks(cfg, folder, paths)
    if not cfg.outline:
        return {row: masks}
    return {row: read_arrays(folder / BEFORE, paths), f"{row}_outlined": masks}


def from_networks(rows: Rows, fold: int, images: Tensor) -> dict[str, Tensor]:
    """Return the predictions of networks trained on masks by maps for test images, by row."""
    found = {
        "positives_only": predicted_by(rows.maps, weak_network(rows.maps, fold, False), images),
        "segmentation": predicted_by(rows.maps, weak_network(rows.maps, fold), images),
    }
    if rows.control and has_masks(rows.control, fold):
        network = weak_network(rows.control, fold)
        found["shuffled_labels"] = predicted_by(rows.control, network, images)
    elif rows.control:  # nothing was learned, so nothing is found
        found["shuffled_labels"] = torch.zeros(images.shape[:3], dtype=torch.uint8)
    return found


def train_supervised(cfg: MasksConfig, fold: int) -> Path:
    """Return the folder of the network trained on the true masks of a fold's training images."""
    labels, train, _ = fold_labels(cfg, fold)
    paths = [image_paths(cfg, labels)[index] for index in train]
    folder = cfg.workspace / "models" / f"{fold}_{cfg.model_name}_supervised"
    train_fold(cfg, fold, true_files(cfg, paths), [], folder)
    return folder


if __name__ == "__main__":
    run(evaluate_masks, MasksConfig())
