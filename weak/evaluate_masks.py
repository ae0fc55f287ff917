"""Test pseudo-masks and networks against true masks: how far is it from full supervision?

Reads   all that the steps before made, and, for the first time, masks: a folder of true masks (or a
        CSV of run lengths)
Writes  models/<fold>_<model>_supervised/      the same network, trained on the true masks
        reports/weak/scores.json               by fold and row, see ROWS
        reports/weak/table.md                  and differences.json, each row less `centre_prior`
        reports/weak/index.html                the report, with its figures in one file
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import UserError
from medood.commands import command
from medood.data.records import record_of, refuse_unusable
from medood.runs.command_line import run
from medood.runs.provenance import require
from weak.generate_maps import read_maps, read_seeds
from weak.image_labels import with_classes
from weak.products import MAPS, PSEUDO_MASKS, fold_labels, image_paths, masks_folder
from weak.read_images import require_masks
from weak.settings import MasksConfig
from weak.train_segmentation import hold_a_class, made_from_of, training_files, weak_network

if TYPE_CHECKING:
    from torch import Tensor

    from medood.data.dataset import Patches
    from medood.evaluation.rows import Tested

# what is tested, in the order of the table
ROWS = {
    "all_background": "all background",
    "threshold": "grey threshold (Otsu)",
    "centre_prior": "mean of the maps",
    "cam": "CAM",
    "grad_cam_pp": "Grad-CAM++",
    "contrast": "CAM, contrast classifier",
    "irnet": "IRNet",
    "positives_only": "segmentation, without negatives",
    "segmentation": "segmentation",
    "shuffled_labels": "segmentation, labels shuffled",
    "supervised": "full supervision",
}
FLOOR = "centre_prior"


def evaluate(cfg: MasksConfig) -> None:
    """Test every row on the test images of every fold; write scores, tables and the report."""
    if cfg.shuffled:
        raise UserError("shuffled = True: this control is tested beside the rest: leave it out")
    cfg = with_classes(cfg)
    require_masks(cfg)
    require_all(cfg)
    control = control_of(cfg)
    from weak.report import write_report  # here, so that --help works without torch

    write_report(cfg, {fold: test_fold(cfg, fold, control) for fold in cfg.folds})


def require_all(cfg: MasksConfig) -> None:
    """Raise UserError if masks or networks are missing or out of date, with all behind them.

    A control that learned nothing has no networks.
    """
    require(cfg, MAPS, PSEUDO_MASKS)
    for fold in cfg.folds:
        again = command(cfg, "weak/train_segmentation.py", MasksConfig, folds=(fold,))
        if not cfg.shuffled or has_learned(cfg, fold):
            for negatives in (False, True):
                network = weak_network(cfg, fold, negatives)
                made_from = partial(made_from_of, cfg, fold, negatives)
                refuse_unusable(record_of(network), made_from, again)


def has_learned(cfg: MasksConfig, fold: int) -> bool:
    """Say whether the pseudo-masks of a fold hold a class, so that there are networks."""
    return hold_a_class(cfg, training_files(cfg, fold)[0])


def control_of(cfg: MasksConfig) -> MasksConfig | None:
    """Return the settings of the control; None, and say why, if it is not there and current."""
    control = replace(cfg, shuffled=True)
    try:
        require_all(control)
    except UserError as error:
        print(f"the row {ROWS['shuffled_labels']!r} is left out: {error}")
        return None
    return control


def test_fold(cfg: MasksConfig, fold: int, control: MasksConfig | None) -> Tested:
    """Return what every row says of the test images of a fold, and how right it is."""
    from medood.data.dataset import load_patches
    from medood.evaluation.rows import predicted_by, tested
    from weak.truth import true_files

    labels, _, test = fold_labels(cfg, fold)
    patches = load_patches(cfg, true_files(cfg, [labels.names[index] for index in test]))
    found = {**from_maps(cfg, fold), **from_networks(cfg, fold, patches)}
    if control:
        # what has learned nothing finds nothing
        found["shuffled_labels"] = found["all_background"]
        if has_learned(control, fold):
            network = {"shuffled_labels": weak_network(control, fold)}
            found |= predicted_by(cfg, network, patches.images)
    predicted = {name: found[name] for name in ROWS if name in found}
    patients = [labels.patients[index] for index in test]
    return tested(patches, patients, predicted, len(cfg.class_names))


def from_maps(cfg: MasksConfig, fold: int) -> dict[str, Tensor]:
    """Return what needs no segmentation network, by row, uint8 (N, P, P) of the test images."""
    import torch

    from medood.data.dataset import load_patches
    from weak.baselines import likeliest, otsu_masks

    labels, _, test = fold_labels(cfg, fold)
    paths = [image_paths(cfg, labels)[index] for index in test]
    images = load_patches(cfg, [(path, None) for path in paths]).images
    logits, _ = read_maps(cfg, fold, paths, "logits")
    contrast = {"contrast": by_seeds(cfg, fold)} if cfg.method == "contrast" else {}
    return {
        "all_background": torch.zeros(images.shape[:3], dtype=torch.uint8),
        "threshold": otsu_masks(images, likeliest(logits)),
        "centre_prior": by_place(cfg, fold),
        "cam": detected(cfg, fold, "cam"),
        "grad_cam_pp": detected(cfg, fold, "grad_cam_pp"),
        **contrast,
        "irnet": read_masks(cfg, fold, paths),
    }


def detected(cfg: MasksConfig, fold: int, kind: str) -> Tensor:
    """Return where the maps of the test images exceed their threshold, uint8 (N, P, P)."""
    from weak.maps import resized
    from weak.thresholds import detection_threshold, masks_of

    labels, train, test = fold_labels(cfg, fold)
    raw, held = read_maps(cfg, fold, image_paths(cfg, labels), kind)
    by_class = zip(raw[train].unbind(1), held[train].unbind(1), strict=True)
    limits = [detection_threshold(one.amax((1, 2)), has) for one, has in by_class]
    return masks_of(resized(raw[test], [cfg.patch_size] * 2), held[test], limits)


def by_seeds(cfg: MasksConfig, fold: int) -> Tensor:
    """Return the maps of cfg.method of the test images, cut to the area: uint8 (N, P, P)."""
    from weak.maps import resized
    from weak.thresholds import masks_of, thresholds_of

    labels, train, test = fold_labels(cfg, fold)
    seeds, held, areas = read_seeds(cfg, fold, image_paths(cfg, labels))
    limits = thresholds_of(seeds[train], held[train], areas)
    return masks_of(resized(seeds[test], [cfg.patch_size] * 2), held[test], limits)


def by_place(cfg: MasksConfig, fold: int) -> Tensor:
    """Return what the mean map of the training images says of the test images, uint8 (N, P, P)."""
    from weak.baselines import centre_prior
    from weak.maps import resized
    from weak.thresholds import masks_of, thresholds_of

    labels, train, test = fold_labels(cfg, fold)
    seeds, held, areas = read_seeds(cfg, fold, image_paths(cfg, labels))
    prior = centre_prior(seeds[train], held[train])
    everywhere = prior.expand(len(train), -1, -1, -1)
    limits = thresholds_of(everywhere, held[train], areas)
    same = resized(prior[None], [cfg.patch_size] * 2).expand(len(test), -1, -1, -1)
    return masks_of(same, held[test], limits)


def read_masks(cfg: MasksConfig, fold: int, paths: list[Path]) -> Tensor:
    """Return the pseudo-masks of images, uint8 (N, P, P)."""
    import torch

    from medood.data.images import read_mask

    read = [read_mask(masks_folder(cfg, fold) / path.name, len(cfg.class_names)) for path in paths]
    return torch.stack([torch.from_numpy(mask) for mask in read])


def from_networks(cfg: MasksConfig, fold: int, patches: Patches) -> dict[str, Tensor]:
    """Return what the segmentation networks of a fold say of its test images, by row."""
    from medood.evaluation.rows import predicted_by

    folders = {
        "positives_only": weak_network(cfg, fold, negatives=False),
        "segmentation": weak_network(cfg, fold),
        "supervised": train_supervised(cfg, fold),
    }
    return predicted_by(cfg, folders, patches.images)


def train_supervised(cfg: MasksConfig, fold: int) -> Path:
    """Return the folder of the network trained on the true masks of a fold's training images."""
    from medood.training.segmentation import train_fold
    from weak.truth import true_files

    labels, train, _ = fold_labels(cfg, fold)
    folder = cfg.workspace / "models" / f"{fold}_{cfg.model_name}_supervised"
    train_fold(cfg, fold, true_files(cfg, [labels.names[index] for index in train]), [], folder)
    return folder


if __name__ == "__main__":
    run(evaluate, MasksConfig())
