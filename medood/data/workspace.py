"""Where everything is: the user's data in any layout, and what the steps generate from them."""

from collections.abc import Sequence
from pathlib import Path

from config import Config, UserError
from medood.data.files import pngs
from medood.data.images import IMAGE_ENDINGS
from medood.data.names import by_name, name_of, plain, stem_of
from medood.data.records import BadFiles, record_of

LIST_ENDING = "Image_Patchs.csv"  # of the list of a fold
Pair = tuple[Path, Path | None]  # image and mask of a patch; an OoD patch has no mask
SOURCE_PREFIX = "source-"  # of the name of a patch that was cut from an image of ood_source
SAMPLE_NAME = "SAMPLE: synthetic tissue, not Lizard"
SAMPLE_MARK = "SAMPLE.txt"  # in a workspace whose tissue was drawn by medood/sample.py


def region_images(cfg: Config) -> list[Path]:
    """Return the images of `images`, or of Lizard in any layout its archives unpack to; or []."""
    if cfg.images is not None:
        return list_images(cfg.images)
    folders = ("lizard_images", "lizard_images1", "lizard_images2")
    return _find(cfg.workspace, folders, ".png", depth=1)


def region_labels(cfg: Config) -> list[Path]:
    """Return the masks of `masks`, or the .mat files in Labels/ or Lizard_Labels/Labels/; or []."""
    if cfg.masks is not None:
        return list_images(cfg.masks)
    return _find(cfg.workspace, ("labels", "lizard_labels"), ".mat", depth=2)


def has_instances(cfg: Config) -> bool:
    """Say whether the labels separate nuclei from each other, as Lizard's do."""
    return cfg.masks is None and bool(region_labels(cfg))


def official_table(workspace: Path) -> Path | None:
    """Return Lizard's info.csv, or None."""
    found = _find(workspace, ("labels", "lizard_labels"), "info.csv", depth=1)
    own = workspace / "info.csv"
    return own if own.exists() else (found[0] if found else None)


def require_data(cfg: Config) -> None:
    """Raise UserError, saying what belongs where, if there are no data to start from."""
    workspace = cfg.workspace
    prepared = all(pngs(workspace / f"{kind}_Patchs") for kind in ("Image", "Mask"))
    if prepared or (region_images(cfg) and region_labels(cfg)):
        return
    raise UserError(
        f"no data in {workspace.resolve()}: looked for Lizard_Images1/ + Lizard_Images2/ (or"
        " Lizard_Images/) with .png and Lizard_Labels/Labels/ (or Labels/) with .mat, and for"
        " prepared Image_Patchs/ + Mask_Patchs/. Add Lizard (README.md says where to get it), name"
        " another folder with --workspace, set images and masks to your folders, or try"
        " `python main.py --sample`"
    )


def _find(workspace: Path, folders: tuple[str, ...], ending: str, depth: int) -> list[Path]:
    """Files with `ending` in the named folders (any case) and `depth` levels of folders below."""
    if not workspace.is_dir():
        return []
    roots = [folder for folder in workspace.iterdir() if folder.name.lower() in folders]
    found = [
        path
        for root in roots
        for level in range(depth + 1)
        for path in root.glob("*/" * level + "*")
        # macOS archives have a hidden `._name` next to each file
        if path.name.lower().endswith(ending) and not path.name.startswith(".")
    ]
    by_name(found, stem_of)  # no two with the same name
    return sorted(found, key=name_of)


