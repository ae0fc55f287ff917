"""IRNet (Ahn, Cho and Kwak, CVPR 2019): its boundary branch, on a frozen encoder, and random walk.

Its other branch, the displacement field, tells two objects of one class apart: no mask here does.

An encoder is any function of images on the device, float (N, 3, P, P) in 0..255, that returns a
list of feature maps, shallow to deep.

A pair is two pixels closer than a radius. Of a stack (N, O, h, w), [n, o, y, x] is the pair of
pixel (y, x) and the one at half_plane(radius)[o] from it; it may be outside the image.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import dia_array
from torch import Tensor, nn

from config import Config
from medood.data.labels import BACKGROUND, UNSURE
from medood.models.network import Normalise
from weak.arrays import on_device
from weak.classifier import Classifier, Level
from weak.maps import MAP_STRIDE, placed

Encoder = Callable[[Tensor], Sequence[Tensor]]
Offset = tuple[int, int]

WEIGHTS = "model.safetensors"  # the name of its file
BOUNDARY, GROUP = 32, 8  # channels; those that are normalised together
# from the paper's implementation details, all at stride 4
TRAINING_RADIUS, WALK_RADIUS, BETA, STEPS = 10, 5, 10, 256


def encoder_of(cfg: Config, classifier: Classifier, device: torch.device) -> Encoder:
    """Return the encoder of a classifier in eval mode, with its normalisation."""
    normalise = Normalise(cfg.encoder).to(device)
    return lambda images: classifier.features(normalise(images))


class IRNet(nn.Module):
    """Feature maps -> logits of the class boundary (N, h, w): projected, enlarged, joined."""

    def __init__(self, levels: Sequence[Level]) -> None:
        """levels: the feature maps, shallow to deep."""
        super().__init__()
        projections = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(ins, BOUNDARY, 1, bias=False), nn.GroupNorm(BOUNDARY // GROUP, BOUNDARY)
            )
            for ins, _ in levels
        )
        self.boundary_levels = nn.ModuleDict({"levels": projections})  # as files name the weights
        self.boundary = nn.Conv2d(BOUNDARY * len(levels), 1, 1)
        self.shifts = [level.grid_shift for level in levels]

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """size: height and width of the result."""
        parts = zip(self.boundary_levels["levels"], features, self.shifts, strict=True)
        enlarged = [
            placed(project(part.float()), size, grid_shift) for project, part, grid_shift in parts
        ]
        return self.boundary(torch.cat(enlarged, 1).relu())[:, 0]


@torch.no_grad()
def boundaries(encoder: Encoder, irnet: IRNet, images: Tensor, device: torch.device) -> Tensor:
    """Return the class boundaries of images in 0..1, float32 (N, P / MAP_STRIDE, P / MAP_STRIDE).

    It is the mean of the predictions for an image and for its mirror image. images: RGB uint8
    (N, P, P, 3).
    """
    irnet.to(device).eval()
    size = images.shape[1] // MAP_STRIDE, images.shape[2] // MAP_STRIDE
    found = []
    for part in on_device(images, device, "  boundaries"):
        logits = irnet(encoder(torch.cat([part, part.flip(3)])), size)
        straight, mirrored = logits.sigmoid().chunk(2)
        found.append(((straight + mirrored.flip(2)) / 2).cpu())
    return torch.cat(found)


class Pairs(NamedTuple):
    """Which pairs are of which kind, bool (N, O, h, w) each; a pair with an unsure pixel is none.

    The kinds of the paper: P+fg, P+bg and P-.
    """

    foreground: Tensor  # of the same class
    background: Tensor  # both
    different: Tensor


def half_plane(radius: int) -> list[Offset]:
    """Return the offsets (dy, dx) shorter than `radius`, without 0, one of each opposite two."""
    return [
        (dy, dx)
        for dy in range(radius)
        for dx in range(1 - radius, radius)
        if (dy, dx) > (0, 0) and dy * dy + dx * dx < radius * radius
    ]


def line(offset: Offset) -> list[Offset]:
    """Return the pixels on the line from pixel (0, 0) to `offset`, both included.

    It contains each pixel whose square the straight line between both centres touches, even at a
    corner: no line passes through a wall whose pixels touch at corners. From the other end it is
    the same line. offset: of a half plane, so dy >= 0.
    """
    dy, dx = offset
    box = [(y, x) for y in range(dy + 1) for x in range(min(dx, 0), max(dx, 0) + 1)]
    return [(y, x) for y, x in box if 2 * abs(dy * x - dx * y) <= dy + abs(dx)]


def pairs(labels: Tensor, radius: int) -> Pairs:
    """Return the kinds of all pairs of pixels of labels, uint8 (N, h, w)."""
    own, padded = labels[:, None], _pad(labels, radius, UNSURE)
    partner = torch.stack([_at(padded, radius, offset) for offset in half_plane(radius)], 1)
    known = (own != UNSURE) & (partner != UNSURE)
    same = known & (own == partner)
    is_background = own == BACKGROUND
    return Pairs(same & ~is_background, same & is_background, known & ~same)


def highest(values: Tensor, radius: int, outside: float) -> Tensor:
    """Return the highest of values (N, h, w) on each pair's line, (N, O, h, w), differentiable.

    outside: the value outside the image, no lower than any inside. The gradient goes to the highest
    pixel, to one of them if there are several.
    """
    padded = _pad(values, radius, outside)
    ordered, order = padded.flatten(1).sort(dim=1, stable=True)
    # ranks need no gradient: one through every maximum takes five times as long as all of this
    rank = order.argsort(1).int().view_as(padded)
    lines = ([_at(rank, radius, pixel) for pixel in line(offset)] for offset in half_plane(radius))
    ranks = torch.stack([reduce(torch.maximum, pixels) for pixels in lines], 1)
    return ordered.gather(1, ranks.flatten(1).long()).view(ranks.shape)


def _pad(values: Tensor, radius: int, outside: float) -> Tensor:
    """Return values (N, h, w) with room for every partner: (N, h + r - 1, w + 2 * (r - 1))."""
    margin = radius - 1
    return F.pad(values, (margin, margin, 0, margin), value=outside)


def _at(padded: Tensor, radius: int, offset: Offset) -> Tensor:
    """Return the values at an offset from each pixel, (N, h, w), of what _pad returns."""
    (dy, dx), margin = offset, radius - 1
    height, width = padded.shape[1] - margin, padded.shape[2] - 2 * margin
    return padded[:, dy : dy + height, margin + dx : margin + dx + width]


def affinity_loss(logits: Tensor, kinds: Pairs, radius: int) -> Tensor:
    """Return the scalar loss of the boundary, L^B of the paper.

    It is the mean of -log a over P+fg, halved, that over P+bg, halved, and that of -log(1 - a) over
    P-, where a is the pair's affinity. A kind without any pair costs nothing.

    logits: of the boundary, before the sigmoid, (N, h, w). kinds: as `pairs` returns them.
    """
    top = highest(logits, radius, outside=torch.inf)
    # the sigmoid keeps the order, so a = 1 - sigmoid(top): exact where a is 0 or 1 to the last bit
    alike, apart = F.softplus(top), F.softplus(-top)  # -log a, -log(1 - a)
    same = _mean(alike, kinds.foreground) + _mean(alike, kinds.background)
    return same / 2 + _mean(apart, kinds.different)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of the chosen values, 0 if there are none."""
    return torch.where(chosen, values, 0).sum() / chosen.sum().clamp_min(1)


