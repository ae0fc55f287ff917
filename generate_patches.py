"""Cut regions and their class masks into patches, and split the patches into folds.

Reads   Lizard_Images/*.png, Semantic_Labels/*.png   (generate_semantic_labels.py)
Writes  Image_Patchs/<region>_<k>.png                RGB (P, P, 3); k counts row by row from 0
        Mask_Patchs/<region>_<k>.png                 uint8 (P, P)
        Instance_Patchs/<region>_<k>.png             uint16 (P, P), 0 or the nucleus in its region;
                                                     of Lizard's labels, which have instances
        k_folds/<fold>Image_Patchs.csv               which patches train, which test

With prepared patches and no regions, only missing fold lists are drawn.
"""

from pathlib import Path

import numpy as np

from config import CONFIG, Data, UserError
from medood.check import look_at_patches
from medood.data import records, workspace
from medood.data.files import csv_text, pngs
from medood.data.folds import PARTS, held_out, patches_there, read_list
from medood.data.grid import tile
from medood.data.images import read_image, read_mask, require_match, write_png
from medood.data.labels import read_label
from medood.data.names import by_name, name_of, stem_of
from medood.processes import on_main
from medood.runs.command_line import run
from medood.runs.jobs import for_each
from medood.runs.locks import locked
from medood.runs.products import CLASS_MASKS, FOLD, INSTANCE_PATCHES, PATCH_MASKS, PATCHES
from medood.runs.provenance import making, product_is_kept, require, write_product


def cut(image_path: Path, mask_path: Path, cfg: Data, images: Path, masks: Path) -> None:
    """Write the patches of one region."""
    if stem_of(image_path).startswith(workspace.SOURCE_PREFIX):
        raise UserError(f"{image_path} has the name of a patch of ood_source: rename it")
    image = read_image(image_path)
    mask = read_mask(mask_path, len(cfg.class_names))
    require_match(image_path, image, mask)
    pairs = zip(tile(image, cfg.patch_size), tile(mask, cfg.patch_size), strict=True)
    for k, (image_patch, mask_patch) in enumerate(pairs):
        name = f"{stem_of(image_path)}_{k}.png"
        write_png(images / name, image_patch)
        write_png(masks / name, mask_patch)


def cut_regions(cfg: Data) -> None:
    """Write Image_Patchs and Mask_Patchs."""
    require(cfg, CLASS_MASKS, images=True)
    regions, masks, bad = workspace.pair_regions(cfg)
    if not regions:
        records.refuse_bad(bad)
    with making(cfg, PATCHES, PATCH_MASKS, bad=bad) as folders:
        if not folders:
            return
        images, out = folders
        jobs = [(*pair, cfg, images, out) for pair in zip(regions, masks, strict=True)]
        for_each(cut, jobs, cfg, "patches", bad)


def cut_nuclei(label_path: Path, classes: int, patch_size: int, out: Path) -> None:
    """Write the patches of the nuclei of one region: uint16, their ids where those fit."""
    inst_map, ids, _ = read_label(label_path, classes)
    if ids.max(initial=0) > np.iinfo(np.uint16).max:
        inst_map = np.unique(inst_map, return_inverse=True)[1].reshape(inst_map.shape)
    for k, patch in enumerate(tile(inst_map.astype(np.uint16), patch_size)):
        write_png(out / f"{stem_of(label_path)}_{k}.png", patch)


def cut_instances(cfg: Data) -> None:
    """Write Instance_Patchs, of the regions that have a class mask."""
    with making(cfg, INSTANCE_PATCHES) as folders:
        for out in folders:
            masks = by_name(pngs(cfg.workspace / "Semantic_Labels"), stem_of)
            size = len(cfg.class_names), cfg.patch_size
            labels = [path for path in workspace.region_labels(cfg) if stem_of(path) in masks]
            for_each(cut_nuclei, [(path, *size, out) for path in labels], cfg, "nuclei", {})


def write_folds(cfg: Data, names: list[str]) -> None:
    """Draw the list of every fold; user-supplied lists are used as they are."""
    if len({fold % PARTS for fold in cfg.folds}) < min(len(cfg.folds), PARTS):
        print(f"folds {cfg.folds}: some test the same part, so not every patch is tested once")
    for fold in cfg.folds:
        path = workspace.fold_path(cfg.workspace, fold)
        if product_is_kept(cfg, FOLD, fold):
            read_list(path, *patches_there(cfg.workspace))  # raises if it is not a list
            continue
        tested = held_out(cfg, names, fold)
        rows = [(i, name, "test" if name in tested else "train") for i, name in enumerate(names)]
        with locked(cfg.workspace, [path.name]):
            write_product(cfg, FOLD, fold, csv_text(["", "img_name", "obj_tag"], rows))


@on_main
def generate_patches(cfg: Data = CONFIG) -> None:
    """Write the patches of every region and the list of every fold.

    Raises UserError at the end if regions are bad, unless they are to be skipped, and at once if
    user-supplied patches are.
    """
    workspace.require_data(cfg)
    patches = cfg.workspace / "Image_Patchs"
    labelled = workspace.region_labels(cfg) or (cfg.workspace / "Semantic_Labels").exists()
    if workspace.region_images(cfg) and labelled:
        cut_regions(cfg)
        if workspace.has_instances(cfg):
            cut_instances(cfg)
    if records.record_of(patches).is_yours:
        look_at_patches(cfg)
    bad = records.record_of(patches).bad_files
    images, _ = workspace.list_patch_pairs(cfg.workspace)
    write_folds(cfg, [*map(name_of, images)])
    folds = ", ".join(map(str, cfg.folds))
    without = f" (bad files skipped: {len(bad)})" if bad else ""
    print(f"{patches}: {len(images)} patches{without}, split for fold {folds}")
    records.refuse_bad(bad, cfg.skip_bad_files)


if __name__ == "__main__":
    run(generate_patches, Data())
