"""Patches decoded once, and held as uint8 until a batch is made."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from config import Config
from medood.data.files import in_threads
from medood.data.images import read_image, read_mask, require_side
from medood.data.memory import GB, exceeds_memory, memory_limit, zeros
from medood.data.names import name_of
from medood.data.workspace import Pair
from medood.processes import say_once

CHUNK = 64  # patches to process at once: a copy of all of them may not fit into memory


@dataclass(frozen=True)
class Patches:
    """N patches of P x P pixels."""

    names: list[str]
    images: Tensor  # uint8 (N, P, P, 3), RGB
    masks: Tensor  # uint8 (N, P, P), the class, or UNSURE; all 0 for an OoD patch
    is_ood: Tensor  # bool (N,)
    mapped: bool = False  # whether images and masks lie in files: see medood/data/memory.py

    def __len__(self) -> int:
        return len(self.names)


def load_patches(cfg: Config, files: list[Pair]) -> Patches:
    """Read patches; a patch without a mask is an OoD patch.

    Raises UserError for a patch that is not patch_size pixels wide and high.
    """
    side = cfg.patch_size
    shape = len(files), side, side
    size = 4 * len(files) * side**2  # bytes: three colours and a class
    if mapped := exceeds_memory(cfg, size):
        say_once(
            f"{len(files)} patches, {size / GB:.3g} GB, lie in a file in {cfg.workspace} while they"
            f" are used: max_memory is {memory_limit(cfg) / GB:.3g} GB"
        )
    images, masks = zeros(cfg, (*shape, 3), mapped), zeros(cfg, shape, mapped)
    read_truth = partial(read_mask, classes=len(cfg.class_names))

    def read(index: int) -> None:
        image, mask = files[index]
        for path, reader, out in ((image, read_image, images), (mask, read_truth, masks)):
            if path is not None:
                pixels = reader(path)
                require_side(path, pixels, side)
                out[index] = torch.from_numpy(pixels)

    in_threads(read, range(len(files)), "reading patches")
    return Patches(
        [name_of(image) for image, _ in files],
        images,
        masks,
        torch.tensor([mask is None for _, mask in files], dtype=torch.bool),
        mapped,
    )
