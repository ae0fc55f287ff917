"""The prepared data of a workspace: what each folder is made from, and whether it still is.

    Semantic_Labels    from the labels            generate_semantic_labels.py
    Image_Patchs       from images and masks      generate_patches.py
    Mask_Patchs
    k_folds/*.csv      from the patches           generate_patches.py
    OoD_Patchs         from the patches           generate_unfiltered_oods.py
    OoD_Source_Patchs  from ood_source            generate_unfiltered_oods.py

What the user put there has no record, and is taken as it is. So is what has lost its sources.
"""

from collections.abc import Iterable
from pathlib import Path

from config import Config, UserError
from medood.data.files import (
    NUCLEI_LIST,
    list_images,
    list_patch_pairs,
    pngs,
    read_json,
    region_images,
    region_labels,
)
from medood.data.folds import fold_changes, left_out
from medood.data.images import read_image, read_mask
from medood.data.records import RECORD, BadFiles, bad_files, fingerprint, out_of_date, refuse_bad


def masks_record(cfg: Config, labels: list[Path]) -> dict:
    """Return what Semantic_Labels is made from."""
    values = list(cfg.mask_values or range(1, len(cfg.class_names)))
    return {"inputs": fingerprint(labels), "mask_values": values}


def patches_record(
    cfg: Config, images: list[Path], masks: list[Path], unpaired: Iterable[str]
) -> dict:
    """Return what Image_Patchs and Mask_Patchs are made from.

    unpaired: the names of images and labels that are left out, as pair_regions gives them.
    """
    folder = cfg.workspace / "Semantic_Labels"
    nuclei = [path for path in [folder / NUCLEI_LIST] if path.exists()]
    inputs = fingerprint([*images, *masks, *nuclei])
    return {"patch_size": cfg.patch_size, "inputs": inputs, "left out": sorted(unpaired)}


def oods_record(cfg: Config, images: list[Path], masks: list[Path]) -> dict:
    """Return what OoD_Patchs is made from."""
    inputs = {"inputs": fingerprint(images), "masks": fingerprint(masks)}
    return {"ood_fill": cfg.ood_fill, **inputs}


def sources_record(cfg: Config, images: list[Path]) -> dict:
    """Return what OoD_Source_Patchs is made from."""
    return {"patch_size": cfg.patch_size, "inputs": fingerprint(images)}


def pair_regions(cfg: Config) -> tuple[list[Path], list[Path], BadFiles]:
    """Return image and class mask of each region that has both, and what is wrong with the rest."""
    folder = cfg.workspace / "Semantic_Labels"
    masks = {path.stem: path for path in pngs(folder)}
    images = {path.stem: path for path in region_images(cfg)}
    bad = bad_files(folder)
    unlabelled = images.keys() - masks.keys() - {Path(name).stem for name in bad}
    for name in sorted(unlabelled):
        path = images[name]
        bad[path.name] = f"{path} has no label of its name: add it, or remove the image"
    for name in sorted(masks.keys() - images.keys()):
        bad[f"{name}.png"] = f"region {name} has a label but no image: add it, or remove the label"
    names = [name for name in images if name in masks]
    return [images[name] for name in names], [masks[name] for name in names], bad


def look_at_pair(image: Path, mask: Path, cfg: Config) -> None:
    """Raise UserError if a patch and its mask cannot be used."""
    if not image.exists() or not mask.exists():
        lost = mask if image.exists() else image
        raise UserError(f"{lost} is missing: put it there, or remove its partner")
    shapes = [
        read_image(image, cfg.max_pixels).shape[:2],
        read_mask(mask, len(cfg.class_names), cfg.max_pixels).shape,
    ]
    for path, (height, width) in zip((image, mask), shapes, strict=True):
        if (height, width) != (cfg.patch_size, cfg.patch_size):
            raise UserError(
                f"{path} is {width} x {height} pixels but patch_size is {cfg.patch_size}: set"
                " patch_size to its size, or make the patches anew"
            )


def whole_patches(path: Path, height: int, width: int, side: int) -> int:
    """Return how many whole patches an image of ood_source gives; UserError if it gives none."""
    if height < side or width < side:
        raise UserError(
            f"{path} is {width} x {height} pixels, smaller than a patch of {side}: remove it from"
            " ood_source or enlarge it"
        )
    return (height // side) * (width // side)


def is_prepared(workspace: Path) -> bool:
    """Say whether the user put the patches there."""
    folder = workspace / "Image_Patchs"
    return bool(pngs(folder)) and read_json(folder / RECORD) is None


def require_masks(cfg: Config) -> None:
    """Raise UserError if the class masks are not those that settings and labels give now."""
    if labels := region_labels(cfg):
        folder = cfg.workspace / "Semantic_Labels"
        _require(folder, masks_record(cfg, labels), "generate_semantic_labels.py")


def require_fresh(cfg: Config, oods: bool = False) -> None:
    """Raise UserError if patches and folds are not those that settings and sources give now.

    oods: look at the OoD patches too. Bad files are refused, unless they are to be skipped.
    """
    folder = cfg.workspace / "Image_Patchs"
    if _are_there(cfg.masks):
        require_masks(cfg)
    if _are_there(cfg.images):
        images, masks, bad = pair_regions(cfg)
        for made in (folder, cfg.workspace / "Mask_Patchs") if images else ():
            _require(made, patches_record(cfg, images, masks, bad), "generate_patches.py")
    refuse_bad(cfg, bad_files(folder) | bad_files(cfg.workspace / "k_folds"))
    for fold in cfg.folds:
        if why := fold_changes(cfg, fold):
            raise _old(cfg.workspace / "k_folds", f"fold {fold}: {why}", "generate_patches.py")
    if oods:
        pairs = list_patch_pairs(cfg.workspace, left_out(cfg.workspace).patches)
        made_by = "generate_unfiltered_oods.py"
        _require(cfg.workspace / "OoD_Patchs", oods_record(cfg, *pairs), made_by)
        if cfg.ood_source is not None:
            record = sources_record(cfg, list_images(cfg.ood_source))
            _require(cfg.workspace / "OoD_Source_Patchs", record, made_by)


def _are_there(sources: Path | None) -> bool:
    """Say whether the user's own folder still stands; None is Lizard's, found if it is there."""
    return sources is None or sources.is_dir()


def _require(folder: Path, record: dict, made_by: str) -> None:
    if read_json(folder / RECORD) is None:
        return  # the user's, or not made yet
    if why := out_of_date(folder, record):
        raise _old(folder, why, made_by)


def _old(folder: Path, why: str, made_by: str) -> UserError:
    cure = f"set back what changed, or run `python {made_by}` first"
    return UserError(f"{folder} is out of date ({why}): {cure}")