def list_images(folder: Path, endings: tuple[str, ...] = IMAGE_ENDINGS) -> list[Path]:
    """Return the images in a user-supplied folder, by name; UserError if there is none.

    Two that differ only in their ending would give patches of the same name: refused.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: correct its name")
    found = [path for path in folder.glob("[!.]*") if path.suffix.lower() in endings]
    if not found:
        raise UserError(f"no image ({', '.join(endings)}) in {folder}: add some")
    return [*by_name(sorted(found, key=stem_of), stem_of).values()]


def pair_regions(cfg: Config) -> tuple[list[Path], list[Path], BadFiles]:
    """Return image and class mask of each region that has both, and what is wrong with the rest."""
    folder = cfg.workspace / "Semantic_Labels"
    masks, images = by_name(pngs(folder), stem_of), by_name(region_images(cfg), stem_of)
    bad = record_of(folder).bad_files
    unlabelled = images.keys() - masks.keys() - {Path(name).stem for name in bad}
    for name in sorted(unlabelled):
        path = images[name]
        bad[name_of(path)] = f"{path} has no label of the same name: add it, or remove the image"
    for name in sorted(masks.keys() - images.keys()):
        bad[f"{name}.png"] = f"region {name} has a label but no image: add it, or remove the label"
    names = [name for name in images if name in masks]
    return [images[name] for name in names], [masks[name] for name in names], bad


def data_name(workspace: Path) -> str:
    """Return the name of the data in tables and pictures; the sample is marked as synthetic."""
    return SAMPLE_NAME if (workspace / SAMPLE_MARK).exists() else plain(workspace.resolve().name)


def list_patch_pairs(workspace: Path) -> tuple[list[Path], list[Path]]:
    """Return image and mask of every patch; UserError where one lacks its pair."""
    images, masks = (by_name(pngs(workspace / f"{kind}_Patchs")) for kind in ("Image", "Mask"))
    if lone := images.keys() ^ masks.keys():
        raise UserError(
            f"{min(lone)} is only in one of Image_Patchs and Mask_Patchs ({len(lone)} in all): add"
            " the file of the same name, or remove it; if they were cut from regions,"
            " generate_patches.py regenerates both"
        )
    return [*images.values()], [masks[name] for name in images]


def fold_path(workspace: Path, fold: int) -> Path:
    """Return where the list of a fold is."""
    return workspace / "k_folds" / f"{fold}{LIST_ENDING}"


def id_files(workspace: Path, names: Sequence[str]) -> list[Pair]:
    """Return image and mask path of each ID patch, by its plain name."""
    images, masks = (
        files_in(workspace / folder, names) for folder in ("Image_Patchs", "Mask_Patchs")
    )
    return list(zip(images, masks, strict=True))


def ood_files(workspace: Path, names: Sequence[str]) -> list[Pair]:
    """Return image path and no mask of each OoD patch: all of it is background.

    It was cut from the ID set or, as its name says, is one of ood_source.
    """
    own = dict(zip(names, files_in(workspace / "OoD_Patchs", names), strict=True))
    folder = workspace / "OoD_Source_Patchs"
    own |= {name: folder / name for name in names if name.startswith(SOURCE_PREFIX)}
    return [(own[name], None) for name in names]


def files_in(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the paths of the patches with some plain names in a folder, existing or not."""
    there = by_name(pngs(folder))
    return [there.get(name, folder / name) for name in names]


def ranking_path(cfg: Config, fold: int) -> Path:
    """Return where the ranked candidates of a fold are."""
    return cfg.workspace / "HardOoD" / f"{fold}_{cfg.model_name}.csv"


def pct_path(cfg: Config, fold: int) -> Path:
    """Return where the estimate of a fold is."""
    return cfg.workspace / "HardOoD" / f"{fold}_{cfg.model_name}_pct.json"


def model_folder(cfg: Config, fold: int, ood: bool) -> Path:
    """Return where the baseline, or the Med-OoD network, of a fold is."""
    return cfg.workspace / "models" / f"{fold}_{cfg.model_name}{'_ood' if ood else ''}"


def weights_of(network: Path) -> Path:
    """Return the file of weights of a network: in its folder, or the file itself."""
    return network if network.is_file() else network / "model.safetensors"


def require_network(folder: Path) -> None:
    """Raise UserError if no network is in `folder`; a file counts as one of weights."""
    if not folder.exists():
        raise UserError(f"there is no folder {folder}: correct its name")
    if not folder.is_file() and not (folder / "config.json").is_file():
        raise UserError(
            f"no network (config.json, model.safetensors) in {folder}: name the folder of one, or"
            " train it"
        )
