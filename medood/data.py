"""Patches in memory: decoded once, held as uint8 until a batch is made."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from config import Config, UserError
from medood.files import SOURCE_PREFIX, list_pngs, read_image, read_mask

Pair = tuple[Path, Path | None]  # image and mask of a patch; an OoD patch has no mask


@dataclass(frozen=True)
class Patches:
    """N patches of P x P pixels."""

    names: list[str]
    images: Tensor  # uint8 (N, P, P, 3), RGB
    masks: Tensor  # uint8 (N, P, P), 0..6; all 0 for an OoD patch
    is_ood: Tensor  # bool (N,)

    def __len__(self) -> int:
        return len(self.names)


def id_files(cfg: Config, names: list[str]) -> list[Pair]:
    """Return image and mask path of each ID patch."""
    folders = cfg.workspace / "Image_Patchs", cfg.workspace / "Mask_Patchs"
    return [(folders[0] / name, folders[1] / name) for name in names]


def ood_files(cfg: Config, names: list[str]) -> list[Pair]:
    """Return image path and no mask of each OoD patch: its truth is background everywhere."""
    return [(ood_path(cfg, name), None) for name in names]


def ood_path(cfg: Config, name: str) -> Path:
    """Return where an OoD patch lies: one cut from the ID set, or one of ood_source."""
    if cfg.ood_source is not None and name.startswith(SOURCE_PREFIX):
        return cfg.workspace / "OoD_Source_Patchs" / name
    return cfg.workspace / "OoD_Patchs" / name


def ood_candidates(cfg: Config, names: list[str]) -> list[str]:
    """Return the OoD patches to mine for a fold with these training patches."""
    if cfg.ood_source is None:
        return names
    folder = cfg.workspace / "OoD_Source_Patchs"
    of_source = [path.name for path in list_pngs(folder, made_by="generate_unfiltered_oods.py")]
    return of_source if cfg.ood_source_use == "instead" else names + of_source


def load_patches(cfg: Config, files: list[Pair]) -> Patches:
    """Read patches; a patch without a mask is an OoD patch.

    Raises UserError for a patch that is not patch_size pixels wide and high.
    """
    side = cfg.patch_size
    images = np.empty((len(files), side, side, 3), np.uint8)
    masks = np.zeros((len(files), side, side), np.uint8)

    def read(index: int) -> None:
        image, mask = files[index]
        readers = [(image, read_image, images)] + [(mask, read_mask, masks)] * (mask is not None)
        for path, reader, out in readers:
            pixels = reader(path)
            if pixels.shape[:2] != (side, side):
                raise UserError(
                    f"{path} is {pixels.shape[1]} x {pixels.shape[0]} pixels but patch_size is"
                    f" {side}: set patch_size to its size, or make the patches anew"
                )
            out[index] = pixels

    with ThreadPoolExecutor() as pool:
        done = pool.map(read, range(len(files)))
        list(tqdm(done, total=len(files), desc="reading patches", leave=False, disable=None))
    return Patches(
        [image.name for image, _ in files],
        torch.from_numpy(images),
        torch.from_numpy(masks),
        torch.tensor([mask is None for _, mask in files], dtype=torch.bool),
    )
