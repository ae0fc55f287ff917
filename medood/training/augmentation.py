"""Augmentation of a batch on its device: the same for ID and OoD patches.

One grid_sample warps a whole batch, with a matrix of its own for each patch. It takes 0.2 ms a
patch on two cores, under 2 % of a training step. Kornia's equivalent chain took 1.9 ms, and 3 ms of
its batch are calls that no GPU shortens: more than a whole step on a GPU.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ZOOM = 1.25  # magnification, from 1 / ZOOM to ZOOM
SHIFT = 0.1  # of the patch's side, in both directions
PERSPECTIVE = 0.05  # change of depth from the centre to an edge
BRIGHTNESS = CONTRAST = SATURATION = 0.2  # factors from 1 - x to 1 + x
TINT = 0.05  # factors of the single colour channels
# optical density of hematoxylin, eosin and DAB in red, green and blue (Ruifrok and Johnston 2001)
STAINS = F.normalize(torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]))
RANDOM = 13  # random numbers for each patch
PARAMETERS = 14  # from them: a homography (9), the gain of each colour (3), two factors


def draw_augmentation(count: int, seed: int, stain: float = 0.0) -> Tensor:
    """Return random parameters for `count` patches, (count, PARAMETERS).

    stain: how much factor and offset of each stain vary (Tellez et al., "Whole-slide mitosis
    detection", IEEE TMI 2018: by 0.05); above 0, there are twelve columns more, see stains_of.

    They are drawn on the CPU, because other devices would draw other numbers, and for a whole epoch
    at once: on a GPU, launching so little arithmetic takes longer than the arithmetic.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = parameters_of(torch.rand(count, RANDOM, generator=generator) * 2 - 1)
    if not stain:
        return parameters
    random = torch.rand(count, 6, generator=generator) * 2 - 1
    return torch.cat([parameters, stains_of(stain * random)], 1)


def parameters_of(random: Tensor) -> Tensor:
    """Return the parameters, (N, PARAMETERS), of numbers in -1..1, (N, RANDOM); 0 is no change."""
    warp = _homography(random[:, :7]).flatten(1)
    brightness, saturation, contrast = random[:, 7:10].split(1, 1)
    gain = (1 + BRIGHTNESS * brightness) * (1 + TINT * random[:, 10:])
    return torch.cat([warp, gain, 1 + SATURATION * saturation, 1 + CONTRAST * contrast], 1)


def stains_of(change: Tensor) -> Tensor:
    """Return the change of the optical density: a matrix (9) and an offset (3), (N, 12).

    change: (N, 6), factor and offset of each stain, whose amount s becomes (1 + factor) s + offset.
    """
    factor, offset = change.split(3, 1)
    mixed = torch.linalg.inv(STAINS) @ ((1 + factor)[:, :, None] * STAINS)
    return torch.cat([mixed.flatten(1), offset @ STAINS], 1)


def augment(images: Tensor, masks: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Return augmented images (N, 3, P, P), float in 0..255, and their masks, int64.

    images: RGB uint8 (N, P, P, 3). masks: uint8 (N, P, P). parameters: as draw_augmentation
    returns them.
    """
    images = images.permute(0, 3, 1, 2).float()
    grid = _grid(parameters[:, :9].view(-1, 3, 3), images.shape[-1])
    # reflected borders: black ones would look like the holes of an OoD patch
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    masks = masks[:, None].float()
    masks = F.grid_sample(masks, grid, "nearest", padding_mode="reflection", align_corners=False)
    if parameters.shape[1] > PARAMETERS:
        images = restain(images, parameters[:, PARAMETERS:])
    images = _recolour(images, parameters[:, 9:PARAMETERS, None, None])
    return images, masks[:, 0].long()


def _homography(random: Tensor) -> Tensor:
    """Return (N, 3, 3), from coordinates in the result, -1..1, to the patch's, of (N, 7)."""
    flip, angle, zoom, shift_x, shift_y, tilt_x, tilt_y = random.unbind(1)
    mirror = torch.where(flip < 0, -1.0, 1.0)
    cos, sin = torch.cos(angle * math.pi), torch.sin(angle * math.pi)
    scale = ZOOM ** (-zoom)
    rows = [
        torch.stack([scale * cos * mirror, -scale * sin, 2 * SHIFT * shift_x], 1),
        torch.stack([scale * sin * mirror, scale * cos, 2 * SHIFT * shift_y], 1),
        torch.stack([PERSPECTIVE * tilt_x, PERSPECTIVE * tilt_y, torch.ones_like(zoom)], 1),
    ]
    return torch.stack(rows, 1)


def _grid(warp: Tensor, side: int) -> Tensor:
    """Return the grid (N, P, P, 2) of grid_sample for homographies (N, 3, 3)."""
    axis = (torch.arange(side, device=warp.device) + 0.5) * (2 / side) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], -1).reshape(1, -1, 3)
    mapped = points @ warp.transpose(1, 2)  # (N, P * P, 3)
    return (mapped[..., :2] / mapped[..., 2:]).reshape(len(warp), side, side, 2)


def _recolour(images: Tensor, parameters: Tensor) -> Tensor:
    """Return (N, 3, P, P) in 0..255 with changed light and stain; parameters: (N, 5, 1, 1)."""
    gain, saturation, contrast = parameters.split([3, 1, 1], 1)
    images = images * gain
    images = torch.lerp(images.mean(1, keepdim=True), images, saturation)
    level = images.mean((1, 2, 3), keepdim=True)
    return torch.lerp(level, images, contrast).clamp(0, 255)


def restain(images: Tensor, parameters: Tensor) -> Tensor:
    """Return (N, 3, P, P) in 0..255 with changed amounts of its stains; parameters: (N, 12)."""
    mixed, offset = parameters[:, :9].view(-1, 3, 3), parameters[:, 9:, None, None]
    density = -torch.log10((images + 1) / 256)
    density = torch.einsum("nij,nihw->njhw", mixed, density) + offset
    return (256 * 10**-density - 1).clamp(0, 255)
