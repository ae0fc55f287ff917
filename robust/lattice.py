"""The lattice network of ROG (Daza, Perez and Arbelaez, MICCAI 2021): nine layers, four levels.

A cell takes the sum of all that arrived at its level since the level's last cell, and passes its
result one level up, on, or one level down. Every convolution but the last full one is separable or
1 x 1 x 1, and none has a bias.

On a CPU, channels last, the depthwise layers compute in float32 and all else in bfloat16: in
bfloat16 a depthwise convolution takes several times as long there.
"""

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Stride = tuple[int, int, int]

STEM = 32  # channels
TOP = 64  # channels of level 0; each level below has twice as many
LAST = 8  # layer
TWO = (2, 2, 2)
# the cells in their order, (layer, level), and where each sends its result
CELLS = {
    **{(0, 0): "same down", (1, 1): "up same down"},
    **{(2, 0): "same down", (2, 2): "up same down"},
    **{(3, 1): "up same down", (3, 3): "up same"},
    **{(4, 0): "same down", (4, 2): "up same down"},
    **{(5, 1): "up same down", (5, 3): "up"},
    **{(6, 0): "same down", (6, 2): "up"},
    **{(7, 1): "up", (LAST, 0): "up"},
}


class Depthwise(nn.Conv3d):
    """A 3 x 3 x 3 convolution of one group per channel."""

    def __init__(self, channels: int, stride: Stride) -> None:
        super().__init__(channels, channels, 3, stride, 1, groups=channels, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        if features.device.type != "cpu":
            return super().forward(features)
        with torch.autocast("cpu", enabled=False):
            return super().forward(features.float())


class Norm(nn.InstanceNorm3d):
    """Instance normalisation with affine weights.

    On a CPU it is a batch normalisation of each image by itself: the same values in a third to a
    fifteenth of the time of torch's instance and group norms, which have no code for channels last.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, features: Tensor) -> Tensor:
        if features.device.type != "cpu":
            return super().forward(features)
        affine = self.weight, self.bias
        parts = [F.batch_norm(part, None, None, *affine, True) for part in features.split(1)]
        return torch.cat(parts)


def separable(ins: int, outs: int, stride: Stride = (1, 1, 1)) -> nn.Sequential:
    """Return a depthwise convolution, then a pointwise one, then the norm."""
    return nn.Sequential(Depthwise(ins, stride), pointwise(ins, outs), Norm(outs))


def pointwise(ins: int, outs: int, stride: Stride = (1, 1, 1)) -> nn.Conv3d:
    """Return a 1 x 1 x 1 convolution."""
    return nn.Conv3d(ins, outs, 1, stride, bias=False)


def projection(ins: int, outs: int, stride: Stride = (1, 1, 1)) -> nn.Sequential:
    """Return activation, pointwise convolution and norm: a way from one level to another."""
    return nn.Sequential(nn.SiLU(), pointwise(ins, outs, stride), Norm(outs))


def enlarge(features: Tensor, size: torch.Size) -> Tensor:
    """Return features (N, C, ...) upsampled to a size, trilinear."""
    return F.interpolate(features, size=size, mode="trilinear", align_corners=False)


class Cell(nn.Module):
    """A cell: (N, channels, ...) -> its result by direction; `up` is not upsampled yet."""

    def __init__(self, channels: int, directions: str, down: Stride) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.SiLU(), separable(channels, channels)),
            *(nn.SiLU(), separable(channels, channels)),
        )
        ways = {
            "up": lambda: projection(channels, channels // 2),
            "down": lambda: projection(channels, 2 * channels, down),
            "same": nn.Identity,
        }
        self.ways = nn.ModuleDict({name: ways[name]() for name in directions.split()})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        result = features + self.body(features)
        return {direction: way(result) for direction, way in self.ways.items()}


class Lattice(nn.Module):
    """float (N, modalities, X, Y, Z), normalised -> logits (N, classes, X, Y, Z)."""

    def __init__(
        self, modalities: int, classes: int, strides: tuple[Stride, Stride, Stride]
    ) -> None:
        """strides: of the two stems, and between levels 0, 1 and 2."""
        super().__init__()
        first, second, between = strides
        self.stem = nn.Sequential(
            *(separable(modalities, STEM), nn.SiLU()),
            *(separable(STEM, STEM, first), nn.SiLU()),
        )
        self.descent = nn.Sequential(
            *(separable(STEM, STEM), nn.SiLU()), separable(STEM, TOP, second)
        )
        self.cells = nn.ModuleList(
            Cell(TOP << level, directions, between if level < 2 else TWO)
            for (_, level), directions in CELLS.items()
        )
        self.head = nn.Sequential(
            nn.SiLU(), nn.Conv3d(STEM, STEM, 3, padding=1, bias=False), Norm(STEM)
        )
        self.classify = nn.Sequential(nn.SiLU(), pointwise(STEM, classes))

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        arrived = defaultdict(list, {0: [self.descent(stem)]})  # by level
        sizes = {-1: stem.shape[2:]}
        for cell, (_, level) in zip(self.cells, CELLS, strict=True):
            features = sum(arrived.pop(level))
            sizes[level] = features.shape[2:]
            for direction, result in cell(features).items():
                if direction == "up":
                    result = enlarge(result, sizes[level - 1])
                arrived[level + {"up": -1, "same": 0, "down": 1}[direction]].append(result)
        features = self.head(sum(arrived[-1]) + stem)
        return self.classify(enlarge(features, images.shape[2:]))
