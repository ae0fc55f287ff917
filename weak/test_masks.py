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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import UserError
from medood.data.records import record_of
from medood.data.workspace import weights_of
from medood.runs.command_line import run
from medood.runs.provenance import command, network_made_from, require
from weak.generate_maps import read_maps
from weak.image_labels import with_classes
from weak.products import fold_labels, image_paths, masks_folder
from weak.settings import MasksConfig
from weak.train_segmentation import training_files, weak_network

if TYPE_CHECKING:
    from torch import Tensor

    from medood.data.dataset import Patches
    from medood.evaluation.scores import Tally

# what is tested, in the order of the table
ROWS = {
    "all_background": "all background",
    "threshold": "grey threshold (Otsu)",
    "centre_prior": "mean of the maps",
    "cam": "CAM",
    "grad_cam_pp": "Grad-CAM++",
    "irnet": "IRNet",
    "positives_only": "segmentation, without negatives",
    "segmentation": "segmentation",
    "shuffled_labels": "segmentation, labels shuffled",
    "supervised": "full supervision",
}
FLOOR = "centre_prior"


@dataclass(frozen=True)
class Tested:
    """What was tested on the test images of a fold."""

    patches: Patches  # with their true masks
    patients: list[str]
    maps: Tensor  # float (N, C, P, P), CAM
    predicted: dict[str, Tensor]  # by row: the class of each pixel, uint8 (N, P, P)
    tallies: dict[str, Tally]


def evaluate(cfg: MasksConfig) -> None:
    """Test every row on the test images of every fold; write scores, tables and the report."""
    cfg = with_classes(cfg)
    if cfg.masks is None:
        raise UserError(
            "masks = None: name the folder of true masks, or the CSV of run lengths, with --masks"
        )
    require(cfg, "maps", "pseudo-masks")
    for fold in cfg.folds:
        require_network(cfg, fold)
    from weak.report import write_report  # here, so that --help works without torch

    write_report(cfg, {fold: test_fold(cfg, fold) for fold in cfg.folds})


def require_network(cfg: MasksConfig, fold: int) -> None:
    """Raise UserError if the network of a fold is missing, or learned from other masks."""
    again = command(cfg, "pseudo-masks", fold).replace("generate_masks", "train_segmentation")
    positives, _ = training_files(cfg, fold)
    for folder in (weak_network(cfg, fold, negatives=False), weak_network(cfg, fold)):
        if not weights_of(folder).is_file():
            raise UserError(f"{folder} is missing: run `{again}` first")
    now = network_made_from(cfg, fold, positives)
    if why := record_of(weak_network(cfg, fold, negatives=False)).out_of_date(now):
        raise UserError(f"{folder} is out of date ({why}): run `{again}` again")


def test_fold(cfg: MasksConfig, fold: int) -> Tested:
    """Return what every row says of the test images of a fold, and how right it is."""
    from medood.data.dataset import load_patches
    from medood.evaluation.scores import Tally
    from weak.maps import normalised, resized
    from weak.truth import true_files

    labels, _, test = fold_labels(cfg, fold)
    paths = [image_paths(cfg, labels)[index] for index in test]
    patches = load_patches(cfg, true_files(cfg, [labels.names[index] for index in test]))
    predicted = {**from_maps(cfg, fold), **from_networks(cfg, fold, patches)}
    tallies = {}
    predicted = {name: predicted[name] for name in ROWS if name in predicted}
    for name, masks in predicted.items():
        tallies[name] = Tally(len(patches), len(cfg.class_names))
        tallies[name].add(slice(None), one_hot(masks, len(cfg.class_names)), patches.masks)
    maps, held = read_maps(cfg, fold, paths, "cam")
    return Tested(
        patches,
        [labels.patients[index] for index in test],
        resized(normalised(maps, held), [cfg.patch_size] * 2),
        predicted,
        tallies,
    )


def one_hot(masks: Tensor, classes: int) -> Tensor:
    """Return masks, integers (N, H, W), as the probabilities (N, C, H, W) of a sure network."""
    from torch.nn.functional import one_hot

    return one_hot(masks.long(), classes).permute(0, 3, 1, 2)


def from_maps(cfg: MasksConfig, fold: int) -> dict[str, Tensor]:
    """Return what needs no segmentation network, by row, uint8 (N, P, P) of the test images."""
    import torch

    from medood.data.dataset import load_patches
    from medood.data.images import read_mask
    from weak.baselines import centre_prior, likeliest, otsu_masks
    from weak.maps import normalised, resized
    from weak.thresholds import areas, detection_threshold, masks_of, thresholds_of

    labels, train, test = fold_labels(cfg, fold)
    every, size = image_paths(cfg, labels), [cfg.patch_size] * 2
    paths = [every[index] for index in test]
    images = load_patches(cfg, [(path, None) for path in paths]).images
    found = {"all_background": torch.zeros(images.shape[:3], dtype=torch.uint8)}
    for kind in ("cam", "grad_cam_pp"):
        raw, held = read_maps(cfg, fold, every, kind)
        by_class = zip(raw[train].unbind(1), held[train].unbind(1), strict=True)
        limits = [detection_threshold(one.amax((1, 2)), has) for one, has in by_class]
        found[kind] = masks_of(resized(raw[test], size), held[test], limits)
    raw, held = read_maps(cfg, fold, every, "cam")
    prior = centre_prior(normalised(raw, held)[train], held[train])
    everywhere = prior.expand(len(train), -1, -1, -1)
    limits = thresholds_of(everywhere, held[train], areas(raw[train], held[train]))
    same = resized(prior[None], size).expand(len(test), -1, -1, -1)
    found["centre_prior"] = masks_of(same, held[test], limits)
    logits, _ = read_maps(cfg, fold, paths, "logits")
    found["threshold"] = otsu_masks(images, likeliest(logits))
    read = [read_mask(masks_folder(cfg, fold) / path.name, len(cfg.class_names)) for path in paths]
    found["irnet"] = torch.stack([torch.from_numpy(mask) for mask in read])
    return found


def from_networks(cfg: MasksConfig, fold: int, patches: Patches) -> dict[str, Tensor]:
    """Return what the segmentation networks of a fold say of its test images, by row."""
    import torch

    from medood.models.checkpoints import load_model
    from medood.models.inference import predict
    from medood.models.network import pick_device

    control = replace(cfg, shuffled=True)
    folders = {
        "positives_only": weak_network(cfg, fold, negatives=False),
        "segmentation": weak_network(cfg, fold),
        "shuffled_labels": weak_network(control, fold),
        "supervised": train_supervised(cfg, fold),
    }
    cfg, device = replace(cfg, precision="float32"), pick_device(cfg)
    found = {}
    for name, folder in folders.items():
        if name == "shuffled_labels" and not folder.exists():
            continue
        model, said = load_model(folder, cfg), []
        for _, probability in predict(cfg, model, patches.images, device, f"testing {name}"):
            said.append(probability.argmax(1).to("cpu", torch.uint8))
        found[name] = torch.cat(said)
    return found


def train_supervised(cfg: MasksConfig, fold: int) -> Path:
    """Return the folder of the network trained on the true masks of a fold's training images."""
    from medood.training.loop import train_fold
    from weak.truth import true_files

    labels, train, _ = fold_labels(cfg, fold)
    folder = cfg.workspace / "models" / f"{fold}_{cfg.model_name}_supervised"
    train_fold(cfg, fold, true_files(cfg, [labels.names[index] for index in train]), [], folder)
    return folder


if __name__ == "__main__":
    run(evaluate, MasksConfig())
