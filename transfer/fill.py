"""A learned fill: the windows that a generator learns from, and what it puts where nuclei stood.

Few patches hold no nucleus, but many small windows of them do not. Windows with nuclei and without
have one size and are cut out of the same patches, so that scale and blur tell nothing. A window
without a nucleus counts only if it looks like the tissue between nuclei: many show glass, fat, ink
or blood.

A place, int64 (3,), names a window: the number of its patch, its top and its left in pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from config import Config, UserError
from generate_unfiltered_oods import remove_foreground
from medood.data.dataset import CHUNK, Patches
from medood.data.files import reading
from medood.data.labels import BACKGROUND, is_foreground
from medood.data.workspace import fill_generator_folder
from medood.models.inference import batch_size
from medood.runs.commands import command
from transfer.settings import FillConfig, TransferConfig
from transfer.training import WEIGHTS, load_generator, scaled

# Pixels; every patch_size is a multiple. Of CoNSeP's 18 training regions, a fold has 539 to 887
# windows of 32 pixels, of 16 or 17 regions, that pass for tissue; of 64 it has 30 to 71, of 5 to 9.
SIDE = 32
STRIDE = 16  # pixels from one window to the next
MARGIN = 2  # pixels around a nucleus that may still show it: labels are drawn by hand
NUCLEI = 0.1  # of a window with nuclei, at least so much is theirs
MIDDLE = 0.9  # so many of the windows with nuclei say, by each measure, what tissue looks like
PLAIN = ("zero", "mean", "inpaint")  # the fills that need no learning
SPREAD = 100  # steps in which a membrane spreads from the edge of a hole
MOST = 20_000  # windows of a kind: Lizard has half a million


class Looks(NamedTuple):
    """Between which limits, float (4,) each, a window looks like tissue: see `measure`."""

    low: Tensor
    high: Tensor

    def of(self, patches: Patches, places: Tensor) -> Tensor:
        """Return those places, of some (K, 3) without a hole, whose windows look like tissue."""
        images = cut(patches.images, places)
        measures = measure(images, torch.zeros(images.shape[:3], dtype=torch.bool))
        return places[((measures >= self.low) & (measures <= self.high)).all(1)]


# ---------------------------------------------------------------- windows


def holes_of(masks: Tensor) -> Tensor:
    """Return what has to go: nuclei, and MARGIN pixels around them, as bool (N, P, P).

    masks: class masks (N, P, P); unsure pixels go too, as they may be of nuclei.
    """
    size = 2 * MARGIN + 1
    grown = [
        F.max_pool2d((part != BACKGROUND).float()[:, None], size, 1, MARGIN)[:, 0] > 0
        for part in masks.split(CHUNK)
    ]
    return torch.cat(grown)


def find_windows(patches: Patches, holes: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the places (K, 3) of windows with nuclei, and of windows without a pixel of a hole.

    holes: of the patches, see holes_of. No window reaches into the black around a region. At most
    MOST of each kind are drawn, by `seed`.
    """
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start in range(0, len(patches), CHUNK):
        part = slice(start, start + CHUNK)
        covered = _share(holes[part])
        nuclei = _share(is_foreground(patches.masks[part])) >= NUCLEI
        inside = _share(_padding(patches.images[part])) == 0
        for places, kind in zip(found, (nuclei & (covered < 1), covered == 0), strict=True):
            place = (kind & inside).nonzero() * torch.tensor([1, STRIDE, STRIDE])
            places.append(place + torch.tensor([start, 0, 0]))
    with_nuclei, without = (draw(torch.cat(places), MOST, seed) for places in found)
    return with_nuclei, without


def draw(values: Tensor, most: int, seed: int) -> Tensor:
    """Return at most so many of some values (K, ...), in their order."""
    generator = torch.Generator().manual_seed(seed)
    return values[torch.randperm(len(values), generator=generator)[:most].sort().values]


def _padding(images: Tensor) -> Tensor:
    """Return the rows and columns of images (N, P, P, 3) that are all black: bool (N, P, P)."""
    black = (images == 0).all(-1)
    return black.all(2, keepdim=True) | black.all(1, keepdim=True)


def _share(pixels: Tensor) -> Tensor:
    """Return the share of each window that is true: float (N, rows, columns) of (N, P, P)."""
    return F.avg_pool2d(pixels.float()[:, None], SIDE, STRIDE)[:, 0]


