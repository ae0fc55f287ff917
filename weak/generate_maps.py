"""Compute where the classifiers see each class: CAM, Grad-CAM and Grad-CAM++.

Reads   weak/Images, weak/classifier/<fold>_<encoder>/      (train_classifier.py)
Writes  weak/maps/<fold>_<encoder>/<image>.npz              float16 (C, P / 4, P / 4) of each kind,
                                                            and the logits, float32 (C,)
        weak/maps/<fold>_<encoder>/held.csv                 the classes of each image
        weak/maps/<fold>_<encoder>/areas.json               the share of an image per class; not
                                                            with method = unet
        weak/maps/<fold>_<encoder>/maps.png                 a contact sheet of training images

The classes of a training image are those of its label, those of a test image are predicted by the
plain classifiers: maps and logits are the mean of theirs. With method = "contrast", `contrast` is
CAM too, of the others. With method = "unet", weak/maps/<fold>_pooled_<model>/ has `unet`: log-odds,
float16 (C, P, P).
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch import Tensor

from medood.data.files import csv_text, read_table, reading, write_json, write_text
from medood.data.workspace import data_name
from medood.evaluation.figures import draw_rows
from medood.models.network import pick_device
from medood.runs.command_line import run
from weak.arrays import caption, load_images, some_of
from weak.classifier import kinds_of, load_classifiers
from weak.image_labels import with_classes
from weak.maps import areas, maps_of, normalised
from weak.pooled import seen_by
from weak.products import MAPS, classifier_folder, fold_labels, image_paths, make_folds, maps_folder
from weak.settings import IRNetConfig, MapsConfig

HELD, AREAS = "held.csv", "areas.json"
SHOWN = 8  # images in the contact sheet


def generate_maps(cfg: MapsConfig) -> None:
    """Write the maps of every fold, of training and of test images."""
    make_folds(with_classes(cfg), MAPS, write_maps)


def write_maps(cfg: MapsConfig, fold: int, folder: Path) -> None:
    """Write the maps of all images by the classifiers of a fold into a folder."""
    labels, train, test = fold_labels(cfg, fold)
    paths, device = image_paths(cfg, labels), pick_device(cfg.device)
    images, trained = load_images(cfg, paths), classifier_folder(cfg, fold)
    classifiers = {kind: load_classifiers(cfg, trained, kind, device) for kind in kinds_of(cfg)}
    if cfg.is_pooled:
        seen, logits = seen_by(cfg, classifiers["pooled"], images, device)
        maps = {"unet": seen}
    else:
        maps, logits = maps_of(cfg, classifiers, images, device)
    held = logits > 0
    held[train] = torch.from_numpy(labels.held[train])
    if "cam" in maps:
        found = areas(maps["cam"][train], held[train])
        write_json(folder / AREAS, dict(zip(labels.classes, found, strict=True)))
    for index, path in enumerate(paths):
        arrays = {kind: of_kind[index].numpy().astype(np.float16) for kind, of_kind in maps.items()}
        np.savez_compressed(folder / f"{path.stem}.npz", logits=logits[index].numpy(), **arrays)
    sides = np.where(np.isin(range(len(paths)), train), "train", "test")
    rows = [
        [path.stem, side, *map(int, classes)]
        for path, side, classes in zip(paths, sides, held.tolist(), strict=True)
    ]
    write_text(folder / HELD, csv_text(["img_name", "split", *labels.classes], rows))
    shown = some_of([index for index in train if held[index].any()], SHOWN)
    if cfg.is_pooled:
        maps["unet"] = maps["unet"].sigmoid()
    columns = {"image": images[shown]}
    for kind, of_kind in maps.items():
        columns[kind] = normalised(of_kind[shown], held[shown]).amax(1)
    names = [caption(paths[index], labels.classes, held[index]) for index in shown]
    title = f"{data_name(cfg.workspace)}, the highest map of the classes present"
    draw_rows(folder / "maps.png", title, names, columns, cfg.classes)
    print(f"{maps_folder(cfg, fold)}: maps of {len(paths)} images, {len(test)} of them to test")


def read_maps(cfg: MapsConfig, fold: int, paths: list[Path], kind: str) -> tuple[Tensor, Tensor]:
    """Return the maps of images, float32 (N, C, h, w), and the classes of each, bool (N, C).

    kind: one of the arrays of an image's file; of `logits`, (N, C).
    """
    folder = maps_folder(cfg, fold)
    rows = {row["img_name"]: row for row in read_table(folder / HELD)}
    held = [[rows[path.stem][name] == "1" for name in cfg.class_names[1:]] for path in paths]
    maps = []
    for path in paths:
        of_image = folder / f"{path.stem}.npz"
        with reading(of_image), np.load(of_image) as arrays:
            maps.append(arrays[kind])
    return torch.from_numpy(np.stack(maps)).float(), torch.tensor(held)


def read_seeds(
    cfg: IRNetConfig, fold: int, paths: list[Path]
) -> tuple[Tensor, Tensor, list[float]]:
    """Return the maps of cfg.method of images, each divided by its maximum.

    And the classes of each image, and the share of an image that each class covers. Maps and
    classes: as read_maps returns them.
    """
    maps, held = read_maps(cfg, fold, paths, cfg.method)
    path = maps_folder(cfg, fold) / AREAS
    with reading(path):
        found = json.loads(path.read_text())
    return normalised(maps, held), held, [found[name] for name in cfg.class_names[1:]]


if __name__ == "__main__":
    run(generate_maps, MapsConfig())
