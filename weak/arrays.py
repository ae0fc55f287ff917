"""Images, arrays of them and weights, as the steps of weak/ pass them on."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from config import Config
from medood.data.dataset import load_patches
from medood.data.files import reading
from medood.data.images import read_mask
from medood.models.inference import batch_size

T = TypeVar("T")


def load_images(cfg: Config, paths: list[Path]) -> Tensor:
    """Return images of one size, RGB uint8 (N, P, P, 3)."""
    return load_patches([(path, None) for path in paths], cfg.image_size, 1).images


def on_device(images: Tensor, device: torch.device, task: str) -> Iterator[Tensor]:
    """Yield images, RGB uint8 (N, P, P, 3), some at a time: floats (n, 3, P, P) on a device."""
    for part in tqdm(images.split(batch_size(device)), task, leave=False, disable=None):
        yield part.to(device).permute(0, 3, 1, 2).float()


def read_masks(cfg: Config, folder: Path, paths: list[Path]) -> Tensor:
    """Return the masks of images, from a folder, by their names: uint8 (N, P, P)."""
    masks = [read_mask(folder / path.name, len(cfg.class_names)) for path in paths]
    return torch.from_numpy(np.stack(masks))


def write_arrays(file: Path, paths: list[Path], values: Tensor, kind: type[np.generic]) -> None:
    """Write an array for each image, of values (N, ...), as a kind of numbers."""
    arrays = values.numpy().astype(kind)
    by_image = {path.stem: of_image for path, of_image in zip(paths, arrays, strict=True)}
    np.savez_compressed(file, **by_image)


def read_arrays(file: Path, paths: list[Path]) -> Tensor:
    """Return what write_arrays wrote for some images, (N, ...)."""
    with reading(file), np.load(file) as arrays:
        return torch.from_numpy(np.stack([arrays[path.stem] for path in paths]))


def save_weights(network: nn.Module, file: Path) -> None:
    """Write the weights of a network."""
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, file)


def load_weights(network: nn.Module, file: Path) -> nn.Module:
    """Return a network, in eval mode, with the weights that save_weights wrote."""
    with reading(file):
        found = load_file(file)  # of an earlier version, IRNet's has more
        network.load_state_dict({name: found[name] for name in network.state_dict()})
    return network.eval()


def some_of(items: Sequence[T], count: int) -> list[T]:
    """Return `count` of some items, or all of them, spread evenly from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)
    return [items[place] for place in places]


def caption(path: Path, classes: Sequence[str], held: Iterable[bool]) -> str:
    """Return the caption of an image in a picture: its name, and its classes."""
    return f"{path.stem}\n{', '.join(compress(classes, held))}"