def transition(boundary: Tensor, radius: int = WALK_RADIUS, beta: float = BETA) -> dia_array:
    """Return the transition matrix of the random walk, float64 (h * w, h * w).

    It is affinity^beta between all pixels closer than `radius`, 1 between a pixel and itself, with
    columns that sum to 1. A pixel without neighbours keeps its value. Affinity is 1 - the highest
    boundary on the line of a pair.

    boundary: (h, w) in 0..1.
    """
    height, width = boundary.shape
    size = height * width
    top = highest(boundary[None].cpu().double(), radius, outside=1)[0]
    strength = (1 - top).pow(beta).flatten(1).numpy()
    bands = {0: np.ones(size)}
    for (dy, dx), values in zip(half_plane(radius), strength, strict=True):
        if dy < height and abs(dx) < width:  # else no pixel has this partner
            step = dy * width + dx
            # a narrow image has several partners at one step, each pixel at most one of them
            bands[-step] = bands.get(-step, 0) + values
            bands[step] = bands.get(step, 0) + np.roll(values, step)
    data = np.stack(list(bands.values()))
    return dia_array((data / data.sum(0), list(bands)), shape=(size, size))


def walk(
    maps: Tensor,
    boundary: Tensor,
    steps: int = STEPS,
    radius: int = WALK_RADIUS,
    beta: float = BETA,
) -> Tensor:
    """Return maps that spread by a random walk up to the boundaries, float32 (C, h, w).

    It is vec(M * (1 - B)) T^steps: in a step each pixel takes the mean of its neighbours and itself
    by their affinity^beta, so values stay between the lowest and the highest.

    maps: (C, h, w). boundary: (h, w) in 0..1.
    """
    # banded, step by step: the published way squares the full matrix, which takes far longer
    matrix = transition(boundary, radius, beta).T
    values = (maps * (1 - boundary)).flatten(1).cpu().double().numpy()
    for index, row in enumerate(values):
        for _ in range(steps):
            row = matrix @ row
        values[index] = row
    return torch.from_numpy(values).float().view(maps.shape)