def cut(values: Tensor, places: Tensor) -> Tensor:
    """Return the windows (K, SIDE, SIDE, ...) of values (N, P, P, ...) at places (K, 3)."""
    windows = [
        values[patch, top : top + SIDE, left : left + SIDE] for patch, top, left in places.tolist()
    ]
    return torch.stack(windows) if windows else values[:0, :SIDE, :SIDE]


# ---------------------------------------------------------------- what tissue looks like


def measure(images: Tensor, holes: Tensor) -> Tensor:
    """Return mean red, green and blue, and the spread of the brightness, outside holes: (K, 4).

    images: uint8 (K, S, S, 3). holes: bool (K, S, S), of no window all of it.
    """
    seen = (~holes).float()[..., None]
    count = seen.sum((1, 2))  # (K, 1)
    colour = (images * seen).sum((1, 2)) / count
    grey = images.float().mean(-1, keepdim=True)
    off = (grey - colour.mean(1)[:, None, None, None]) * seen
    return torch.cat([colour, (off.square().sum((1, 2)) / count).sqrt()], 1)


def looks_of(patches: Patches, holes: Tensor, nuclei: Tensor) -> Looks:
    """Return the limits between which lie most windows with nuclei, by the tissue between them.

    nuclei: their places, (K, 3), at least one.
    """
    measures = measure(cut(patches.images, nuclei), cut(holes, nuclei))
    tail = (1 - MIDDLE) / 2
    return Looks(*torch.quantile(measures, torch.tensor([tail, 1 - tail]), dim=0))


# ---------------------------------------------------------------- the fills


def replace_nuclei(images: Tensor, masks: Tensor, fill: str) -> Tensor:
    """Return images, RGB uint8 (N, P, P, 3), with a fill of remove_foreground for their nuclei."""
    pairs = zip(images.numpy(), masks.numpy(), strict=True)
    return torch.stack([torch.from_numpy(remove_foreground(*pair, fill)) for pair in pairs])


def load_fill(cfg: Config, fold: int, device: torch.device) -> nn.Module:
    """Return the generator of a fold, in eval mode; its weights say how wide it is."""
    folder = fill_generator_folder(cfg, fold)
    weights = folder / WEIGHTS
    if not weights.is_file():
        again = command(cfg, "transfer/train_fill.py", FillConfig, folds=(fold,))
        raise UserError(f"{folder} holds no generator: run `{again}` first")
    with reading(weights), safe_open(weights, "pt") as file:
        channels = file.get_slice("mask.weight").get_shape()[1] // 4
    return load_generator(TransferConfig(channels=channels), folder, device)


@torch.inference_mode()
def fill_holes(generator: nn.Module, images: Tensor, holes: Tensor, device: torch.device) -> Tensor:
    """Return images, RGB uint8 (N, P, P, 3), with what the generator puts into their holes.

    holes: bool (N, P, P). Outside of them every pixel stays what it was. The generator's own mask
    does not count: where it misses a nucleus, its composite still shows it.
    """
    filled = []
    size = batch_size(device)
    for part, hole in zip(images.split(size), holes.split(size), strict=True):
        there = part.to(device).permute(0, 3, 1, 2).float()
        fake = (generator(scaled(there)).fake.float() + 1) * 127.5
        unknown = (hole | _padding(part)).to(device)[:, None]  # no colour comes from the black
        made = lay_on(fake, there, unknown).round().clamp(0, 255).to(torch.uint8)
        filled.append(torch.where(hole[..., None], made.permute(0, 2, 3, 1).cpu(), part))
    return torch.cat(filled)


def lay_on(fake: Tensor, images: Tensor, holes: Tensor) -> Tensor:
    """Return a fake (N, 3, P, P) that meets the images at the edges of holes, bool (N, 1, P, P).

    A generator keeps patterns better than colours. Inside a hole its fake is moved by a membrane
    that is spanned by the differences at the edge (Perez et al. 2003, Poisson image editing).
    """
    off = images - fake
    outside = (~holes).float()
    count = outside.sum((2, 3), keepdim=True).clamp_min(1)
    membrane = torch.where(holes, (off * outside).sum((2, 3), keepdim=True) / count, off)
    for _ in range(SPREAD):
        near = F.avg_pool2d(membrane, 3, 1, 1, count_include_pad=False)
        membrane = torch.where(holes, near, off)
    return fake + membrane
